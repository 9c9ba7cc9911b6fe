"""Chooses which annotated pairs become synthetic triplets.

    python -m training.filter runs/pool/annotated --out runs/pool/triplets --top-k 7000 --minimum-score -2

Pairs with an error or without words, repeated ones, and those of which the dynamics model says that nothing changed, are
always dropped; then come, each if asked for, the change filter
(near-identical pairs teach a model not to edit, and cuts teach it to invent), the minimum score, and the paper's Algorithm 1:
the K best by score, balanced over classes. The share of pairs that each step accepts is printed and stands in `filter.json`
beside the shards.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image
from tqdm import trange

from bwm_pipelines.new_files import new_files
from training.sequences import NOTHING
from training.triplets import load_triplets, shards_of

VISIBLE = 24
ROWS_PER_SHARD = 512
COLUMNS = ("id", "source", "class", "action", "score", "change", "error")


def changed_share(before: Image.Image, after: Image.Image) -> float:
    """Share of pixels, 0 to 1, in which some channel differs by more than `VISIBLE` of 255.

    Args:
        before, after: RGB, of one size.
    """
    difference = np.asarray(before, dtype=np.int16) - np.asarray(after, dtype=np.int16)
    return float((np.abs(difference).max(-1) > VISIBLE).mean())


def drop_errors(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs without an error and with words."""
    return pairs[pairs["error"].isna() & pairs["action"].fillna("").str.strip().astype(bool)]


def drop_repeated(pairs: pd.DataFrame) -> pd.DataFrame:
    """The first of all pairs with one source and id."""
    return pairs.drop_duplicates(["source", "id"])


def drop_unchanged(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs whose words are another action than "nothing changed"."""
    return pairs[pairs["action"].str.strip() != NOTHING]


def within_change(pairs: pd.DataFrame, minimum: float, maximum: float) -> pd.DataFrame:
    """Pairs whose `change` lies in the closed interval; see `changed_share`."""
    return pairs[pairs["change"].between(minimum, maximum)]


def at_least(pairs: pd.DataFrame, minimum: float) -> pd.DataFrame:
    """Pairs with at least this `score`, in nats."""
    return pairs[pairs["score"] >= minimum]


def stratified_top_k(pairs: pd.DataFrame, k: int) -> pd.DataFrame:
    """The paper's Algorithm 1: round robin over the classes, each time the best unused pair of a class, until there are K.

    Within a round the classes come in the order of those pairs' scores; of equal scores the earlier pair is better.

    Returns:
        At most K pairs, in the order in which they were taken.

    Raises:
        ValueError: `k` is less than 1.
    """
    if k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {k}; leave it out to take all.")
    by_score = pairs.sort_values("score", ascending=False, kind="stable")
    rounds = by_score.groupby("class").cumcount()
    return by_score.loc[rounds.sort_values(kind="stable").index[:k]]


def choose(
    pairs: pd.DataFrame,
    *,
    top_k: int | None = None,
    minimum_score: float | None = None,
    minimum_change: float | None = None,
    maximum_change: float | None = None,
) -> tuple[pd.DataFrame, list[dict]]:
    """All steps that are asked for, one after another.

    Args:
        pairs: columns `COLUMNS`; `change` only if it is filtered. Its index must be unique.
        top_k: see `stratified_top_k`.
        minimum_score: in nats.
        minimum_change, maximum_change: share of changed pixels, 0 to 1.

    Returns:
        The chosen pairs, and for each step its name and how many pairs came and stayed.
    """
    steps = [("no error", drop_errors), ("not repeated", drop_repeated), ("something changed", drop_unchanged)]
    if minimum_change is not None or maximum_change is not None:
        low, high = minimum_change or 0.0, 1.0 if maximum_change is None else maximum_change
        steps.append((f"change {low:g} to {high:g}", lambda pairs: within_change(pairs, low, high)))
    if minimum_score is not None:
        steps.append((f"score at least {minimum_score:g}", lambda pairs: at_least(pairs, minimum_score)))
    if top_k is not None:
        steps.append((f"top {top_k} over classes", lambda pairs: stratified_top_k(pairs, top_k)))
    report = []
    for name, step in steps:
        accepted = step(pairs)
        report.append({"step": name, "pairs": len(pairs), "accepted": len(accepted)})
        pairs = accepted
    return pairs, report


def columns_of(rows: Dataset) -> pd.DataFrame:
    """The columns that filtering looks at; pictures are never read.

    Raises:
        ValueError: the rows were not annotated.
    """
    missing = [name for name in COLUMNS if name not in rows.column_names]
    if missing:
        raise ValueError(f"`annotated` has no column {missing[0]!r}; give a folder that training.annotate wrote.")
    return rows.select_columns(list(COLUMNS)).to_pandas()


def write_triplets(rows: Dataset, out: Path, report: dict) -> None:
    """Writes all shards and the report, or nothing.

    Raises:
        ValueError: `out` holds shards already, or no rows are left.
    """
    if any(out.glob("*.parquet")):
        raise ValueError(f"`out` {str(out)!r} holds shards already; name another folder.")
    if len(rows) == 0:
        raise ValueError(f"no pair is left of {report['steps'][0]['pairs']}; loosen a bound: {report['steps']}.")
    shards = -(-len(rows) // ROWS_PER_SHARD)
    with new_files(out) as folder:
        for shard in trange(shards, unit="shard"):
            rows.shard(shards, shard, contiguous=True).to_parquet(folder / f"{shard:05d}.parquet")
        (folder / "filter.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotated", type=Path, help="folder that training.annotate wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards of triplets")
    parser.add_argument("--top-k", type=int, help="how many, balanced over classes (the paper: 7000 a data set)")
    parser.add_argument("--minimum-score", type=float, help="mean token log-probability in nats, e.g. -2")
    parser.add_argument("--minimum-change", type=float, help="share of pixels that visibly differ, 0 to 1")
    parser.add_argument("--maximum-change", type=float, help="the same, as an upper bound")
    args = parser.parse_args()
    options = {name: getattr(args, name) for name in ("top_k", "minimum_score", "minimum_change", "maximum_change")}
    rows = load_triplets(shards_of(args.annotated))
    chosen, steps = choose(columns_of(rows), **options)
    for step in steps:
        share = step["accepted"] / max(step["pairs"], 1)
        print(f"{step['step']}: {step['accepted']} of {step['pairs']} pairs ({share:.1%})")
    # In the order they came, so that triplets of one scene stay together.
    write_triplets(rows.select(sorted(chosen.index)), args.out, {**options, "steps": steps})


if __name__ == "__main__":
    main()
