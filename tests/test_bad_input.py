"""Wrong input to the command: exit code 2, one line that names the argument and the remedy, nothing left behind."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from bwm_pipelines.__main__ import main


@pytest.fixture
def room(tmp_path, image):
    image.save(tmp_path / "room.png")
    return str(tmp_path / "room.png")


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A copy of the checkpoint whose first tensor of a component is changed by a function, or dropped if it gives None."""

    def damage(component, change):
        copy = tmp_path / "damaged"
        shutil.copytree(checkpoint, copy)
        file = next((copy / component).glob("*.safetensors"))
        tensors = load_file(file)
        name = min(tensors)
        tensors[name] = change(tensors[name].clone())
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})
        return str(copy), name

    return damage


@pytest.fixture
def refusal(capsys, checkpoint, tmp_path):
    """Run a command, check that it is refused without a trace, and return the one line it says."""

    def run(*words):
        before = sorted(tmp_path.rglob("*"))
        words = [str(word) for word in words]
        try:
            code = main(words if "--checkpoint" in words else [*words, "--checkpoint", checkpoint])
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        assert code == 2 and output.out == ""
        assert output.err.startswith("bwm: error: ") and output.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return output.err

    return run


def png_of_size(file, width, height):
    """A PNG whose header promises a size, over data of one pixel."""
    Image.new("RGB", (1, 1)).save(file)
    data = bytearray(file.read_bytes())
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes(data[24:29])
    data[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    file.write_bytes(data)
    return file


def missing(folder):
    return folder / "nowhere.png"


def empty(folder):
    (folder / "empty.png").touch()
    return folder / "empty.png"


def text(folder):
    (folder / "notes.png").write_text("not an image")
    return folder / "notes.png"


def truncated(folder):
    Image.effect_noise((64, 64), 90).save(folder / "whole.png")
    (folder / "half.png").write_bytes((folder / "whole.png").read_bytes()[:1000])
    return folder / "half.png"


def bomb(folder):
    return png_of_size(folder / "bomb.png", 60_000, 60_000)


def zero_size(folder):
    return png_of_size(folder / "zero.png", 0, 10)


def text_bomb(folder):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "a" * 10_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(folder / "text.png", pnginfo=notes)
    return folder / "text.png"


IMAGES = [missing, empty, text, truncated, bomb, zero_size, text_bomb, Path]


@pytest.mark.parametrize("bad", IMAGES)
@pytest.mark.parametrize(
    "words",
    [
        ["edit", "BAD", "open the door", "-o", "OUT"],
        ["rollout", "BAD", "open the door", "-o", "OUT"],
        ["verify", "BAD", "open the door", "ROOM"],
        ["verify", "ROOM", "open the door", "ROOM", "BAD"],
        ["name", "ROOM", "BAD"],
    ],
    ids=lambda words: f"{words[0]}-{words.index('BAD')}",
)
def test_image_that_cannot_be_read(refusal, room, tmp_path, bad, words):
    file = bad(tmp_path)
    stand_ins = {"BAD": file, "ROOM": room, "OUT": tmp_path / "out"}
    message = refusal(*[stand_ins.get(word, word) for word in words])
    assert "`image`" in message and str(file) in message


@pytest.mark.parametrize(
    "action", ["", "  ", "open the door " * 100, "<image>"], ids=["empty", "blank", "long", "token"]
)
@pytest.mark.parametrize("command", ["edit", "rollout", "verify"])
def test_action_that_is_no_action(refusal, room, tmp_path, command, action):
    rest = [room] if command == "verify" else ["-o", tmp_path / "out"]
    assert "`action`" in refusal(command, room, action, *rest)


def test_one_bad_action_among_good_ones(refusal, room, tmp_path):
    assert "`action`" in refusal("rollout", room, "open the door", "", "-o", tmp_path / "out")


@pytest.mark.parametrize("words", [["edit", "ROOM"], ["verify", "ROOM", "ROOM", "ROOM"], ["rollout", "ROOM", "ROOM"]])
def test_file_in_the_place_of_the_action(refusal, room, words):
    assert "`action`" in refusal(*[room if word == "ROOM" else word for word in words])


@pytest.mark.parametrize("count", ["0", "-3", "1.5", "many"])
@pytest.mark.parametrize("command", ["edit", "rollout"])
def test_number_of_candidates(refusal, room, tmp_path, command, count):
    message = refusal(command, room, "open the door", "-k", count, "-o", tmp_path / "out")
    assert "num_candidates" in message or "num-candidates" in message
    assert count in message


@pytest.mark.parametrize("seed", ["-1", str(2**64), "one"])
def test_seed(refusal, room, tmp_path, seed):
    assert "--seed" in refusal("edit", room, "open the door", "--seed", seed, "-o", tmp_path / "out")


@pytest.mark.parametrize("command", ["edit", "verify", "name"])
def test_checkpoint_that_is_nowhere(refusal, room, tmp_path, monkeypatch, command):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rest = {"edit": ["open the door", "-o", tmp_path / "out"], "verify": ["open the door", room], "name": [room]}[
        command
    ]
    folder = str(tmp_path / "no" / "checkpoint")
    assert folder in refusal(command, room, *rest, "--checkpoint", folder)


def test_checkpoint_that_is_another_folder(refusal, room, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal("edit", room, "open the door", "-o", tmp_path / "out", "--checkpoint", tmp_path / "empty")
    assert "model_index.json" in message


@pytest.mark.parametrize("component", ["world_model", "dynamics_model", "vqgan"])
def test_checkpoint_without_a_tensor(refusal, damaged, room, tmp_path, component):
    folder, name = damaged(component, lambda tensor: None)
    message = refusal("edit", room, "open the door", "-o", tmp_path / "out", "--checkpoint", folder)
    assert name in message and component in message


@pytest.mark.parametrize("component", ["world_model", "dynamics_model", "vqgan"])
def test_checkpoint_with_nan(refusal, damaged, room, tmp_path, component):
    folder, name = damaged(component, lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("nan")))
    message = refusal("edit", room, "open the door", "-o", tmp_path / "out", "--checkpoint", folder)
    assert name in message and component in message


@pytest.mark.parametrize("command", ["edit", "rollout"])
def test_output_that_is_no_folder(refusal, room, tmp_path, command):
    for output in (room, f"{room}/inside"):
        assert "`output`" in refusal(command, room, "open the door", "-o", output)


@pytest.mark.parametrize(
    "words", [[], ["edit"], ["paint", "a", "door"], ["verify", "a.png", "open"], ["name", "a.png"]]
)
def test_words_that_are_no_command(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("bwm: error: ") and message.count("\n") == 1


def terminal_output(terminal):
    """What a process writes to a pseudo-terminal, piece by piece until it closes it, which Linux reports as an error."""
    with suppress(OSError):
        while piece := os.read(terminal, 4096):
            yield piece


def test_interruption_leaves_nothing_behind(checkpoint, room, tmp_path):
    words = ["rollout", room, *["open the door"] * 200, "-o", tmp_path / "new" / "out", "--checkpoint", checkpoint]
    # A shell that runs the tests in the background may have them ignore Ctrl-C, and a child process inherits that.
    listen = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from bwm_pipelines.__main__ import main; sys.exit(main())"
    terminal, stderr = pty.openpty()  # progress is shown in terminals only
    termios.tcsetwinsize(stderr, (24, 120))
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    seen, moment = b"", b"step 2 of 200"
    for piece in terminal_output(terminal):
        if moment not in seen and moment in seen + piece:
            process.send_signal(signal.SIGINT)
        seen += piece
    output, _ = process.communicate()
    assert process.returncode == 130 and output == b""
    assert b"bwm: interrupted" in seen.splitlines()
    assert os.listdir(tmp_path) == ["room.png"]
