"""Publishing: what is built and refused, that a dry run sends nothing, and that an upload is one commit that loads."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from hub_cards import publish

REPO = "someone/playroom"


@pytest.fixture
def source(checkpoint, image, tmp_path) -> Path:
    """A checkpoint with a sample scene, and with traces of how it was made."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    image.save(folder / "sample_scene.png")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_name_or_path": "/home/someone/secret"}))
    (folder / "README.md").write_text("an older card")
    (folder / "notes.txt").write_text("not for others")
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `python -m hub_cards.publish` with some words, logged in with a token; returns what it printed."""

    def run(*words, token="hf_writer") -> str:
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr("sys.argv", ["publish", *map(str, words)])
        publish.main()
        return capsys.readouterr().out

    return run


def words(source, out, card="playroom") -> list:
    return [source, "--card", card, "--to", REPO, "--out", out]


def test_dry_run_builds_and_shows_but_sends_nothing(hub, command, source, tmp_path):
    out = tmp_path / "out"
    printed = command(*words(source, out), "--example", "sample_scene.png", "open the door")
    assert not hub.requests
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"README.md", "pipeline.py", "sample_scene.png", "examples/open_the_door_after.png"} <= files
    assert "notes.txt" not in files
    assert all(f"  {name}\n" in printed for name in files)
    assert f"{len(files)} files, " in printed
    assert f"to {hub.url}/{REPO}" in printed
    assert printed.endswith("Nothing was uploaded; add --upload to do it.\n")
    assert "secret" not in "".join(path.read_text() for path in out.rglob("*.json"))
    assert "secret" in (source / "model_index.json").read_text()
    (entry,) = ModelCard.load(out / "README.md").data.widget
    assert entry["text"] == "open the door"
    assert (out / entry["src"]).is_file()
    assert (out / entry["output"]["url"]).is_file()


def test_upload_is_one_commit_that_loads_again(hub, command, source, tmp_path, pipe):
    out = tmp_path / "out"
    printed = command(*words(source, out), "--upload", "--private", "--message", "First")
    repository = hub.repositories[REPO]
    assert repository.private
    assert repository.messages == ["initial commit", "First"]
    uploaded = repository.commits[repository.refs["main"]]
    built = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {name: data for name, data in uploaded.items() if name != ".gitattributes"} == built
    assert printed.splitlines()[-1] == f"{hub.url}/{REPO}/commit/{repository.refs['main']}"
    loaded = ChameleonWorldModelPipeline.from_pretrained(REPO, token="hf_writer")
    assert loaded.world_model.lm_head.weight.equal(pipe.world_model.lm_head.weight)
    command(*words(source, out), "--upload")
    assert len(repository.messages) == 3


def test_building_again_leaves_the_checkpoint_as_it_was(command, hub, source, tmp_path):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for _ in range(2):
        command(*words(source, tmp_path / "out"))
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out.tmp").exists()


def test_adapters_are_published_beside_their_base(hub, command, base, adapters, tmp_path):
    source = Path(shutil.copytree(base, tmp_path / "source"))
    for name, adapter in adapters.items():
        shutil.copytree(adapter, source / "adapters" / name)
    (source / "NOTICE").write_text("notice")
    (tmp_path / "licence.txt").write_text("licence")
    command(*words(source, tmp_path / "out", "cwm"), "--license", tmp_path / "licence.txt", "--upload")
    uploaded = hub.repositories[REPO].commits[hub.repositories[REPO].refs["main"]]
    assert uploaded["LICENSE"] == b"licence"
    assert "pipeline.py" not in uploaded
    loaded = ChameleonWorldModelPipeline.from_pretrained(REPO)
    assert loaded.dynamics_model is loaded.world_model
    assert set(loaded.world_model.peft_config) == {"cwm", "cdm"}


def test_dynamics_model_is_published_alone(hub, command, verifier, image, tmp_path):
    verifier.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "NOTICE").write_text("notice")
    (tmp_path / "licence.txt").write_text("licence")
    image.save(tmp_path / "pair.png")
    options = [
        "--license",
        tmp_path / "licence.txt",
        "--example",
        tmp_path / "pair.png",
        "turn the lamp on",
        "--upload",
    ]
    command(*words(tmp_path / "source", tmp_path / "out", "cdm"), *options)
    (entry,) = ModelCard.load(tmp_path / "out" / "README.md").data.widget
    assert "text" in entry["output"]
    assert DynamicsVerifierPipeline.from_pretrained(REPO).config.image_size == 16


def refusal(command, *words, **options) -> str:
    with pytest.raises(SystemExit) as end:
        command(*words, **options)
    assert "\n" not in str(end.value.code)
    return str(end.value.code)


def test_chameleon_licence_is_asked_for(hub, command, source, tmp_path):
    message = refusal(command, *words(source, tmp_path / "out", "cwm"), "--upload")
    assert "the chameleon-research-license asks for a LICENSE beside the weights" in message
    (tmp_path / "licence.txt").write_text("licence")
    message = refusal(
        command, *words(source, tmp_path / "out", "cwm"), "--license", tmp_path / "licence.txt", "--upload"
    )
    assert "asks for a NOTICE" in message
    assert not hub.requests


def test_damaged_checkpoint_and_pickle_are_refused(hub, command, source, tmp_path):
    (source / "world_model" / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin does not belong" in refusal(command, *words(source, tmp_path / "out"), "--upload")
    (source / "world_model" / "pytorch_model.bin").unlink()
    path = source / "world_model" / "model.safetensors"
    assert load_file(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "is damaged" in refusal(command, *words(source, tmp_path / "out"), "--upload")
    shutil.rmtree(source / "vqgan")
    assert "has no vqgan" in refusal(command, *words(source, tmp_path / "out"), "--upload")
    assert not hub.requests


def test_stranger_may_not_write(hub, command, source, tmp_path):
    message = refusal(command, *words(source, tmp_path / "out"), "--upload", token="hf_stranger")
    assert message.startswith(f"error: `to`: '{REPO}' was not uploaded")
    assert "log in with `hf auth login` as someone who may write there" in message


def test_space(hub, command, tmp_path, monkeypatch):
    space = tmp_path / "space"
    space.mkdir()
    library = tmp_path / "bwm_pipelines"
    (library / "__pycache__").mkdir(parents=True)
    (library / "__init__.py").touch()
    (library / "__pycache__" / "left.pyc").touch()
    monkeypatch.setattr(publish, "SPACE", space)
    monkeypatch.setattr(publish, "LIBRARY", library)
    monkeypatch.chdir(tmp_path)
    assert "has no README.md" in refusal(command, "--space", "--to", "someone/space")
    (space / "README.md").write_text("---\ntitle: World model\nsdk: gradio\napp_file: app.py\n---\n")
    assert "an app_file that is there" in refusal(command, "--space", "--to", "someone/space")
    (space / "app.py").write_text("print()\n")
    assert "has no requirements.txt" in refusal(command, "--space", "--to", "someone/space")
    (space / "requirements.txt").write_text("gradio\n")
    assert "4 files, " in command("--space", "--to", "someone/space")
    assert not hub.requests
    command("--space", "--to", "someone/space", "--upload")
    repository = hub.repositories["spaces/someone/space"]
    assert repository.commits[repository.refs["main"]].keys() == {
        ".gitattributes", "README.md", "app.py", "bwm_pipelines/__init__.py", "requirements.txt",
    }  # fmt: skip
