"""The page over the tiny checkpoint, served on a free port."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from bwm_pipelines.space.limits import Limits
from bwm_pipelines.space.serve import open_page
from bwm_pipelines.space.studio import Studio


@pytest.fixture(scope="session")
def studio(checkpoint: str) -> Studio:
    return Studio(checkpoint)


@pytest.fixture(scope="module")
def serve(studio: Studio) -> Iterator[Callable[..., str]]:
    """Serves the page with these limits and gives its address."""
    pages: list[gr.Blocks] = []

    def serve(**limits: int) -> str:
        pages.append(open_page(studio, Limits(**limits), block=False))
        return pages[-1].local_url

    yield serve
    for page in pages:
        page.close()


@pytest.fixture
def picture(image: Image.Image, tmp_path: Path) -> str:
    """An image file."""
    image.save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


@pytest.fixture
def corrupt(picture: str, tmp_path: Path) -> str:
    """A PNG file whose second half is missing."""
    data = Path(picture).read_bytes()
    (tmp_path / "broken.png").write_bytes(data[: len(data) // 2])
    return str(tmp_path / "broken.png")
