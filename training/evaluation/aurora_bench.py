"""Edits the samples of AURORA-Bench with a world model, verified, and compares what comes out.

    python -m training.evaluation.aurora_bench AURORA_BENCH --checkpoint CHECKPOINT --out runs/aurora_bench -k 4

OUT then holds what a judge reads, with paths relative to it:

    samples.jsonl           id, task, instruction, before, output, target (null where the benchmark has none)
    images/ID/before.png    before, target: the square that the model saw, at the size of its output, so that what
              output.png    is compared shows the same view
              target.png
    rows.jsonl              the same with the verifier's figures of the best candidate: score, margin, changed; and
                            changed_tokens, the share of its image tokens that differ from the image before
    summary.json, tables.md these by task
    similarity.*            see `training.evaluation.similarity`

A sample without target is edited, and left out of the comparison. An interrupted run goes on after the last sample.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from bwm_pipelines import ChameleonWorldModelPipeline, default_checkpoint
from bwm_pipelines.images import open_image, square
from bwm_pipelines.new_files import new_files
from training.evaluation import similarity
from training.evaluation.aurora_bench_data import read_test_set
from training.evaluation.intervals import mean, proportion, text
from training.evaluation.rows import claim, describe_run, fingerprint, resume_rows, write_json

SAMPLE_KEYS = ("id", "task", "instruction", "before", "output", "target")


class Editor:
    """Edits samples into a folder.

    Args:
        world: the world model, with its verifier if the output is to be verified.
        out: folder of the pictures.
        num_candidates: K; the best one is kept.
        seed: with a sample's id it decides its candidates.
    """

    def __init__(self, world: ChameleonWorldModelPipeline, out: Path, num_candidates: int, seed: int):
        self.world, self.out, self.num_candidates, self.seed = world, out, num_candidates, seed

    def __call__(self, sample: dict) -> dict:
        """Writes the sample's pictures and returns its row. Without a dynamics model the figures of the verifier are None."""
        before = open_image(sample["before"])
        edit = self.world(
            before,
            sample["instruction"],
            num_candidates=self.num_candidates,
            generator=torch.Generator().manual_seed(sample_seed(self.seed, sample["id"])),
        )
        output = edit.images[0]
        pictures = {"before": square(before, output.width), "output": output}
        if sample["target"] is not None:
            pictures["target"] = square(open_image(sample["target"]), output.width)
        folder = Path("images") / sample["id"]
        with new_files(self.out / folder) as new:
            for name, picture in pictures.items():
                picture.save(new / f"{name}.png")
        paths = {name: str(folder / f"{name}.png") for name in pictures}
        unedited = self.world.encode_images(before)[0]
        return {
            "id": sample["id"],
            "task": sample["task"],
            "instruction": sample["instruction"],
            **{name: paths.get(name) for name in ("before", "output", "target")},
            "score": edit.scores and edit.scores[0],
            "margin": edit.margins and edit.margins[0],
            "changed": edit.changed and edit.changed[0],
            "changed_tokens": (edit.codes[0] != unedited).float().mean().item(),
        }


def sample_seed(seed: int, sample_id: str) -> int:
    """The seed of one sample's candidates: another one for each sample and each run's `seed`."""
    return int(np.random.default_rng([seed, *sample_id.encode()]).integers(2**62))


def choose_samples(samples: list[dict], tasks: list[str] | None, limit: int | None) -> list[dict]:
    """The first `limit` samples of each of the tasks, all of them for None.

    Raises:
        ValueError: the benchmark has no such task.
    """
    known = list(dict.fromkeys(sample["task"] for sample in samples))
    if unknown := set(tasks or []) - set(known):
        raise ValueError(f"`tasks` must be among {', '.join(known)}, got {', '.join(sorted(unknown))}.")
    return [s for task in tasks or known for s in [s for s in samples if s["task"] == task][:limit]]


def summarise(rows: list[dict]) -> dict:
    """Task, and "all tasks" -> figures."""
    by_task = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    return {task: figures(part) for task, part in {**by_task, "all tasks": rows}.items()}


def figures(rows: list[dict]) -> dict:
    verified = [row for row in rows if row["score"] is not None]
    return {
        "samples": len(rows),
        "with_target": sum(row["target"] is not None for row in rows),
        "score": mean(row["score"] for row in verified),
        "margin": mean(row["margin"] for row in verified),
        "changed": proportion(row["changed"] for row in verified),
        "changed_tokens": mean(row["changed_tokens"] for row in rows),
        "copies": proportion(row["changed_tokens"] == 0 for row in rows),
    }


def tables(summary: dict) -> str:
    """The verifier's figures by task as a Markdown table."""
    columns = {
        "score": "verifier's score, nats",
        "margin": "margin over unchanged",
        "changed": "margin above 0",
        "changed_tokens": "share of tokens changed",
        "copies": "unchanged copies",
    }
    lines = [
        f"| task | n | {' | '.join(columns.values())} |",
        f"|---|---|{'---|' * len(columns)}",
        *(
            f"| {task} | {cells['samples']} | {' | '.join(text(cells[column]) for column in columns)} |"
            for task, cells in summary.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def write_samples(out: Path, rows: list[dict]) -> None:
    """Writes `samples.jsonl`, what a judge reads."""

    lines = [json.dumps({key: row[key] for key in SAMPLE_KEYS}) + "\n" for row in rows]
    with new_files(out) as folder:
        (folder / "samples.jsonl").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aurora_bench", type=Path, help="root of AURORA-Bench, with test.json")
    parser.add_argument(
        "--checkpoint", default=str(default_checkpoint()), help="pipeline folder; default: the embedded one"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, rows and tables")
    parser.add_argument("-k", "--num-candidates", type=int, default=1, help="K, of which the best is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", help="default: all of the benchmark")
    parser.add_argument("--limit", type=int, help="samples of each task; default: all")
    similarity.add_network_arguments(parser)
    args = parser.parse_args()
    samples = choose_samples(read_test_set(args.aurora_bench), args.tasks, args.limit)
    networks = similarity.load_networks(args)
    settings = {
        name: str(getattr(args, name)) for name in ("aurora_bench", "num_candidates", "seed", "tasks", "limit")
    }
    claim(args.out, settings | {"checkpoint": fingerprint(args.checkpoint)})
    world = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint)
    world.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    editor = Editor(world, args.out, args.num_candidates, args.seed)
    rows = resume_rows(args.out / "rows.jsonl", samples, lambda batch: list(map(editor, batch)), unit="sample")
    write_samples(args.out, rows)
    summary = summarise(rows)
    write_json(args.out, "summary.json", describe_run("training.evaluation.aurora_bench") | {"tasks": summary})
    with new_files(args.out) as folder:
        (folder / "tables.md").write_text(tables(summary))
    print(tables(summary))
    print(similarity.tables(similarity.measure_folder(args.out, networks)))


if __name__ == "__main__":
    main()
