"""The triplets that every training stage reads: Parquet shards with one row for each before, action and after.

    id              str, unique in its source
    scene           str; triplets with the same before image share it and stand together, otherwise it is the id
    before, after   pictures, PNG or JPEG
    action          str, in words, as said; None if unlabelled
    source          str: "playroom", "droid", "aurora/magicbrush", ...
    class           str: verb, task or class of the video; "" if there is none

A source may add columns, among them `inverse`: the action that leads from after back to before, or None.
"""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset


def shards_of(folder: str | Path) -> list[Path]:
    """The Parquet shards of a folder, in order.

    Raises:
        ValueError: if the folder holds no shards.
    """
    shards = sorted(Path(folder).glob("*.parquet"))
    if not shards:
        raise ValueError(
            f"`folder` {str(folder)!r} holds no .parquet shards; name a folder that one of the training stages wrote."
        )
    return shards


def load_triplets(shards: list[Path]) -> Dataset:
    """Reads Parquet shards of triplets, with `before` and `after` as pictures."""
    dataset = load_dataset("parquet", data_files=[str(shard) for shard in shards], split="train")
    return dataset.cast_column("before", Image()).cast_column("after", Image())


def load_readable(folder: str | Path) -> Dataset:
    """The triplets of a folder, without those that an earlier stage could not read."""
    rows = load_triplets(shards_of(folder))
    if "error" not in rows.column_names:
        return rows
    return rows.select([i for i, error in enumerate(rows["error"][:]) if error is None])


def to_pixels(pictures: list) -> torch.Tensor:
    """RGB pictures of one size -> float32 [B, 3, H, W] in [-1, 1], as the library's image opening gives it."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1.0
