"""What the wheel holds and asks for, and that it works where it is installed."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CHECKPOINT = "bwm_pipelines/checkpoints/playroom/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def info(project):
    """Name of the wheel's folder of metadata."""
    return f"bwm_pipelines-{project['version']}.dist-info"


def test_wheel_holds_the_library_and_nothing_else(names, info):
    assert {name.split("/")[0] for name in names} == {"bwm_pipelines", info}
    assert "bwm_pipelines/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_holds_the_embedded_checkpoint(wheel, names):
    committed = {str(file.relative_to(ROOT)) for file in (ROOT / CHECKPOINT).rglob("*") if file.is_file()}
    assert {CHECKPOINT + "model_index.json", CHECKPOINT + "sample_scene.png"} <= committed
    assert {name for name in names if name.startswith(CHECKPOINT)} == committed
    weights = [info for info in zipfile.ZipFile(wheel).infolist() if info.filename.endswith(".safetensors")]
    assert 0 < sum(info.file_size for info in weights) <= 60e6


def test_wheel_asks_for_lower_bounds_only(wheel, info):
    metadata = message_from_bytes(zipfile.ZipFile(wheel).read(f"{info}/METADATA"))
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert {"torch", "diffusers", "transformers"} <= {requirement.name for requirement in requirements}
    assert {specifier.operator for requirement in requirements for specifier in requirement.specifier} == {">="}
    assert metadata["License-Expression"] == "Apache-2.0"


def test_constraints_pin_a_version_within_every_bound(project):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = project["optional-dependencies"].values()
    for line in chain(project["dependencies"], *extras):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


@pytest.mark.parametrize("module", ["bwm_pipelines", "bwm_pipelines.__main__"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "diffusers", "transformers", "numpy", "PIL"} & set(loaded)


def test_installed_wheel_edits_the_sample_scene_from_an_empty_folder(wheel, tmp_path):
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True)

    def run(*words):
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout

    assert run("-c", "import bwm_pipelines; print(bwm_pipelines.__file__)").startswith(str(site))
    result = json.loads(run("-m", "bwm_pipelines", "edit", "open the door", "-k", "2", "--json"))
    assert len(result["scores"]) == len(result["margins"]) == len(result["files"]) == 2
    assert all((folder / file).is_file() for file in result["files"])
