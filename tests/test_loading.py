"""A checkpoint that cannot work is refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline

TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def edit_tensors(path: Path, edit) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(name, pipeline=ChameleonWorldModelPipeline, **options) -> str:
    with pytest.raises(ValueError, match="^`pretrained_model_name_or_path`") as error:
        pipeline.from_pretrained(name, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("component", ["world_model", "dynamics_model"])
def test_missing_tensor_of_a_language_model(folder, component):
    edit_tensors(folder / component / "model.safetensors", lambda tensors: tensors.pop(TENSOR))
    assert f"tensor {TENSOR} is missing from {folder / component}" in refusal(folder)


def test_missing_tensor_of_the_vq_model(folder):
    path = folder / "vqgan" / "diffusion_pytorch_model.safetensors"
    edit_tensors(path, lambda tensors: tensors.pop("quantize.embedding.weight"))
    assert "tensor quantize.embedding.weight is missing" in refusal(folder)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_tensor_that_is_not_finite(folder, value):
    def poison(tensors):
        tensors[TENSOR][3, 4] = value

    edit_tensors(folder / "dynamics_model" / "model.safetensors", poison)
    assert f"tensor {TENSOR} of dynamics_model holds NaN or infinity" in refusal(folder)


def test_tensor_of_another_shape(folder):
    edit_tensors(folder / "world_model" / "model.safetensors", lambda tensors: tensors.update({TENSOR: torch.ones(2)}))
    assert "has the shape [2] but its config.json asks for [64, 32]" in refusal(folder)


def test_weights_that_were_cut_off(folder):
    path = folder / "vqgan" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is damaged" in refusal(folder)


def test_component_that_is_missing(folder):
    shutil.rmtree(folder / "vqgan")
    assert "has no vqgan" in refusal(folder)


def test_weights_that_are_missing(folder):
    (folder / "world_model" / "model.safetensors").unlink()
    assert "is missing from" in refusal(folder)


@pytest.mark.parametrize("component", ["world_model", "vqgan"])
def test_config_that_is_missing(folder, component):
    (folder / component / "config.json").unlink()
    assert f"{folder / component} has no config.json" in refusal(folder)


def test_config_that_is_damaged(folder):
    (folder / "world_model" / "config.json").write_text("{")
    assert f"{folder / 'world_model' / 'config.json'} is damaged" in refusal(folder)


def test_folder_that_is_no_pipeline(tmp_path):
    assert "has no model_index.json; give the folder of a whole checkpoint" in refusal(tmp_path)


def test_index_that_is_damaged(folder):
    (folder / "model_index.json").write_text("{")
    assert "model_index.json is damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["nowhere", "no/such/folder", "nobody/nothing"])
@pytest.mark.parametrize("pipeline", [ChameleonWorldModelPipeline, DynamicsVerifierPipeline])
def test_name_that_is_unknown(pipeline, name):
    message = refusal(name, pipeline, local_files_only=True)
    assert f"{name!r} is no folder here, and " in message


def test_component_handed_over_is_not_looked_for(pipe, folder):
    shutil.rmtree(folder / "world_model")
    loaded = ChameleonWorldModelPipeline.from_pretrained(folder, world_model=pipe.world_model)
    assert loaded.world_model is pipe.world_model


def test_tied_head_is_not_missing(pipe, folder):
    config = folder / "world_model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    edit_tensors(folder / "world_model" / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    model = ChameleonWorldModelPipeline.from_pretrained(folder).world_model
    assert model.lm_head.weight.equal(pipe.world_model.model.embed_tokens.weight)
