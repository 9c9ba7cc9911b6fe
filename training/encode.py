"""Turns the pictures of triplets into image codes once, so that training never touches pixels again.

    python -m training.encode --triplets runs/playroom/triplets/train --vqgan runs/playroom/tokenizer/vqgan \
        --out runs/playroom/codes/train

One shard of codes for each shard of triplets, one row a scene: `before` [N] and, for each action played there, `after`
[M, N], `distance` [M, N], `id`, `action`, `class` and, if known, `inverse`. Finished shards are kept, so an interrupted run resumes.
"""

import argparse
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from diffusers import VQModel
from torch import Tensor
from tqdm import tqdm

from bwm_pipelines.new_files import new_files
from training.triplets import load_triplets, shards_of, to_pixels
from training.workers import end_with_parent


@torch.no_grad()
def encode_pixels(vqgan: VQModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, H, W] in [-1, 1] -> codes, int64 [B, N], and the features before quantisation, float32 [B, N, D]."""
    latents = vqgan.encode(pixels).latents.float()
    codes = vqgan.quantize(latents)[2][2]
    return codes.view(len(pixels), -1), latents.flatten(2).mT


@torch.no_grad()
def decode_codes(vqgan: VQModel, codes: Tensor) -> Tensor:
    """Codes, int64 [B, N], of square pictures -> pixels [B, 3, H, W] in [-1, 1]."""
    side = math.isqrt(codes.shape[1])
    shape = (len(codes), side, side, vqgan.config.vq_embed_dim)
    return vqgan.decode(codes, force_not_quantize=True, shape=shape).sample.clamp(-1, 1)


def encode_pictures(vqgan: VQModel, pictures: list) -> tuple[Tensor, Tensor]:
    """`encode_pixels` of B RGB pictures."""
    return encode_pixels(vqgan, to_pixels(pictures))


def encode_scenes(rows: Dataset, vqgan: VQModel) -> Iterator[dict]:
    """One row a scene from consecutive triplets of that scene.

    `distance` is the squared L2 distance between the features of before and after at each token (Eq. 2 of the paper).
    """
    for scene, group in groupby(rows, key=lambda row: row["scene"]):
        triplets = list(group)
        codes, features = encode_pictures(vqgan, [triplets[0]["before"], *(row["after"] for row in triplets)])
        distance = (features[1:] - features[:1]).square().sum(-1)
        yield {
            "scene": scene,
            "before": codes[0].tolist(),
            "after": codes[1:].tolist(),
            "distance": distance.tolist(),
            **{
                name: [row[name] for row in triplets]
                for name in ("id", "action", "inverse", "class")
                if name in rows.column_names
            },
        }


def encode_shard(shard: Path, *, vqgan: Path, out: Path) -> None:
    """Writes the codes of one shard of triplets; an existing file is left alone."""
    if (out / shard.name).exists():
        return
    torch.set_num_threads(1)
    rows = list(encode_scenes(load_triplets([shard]), VQModel.from_pretrained(vqgan)))
    table = pa.Table.from_pylist(rows)
    distances = pa.array([row["distance"] for row in rows], pa.list_(pa.list_(pa.float32())))
    table = table.set_column(table.column_names.index("distance"), "distance", distances)
    with new_files(out) as folder:
        pq.write_table(table, folder / shard.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=Path, required=True, help="folder of Parquet shards")
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the trained VQModel")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards of codes")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shards = shards_of(args.triplets)
    with ProcessPoolExecutor(args.workers, initializer=end_with_parent) as pool:
        done = pool.map(partial(encode_shard, vqgan=args.vqgan, out=args.out), shards)
        list(tqdm(done, total=len(shards), unit="shard"))


if __name__ == "__main__":
    main()
