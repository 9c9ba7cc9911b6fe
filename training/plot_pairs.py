"""Draws pairs with their words, to be looked at: labelled triplets, or what a dynamics model said of unlabelled video.

    python -m training.plot_pairs runs/robocoin/annotated --out annotated.png --pairs 24

Pairs are drawn at random; those with an error are left out. Scores are in nats a token. Where a label was known before the
annotation, it stands in brackets.
"""

import argparse
from pathlib import Path

import numpy as np

from training.picture_grid import Group, draw_groups, save
from training.triplets import load_readable

COLUMNS = 4


def words_of(row: dict) -> str:
    score = "" if row.get("score") is None else f" ({row['score']:.2f})"
    label = f" [{row['label']}]" if row.get("label") else ""
    return f"{row['action'] or '-'}{score}{label}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path, help="folder of Parquet shards")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = load_readable(args.triplets)
    chosen = np.random.default_rng(args.seed).permutation(len(rows))[: args.pairs]
    groups = [Group(words_of(row), (row["before"], row["after"])) for row in rows.select(sorted(chosen))]
    save(draw_groups(groups, COLUMNS, ("before", "after")), args.out)


if __name__ == "__main__":
    main()
