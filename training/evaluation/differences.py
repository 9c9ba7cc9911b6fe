"""How much better one checkpoint does than another in the same episodes, from what `outcomes` or `shapes` wrote of both.

    python -m training.evaluation.differences training/results/eleventh_checkpoint training/results/twelfth_checkpoint

prints, and writes as `difference.json` into the second folder, the mean difference, second minus first, in percent points
with its 95 % bootstrap interval over episodes. Pictures are exact compared with what the checkpoint's own image tokenizer shows of
the truth; where tokenizers differ, the error from the truth compares them. What runs of old did not measure is left out.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from training.evaluation.intervals import mean
from training.evaluation.outcomes import error_from_truth, exact_success, picked, well_formed
from training.evaluation.rows import read_rows, write_json
from training.evaluation.shapes import WHOLE

MEASURES: dict[str, dict[str, Callable[[dict], float]]] = {
    "success": {
        "right, all candidates": lambda row: np.mean(row["success"]),
        "exact, all candidates": lambda row: np.mean([exact_success(row, i) for i in range(len(row["success"]))]),
        "right, K = 1": lambda row: row["success"][0],
        "exact, K = 1": lambda row: exact_success(row, 0),
        "right, K = 8, verified": lambda row: row["success"][picked(row, 8)],
        "exact, K = 8, verified": lambda row: exact_success(row, picked(row, 8)),
    },
    "from_truth": {
        "error from the truth, all candidates": lambda row: np.mean([error_from_truth(row, i) for i in range(8)]),
        "error from the truth, K = 8, verified": lambda row: error_from_truth(row, picked(row, 8)),
    },
    "malformed": {
        "well formed, all candidates": lambda row: np.mean([well_formed(row, i) for i in range(8)]),
        "well formed, K = 8, verified": lambda row: well_formed(row, picked(row, 8)),
    },
    "distance": {
        "whole": lambda row: row["distance"] < WHOLE,
        "distance from the nearest rendering": lambda row: row["distance"],
    },
}
"""By the column they need, which rows of old or of another evaluation do not have."""


def differences(first: list[dict], second: list[dict]) -> dict:
    """Of each measure the mean in both, in percent, and the difference with its interval, in percent points.

    Raises:
        ValueError: the rows are not of the same episodes, or have nothing measured in common.
    """
    if [(row["scene"], row["action"]) for row in first] != [(row["scene"], row["action"]) for row in second]:
        raise ValueError(
            "`second` has other episodes than `first`; evaluate both with the same split, first and seed."
        )
    result = {}
    for column, measures in MEASURES.items():
        if not all(column in row for row in first + second):
            continue
        for name, measure in measures.items():
            values = 100 * np.array([[measure(row) for row in rows] for rows in (first, second)], dtype=float)
            before, after = values.mean(1).round(1).tolist()
            result[name] = {"first": before, "second": after, "difference": mean(values[1] - values[0])}
    if not result:
        raise ValueError(
            "`first` and `second` measure nothing in common; give what the same evaluation wrote of both."
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder that `outcomes` or `shapes` wrote")
    parser.add_argument("second", type=Path, help="the same of the other checkpoint, in the same episodes")
    args = parser.parse_args()
    result = differences(*(read_rows(folder / "rows.jsonl") for folder in (args.first, args.second)))
    write_json(args.second, "difference.json", {"first": str(args.first), "second": str(args.second), **result})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
