"""Coded scenes in the codes of another image tokenizer: their pictures are decoded by the one and encoded by the other.

    python -m training.reencode --codes runs/playroom/codes/candidates --old bwm_pipelines/checkpoints/playroom/vqgan \
        --vqgan runs/playroom/tokenizer/vqgan --out runs/playroom/recoded/candidates

For what has no other pictures, such as a world model's candidates (`training.playroom.candidates`); rendered scenes are encoded from
their triplets. Finished shards are kept, so an interrupted run resumes.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import VQModel
from tqdm import tqdm

from bwm_pipelines.new_files import new_files
from training.encode import decode_codes, encode_pixels
from training.triplets import shards_of


@torch.no_grad()
def reencode(scene: dict, old: VQModel, new: VQModel) -> dict:
    """A row of coded scenes in the codes of `new`; see `training.encode`."""
    codes = torch.tensor([scene["before"], *scene["after"]])
    codes, features = encode_pixels(new, decode_codes(old, codes))
    distance = (features[1:] - features[:1]).square().sum(-1)
    return {**scene, "before": codes[0].tolist(), "after": codes[1:].tolist(), "distance": distance.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=Path, required=True, help="folder of coded scenes")
    parser.add_argument("--old", type=Path, required=True, help="folder of the VQModel that made them")
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the other VQModel")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards of codes")
    args = parser.parse_args()
    old, new = (VQModel.from_pretrained(folder) for folder in (args.old, args.vqgan))
    for shard in tqdm(shards_of(args.codes), unit="shard"):
        if (args.out / shard.name).exists():
            continue
        table = pq.read_table(shard)
        rows = [reencode(scene, old, new) for scene in table.to_pylist()]
        with new_files(args.out) as folder:
            pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / shard.name)


if __name__ == "__main__":
    main()
