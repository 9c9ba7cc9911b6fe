"""The triplets that every training stage reads: before, action, after."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset


def load_triplets(folder: str | Path) -> Dataset:
    """Reads the Parquet shards of `training.playroom.triplets` with `before` and `after` as pictures.

    Raises:
        ValueError: if the folder holds no shards.
    """
    shards = sorted(str(path) for path in Path(folder).glob("*.parquet"))
    if not shards:
        raise ValueError(
            f"`folder` {str(folder)!r} holds no .parquet shards; make them with training.playroom.triplets."
        )
    dataset = load_dataset("parquet", data_files=shards, split="train")
    return dataset.cast_column("before", Image()).cast_column("after", Image())


def to_pixels(pictures: list) -> torch.Tensor:
    """RGB pictures of one size -> float32 [B, 3, H, W] in [-1, 1], as the library's image opening gives it."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1.0
