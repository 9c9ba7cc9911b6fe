"""How long an imagined rollout stays true: actions follow one another, each imagined from the picture imagined before.

    python -m training.evaluation.rollouts --episodes 50 --out runs/rollouts

In each test scene the simulator plays a row of actions. A step succeeds if its imagined picture is nearer to the true state
after that step than to what any other action would have made of the true state before it, and to no change at all. The
verifier picks one of `--num-candidates` at each step; the tokens of its pick are the next step's image.

`rows.jsonl` takes one line an episode and an interrupted run goes on after the last; `summary.json` holds, for each step, the
share of episodes in which it succeeded, and in which it and all before it did, with 95 % Wilson intervals.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, default_checkpoint
from training.evaluation.intervals import proportion
from training.evaluation.outcomes import draw_command, nearest_rival, rival_pictures
from training.evaluation.rows import claim, describe_run, fingerprint, resume_rows, write_json
from training.playroom.episodes import visible_outcomes
from training.playroom.physics import play
from training.playroom.room import Room
from training.playroom.scenes import sample_scene, scene_seed


def evaluate_rollout(
    pipe: ChameleonWorldModelPipeline, room: Room, scene: int, *, steps: int, num_candidates: int, seed: int
) -> dict:
    """One row: the actions, and which steps succeeded."""
    rng, generator = np.random.default_rng([scene, seed]), torch.Generator().manual_seed(scene + seed)
    room.load(sample_scene(scene))
    row = {"scene": scene, "actions": [], "success": []}
    imagined, shown = None, None
    for _ in range(steps):
        state, before = room.save(), room.render(pipe.config.image_size)
        outcomes = visible_outcomes(room, state, before, room.possible_actions())
        commanded, action = draw_command(rng, outcomes)
        scenery = Image.fromarray(before) if imagined is None else imagined
        output = pipe(
            scenery,
            action,
            num_candidates=num_candidates,
            generator=generator,
            reference_image=shown,
            output_type="np",
        )
        imagined, shown = output.codes[:1], output.images[:1]
        row["actions"].append(action)
        row["success"].append(nearest_rival(rival_pictures(before, outcomes), output.images[0]) == commanded)
        room.restore(state)
        play(room, outcomes[commanded].action)
    return row


def summarise(rows: list[dict], about: dict) -> dict:
    steps = range(1, len(rows[0]["success"]) + 1)
    return {
        **about,
        "episodes": len(rows),
        "step": {n: proportion(row["success"][n - 1] for row in rows) for n in steps},
        "all_steps_to": {n: proportion(all(row["success"][:n]) for row in rows) for n in steps},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", default=str(default_checkpoint()), help="pipeline folder; default: the embedded one"
    )
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6, help="actions in a row")
    parser.add_argument("--num-candidates", type=int, default=8, help="the verifier picks one of so many at each step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl and summary.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {"steps": args.steps, "num_candidates": args.num_candidates, "seed": args.seed}
    claim(args.out, settings | {"checkpoint": fingerprint(args.checkpoint)})
    pipe, room = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint), Room()
    pipe.set_progress_bar_config(disable=True)
    rows = resume_rows(
        args.out / "rows.jsonl",
        [scene_seed("test", index) for index in range(args.episodes)],
        lambda scenes: [evaluate_rollout(pipe, room, scene, **settings) for scene in scenes],
        unit="episode",
    )
    summary = summarise(rows, describe_run("training.evaluation.rollouts"))
    write_json(args.out, "summary.json", summary)
    print(json.dumps(summary["all_steps_to"], indent=1))


if __name__ == "__main__":
    main()
