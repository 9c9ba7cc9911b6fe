"""The command `bwm` on the tiny checkpoint."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bwm_pipelines.__main__ import main
from bwm_pipelines.images import open_image


@pytest.fixture
def room(tmp_path, image):
    image.save(tmp_path / "room.png")
    return str(tmp_path / "room.png")


@pytest.fixture
def bwm(capsys, checkpoint):
    """Run a command on the tiny checkpoint and return what it prints."""

    def run(*words):
        assert main([*map(str, words), "--checkpoint", checkpoint]) == 0
        return capsys.readouterr().out

    return run


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def test_edit_gives_what_the_pipeline_gives(bwm, pipe, room, tmp_path):
    result = json.loads(bwm("edit", room, "open the door", "-k", 3, "--seed", 5, "-o", tmp_path / "out", "--json"))
    expected = pipe(open_image(room), "open the door", num_candidates=3, generator=torch.Generator().manual_seed(5))
    assert result["scores"] == pytest.approx(expected.scores) and result["margins"] == pytest.approx(expected.margins)
    assert result["order"] == expected.order and result["changed"] == expected.changed[0]
    for file, image in zip(result["files"], expected.images, strict=True):
        assert np.array_equal(pixels(file), np.asarray(image))
    assert np.array_equal(pixels(result["best"]), np.asarray(expected.images[0]))
    assert pixels(result["before"]).shape == (16, 16, 3)
    assert pixels(result["overview"]).size > 0


def test_edit_writes_its_result_beside_the_pictures(bwm, room, tmp_path):
    printed = bwm("edit", room, "open the door", "-k", 2, "-o", tmp_path / "out", "--json")
    assert printed.count("\n") == 1
    assert json.loads(printed) == json.loads((tmp_path / "out" / "result.json").read_text())
    names = {"before.png", "best.png", "candidate_1.png", "candidate_2.png", "overview.png", "result.json"}
    assert set(os.listdir(tmp_path / "out")) == names


def test_edit_keeps_the_other_files_of_its_folder(bwm, room, tmp_path):
    for action in ("open the door", "close the drawer"):
        bwm("edit", room, action, "-k", 1, "-o", tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["action"] == "close the drawer"
    assert "room.png" in os.listdir(tmp_path)


def test_edit_prints_the_ranking(bwm, room, tmp_path):
    header, *rows, _, picture = bwm("edit", room, "open the door", "-k", 4, "-o", tmp_path / "out").splitlines()
    assert header.split() == ["rank", "score", "margin", "file"]
    scores = [float(row.split()[1]) for row in rows]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    assert picture == f"Picture: {tmp_path / 'out' / 'overview.png'}"


def test_edit_without_a_dynamics_model_says_that_nothing_is_verified(pipe, room, tmp_path, capsys):
    type(pipe)(**pipe.components | {"dynamics_model": None}, **layout(pipe)).save_pretrained(tmp_path / "unverified")
    words = [
        "edit",
        room,
        "open the door",
        "-k",
        "2",
        "-o",
        str(tmp_path),
        "--checkpoint",
        str(tmp_path / "unverified"),
    ]
    assert main(words) == 0
    assert "Not verified" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scores"] is result["margins"] is result["changed"] is None and result["order"] == [0, 1]


def layout(pipe):
    return {key: pipe.config[key] for key in ("forward_prompt", "inverse_prompt", "image_size")}


def test_verify_ranks_files_of_any_size(bwm, verifier, room, image, tmp_path):
    others = [image.rotate(angle).resize(size) for angle, size in [(90, (20, 60)), (180, (33, 33)), (270, (64, 20))]]
    files = [str(tmp_path / f"{number}.png") for number in range(len(others))]
    for other, file in zip(others, files, strict=True):
        other.save(file)
    result = json.loads(bwm("verify", room, "open the door", *files, "--json"))
    expected = verifier(open_image(room), [open_image(file) for file in files], "open the door")
    assert result["scores"] == pytest.approx(expected.scores) and result["order"] == expected.order
    assert result["margins"] == pytest.approx(expected.margins) and result["changed"] == expected.changed
    rows = bwm("verify", room, "open the door", *files).splitlines()[1:-1]
    assert [row.split()[-1] for row in rows] == [files[i] for i in expected.order]


def test_verify_says_when_no_candidate_beats_nothing_changed(bwm, room):
    assert "No candidate beats 'nothing changed'" in bwm("verify", room, "open the door", room)
    result = json.loads(bwm("verify", room, "open the door", room, "--json"))
    assert result["changed"] is False and result["margins"] == [0]


def test_name_prints_the_action(bwm, verifier, room, image, tmp_path):
    image.rotate(90).save(tmp_path / "after.png")
    result = json.loads(bwm("name", room, tmp_path / "after.png", "--json"))
    expected = verifier.name_action(open_image(room), open_image(tmp_path / "after.png"))
    assert result["action"] == expected.action and result["score"] == pytest.approx(expected.score)
    assert bwm("name", room, tmp_path / "after.png").startswith(expected.action)


def test_rollout_starts_each_action_from_the_best_image_before(bwm, pipe, room, tmp_path):
    actions = ["open the door", "turn the lamp on"]
    result = json.loads(bwm("rollout", room, *actions, "-k", 2, "-o", tmp_path / "out", "--json"))
    generator = torch.Generator().manual_seed(0)
    first = pipe(open_image(room), actions[0], num_candidates=2, generator=generator)
    second = pipe(first.codes[:1], actions[1], num_candidates=2, generator=generator)
    assert result["scores"] == pytest.approx([first.scores[0], second.scores[0]])
    assert result["changed"] == [first.changed[0], second.changed[0]]
    for file, image in zip(result["files"][1:], [first.images[0], second.images[0]], strict=True):
        assert np.array_equal(pixels(file), np.asarray(image))
    with Image.open(result["gif"]) as gif:
        assert gif.n_frames == 3
    assert pixels(result["film_strip"]).size > 0


def test_rollout_prints_a_row_a_step(bwm, room, tmp_path):
    lines = bwm("rollout", room, "open the door", "turn the lamp on", "-k", 1, "-o", tmp_path / "out").splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["step", "1", "2"]
    assert lines[1].endswith("open the door") and lines[2].endswith("turn the lamp on")


def test_output_other_than_the_json_object_goes_to_stderr(checkpoint, room, tmp_path):
    words = ["edit", room, "open the door", "-k", "1", "-o", tmp_path / "out", "--json", "--checkpoint", checkpoint]
    done = subprocess.run([sys.executable, "-m", "bwm_pipelines", *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["action"] == "open the door"
    assert done.stderr == ""


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert listed == ["edit", "verify", "name", "rollout", "space", "convert"]
