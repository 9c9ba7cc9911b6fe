"""Servers of both ends of the range of versions, fetched once and started once a session."""

import shutil

import pytest
from PIL import Image

from tests.comfy.fetch_server import NEWEST, OLDEST, fetch
from tests.comfy.graphs import TINY
from tests.comfy.server import Server


@pytest.fixture(scope="session")
def fetched():
    fetch()


@pytest.fixture(scope="session")
def scene():
    """The tiny checkpoint's sample scene, 40 x 24."""
    return Image.linear_gradient("L").resize((40, 24)).convert("RGB").rotate(30, fillcolor=(200, 30, 60))


@pytest.fixture(scope="session", params=[NEWEST, OLDEST])
def server(request, fetched, checkpoint, scene, tmp_path_factory):
    server = Server(request.param, tmp_path_factory.mktemp("comfy"))
    shutil.copytree(checkpoint, server.more_models / TINY)
    scene.save(server.more_models / TINY / "sample_scene.png")
    yield server
    server.stop()
