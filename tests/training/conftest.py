"""A few real triplets and what the stages make of them, once for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import VQModel

from training.encode import encode_shard
from training.image_tokenizer import build_vqgan
from training.new_checkpoint import new_checkpoint
from training.playroom.room import Room
from training.playroom.triplets import write_shard
from training.triplets import shards_of

SIZE = 32


@pytest.fixture(scope="session")
def rooms() -> Iterator[tuple[Room, Room]]:
    """A room, and one that renders faster."""
    rooms = Room(), Room(rough=True)
    yield rooms
    for room in rooms:
        room.close()


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
    folder = tmp_path_factory.mktemp("codes")
    for shard in shards_of(triplet_folder):
        encode_shard(shard, vqgan=vqgan_folder, out=folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_folder(vqgan_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained playroom checkpoint over that image tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    vqgan = VQModel.from_pretrained(vqgan_folder)
    new_checkpoint(vqgan, image_size=SIZE, width=64, layers=1, positions=128).save_pretrained(folder)
    return folder
