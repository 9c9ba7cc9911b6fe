"""A few real triplets and what the stages make of them, once for all tests."""

from pathlib import Path

import pytest
from datasets import Dataset

from training.encode import encode_scenes
from training.image_tokenizer import build_vqgan
from training.playroom.triplets import write_shard
from training.triplets import load_triplets

SIZE = 32


@pytest.fixture(scope="session")
def triplet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few scenes at 32 px."""
    folder = tmp_path_factory.mktemp("triplets")
    write_shard(0, split="train", scenes=4, actions_per_scene=3, size=SIZE, out=folder)
    return folder


@pytest.fixture(scope="session")
def vqgan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained image tokenizer: 16 codes out of 32 for an image of 32 px."""
    folder = tmp_path_factory.mktemp("vqgan")
    build_vqgan(channels=(8, 8, 8, 16), codes=32, size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def codes_folder(triplet_folder, vqgan_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import VQModel

    folder = tmp_path_factory.mktemp("codes")
    scenes = encode_scenes(load_triplets(triplet_folder), VQModel.from_pretrained(vqgan_folder))
    Dataset.from_list(list(scenes)).save_to_disk(folder)
    return folder
