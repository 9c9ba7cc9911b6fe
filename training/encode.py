"""Turns the pictures of triplets into image codes once, so that training never touches pixels again.

    python -m training.encode --triplets runs/playroom/triplets/train --vqgan runs/playroom/tokenizer/vqgan \
        --out runs/playroom/codes/train

Writes a `datasets` folder with one row a scene: `before` [N] and, for each action played there, `after` [M, N],
`phrase`, `action` and `verb`.
"""

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from datasets import Dataset
from diffusers import VQModel
from tqdm import tqdm

from training.triplets import load_triplets, to_pixels


@torch.inference_mode()
def encode_pictures(vqgan: VQModel, pictures: list) -> list[list[int]]:
    """Codes of RGB pictures, one list of N each."""
    latents = vqgan.encode(to_pixels(pictures)).latents
    codes = vqgan.quantize(latents)[2][2]
    return codes.view(len(pictures), -1).tolist()


def encode_scenes(rows: Dataset, vqgan: VQModel) -> Iterator[dict]:
    """One row a scene from consecutive triplets of that scene."""
    for scene, group in groupby(tqdm(rows, mininterval=10, unit="triplet"), key=lambda row: row["scene"]):
        triplets = list(group)
        before, *after = encode_pictures(vqgan, [triplets[0]["before"], *(row["after"] for row in triplets)])
        columns = {name: [row[name] for row in triplets] for name in ("phrase", "action", "verb")}
        yield {"scene": scene, "before": before, "after": after, **columns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=Path, required=True, help="folder of Parquet shards")
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the trained VQModel")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    vqgan = VQModel.from_pretrained(args.vqgan)
    Dataset.from_list(list(encode_scenes(load_triplets(args.triplets), vqgan))).save_to_disk(args.out)


if __name__ == "__main__":
    main()
