"""A genuine ComfyUI server in a process of its own, and a client that talks to it as the browser does."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from websockets.sync.client import ClientConnection, connect

from tests.comfy.fetch_server import PYTHON, ROOT, install, server_folder

PACK = "bwm-pipelines"
PATIENCE = 600  # seconds until a server or a prompt that says nothing is given up
NOT_CLONED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out", "runs")
PREVIEW_EVENTS = {1, 4}  # preview image, and the same with metadata


class Refused(Exception):
    """The server answered with an HTTP error: `code`, and `answer`, its JSON."""

    def __init__(self, code: int, answer: Any):
        super().__init__(f"HTTP {code}: {answer}")
        self.code, self.answer = code, answer


class Run(NamedTuple):
    """What happened to a prompt: every message of the websocket and the final entry in the history."""

    messages: list[dict]
    previews: list[Image.Image]
    history: dict

    @property
    def error(self) -> dict | None:
        """What the execution failed with, if it did."""
        return next((m["data"] for m in self.messages if m["type"] == "execution_error"), None)

    @property
    def interrupted(self) -> bool:
        return any(m["type"] == "execution_interrupted" for m in self.messages)

    @property
    def cached(self) -> set[str]:
        """Nodes that were not run again."""
        return {n for m in self.messages if m["type"] == "execution_cached" for n in m["data"]["nodes"]}

    def outputs(self, node: str) -> dict:
        return self.history["outputs"][node]


class Server:
    """A server with its own base folder, which holds the pack as if cloned into `custom_nodes`."""

    def __init__(self, version: str, folder: Path):
        self.version, self.folder = version, folder
        self.log = folder / "server.log"
        pack = folder / "custom_nodes" / PACK
        shutil.copytree(ROOT, pack, ignore=NOT_CLONED)
        install("--requirement", pack / "requirements.txt")
        self.port = _free_port()
        tree = server_folder(version)
        words = ["--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        words += ["--disable-api-nodes", "--base-directory", str(folder)]
        words += ["--database-url", f"sqlite:///{folder}/comfy.db"]
        words += ["--extra-model-paths-config", str(self._name_more_models())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        self._process = subprocess.Popen(
            [PYTHON, ROOT / "tests" / "comfy" / "run_server.py", tree, *words],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            cwd=tree,
            env=environment,
        )
        self._wait_until_up()

    @property
    def more_models(self) -> Path:
        """A folder of world models outside ComfyUI's own, as users with large disks have it."""
        return self.folder / "another_disk" / "worlds"

    def _name_more_models(self) -> Path:
        self.more_models.mkdir(parents=True)
        config = self.folder / "extra_model_paths.yaml"
        config.write_text(f"large_disk:\n    base_path: {self.more_models.parent}\n    world_models: worlds\n")
        return config

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at its start:\n{self.log.read_text()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.download(path, **query))

    def download(self, path: str, **query: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: dict | None = None) -> Any:
        data = json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.loads(error.read())) from None
        return json.loads(text) if text else None

    def image(self, file: dict) -> Image.Image:
        """An image of a node's outputs, through `/view`."""
        return Image.open(BytesIO(self.download("/view", **file))).convert("RGB")

    def run(self, prompt: dict, on_message: Callable[[dict], None] = lambda message: None) -> Run:
        """Post a prompt in API format and follow it to its end.

        Raises:
            Refused: the prompt did not pass validation.
        """
        client = uuid.uuid4().hex
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        with connect(address, max_size=None, open_timeout=PATIENCE, ping_timeout=None) as socket:
            prompt_id = self.post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"]
            messages, previews = [], []
            for message in _messages(socket):
                if isinstance(message, bytes):
                    if int.from_bytes(message[:4], "big") in PREVIEW_EVENTS:
                        previews.append(_preview(message))
                    continue
                messages.append(message)
                on_message(message)
                if _is_end(message, prompt_id):
                    break
        return Run(messages, previews, self._history(prompt_id))

    def _history(self, prompt_id: str) -> dict:
        deadline = time.monotonic() + 30
        while not (entry := self.get(f"/history/{prompt_id}").get(prompt_id)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no history of prompt {prompt_id}")
            time.sleep(0.05)
        return entry


def _messages(socket: ClientConnection) -> Iterator[dict | bytes]:
    while True:
        message = socket.recv(timeout=PATIENCE)
        yield message if isinstance(message, bytes) else json.loads(message)


def _is_end(message: dict, prompt_id: str) -> bool:
    ends = {"execution_success", "execution_error", "execution_interrupted"}
    return message["type"] in ends and message["data"].get("prompt_id") == prompt_id


def _preview(message: bytes) -> Image.Image:
    return Image.open(BytesIO(message[message.index(b"\xff\xd8\xff") :])).convert("RGB")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
