"""Converted checkpoints shared by tests that leave them as they are."""

from pathlib import Path
from typing import NamedTuple

import pytest
from torch import Tensor

from bwm_pipelines.conversion import convert
from tests.conversion.checkpoints import meta_params, meta_ranks, text_tokenizer, vqgan_state, write_meta

PART_SIZE = 1_500_000  # several files a model


class Meta(NamedTuple):
    """A checkpoint in Meta's layout: its folder, and what is in it."""

    folder: Path
    params: dict
    ranks: list[dict[str, Tensor | None]]
    vqgan: dict[str, Tensor]


def build_meta(folder: Path, num_ranks: int = 1, seed: int = 0, **params) -> Meta:
    params, vqgan = meta_params(**params), vqgan_state()
    vocab_size = -(-len(text_tokenizer()["model"]["vocab"]) // 8) * 8
    ranks = meta_ranks(params, vocab_size, num_ranks, seed)
    return Meta(write_meta(folder, params, ranks, vqgan), params, ranks, vqgan)


@pytest.fixture(scope="session")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Meta:
    """As the 7B: one file, norms before."""
    return build_meta(tmp_path_factory.mktemp("meta") / "chameleon")


@pytest.fixture(scope="session")
def converted(meta: Meta, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "pipeline"
    convert(meta.folder, folder, part_size=PART_SIZE)
    return folder
