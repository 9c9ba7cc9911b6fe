"""AURORA-Bench as it is published: `test.json`, the pictures it names, and the contrasts of `disc_edit_data`.

Evaluation only, never training.
"""

import json
from pathlib import Path

from datasets import Dataset, Image


def is_aurora_bench(folder: Path) -> bool:
    return (folder / "test.json").is_file()


def read_test_set(folder: Path) -> list[dict]:
    """The samples in the order of `test.json`.

    Each has `id` (made of task and number, as not all have one of their own), `task`, `instruction`, and the paths `before` and
    `target`; the target is None where the benchmark has none or its file is missing.

    Raises:
        ValueError: `folder` is not AURORA-Bench, or a sample has no instruction or no picture before.
    """
    if not is_aurora_bench(folder):
        raise ValueError(f"`folder` {str(folder)!r} holds no test.json; name the root of AURORA-Bench.")
    samples = []
    for number, row in enumerate(json.loads((folder / "test.json").read_text())):
        before, target = folder / row["input"], folder / row["output"] if row.get("output") else None
        if not before.is_file() or not row["instruction"].strip():
            raise ValueError(f"`folder`: sample {number} of test.json lacks its picture or instruction; get it whole.")
        samples.append(
            {
                "id": f"{row['task']}-{number:03d}",
                "task": row["task"],
                "instruction": row["instruction"],
                "before": before,
                "target": target if target is not None and target.is_file() else None,
            }
        )
    return samples


def read_contrasts(folder: Path) -> dict[tuple[str, str], str]:
    """(task, instruction) -> the instruction that `disc_edit_data` sets against it.

    An entry with `neg` sets `pos` and `neg` against each other, one without sets `prompt` and `pos`. (`pos` names what holds
    without an edit, so that "open waste basket" stands against "close waste basket".)
    """
    contrasts = {}
    for path in sorted((folder / "disc_edit_data").glob("*/*.json")):
        for entry in json.loads(path.read_text()):
            pair = (entry.get("pos"), entry["neg"] if "neg" in entry else entry.get("prompt"))
            if all(pair):
                for instruction, other in (pair, pair[::-1]):
                    contrasts.setdefault((path.parent.name, instruction), other)
    return contrasts


def load_aurora_bench(folder: Path) -> Dataset:
    """The samples that have a target as triplets, with the column `counterfactual`: the contrast or None."""
    contrasts = read_contrasts(folder)
    rows = [
        {
            "id": sample["id"],
            "scene": str(sample["before"]),
            "before": str(sample["before"]),
            "after": str(sample["target"]),
            "action": sample["instruction"],
            "source": f"aurora-bench/{sample['task']}",
            "class": sample["task"],
            "counterfactual": contrasts.get((sample["task"], sample["instruction"])),
        }
        for sample in read_test_set(folder)
        if sample["target"] is not None
    ]
    return Dataset.from_list(rows).cast_column("before", Image()).cast_column("after", Image())
