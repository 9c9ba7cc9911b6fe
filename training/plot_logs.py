"""Plots one column of training logs.

python -m training.plot_logs runs/playroom/*/log.jsonl --column loss --out losses.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read_column(log: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have that column; of a step that was logged again after a resume, the last."""
    rows = (json.loads(line) for line in log.read_text().splitlines())
    values = {row["step"]: row[column] for row in rows if column in row}
    return sorted(values), [values[step] for step in sorted(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--column", default="loss")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    curves = {log: read_column(log, args.column) for log in args.logs}
    curves = {log: curve for log, curve in curves.items() if curve[0]}
    if not curves:
        parser.error(f"no log has a column {args.column!r}")
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for log, (steps, values) in curves.items():
        axes.plot(steps, values, lw=1.2, label=log.stem if log.stem != "log" else log.parent.name)
    axes.set_xlabel("step")
    axes.set_ylabel(args.column)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
