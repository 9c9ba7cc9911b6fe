"""A Hub on the loopback interface that the real client talks to, with an empty cache and nobody logged in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.hf_api import api
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline
from tests.hub.server import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        # The client reads its environment once, at import.
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(api, "endpoint", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server stores files by LFS
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture(scope="session")
def base(pipe: ChameleonWorldModelPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a dynamics model, for adapters to go on; read-only."""
    folder = tmp_path_factory.mktemp("base")
    ChameleonWorldModelPipeline.from_pipe(pipe, dynamics_model=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT adapters of the base's model, as training writes them; read-only. Only cwm trains a whole layer besides."""
    folder = tmp_path_factory.mktemp("adapters")
    save_random_adapter(base, folder / "cwm", seed=0, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    save_random_adapter(base, folder / "cdm", seed=1, target_modules=["q_proj", "up_proj"])
    return {name: folder / name for name in ("cwm", "cdm")}


@pytest.fixture(scope="session")
def merged(base: Path, adapters: dict[str, Path]) -> ChameleonWorldModelPipeline:
    """What base and adapters must compute: two models of their own, into which PEFT merged them."""

    def merge(name: str) -> ChameleonForConditionalGeneration:
        model = ChameleonForConditionalGeneration.from_pretrained(base / "world_model")
        return PeftModel.from_pretrained(model, adapters[name]).merge_and_unload()

    pipe = ChameleonWorldModelPipeline.from_pretrained(base, world_model=merge("cwm"), dynamics_model=merge("cdm"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_random_adapter(base: Path, folder: Path, seed: int, **settings) -> None:
    model = ChameleonForConditionalGeneration.from_pretrained(base / "world_model")
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **settings))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
