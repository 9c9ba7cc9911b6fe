"""Free draws with whole things in their place are triplets that a refiner can learn from."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, default_checkpoint
from training.playroom.episodes import play_episode
from training.playroom.fitted_draws import NEARBY, fit_scene, fit_shard, fitted_row
from training.playroom.scenes import sample_scene
from training.refiner import FAR, load_drawn

OPTIONS = {"first": 0, "scenes": 2, "commands": 2, "candidates": 2, "earlier": 0, "colliding": False}


@pytest.fixture(scope="module")
def episode(rooms):
    episode = play_episode(rooms[0], "train", 1, 96, max_actions=2)
    rooms[1].load(sample_scene(episode.seed))
    return episode


@pytest.mark.parametrize("expected", [False, True])
def test_what_the_checkpoint_draws_is_fitted(rooms, episode, expected):
    world = ChameleonWorldModelPipeline.from_pretrained(
        default_checkpoint(), dynamics_model=None, expected_features=expected
    )
    world.set_progress_bar_config(disable=True)
    rows = fit_scene(world, rooms, episode, candidates=2)
    assert [row["id"] for row in rows] == [f"{episode.seed}-{i}-{k}" for i in range(2) for k in range(2)]
    assert all(0 < row["distance"] < FAR for row in rows)
    assert rows[0]["action"] == rows[1]["action"] != rows[2]["action"]
    before, words, seed = Image.fromarray(episode.before), rows[0]["action"], np.random.default_rng([episode.seed, 7])
    assert episode.outcomes[0].action.say(seed) == words
    generator = torch.Generator().manual_seed(int(seed.integers(2**63)))
    drawn = world(before, words, num_candidates=2, generator=generator, output_type="latent")
    picture = world.decode_images(drawn.features if expected else drawn.codes)[:1]
    np.testing.assert_allclose(picture_of(rows[0]["shown"]) / 127.5 - 1, picture[0].permute(1, 2, 0), atol=0.01)


def test_the_true_outcome_is_its_own_fit(rooms, episode):
    outcome = episode.outcomes[0]
    row = fitted_row(rooms, episode, outcome, episode.before, outcome.after, np.random.default_rng(0))
    assert row["distance"] < 0.02
    assert (picture_of(row["shown"]) == episode.before).all()
    assert len(row["nearby"]) == NEARBY


def picture_of(stored):
    return np.asarray(Image.open(io.BytesIO(stored["bytes"])))


def test_a_refiner_reads_the_shards(checkpoint_folder, tmp_path):
    fit_shard(0, checkpoint=str(checkpoint_folder), out=tmp_path, **OPTIONS)
    shard = tmp_path / "00000.parquet"
    written, distances = shard.stat().st_mtime_ns, pq.read_table(shard)["distance"].to_numpy()
    fit_shard(0, checkpoint=str(checkpoint_folder), out=tmp_path, **OPTIONS)
    assert shard.stat().st_mtime_ns == written and len(distances) == 8
    assert len(load_drawn(tmp_path)) == (distances <= FAR).sum()
