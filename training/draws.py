"""After images that the world model draws in training scenes, and how far each is from the true outcome.

    python -m training.draws runs/playroom/codes/train --checkpoint CHECKPOINT --recipe training/recipes/playroom_cwm.yaml \
        --candidates 8 --out runs/playroom/draws

What `training.fit` learns preferences from. One row for each action that the recipe picks of a scene: `scene`, `class`,
`action`, `before` [N], `drawn` [K, N] as the checkpoint samples by default, `error` [K] and, for each drawn image, its
`log_prob` [K] by the world model, without temperature or guidance. Finished shards are kept, so an interrupted run resumes.
"""

import argparse
import multiprocessing
import os
import random
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
from bwm_pipelines.families import ChameleonFamily
from bwm_pipelines.new_files import new_files
from training.evaluation.likelihood import image_log_probs
from training.recipe import Recipe
from training.sequences import load_codes, pick_actions, still_after
from training.workers import end_with_parent

SCENES_PER_SHARD = 50
SCHEMA = pa.schema(
    {
        "scene": pa.string(),
        "class": pa.string(),
        "action": pa.string(),
        "before": pa.list_(pa.int64()),
        "drawn": pa.list_(pa.list_(pa.int64())),
        "error": pa.list_(pa.float32()),
        "log_prob": pa.list_(pa.float32()),
    }
)


@torch.no_grad()
def errors(family: ChameleonFamily, drawn: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """How far drawn after images are from the true one, relative to the change: 0 for that, 1 for the before image.

    Both are sums of absolute differences of pixels, as the image tokenizer shows them.

    Args:
        family: the image tokenizer.
        drawn: codes, int64 [K, N].
        before, after: codes of the true images, int64 [N], not the same.

    Returns:
        float32 [K], 0 or more.
    """
    shown = family.decode_image(torch.cat([before[None], after[None], drawn]))
    change = (shown[0] - shown[1]).abs().sum()
    return (shown[2:] - shown[1]).abs().sum((1, 2, 3)) / change


def draw_scene(pipe: ChameleonWorldModelPipeline, scene: dict, recipe: Recipe, candidates: int) -> list[dict]:
    """Rows of some actions of a coded scene, as `recipe` picks and weights them; an action that changes nothing has none."""
    rng, rows, family = random.Random(f"draws {scene['scene']}"), [], pipe.family
    before = torch.tensor(scene["before"])
    for i in pick_actions(scene, list(range(len(scene["action"]))), recipe, rng):
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        after, action = torch.tensor(still_after(scene, i, recipe.still)), scene["action"][i]
        if torch.equal(before, after):
            continue
        drawn = pipe(before, action, num_candidates=candidates, generator=generator, output_type="latent").codes
        prompts = [family.forward_prompt_ids(before, action)] * candidates
        log_probs = torch.stack(image_log_probs(family, pipe.world_model, prompts, list(drawn))).sum(1)
        rows.append(
            {
                "scene": scene["scene"],
                "class": scene["class"][i],
                "action": action,
                "before": scene["before"],
                "drawn": drawn.tolist(),
                "error": errors(family, drawn, before, after).tolist(),
                "log_prob": log_probs.tolist(),
            }
        )
    return rows


def draw_shard(shard: tuple[str, list[dict]], *, checkpoint: str, recipe: Recipe, candidates: int, out: Path) -> None:
    """Writes the rows of one shard of scenes under its name."""
    name, scenes = shard
    torch.set_num_threads(1)
    pipe = ChameleonWorldModelPipeline.from_pretrained(checkpoint, dynamics_model=None)
    pipe.set_progress_bar_config(disable=True)
    rows = [row for scene in scenes for row in draw_scene(pipe, scene, recipe, candidates)]
    with new_files(out) as folder:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / name)


def missing_shards(codes: Path, out: Path) -> Iterator[tuple[str, list[dict]]]:
    """Name and scenes of each shard that `out` does not hold."""
    scenes = load_codes(codes)
    for number, first in enumerate(range(0, len(scenes), SCENES_PER_SHARD)):
        name = f"{number:05d}.parquet"
        if not (out / name).exists():
            yield name, scenes.select(range(first, min(first + SCENES_PER_SHARD, len(scenes)))).to_list()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", type=Path, help="folder of coded scenes")
    parser.add_argument("--checkpoint", required=True, help="pipeline folder with the world model")
    parser.add_argument("--recipe", type=Path, required=True, help="the world model's, see training/recipe.py")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="entries that replace the recipe's")
    parser.add_argument("--candidates", type=int, default=8, help="after images drawn for each action, at least 2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if args.candidates < 2:
        parser.error(f"argument --candidates: must be at least 2, as they are compared, got {args.candidates}")
    args.out.mkdir(parents=True, exist_ok=True)
    draw = partial(
        draw_shard,
        checkpoint=args.checkpoint,
        recipe=Recipe.read(args.recipe, args.set),
        candidates=args.candidates,
        out=args.out,
    )
    shards = list(missing_shards(args.codes, args.out))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, spawn, initializer=end_with_parent) as pool:
        list(tqdm(pool.map(draw, shards), total=len(shards), unit="shard"))


if __name__ == "__main__":
    main()
