"""The triplets of coded scenes that a world model predicts worst: hard example mining (Shrivastava et al., arXiv 1604.03540).

    python -m training.hardest training/recipes/playroom_cwm.yaml --codes runs/playroom/codes/later \
        --checkpoint bwm_pipelines/checkpoints/playroom --share 0.33 --out runs/playroom/codes/hardest

A trained model has little left to learn from most triplets: a lamp goes on, a ball rolls where nothing stands. What it
predicts worst is things that touch or fall, but also what happened by chance, so compare the result with
`training.evaluation.held_out_loss`. Give it to `training.fit` beside the scenes it was taken from. Finished shards are
kept, so an interrupted run resumes.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.new_files import new_files
from training.evaluation.held_out_loss import losses_of
from training.recipe import Recipe
from training.triplets import shards_of
from training.workers import end_with_parent

LISTS = "after", "distance", "id", "action", "inverse", "class"  # one entry for each action played in a scene


def single(scene: dict, i: int) -> dict:
    """The scene with its action `i` alone."""
    return {name: [value[i]] if name in LISTS else value for name, value in scene.items()}


def hardest(scenes: list[dict], losses: list[Tensor], share: float) -> Iterator[dict]:
    """A row for each triplet among the `share` with the highest loss, in the order of the scenes."""
    every = torch.cat(losses)
    limit = every.sort(descending=True).values[max(1, round(share * len(every))) - 1]
    for scene, of_scene in zip(scenes, losses, strict=True):
        yield from (single(scene, i) for i in (of_scene >= limit).nonzero().flatten().tolist())


def keep_hardest(shard: Path, *, recipe: Recipe, checkpoint: str, share: float, out: Path) -> None:
    """Writes the hardest triplets of one shard of coded scenes; an existing file is left alone."""
    if (out / shard.name).exists():
        return
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    pipe = ChameleonWorldModelPipeline.from_pretrained(checkpoint, dynamics_model=None)
    table = pq.read_table(shard)
    scenes = table.to_pylist()
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.trainer.get("bf16", False)):
        losses = [losses_of(scene, pipe.family, pipe.world_model, recipe) for scene in scenes]
    with new_files(out) as folder:
        rows = list(hardest(scenes, losses, share))
        pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / shard.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="the world model's, see training/recipe.py")
    parser.add_argument("--codes", type=Path, required=True, help="folder of coded scenes")
    parser.add_argument("--checkpoint", required=True, help="pipeline folder with the world model")
    parser.add_argument("--share", type=float, required=True, help="of each shard's triplets that is kept, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards of codes, one triplet a row")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if not 0 < args.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, got {args.share}")
    args.out.mkdir(parents=True, exist_ok=True)
    options = {name: getattr(args, name) for name in ("checkpoint", "share", "out")}
    keep = partial(keep_hardest, recipe=Recipe.read(args.recipe), **options)
    shards = shards_of(args.codes)
    with ProcessPoolExecutor(args.workers, initializer=end_with_parent) as pool:
        list(tqdm(pool.map(keep, shards), total=len(shards), unit="shard"))


if __name__ == "__main__":
    main()
