"""What a world model draws freely in training scenes, with whole things in its place: what a refiner learns from.

    python -m training.playroom.fitted_draws --checkpoint CHECKPOINT --scenes 1000 --out runs/playroom/fitted

Of a free draw the true outcome is a poor target: what was drawn lies elsewhere, so a refiner learns the mean of many places, in
which corners are round. Here the target is the rendering of the outcome that is nearest to the draw (`render_and_compare`). The
rows are triplets (`training.triplets`) whose `after` is that rendering, with three columns more: what the image tokenizer
shows of the draw (`shown`), `nearby` renderings, of which each would do as well as `after`, and the `distance` of the refined picture from
`after`, relative to the true change. Give the folder to `training.refiner --draws`. Finished shards are kept, so an interrupted
run resumes.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.new_files import new_files
from training.playroom.episodes import Episode, Outcome, play_episode
from training.playroom.render_and_compare import renderings_near
from training.playroom.room import Room
from training.playroom.scenes import sample_scene
from training.playroom.triplets import COLUMNS, IMAGE, stored
from training.workers import run_shards

SCENES_PER_SHARD = 50
NEARBY = 15
SCHEMA = pa.schema(COLUMNS | {"shown": IMAGE, "nearby": pa.list_(IMAGE), "distance": pa.float32()})


@torch.no_grad()
def fit_scene(
    world: ChameleonWorldModelPipeline, rooms: tuple[Room, Room], episode: Episode, candidates: int
) -> list[dict]:
    """Rows of all actions of an episode; `rooms` both hold the scene, the second one renders faster."""
    rng = np.random.default_rng([episode.seed, 7])
    before, rows = Image.fromarray(episode.before), []
    for number, outcome in enumerate(episode.outcomes):
        words = outcome.action.say(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        output = world(before, words, num_candidates=candidates, generator=generator, output_type="latent")
        drawn = output.codes if output.features is None else output.features
        shown = _bytes(world.decode_images(drawn))
        refined = _bytes(world.decode_images(drawn, world.prepare_references(before, candidates)))
        for k in range(candidates):
            row = fitted_row(rooms, episode, outcome, shown[k], refined[k], rng)
            rows.append(row | {"id": f"{episode.seed}-{number}-{k}", "action": words})
    return rows


def fitted_row(
    rooms: tuple[Room, Room],
    episode: Episode,
    outcome: Outcome,
    shown: np.ndarray,
    refined: np.ndarray,
    rng: np.random.Generator,
) -> dict:
    """What a row says of one imagined picture, uint8 [size, size, 3], of an outcome."""
    fitted, *nearby = renderings_near(*rooms, episode.state, outcome.state, refined, rng, NEARBY)
    return {
        "scene": str(episode.seed),
        "before": stored(episode.before),
        "after": stored(fitted),
        "source": "playroom",
        "class": outcome.action.verb,
        "shown": stored(shown),
        "nearby": [stored(one) for one in nearby],
        "distance": _difference(refined, fitted) / _difference(episode.before, outcome.after),
    }


def _bytes(pixels: torch.Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    return (127.5 * (pixels + 1)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b).sum())


def fit_shard(
    shard: int,
    *,
    checkpoint: str,
    first: int,
    scenes: int,
    commands: int,
    candidates: int,
    earlier: int,
    colliding: bool,
    out: Path,
) -> None:
    """Writes the rows of one shard of scenes; an existing file is left alone."""
    name = f"{shard:05d}.parquet"
    if (out / name).exists():
        return
    torch.set_num_threads(1)
    world = ChameleonWorldModelPipeline.from_pretrained(checkpoint, dynamics_model=None)
    world.set_progress_bar_config(disable=True)
    rooms, rows = (Room(), Room(rough=True)), []
    for index in range(shard * SCENES_PER_SHARD, min((shard + 1) * SCENES_PER_SHARD, scenes)):
        size = world.config.image_size
        episode = play_episode(rooms[0], "train", first + index, size, commands, earlier, colliding)
        rooms[1].load(sample_scene(episode.seed))
        rows += fit_scene(world, rooms, episode, candidates)
    for room in rooms:
        room.close()
    with new_files(out) as folder:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="pipeline folder with the world model")
    parser.add_argument("--scenes", type=int, required=True, help="number of training scenes")
    parser.add_argument("--first", type=int, default=0, help="index of the first of them")
    parser.add_argument("--earlier", type=int, default=0, help="random actions played before the first picture")
    parser.add_argument("--colliding", action="store_true", help="only actions that move another thing as well")
    parser.add_argument("--commands", type=int, default=3, help="actions commanded in each scene")
    parser.add_argument("--candidates", type=int, default=2, help="after images drawn for each command")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in vars(args).items() if name != "workers"}
    shards = range(-(-args.scenes // SCENES_PER_SHARD))
    run_shards(partial(fit_shard, **options), shards, args.workers)


if __name__ == "__main__":
    main()
