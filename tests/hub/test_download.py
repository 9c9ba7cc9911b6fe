"""Checkpoints from the Hub: what is downloaded, which revision, offline, and what is said when they cannot be had."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.hf_api import api

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline

REPO = "someone/playroom"
ADAPTERS = {"cwm": "someone/cwm", "cdm": "someone/cdm"}


@pytest.fixture
def served(hub, checkpoint):
    """The tiny checkpoint in a repository."""
    hub.add(REPO, Path(checkpoint))
    return hub


@pytest.fixture
def parts(hub, base, adapters):
    """A base in one repository, and its adapters in two others."""
    hub.add("someone/base", base)
    for name, repo in ADAPTERS.items():
        hub.add(repo, adapters[name])
    return hub


def refusal(name, pipeline=ChameleonWorldModelPipeline, **options) -> str:
    with pytest.raises(ValueError) as error:
        pipeline.from_pretrained(name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def weights(hub) -> set[str]:
    return {path for path in hub.downloaded() if path.endswith(".safetensors")}


def same_weights(model, expected) -> bool:
    return all(a.equal(b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True))


def test_whole_pipeline(served, pipe):
    loaded = ChameleonWorldModelPipeline.from_pretrained(REPO)
    assert same_weights(loaded.world_model, pipe.world_model)
    assert same_weights(loaded.dynamics_model, pipe.dynamics_model)
    assert loaded.config._name_or_path == REPO


def test_verifier_leaves_the_world_model_on_the_hub(served, pipe):
    loaded = DynamicsVerifierPipeline.from_pretrained(REPO)
    assert same_weights(loaded.dynamics_model, pipe.dynamics_model)
    assert weights(served) == {"dynamics_model/model.safetensors", "vqgan/diffusion_pytorch_model.safetensors"}


def test_world_model_leaves_the_dynamics_model_on_the_hub(served):
    assert ChameleonWorldModelPipeline.from_pretrained(REPO, dynamics_model=None).dynamics_model is None
    assert weights(served) == {"world_model/model.safetensors", "vqgan/diffusion_pytorch_model.safetensors"}


def test_pickles_stay_on_the_hub(hub, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "world_model" / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add(REPO, folder)
    ChameleonWorldModelPipeline.from_pretrained(REPO)
    assert "world_model/pytorch_model.bin" not in hub.downloaded()


def test_revision(served, checkpoint, tmp_path):
    first = served.repositories[REPO].refs["main"]
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"temperature": 0.25}))
    served.add(REPO, folder)
    served.repositories[REPO].refs["v1"] = first
    for revision, temperature in {"main": 0.25, "v1": 1.0, first: 1.0}.items():
        loaded = ChameleonWorldModelPipeline.from_pretrained(REPO, revision=revision)
        assert loaded.config.temperature == temperature
    assert refusal(REPO, revision="v2").startswith(f"`revision`: {REPO!r} has no revision 'v2'")


def test_adapters(parts, adapters, base):
    loaded = ChameleonWorldModelPipeline.from_pretrained("someone/base", **ADAPTERS)
    here = ChameleonWorldModelPipeline.from_pretrained(base, **adapters)
    assert loaded.dynamics_model is loaded.world_model
    assert same_weights(loaded.world_model, here.world_model)


def test_adapter_of_a_revision(parts, adapters, base):
    repository = parts.repositories[ADAPTERS["cdm"]]
    repository.refs["v1"] = repository.refs["main"]
    repository.commit({"README.md": b"moved"})
    assert "has no adapter_config.json and adapter_model.safetensors" in refusal("someone/base", cdm=ADAPTERS["cdm"])
    loaded = DynamicsVerifierPipeline.from_pretrained("someone/base", cdm=f"{ADAPTERS['cdm']}@v1")
    here = DynamicsVerifierPipeline.from_pretrained(base, cdm=adapters["cdm"])
    assert same_weights(loaded.dynamics_model, here.dynamics_model)
    assert refusal("someone/base", cdm=f"{ADAPTERS['cdm']}@v2").startswith("`revision`: 'someone/cdm' has no revision")


def test_verifier_takes_only_its_own_adapter_of_a_checkpoint(hub, base, adapters, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "checkpoint"))
    for name, adapter in adapters.items():
        shutil.copytree(adapter, folder / "adapters" / name)
    hub.add(REPO, folder)
    DynamicsVerifierPipeline.from_pretrained(REPO)
    assert "adapters/cdm/adapter_model.safetensors" in weights(hub)
    assert "adapters/cwm/adapter_model.safetensors" not in weights(hub)


def test_no_weights_are_downloaded_for_a_verifier_that_is_not_there(parts):
    assert "has no dynamics_model" in refusal("someone/base", DynamicsVerifierPipeline)
    assert not weights(parts)


@pytest.mark.parametrize("how", ["argument", "environment", "no server"])
def test_offline(served, pipe, how, monkeypatch):
    options = {"local_files_only": True} if how == "argument" else {}
    ChameleonWorldModelPipeline.from_pretrained(REPO)
    served.requests.clear()
    if how == "environment":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "no server":
        for place, name in ((constants, "ENDPOINT"), (api, "endpoint")):
            monkeypatch.setattr(place, name, "http://127.0.0.1:9")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}")
    for pipeline in (ChameleonWorldModelPipeline, DynamicsVerifierPipeline):
        loaded = pipeline.from_pretrained(REPO, **options)
        assert same_weights(loaded.dynamics_model, pipe.dynamics_model)
    assert not served.requests
    message = refusal("someone/else", **options)
    assert "the cache lacks model_index.json of it while the Hub is out of reach or switched off" in message


def test_offline_with_only_a_part_in_the_cache(served):
    DynamicsVerifierPipeline.from_pretrained(REPO)
    assert "the cache lacks the whole of " in refusal(REPO, local_files_only=True)


def test_offline_by_environment_in_another_process(served, tmp_path):
    ChameleonWorldModelPipeline.from_pretrained(REPO)
    code = f"""
from bwm_pipelines import DynamicsVerifierPipeline
print(DynamicsVerifierPipeline.from_pretrained({REPO!r}).config.image_size)
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_ENDPOINT": served.url}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    served.requests.clear()
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "16"
    assert not served.requests


def test_private(hub, checkpoint, pipe):
    hub.add(REPO, Path(checkpoint), private=True, readers={"hf_reader"})
    for token in ({}, {"token": "hf_stranger"}):
        message = refusal(REPO, **token)
        assert message.startswith(f"`pretrained_model_name_or_path`: {REPO!r} is no folder here, and no repository")
        assert "if it is private log in with `hf auth login` or give `token`" in message
    assert same_weights(
        DynamicsVerifierPipeline.from_pretrained(REPO, token="hf_reader").dynamics_model, pipe.dynamics_model
    )


def test_gated(hub, checkpoint, pipe):
    hub.add(REPO, Path(checkpoint), gated=True, readers={"hf_reader"})
    for token in ({}, {"token": "hf_stranger"}):
        message = refusal(REPO, **token)
        assert f"{REPO!r} is gated; accept its licence at {hub.url}/{REPO}, then log in with" in message
    assert same_weights(
        DynamicsVerifierPipeline.from_pretrained(REPO, token="hf_reader").dynamics_model, pipe.dynamics_model
    )


def test_gated_adapter(hub, base, adapters):
    hub.add(ADAPTERS["cwm"], adapters["cwm"], gated=True)
    assert refusal(base, cwm=ADAPTERS["cwm"]).startswith("`cwm`: 'someone/cwm' is gated; accept its licence at ")


def test_repository_that_is_no_pipeline(hub, tmp_path):
    (tmp_path / "README.md").write_text("weights of something else")
    hub.add(REPO, tmp_path)
    assert f"{REPO!r} has no model_index.json; give a whole checkpoint" in refusal(REPO)


@pytest.mark.parametrize("name", ["someone/nothing", "a/b/c", "not a name"])
def test_name_that_is_unknown(hub, name):
    assert f"{name!r} is no folder here, and no " in refusal(name)


def test_server_in_trouble(hub, checkpoint, monkeypatch):
    hub.add(REPO, Path(checkpoint))
    monkeypatch.setattr("tests.hub.server.Handler.find", lambda self, *_: self.reply(500, {"error": "down"}))
    assert refusal(REPO).startswith(f"`pretrained_model_name_or_path`: {REPO!r} ")
