"""What a world model imagines in training scenes, with what the simulator says of it: near misses for the dynamics model.

    python -m training.playroom.candidates --checkpoint CHECKPOINT --scenes 1000 --out runs/playroom/codes/candidates

A verifier that has only seen rendered pictures finds every wrong or melted candidate new. Here some actions of each scene are
commanded, candidates sampled, and each is named by the true outcome that it is nearest to, in words that also say whether
something else visibly changed. The result is coded scenes like those of `training.encode`; give it to `training.fit`
beside them. Finished shards are kept, so an interrupted run resumes.
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
from training.evaluation.outcomes import nearest_rival, pictures_of, rival_pictures
from training.evaluation.over_editing import changed_elsewhere, is_clean
from training.playroom.episodes import Episode, choose_balanced, play_episode
from training.playroom.room import Room
from training.sequences import NOTHING
from training.workers import run_shards

SCENES_PER_SHARD = 50
SOMETHING_ELSE = "something else changed"
SCHEMA = pa.schema(
    {
        "scene": pa.string(),
        "before": pa.list_(pa.int64()),
        "after": pa.list_(pa.list_(pa.int64())),
        "distance": pa.list_(pa.list_(pa.float32())),
        "id": pa.list_(pa.string()),
        "action": pa.list_(pa.string()),
        "inverse": pa.list_(pa.string()),
        "class": pa.list_(pa.string()),
    }
)


def describe(words: str, clean: bool) -> str:
    """What a candidate shows: the words of the outcome it is nearest to, and whether that is all."""
    if clean:
        return words
    return SOMETHING_ELSE if words == NOTHING else f"{words}, and {SOMETHING_ELSE}"


@torch.no_grad()
def imagine_scene(world: ChameleonWorldModelPipeline, episode: Episode, commands: int, candidates: int) -> dict:
    """Samples candidates for some actions of a scene: one row of coded scenes, without inverse actions.

    `distance` is that between the codebook's entries, since imagined pictures have no features before quantisation.
    """
    rng = np.random.default_rng([episode.seed, 5])
    chosen = choose_balanced(rng, [outcome.action for outcome in episode.outcomes], commands)
    before = world.encode_images([Image.fromarray(episode.before)])
    codes = world(
        before,
        [action.say(rng) for action in chosen],
        num_candidates=candidates,
        generator=torch.Generator().manual_seed(episode.seed),
        output_type="latent",
    ).codes
    codebook = world.vqgan.quantize.embedding.weight
    distance = (codebook[codes] - codebook[before]).square().sum(-1)
    return {
        "scene": f"{episode.seed}-imagined",
        "before": before[0].tolist(),
        "after": codes.tolist(),
        "distance": distance.tolist(),
        "id": [f"{episode.seed}-imagined-{i}" for i in range(len(codes))],
        "action": name_pictures(world, episode, codes, rng),
        "inverse": [None] * len(codes),
        "class": [action.verb for action in chosen for _ in range(candidates)],
    }


def name_pictures(
    world: ChameleonWorldModelPipeline, episode: Episode, codes: torch.Tensor, rng: np.random.Generator
) -> list[str]:
    """In words what imagined pictures of a scene, int64 [M, N], show; see `describe`."""
    truths = [outcome.after for outcome in episode.outcomes] + [episode.before]
    rivals = rival_pictures(episode.before, episode.outcomes)
    shown = pictures_of(world, world.encode_images([Image.fromarray(truth) for truth in truths]))
    said = [outcome.action.say(rng) for outcome in episode.outcomes] + [NOTHING]
    names = []
    for image in pictures_of(world, codes):
        nearest = nearest_rival(rivals, image)
        elsewhere = changed_elsewhere(image, shown[nearest], episode.before, truths[nearest])
        names.append(describe(said[nearest], is_clean(elsewhere)))
    return names


def imagine_shard(shard: int, *, checkpoint: str, first: int, scenes: int, commands: int, candidates: int, out: Path):
    """Writes the candidates of one shard of scenes; an existing file is left alone."""
    name = f"{shard:05d}.parquet"
    if (out / name).exists():
        return
    torch.set_num_threads(1)
    world = ChameleonWorldModelPipeline.from_pretrained(checkpoint, dynamics_model=None)
    world.set_progress_bar_config(disable=True)
    room, rows = Room(), []
    for index in range(shard * SCENES_PER_SHARD, min((shard + 1) * SCENES_PER_SHARD, scenes)):
        episode = play_episode(room, "train", first + index, world.config.image_size)
        rows.append(imagine_scene(world, episode, commands, candidates))
    room.close()
    with new_files(out) as folder:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="pipeline folder with the world model")
    parser.add_argument("--scenes", type=int, required=True, help="number of training scenes")
    parser.add_argument("--first", type=int, default=0, help="index of the first of them")
    parser.add_argument("--commands", type=int, default=2, help="actions commanded in each scene")
    parser.add_argument("--candidates", type=int, default=2, help="candidates sampled for each command")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards of codes")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = {
        name: getattr(args, name) for name in ("checkpoint", "first", "scenes", "commands", "candidates", "out")
    }
    shards = range(-(-args.scenes // SCENES_PER_SHARD))
    run_shards(partial(imagine_shard, **options), shards, args.workers)


if __name__ == "__main__":
    main()
