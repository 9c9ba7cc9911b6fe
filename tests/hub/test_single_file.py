"""The file that a repository carries for people without the package does what the package does."""

import ast
import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from hub_cards import single_file as single_file_module
from hub_cards.single_file import single_file

RUN = """
import json, sys
sys.modules["bwm_pipelines"] = None
import torch
from diffusers import DiffusionPipeline
from PIL import Image

folder, image = sys.argv[1:]
torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
output = pipe(Image.open(image), "open the door", num_candidates=2, generator=torch.Generator().manual_seed(0))
output.images[0].save(image)
print(json.dumps({"class": type(pipe).__name__, "codes": output.codes.tolist(), "scores": output.scores}))
"""


def test_same_image_without_the_package(pipe, image, tmp_path):
    folder, picture = tmp_path / "checkpoint", tmp_path / "image.png"
    pipe.save_pretrained(folder)
    (folder / "pipeline.py").write_text(single_file())
    image.save(picture)
    expected = pipe(image, "open the door", num_candidates=2, generator=torch.Generator().manual_seed(0))
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(folder), str(picture)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    output = json.loads(run.stdout.splitlines()[-1])
    assert output["class"] == "ChameleonWorldModelPipeline"
    assert output["codes"] == expected.codes.tolist()
    assert output["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert Image.open(picture).tobytes() == expected.images[0].tobytes()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pipelines.world_model", "ChameleonWorldModelPipeline"),
        ("pipelines.base", "CheckpointPipeline"),
        ("families.chameleon", "ChameleonFamily"),
        ("sampling", "sample_codes"),
        ("verification", "score_candidates"),
        ("hub", "fetch_index"),
    ],
)
def test_file_holds_the_source_of_every_module_it_needs(module, name):
    assert inspect.getsource(getattr(import_module(f"bwm_pipelines.{module}"), name)) in single_file()


def test_file_stands_alone_and_is_always_the_same():
    text = single_file()
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.startswith("bwm_pipelines")]
    again = [sys.executable, "-c", "from hub_cards.single_file import single_file; print(single_file(), end='')"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(again, check=True, capture_output=True, text=True, env=environment).stdout == text


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("def helper(): ...", "from pack.first import other\ndef helper(): ...", "'helper' is defined in "),
        ("", "def late():\n    from pack.first import x", "must stand at the top"),
        ("x = 1", "from pack.first import x as y", "without `as`"),
        ("x = 1", "import pack.first", "must read"),
    ],
)
def test_modules_that_cannot_stand_in_one_file(tmp_path, monkeypatch, first, second, message):
    (tmp_path / "pack").mkdir()
    for name, text in {"__init__": "", "first": first, "second": second}.items():
        (tmp_path / "pack" / f"{name}.py").write_text(f'"""A module."""\n{text}\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pack", raising=False)
    monkeypatch.setattr(single_file_module, "PACKAGE", "pack")
    with pytest.raises(ValueError, match=message):
        single_file("pack.second")
