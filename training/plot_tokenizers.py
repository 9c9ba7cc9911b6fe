"""Draws true outcomes beside what image tokenizers show of them: no world model can draw better than its tokenizer.

    python -m training.plot_tokenizers runs/playroom/triplets/validation --vqgan bwm_pipelines/checkpoints/playroom/vqgan \
        runs/playroom/tokenizer/vqgan --out tokenizers.png

Triplets are drawn at random among those in which something changes.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from diffusers import VQModel
from diffusers.image_processor import VaeImageProcessor

from training.image_tokenizer import changed_cells
from training.picture_grid import Group, draw_groups, save
from training.triplets import load_readable, to_pixels

COLUMNS, CELLS = 3, 12


@torch.inference_mode()
def reconstructions(rows: Dataset, vqgans: Sequence[VQModel]) -> Iterator[Group]:
    """The after image of each row, and what each tokenizer makes of it."""
    for row in rows:
        pixels = to_pixels([row["after"]])
        shown = [vqgan(pixels).sample.clamp(-1, 1) for vqgan in vqgans]
        pictures = VaeImageProcessor().postprocess(torch.cat(shown), output_type="pil")
        yield Group(row["action"] or "-", [row["after"], *pictures])


def something_changes(row: dict) -> bool:
    return bool(changed_cells(to_pixels([row["before"]]), to_pixels([row["after"]]), CELLS).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path, help="folder of Parquet shards")
    parser.add_argument("--vqgan", type=Path, nargs="+", required=True, help="folders of trained VQModels")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = load_readable(args.triplets)
    order = np.random.default_rng(args.seed).permutation(len(rows))
    rows = rows.select(order[: 4 * args.pictures]).filter(something_changes)
    rows = rows.select(range(min(args.pictures, len(rows))))
    groups = list(reconstructions(rows, [VQModel.from_pretrained(folder) for folder in args.vqgan]))
    save(draw_groups(groups, COLUMNS, ("true outcome", *(folder.parent.name for folder in args.vqgan))), args.out)


if __name__ == "__main__":
    main()
