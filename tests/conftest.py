"""Fixtures around the tiny checkpoint of `tests.tiny`."""

import pytest
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from tests.tiny import build_pipeline


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipe() -> ChameleonWorldModelPipeline:
    """Shared by tests that leave it as it is."""
    return build_pipeline()


@pytest.fixture(scope="session")
def verifier(pipe: ChameleonWorldModelPipeline) -> DynamicsVerifierPipeline:
    verifier = DynamicsVerifierPipeline.from_pipe(pipe)
    verifier.set_progress_bar_config(disable=True)
    return verifier


@pytest.fixture(scope="session")
def checkpoint(pipe: ChameleonWorldModelPipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pipeline as a folder; read-only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    pipe.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def image() -> Image.Image:
    """A picture in which every pixel differs, 40 x 24."""
    return Image.linear_gradient("L").resize((40, 24)).convert("RGB").rotate(30, fillcolor=(200, 30, 60))
