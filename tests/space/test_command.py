"""`bwm space` and the Space's own folder, each as a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import yaml

from bwm_pipelines.__main__ import main
from hub_cards.publish import build_space

ROOT = Path(__file__).parent.parent.parent
SPACE = ROOT / "hub_cards" / "space"
PATIENCE = 300  # seconds


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def process(*words: str, folder: Path, log: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """A running Python program, killed at the end; its stderr goes to `log`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    # Where a shell runs this in the background SIGINT is ignored, and a program inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as running,
    ):
        try:
            yield running
        finally:
            running.kill()


def wait_until(condition: Callable[[], bool], running: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.5)


def answers(url: str) -> bool:
    try:
        return b"Imagine, then verify" in urllib.request.urlopen(url).read()
    except URLError:
        return False


def test_the_command_serves_until_interrupted_and_leaves_no_file(checkpoint, tmp_path):
    port, log, folder = free_port(), tmp_path / "log", tmp_path / "empty"
    url = f"http://127.0.0.1:{port}/"
    folder.mkdir()
    words = ["-m", "bwm_pipelines", "space", "--json", "--port", str(port), "--checkpoint", checkpoint]
    with process(*words, folder=folder, log=log) as running:
        wait_until(lambda: f"Open {url} in a browser" in log.read_text(), running)
        assert answers(url)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert json.loads(out) == {"url": url, "checkpoint": checkpoint}
    assert list(folder.iterdir()) == []


def test_what_is_published_as_the_space_runs(checkpoint, tmp_path):
    folder, port = tmp_path / "space", free_port()
    build_space(folder)
    assert (folder / "bwm_pipelines/checkpoints/playroom/model_index.json").is_file()
    environment = {"CHECKPOINT": checkpoint, "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": ""}
    with process("app.py", folder=folder, log=tmp_path / "log", **environment) as running:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), running)


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("bwm_pipelines.space")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["space"]) == 2
    assert capsys.readouterr().err == "bwm: error: `space` needs Gradio; pip install 'bwm-pipelines[space]'.\n"


def test_a_port_that_is_taken_is_one_line(checkpoint, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["space", "--port", port, "--checkpoint", checkpoint]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("bwm: error:") and port in err


def test_the_card_of_the_space_is_what_the_hub_reads():
    _, front, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert card["sdk"] == "gradio" and card["sdk_version"] == pins["gradio"]
    assert (SPACE / card["app_file"]).is_file() and len(card["short_description"]) <= 60
    assert {card["colorFrom"], card["colorTo"]} <= {
        "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray",
    }  # fmt: skip
    assert text.strip().startswith("# ")


def test_the_space_asks_for_what_the_library_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == project["dependencies"]


def test_the_library_does_without_gradio():
    modules = "bwm_pipelines.__main__, bwm_pipelines.pipelines.world_model"
    code = f"import sys, {modules}; print('gradio' in sys.modules or 'bwm_pipelines.space' in sys.modules)"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout == "False\n"
