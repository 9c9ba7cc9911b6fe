"""How whole the things are in what a checkpoint picks: how far each pick is from the nearest rendering.

    python -m training.evaluation.shapes --episodes 200 --workers 2 --out runs/playroom/shapes

The pictures are those that `training.evaluation.outcomes` picks of eight. The things that the commanded action moves are moved and
turned until the room looks most like the picture (`training.playroom.render_and_compare`, the best of two searches). What then still
differs, relative to the true change, no rendering shows: bent, pinched and melted things, ghosts, colours of others. Unlike
`training.evaluation.over_editing` it forgives any place. Two readers who were not told what was imagined (`acceptance`) accepted 55 of
64 picks of two checkpoints that lie below `WHOLE`, and 6 of 36 others; the limit was chosen on these.

`rows.jsonl` takes one line an episode and an interrupted run goes on after the last; `summary.json` holds the figures.
"""

import json

import numpy as np

from training.evaluation import outcomes
from training.evaluation.intervals import mean, proportion
from training.evaluation.rows import describe_run, write_json
from training.playroom.episodes import commands_held_out, play_episode
from training.playroom.render_and_compare import nearest_rendering
from training.playroom.room import Room
from training.playroom.scenes import sample_scene

WHOLE = 0.07
SEARCHES = 2  # each may end in a place that is not the nearest


def figures(rows: list[dict]) -> dict:
    """Mean distance of the picks from the nearest rendering, and the share that is whole."""
    return {
        "distance": mean(row["distance"] for row in rows),
        "whole": proportion(row["distance"] < WHOLE for row in rows),
    }


class Worker(outcomes.Worker):
    """Has a room besides that renders faster."""

    @classmethod
    def start(cls, checkpoint: str) -> None:
        super().start(checkpoint)
        cls.rooms = cls.room, Room(rough=True)

    @classmethod
    def evaluate(cls, scene: int, *, split: str, seed: int) -> dict:
        episode = play_episode(cls.rooms[0], split, scene, cls.world.config.image_size)
        cls.rooms[1].load(sample_scene(episode.seed))
        commanded, action, output = outcomes.imagine_episode(cls.world, episode, seed)
        outcome = episode.outcomes[commanded]
        picture = (255 * output.images[0]).round().astype(np.uint8)
        change = np.abs(outcome.after.astype(np.int16) - episode.before).sum()
        states = episode.state, outcome.state
        found = [
            nearest_rendering(*cls.rooms, *states, picture, np.random.default_rng([scene, n])) for n in range(SEARCHES)
        ]
        distance = min(np.abs(one.astype(np.int16) - picture).sum() for one in found) / change
        return {
            "scene": episode.seed,
            "verb": outcome.action.verb,
            "action": action,
            "held_out": commands_held_out(outcome.action),
            "distance": round(float(distance), 4),
        }


def main() -> None:
    args = outcomes.read_arguments(__doc__, episodes=200)
    about = describe_run("training.evaluation.shapes") | {"seed": args.seed}
    rows = outcomes.run(args, Worker)
    summary = {**about, "episodes": len(rows), **outcomes.by_part(rows, figures)}
    write_json(args.out, "summary.json", summary)
    print(json.dumps(summary["all"], indent=1))


if __name__ == "__main__":
    main()
