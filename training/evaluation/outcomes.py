"""Outcome accuracy and naming accuracy of a checkpoint on held-out playroom episodes.

    python -m training.evaluation.outcomes --episodes 400 --out runs/playroom/evaluation

In each test scene one action is commanded. Every possible action is played from that state by the simulator, so success
needs no judge: a generated picture counts as a success if, among the true outcomes of all actions and "nothing changed",
it is nearest (mean squared error over pixels) to the outcome of the commanded one. Chance is 1 / number of outcomes. That is
kinder than the eye, so a clean success is one in which, besides, nothing visible changed elsewhere, and an exact one is a
clean one whose things have shape, place and colour of the true outcome (`over_editing`). Well formed is a picture whose things are
whole, of their shape and colour, if perhaps displaced.

`rows.jsonl` takes one line an episode and an interrupted run goes on after the last; `summary.json` holds the figures with
95 % Wilson intervals; `per_verb.png` plots them.
"""

import argparse
import json
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline, WorldModelOutput, default_checkpoint
from training.evaluation.intervals import mean, proportion
from training.evaluation.over_editing import MALFORMED, MISDRAWN, changed_elsewhere, is_clean, malformed, misdrawn
from training.evaluation.rows import claim, describe_run, fingerprint, resume_rows, write_json
from training.playroom.actions import PARAPHRASES, fold
from training.playroom.episodes import Episode, Outcome, choose_balanced, commands_held_out, play_episode
from training.playroom.room import Room
from training.workers import end_with_parent

CANDIDATE_COUNTS = (1, 2, 4, 8)


def evaluate_episode(
    world: ChameleonWorldModelPipeline, verifier: DynamicsVerifierPipeline, episode: Episode, seed: int
) -> dict:
    """One row: what was commanded, which candidates succeeded, how the verifier ranked them, what it calls the truth."""
    commanded, action, output = imagine_episode(world, episode, seed)
    command, truth = episode.outcomes[commanded].action, episode.outcomes[commanded].after
    rivals = rival_pictures(episode.before, episode.outcomes)
    nearest = [nearest_rival(rivals, image) for image in output.images]
    by_sampling_order = sorted(range(len(nearest)), key=lambda rank: output.order[rank])
    shown = shown_outcome(world, episode.before, truth)
    truths = shown, episode.before, truth
    elsewhere = [changed_elsewhere(image, *truths) for image in output.images]
    errors = [misdrawn(image, *truths) for image in output.images]
    unexplained = [malformed(image, *truths) for image in output.images]
    seen = truth.astype(np.float32) / 255  # by a camera, not through the tokenizer
    from_truth = [misdrawn(image, seen, episode.before, truth) for image in output.images]
    return {
        "scene": episode.seed,
        "verb": command.verb,
        "action": action,
        "held_out": commands_held_out(command),
        "outcomes": len(rivals),
        "success": [nearest[i] == commanded for i in by_sampling_order],
        "copy": [nearest[i] == len(rivals) - 1 for i in by_sampling_order],
        "elsewhere": [round(elsewhere[i], 5) for i in by_sampling_order],
        "misdrawn": [round(errors[i], 4) for i in by_sampling_order],
        "malformed": [round(unexplained[i], 4) for i in by_sampling_order],
        "from_truth": [round(from_truth[i], 4) for i in by_sampling_order],
        "scores": [output.scores[i] for i in by_sampling_order],
        "margins": [output.margins[i] for i in by_sampling_order],
        "named": verifier.name_action(Image.fromarray(episode.before), Image.fromarray(truth)).action,
        "truth": command.phrase(),
        "psnr": _psnr(world, [episode.before, truth]),
        "tokenizer_nearest": nearest_rival(rivals, shown) == commanded,
    }


def imagine_episode(
    world: ChameleonWorldModelPipeline, episode: Episode, seed: int
) -> tuple[int, str, WorldModelOutput]:
    """Which outcome is commanded, in which words, and the candidates for it, best first, as float [K, H, W, 3] in [0, 1]."""
    commanded, action = draw_command(np.random.default_rng([episode.seed, seed]), episode.outcomes)
    output = world(
        Image.fromarray(episode.before),
        action,
        num_candidates=max(CANDIDATE_COUNTS),
        generator=torch.Generator().manual_seed(episode.seed + seed),
        output_type="np",
    )
    return commanded, action, output


def draw_command(rng: np.random.Generator, outcomes: Sequence[Outcome]) -> tuple[int, str]:
    """Which outcome is commanded, balanced over verbs, and in which words."""
    actions = [outcome.action for outcome in outcomes]
    (command,) = choose_balanced(rng, actions, 1)
    return actions.index(command), command.say(rng)


def rival_pictures(before: np.ndarray, outcomes: Sequence[Outcome]) -> np.ndarray:
    """What the room may look like: after each action, and last unchanged; float32 [R, H, W, 3] in [0, 1]."""
    return np.stack([outcome.after for outcome in outcomes] + [before]).astype(np.float32) / 255


def nearest_rival(rivals: np.ndarray, image: np.ndarray) -> int:
    """Index of the picture of [R, H, W, 3] with the least mean squared error from [H, W, 3]."""
    return int(np.square(rivals - image).mean((1, 2, 3)).argmin())


def pictures_of(world: ChameleonWorldModelPipeline, codes: torch.Tensor) -> np.ndarray:
    """Codes, int64 [B, N] -> pictures as the image tokenizer shows them, float [B, H, W, 3] in [0, 1]."""
    return _to_arrays(world.decode_images(codes))


def shown_outcome(world: ChameleonWorldModelPipeline, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The picture that the checkpoint shows for the codes of a true outcome: uint8 [H, W, 3] -> float in [0, 1]."""
    codes = world.encode_images(Image.fromarray(after))
    return _to_arrays(world.decode_images(codes, world.prepare_references(Image.fromarray(before), 1)))[0]


def _to_arrays(pixels: torch.Tensor) -> np.ndarray:
    return (pixels / 2 + 0.5).permute(0, 2, 3, 1).numpy()


def _psnr(world: ChameleonWorldModelPipeline, images: list[np.ndarray]) -> float:
    """Mean PSNR in dB of the image tokenizer on uint8 pictures [H, W, 3]."""
    again = pictures_of(world, world.encode_images([Image.fromarray(image) for image in images]))
    error = np.square(again - np.stack(images) / 255.0).mean((1, 2, 3))
    return float((-10 * np.log10(error)).mean())


def picked(row: dict, count: int) -> int:
    """Which of the first `count` candidates the verifier prefers."""
    return max(range(count), key=lambda i: row["scores"][i])


def clean_success(row: dict, candidate: int) -> bool:
    return row["success"][candidate] and is_clean(row["elsewhere"][candidate])


def exact_success(row: dict, candidate: int) -> bool:
    return clean_success(row, candidate) and row["misdrawn"][candidate] <= MISDRAWN


def well_formed(row: dict, candidate: int) -> bool:
    return row["malformed"][candidate] <= MALFORMED


def error_from_truth(row: dict, candidate: int) -> float:
    """Error around the true change, relative to it, at most 1: from the true picture, which image tokenizers show unequally well."""
    return min(1.0, row["from_truth"][candidate])


def figures(rows: list[dict]) -> dict:
    """Outcome accuracy at each K, verified and by an oracle; clean and exact successes; pictures that are well formed; errors around
    the change, in percent of it; what changed elsewhere, in percent of the picture; copies; naming accuracy.
    """
    return {
        **{f"verified_k{k}": proportion(row["success"][picked(row, k)] for row in rows) for k in CANDIDATE_COUNTS},
        "oracle_k8": proportion(any(row["success"]) for row in rows),
        "clean_k1": proportion(clean_success(row, 0) for row in rows),
        "clean_k8_verified": proportion(clean_success(row, picked(row, 8)) for row in rows),
        "exact_k1": proportion(exact_success(row, 0) for row in rows),
        "exact_k8_verified": proportion(exact_success(row, picked(row, 8)) for row in rows),
        "exact_oracle_k8": proportion(any(exact_success(row, i) for i in range(8)) for row in rows),
        "well_formed_k1": proportion(well_formed(row, 0) for row in rows),
        "well_formed_k8_verified": proportion(well_formed(row, picked(row, 8)) for row in rows),
        "well_formed_oracle_k8": proportion(any(well_formed(row, i) for i in range(8)) for row in rows),
        "error_from_truth_k1": mean(100 * error_from_truth(row, 0) for row in rows),
        "error_from_truth_k8_verified": mean(100 * error_from_truth(row, picked(row, 8)) for row in rows),
        "changed_elsewhere_k1": mean(100 * row["elsewhere"][0] for row in rows),
        "changed_elsewhere_k8_verified": mean(100 * row["elsewhere"][picked(row, 8)] for row in rows),
        "copies_k1": proportion(row["copy"][0] for row in rows),
        "copies_k8_verified": proportion(row["copy"][picked(row, 8)] for row in rows),
        "named_exactly": proportion(fold(row["named"]) == row["truth"] for row in rows),
        "tokenizer_nearest": proportion(row["tokenizer_nearest"] for row in rows),
    }


def summarise(rows: list[dict], about: dict) -> dict:
    return {
        **about,
        "episodes": len(rows),
        "chance_percent": round(100 * float(np.mean([1 / row["outcomes"] for row in rows])), 1),
        "psnr_db": round(float(np.mean([row["psnr"] for row in rows])), 2),
        **by_part(rows, figures),
        "paired_k1_k8": paired(rows),
    }


def by_part(rows: list[dict], figures: Callable[[list[dict]], dict]) -> dict:
    """Figures of all rows, of those of held-out and other combinations, of those that move a thing or not, and of each verb."""
    by_verb = defaultdict(list)
    for row in rows:
        by_verb[row["verb"]].append(row)
    return {
        "all": figures(rows),
        "held_out_combinations": figures([row for row in rows if row["held_out"]]),
        "seen_combinations": figures([row for row in rows if not row["held_out"]]),
        "moving_a_thing": figures([row for row in rows if moves_a_thing(row["verb"])]),
        "door_drawer_lamp": figures([row for row in rows if not moves_a_thing(row["verb"])]),
        "per_verb": {verb: figures(by_verb[verb]) for verb in sorted(by_verb)},
    }


def moves_a_thing(verb: str) -> bool:
    return "{x}" in PARAPHRASES[verb][0]


def paired(rows: list[dict]) -> dict:
    """Episodes that the verified pick of 8 gains and loses against the first candidate, and where it misses a success."""
    first, best = ([row["success"][picked(row, k)] for row in rows] for k in (1, 8))
    missed = [row["verb"] for row, success in zip(rows, best, strict=True) if any(row["success"]) and not success]
    return {
        "gained": sum(b and not a for a, b in zip(first, best, strict=True)),
        "lost": sum(a and not b for a, b in zip(first, best, strict=True)),
        "missed": len(missed),
        "missed_per_verb": dict(Counter(missed).most_common()),
    }


def plot_per_verb(summary: dict, path: Path) -> None:
    """Bars of outcome accuracy per verb at K = 1 and K = 8, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    verbs = {"all verbs": summary["all"], **summary["per_verb"]}
    figure, axes = plt.subplots(figsize=(10, 4.2))
    for offset, key, label, colour in (
        (-0.2, "verified_k1", "K = 1", "#b8c4d0"),
        (0.2, "verified_k8", "K = 8, verified", "#2b6cb0"),
    ):
        cells = [verbs[verb][key] for verb in verbs]
        values = [cell["percent"] for cell in cells]
        errors = [[c["percent"] - c["low"] for c in cells], [c["high"] - c["percent"] for c in cells]]
        axes.bar(
            np.arange(len(verbs)) + offset, values, 0.38, yerr=errors, label=label, color=colour, error_kw={"lw": 0.8}
        )
    axes.axhline(summary["chance_percent"], color="#888", lw=0.8, ls="--", label="chance")
    axes.set_xticks(
        range(len(verbs)),
        [f"{verb}\n(n={verbs[verb]['verified_k1']['n']})" for verb in verbs],
        rotation=60,
        ha="right",
    )
    axes.set_ylabel("outcome accuracy, %")
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def read_arguments(description: str, episodes: int) -> argparse.Namespace:
    """Arguments of an evaluation of a checkpoint on so many episodes; claims the folder that takes its results.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", default=str(default_checkpoint()), help="pipeline folder; default: the embedded one"
    )
    parser.add_argument("--episodes", type=int, default=episodes)
    parser.add_argument("--first", type=int, default=0, help="index of the first scene of the split")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in ("first", "split", "seed")}
    claim(args.out, settings | {"checkpoint": fingerprint(args.checkpoint)})
    return args


def main() -> None:
    args = read_arguments(__doc__, episodes=400)
    about = describe_run("training.evaluation.outcomes") | {"seed": args.seed}
    summary = summarise(run(args, Worker), about)
    write_json(args.out, "summary.json", summary)
    plot_per_verb(summary, args.out / "per_verb.png")
    print(json.dumps({"psnr_db": summary["psnr_db"], **summary["all"]}, indent=1))


def run(args: argparse.Namespace, worker: type) -> list[dict]:
    """Evaluates the episodes that `rows.jsonl` does not hold yet, in processes that a `Worker` sets up; returns all rows."""
    scenes = range(args.first, args.first + args.episodes)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, spawn, initializer=worker.start, initargs=(args.checkpoint,)) as pool:
        evaluate = partial(worker.evaluate, split=args.split, seed=args.seed)
        return resume_rows(
            args.out / "rows.jsonl",
            scenes,
            lambda some: list(pool.map(evaluate, some)),
            unit="episode",
            batch_size=2 * args.workers,
        )


class Worker:
    """What a process keeps between two episodes: the pipelines and the room."""

    @classmethod
    def start(cls, checkpoint: str) -> None:
        end_with_parent()
        torch.set_num_threads(1)
        cls.world = ChameleonWorldModelPipeline.from_pretrained(checkpoint)
        cls.verifier = DynamicsVerifierPipeline.from_pipe(cls.world)
        cls.room = Room()
        for pipe in (cls.world, cls.verifier):
            pipe.set_progress_bar_config(disable=True)

    @classmethod
    def evaluate(cls, scene: int, *, split: str, seed: int) -> dict:
        episode = play_episode(cls.room, split, scene, cls.world.config.image_size)
        return evaluate_episode(cls.world, cls.verifier, episode, seed)


if __name__ == "__main__":
    main()
