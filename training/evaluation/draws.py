"""After images that a world model draws in coded scenes, and how far each is from the true outcome.

    python -m training.evaluation.draws runs/playroom/codes/validation --checkpoint CHECKPOINT \
        --recipe training/recipes/playroom_cwm.yaml --candidates 4 --out runs/playroom/draws

What `training.evaluation.draw_errors` compares. One row for each action that the recipe picks of a scene: `scene`, `class`,
`action`, `before` [N], `drawn` [K, N] as the checkpoint samples by default, and of each drawn image its `error` [K] and how
`malformed` [K] it is. Finished shards are kept, so an interrupted run resumes.
"""

import argparse
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.new_files import new_files
from training.evaluation.outcomes import pictures_of
from training.evaluation.over_editing import malformed
from training.recipe import Recipe
from training.sequences import load_codes, pick_actions, still_after
from training.workers import run_shards

SCENES_PER_SHARD = 50
SCHEMA = pa.schema(
    {
        "scene": pa.string(),
        "class": pa.string(),
        "action": pa.string(),
        "before": pa.list_(pa.int64()),
        "drawn": pa.list_(pa.list_(pa.int64())),
        "error": pa.list_(pa.float32()),
        "malformed": pa.list_(pa.float32()),
    }
)


def errors(drawn: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[float]:
    """How far drawn pictures are from the true one, relative to the change: 0 for that, 1 for the before image.

    Both are sums of absolute differences.

    Args:
        drawn: float [K, H, W, 3].
        before, after: the true pictures as the image tokenizer shows them, float [H, W, 3], not the same.
    """
    return (np.abs(drawn - after).sum((1, 2, 3)) / np.abs(before - after).sum()).tolist()


def draw_scene(pipe: ChameleonWorldModelPipeline, scene: dict, recipe: Recipe, candidates: int) -> list[dict]:
    """Rows of some actions of a coded scene, as `recipe` picks and weights them; an action that changes nothing has none."""
    rng, rows = random.Random(f"draws {scene['scene']}"), []
    before = torch.tensor(scene["before"])
    for i in pick_actions(scene, list(range(len(scene["action"]))), recipe, rng):
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        after, action = torch.tensor(still_after(scene, i, recipe.still)), scene["action"][i]
        if torch.equal(before, after):
            continue
        drawn = pipe(before, action, num_candidates=candidates, generator=generator, output_type="latent").codes
        shown_before, shown_after, *shown = pictures_of(pipe, torch.cat([before[None], after[None], drawn]))
        true = _to_uint8(shown_before), _to_uint8(shown_after)
        rows.append(
            {
                "scene": scene["scene"],
                "class": scene["class"][i],
                "action": action,
                "before": scene["before"],
                "drawn": drawn.tolist(),
                "error": errors(np.stack(shown), shown_before, shown_after),
                "malformed": [malformed(one, shown_after, *true) for one in shown],
            }
        )
    return rows


def _to_uint8(picture: np.ndarray) -> np.ndarray:
    return (255 * picture).round().astype(np.uint8)


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
    parser.add_argument("--candidates", type=int, default=4, help="after images drawn for each action")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw = partial(
        draw_shard,
        checkpoint=args.checkpoint,
        recipe=Recipe.read(args.recipe, args.set),
        candidates=args.candidates,
        out=args.out,
    )
    shards = list(missing_shards(args.codes, args.out))
    run_shards(draw, shards, args.workers)


if __name__ == "__main__":
    main()
