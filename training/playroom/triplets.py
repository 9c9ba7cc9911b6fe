"""Labelled triplets (before, action, after) as Parquet shards.

    python -m training.playroom.triplets --split train --scenes 10000 --out runs/playroom/triplets/train

Each shard is written to a temporary name and renamed, and existing shards are kept, so an interrupted run resumes.
`datasets.load_dataset("parquet", ...)` reads the result.
"""

import argparse
import io
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from training.playroom.episodes import Episode, commands_held_out, play_episode
from training.playroom.room import Room
from training.workers import end_with_parent

SCENES_PER_SHARD = 100
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.null()})  # as `datasets.Image` stores it
COLUMNS = {  # of every triplet, see `training.triplets`
    "id": pa.string(),
    "scene": pa.string(),
    "before": IMAGE,
    "after": IMAGE,
    "action": pa.string(),
    "source": pa.string(),
    "class": pa.string(),
}
SCHEMA = pa.schema(COLUMNS | {"plain": pa.string(), "inverse": pa.string(), "held_out": pa.bool_()})


def write_shard(
    shard: int,
    *,
    split: str,
    scenes: int,
    actions_per_scene: int,
    size: int,
    out: Path,
    first: int = 0,
    earlier: int = 0,
    colliding: bool = False,
) -> int:
    """Plays the scenes of one shard and writes their triplets; returns how many. An existing shard is left alone."""
    path = out / f"{shard:05d}.parquet"
    if path.exists():
        return pq.read_metadata(path).num_rows
    room, rows = Room(), []
    for index in range(shard * SCENES_PER_SHARD, min((shard + 1) * SCENES_PER_SHARD, scenes)):
        rows += triplet_rows(play_episode(room, split, first + index, size, actions_per_scene, earlier, colliding))
    room.close()
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
    os.replace(temporary, path)
    return len(rows)


def triplet_rows(episode: Episode) -> list[dict]:
    """One row an outcome, with the columns of a triplet and `plain` (the action's plain wording), `inverse` and `held_out`.

    `inverse` is the action that takes the outcome back to the state before, or None.
    """
    rng, inverse_rng = (np.random.default_rng([episode.seed, stream]) for stream in (2, 4))
    before = stored(episode.before)
    return [
        {
            "id": f"{episode.seed}-{i}",
            "scene": str(episode.seed),
            "before": before,
            "after": stored(outcome.after),
            "action": outcome.action.say(rng),
            "source": "playroom",
            "class": outcome.action.verb,
            "plain": outcome.action.phrase(),
            "inverse": outcome.action.inverse.say(inverse_rng) if outcome.action.inverse else None,
            "held_out": commands_held_out(outcome.action),
        }
        for i, outcome in enumerate(episode.outcomes)
    ]


def stored(image: np.ndarray) -> dict:
    """A picture, uint8 [H, W, 3], as `IMAGE` holds it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("train", "validation", "test"), default="train")
    parser.add_argument("--scenes", type=int, required=True, help="number of scenes (states)")
    parser.add_argument("--first", type=int, default=0, help="index of the first scene of the split")
    parser.add_argument("--actions-per-scene", type=int, default=6, help="actions played from each state")
    parser.add_argument("--earlier", type=int, default=0, help="random actions played before the first picture")
    parser.add_argument("--colliding", action="store_true", help="only actions that move another thing as well")
    parser.add_argument("--size", type=int, default=96, help="picture side in pixels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    work = partial(
        write_shard,
        split=args.split,
        scenes=args.scenes,
        first=args.first,
        actions_per_scene=args.actions_per_scene,
        earlier=args.earlier,
        colliding=args.colliding,
        size=args.size,
        out=args.out,
    )
    start, pairs = time.perf_counter(), 0
    shards = range(-(-args.scenes // SCENES_PER_SHARD))
    with ProcessPoolExecutor(args.workers, initializer=end_with_parent) as pool:
        for count in tqdm(pool.map(work, shards), total=len(shards), unit="shard"):
            pairs += count
    seconds = time.perf_counter() - start
    print(f"{pairs} pairs in {seconds:.0f} s: {pairs / seconds:.1f} pairs/s with {args.workers} processes")


if __name__ == "__main__":
    main()
