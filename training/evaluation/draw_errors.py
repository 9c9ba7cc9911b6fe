"""How near what world models draw comes to the truth: draw by draw, on the same actions.

    python -m training.evaluation.draw_errors runs/playroom/draws_before runs/playroom/draws_after --out runs/playroom/errors

compares folders that `training.evaluation.draws` wrote of the same coded scenes, unseen ones, with the same recipe and number of
candidates, and different checkpoints. A measure of pictures without any verifier, finer than counts of right outcomes; the loss on
true after images (`held_out_loss`) can fall while the pictures stay as they are.
"""

import argparse
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np

from training.evaluation.intervals import mean, text
from training.evaluation.over_editing import MALFORMED, MISDRAWN
from training.evaluation.rows import describe_run, write_json
from training.sequences import load_codes

COLUMNS = ("error", "malformed")
MEASURES: dict[str, Callable[[dict[str, np.ndarray]], float]] = {
    "error": lambda row: np.minimum(1, row["error"]).mean(),
    "error of the best": lambda row: min(1, row["error"].min()),
    "near": lambda row: (row["error"] <= MISDRAWN).mean(),
    "near, the best": lambda row: row["error"].min() <= MISDRAWN,
    "well formed": lambda row: (row["malformed"] <= MALFORMED).mean(),
    "well formed, the best": lambda row: row["malformed"].min() <= MALFORMED,
}
"""Of one action's draws, each column float [K]. Errors are capped at 1, about that of no change; near are those of at most `MISDRAWN`."""


def read_draws(folder: Path) -> list[dict]:
    """Rows of `training.evaluation.draws`, by scene and action."""
    rows = load_codes(folder)
    return sorted(
        rows.select_columns(["scene", "action", *COLUMNS]).to_list(), key=lambda row: (row["scene"], row["action"])
    )


def arrays(row: dict) -> dict[str, np.ndarray]:
    return {column: np.array(row[column]) for column in COLUMNS}


def compare(first: list[dict], second: list[dict]) -> dict:
    """Of each measure the mean over scenes of `second`, and by how much it exceeds `first`, in percent or percent points.

    Raises:
        ValueError: the rows are not of the same actions.
    """
    if [(row["scene"], row["action"]) for row in first] != [(row["scene"], row["action"]) for row in second]:
        raise ValueError("The draws are not of the same actions; draw with the same codes and recipe.")
    scenes = [list(group) for _, group in groupby(range(len(first)), key=lambda i: first[i]["scene"])]
    result = {"actions": len(first)}
    for name, measure in MEASURES.items():
        values = 100 * np.array([[measure(arrays(row)) for row in rows] for rows in (first, second)])
        before, after = ([part[scene].mean() for scene in scenes] for part in values)
        result[name] = {"mean": mean(after), "difference": mean(np.subtract(after, before))}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "draws", nargs="+", type=Path, help="folders of draws, the first of them what the others are compared with"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for draw_errors.json")
    args = parser.parse_args()
    first, summary = read_draws(args.draws[0]), {}
    for folder in args.draws:
        summary[folder.name] = compare(first, read_draws(folder))
        for name in MEASURES:
            cell = summary[folder.name][name]
            print(f"{folder.name}, {name}, %: {text(cell['mean'])}, difference {text(cell['difference'])}")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out, "draw_errors.json", describe_run("training.evaluation.draw_errors") | summary)


if __name__ == "__main__":
    main()
