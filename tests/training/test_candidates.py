"""Imagined pictures as training data of the verifier: named as the simulator sees them."""

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, default_checkpoint
from training.playroom.actions import fold
from training.playroom.candidates import SOMETHING_ELSE, describe, imagine_shard, name_pictures
from training.playroom.episodes import play_episode
from training.playroom.room import Room
from training.sequences import NOTHING, load_codes


@pytest.fixture(scope="module")
def episode():
    room = Room()
    episode = play_episode(room, "train", 0, 96, max_actions=4)
    room.close()
    return episode


@pytest.mark.parametrize(
    ("words", "clean", "expected"),
    [
        ("open the door", True, "open the door"),
        ("open the door", False, f"open the door, and {SOMETHING_ELSE}"),
        (NOTHING, True, NOTHING),
        (NOTHING, False, SOMETHING_ELSE),
    ],
)
def test_words_say_whether_something_else_changed(words, clean, expected):
    assert describe(words, clean) == expected


def test_true_outcomes_are_named_by_their_actions(episode):
    world = ChameleonWorldModelPipeline.from_pretrained(default_checkpoint(), dynamics_model=None)
    pictures = [outcome.after for outcome in episode.outcomes] + [episode.before]
    codes = world.encode_images([Image.fromarray(picture) for picture in pictures])
    names = name_pictures(world, episode, codes, np.random.default_rng(0))
    assert [fold(name) for name in names] == [outcome.action.phrase() for outcome in episode.outcomes] + [NOTHING]


def test_a_stain_elsewhere_is_said(episode):
    world = ChameleonWorldModelPipeline.from_pretrained(default_checkpoint(), dynamics_model=None)
    stained = episode.outcomes[0].after.copy()
    stained[:24, :24] = stained[-24:, -24:] = (255, 0, 255)
    codes = world.encode_images([Image.fromarray(stained)])
    (name,) = name_pictures(world, episode, codes, np.random.default_rng(0))
    assert name.endswith(SOMETHING_ELSE)


def test_shards_train_beside_coded_scenes(checkpoint_folder, codes_folder, tmp_path):
    options = {"checkpoint": str(checkpoint_folder), "first": 0, "scenes": 2, "commands": 2, "candidates": 2}
    imagine_shard(0, out=tmp_path, **options)
    written = (tmp_path / "00000.parquet").stat().st_mtime_ns
    imagine_shard(0, out=tmp_path, **options)
    assert (tmp_path / "00000.parquet").stat().st_mtime_ns == written
    scenes = concatenate_datasets([load_codes(codes_folder), load_codes(tmp_path)])
    for scene in scenes.select(range(len(scenes) - 2, len(scenes))):
        assert torch.tensor(scene["after"]).shape == torch.tensor(scene["distance"]).shape == (4, 16)
        assert scene["inverse"] == [None] * 4 and all(scene["action"])
        unmoved = torch.tensor(scene["after"]) == torch.tensor(scene["before"])
        assert torch.equal(torch.tensor(scene["distance"]) == 0, unmoved)
