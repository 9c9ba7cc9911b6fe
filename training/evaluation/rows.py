"""Results that take hours: one JSON line for each item, so that an interrupted run goes on after the last."""

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bwm_pipelines.new_files import new_files


def claim(out: Path, settings: dict) -> None:
    """Makes the folder `out` that of one run, so that rows of two runs never mix.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    path = out / "settings.json"
    if path.exists() and (before := json.loads(path.read_text())) != settings:
        raise ValueError(
            f"`out` {str(out)!r} holds a run with {before}, this one has {settings}; name another folder."
        )
    write_json(out, path.name, settings)


def resume_rows(
    path: Path, items: Sequence, evaluate: Callable[[Sequence], list[dict]], *, unit: str, batch_size: int = 1
) -> list[dict]:
    """Evaluates the items that the file has no line for yet; returns the rows of all items, in order.

    Args:
        path: file of JSON lines, in the order of `items`; made if absent. A last line cut short by a kill is done again.
        items: what is evaluated; more of them than last time go on where the run ended.
        evaluate: a batch of items -> their rows, which JSON can hold.
        unit: what the progress bar counts.
        batch_size: items that are evaluated at once, and are done again if the run is interrupted meanwhile.
    """
    rows = read_rows(path)[: len(items)] if path.exists() else []
    with path.open("a") as file, tqdm(initial=len(rows), total=len(items), unit=unit, mininterval=1) as bar:
        while len(rows) < len(items):
            done = evaluate(items[len(rows) : len(rows) + batch_size])
            file.write("".join(json.dumps(row) + "\n" for row in done))
            file.flush()
            rows += done
            bar.update(len(done))
    return rows


def read_rows(path: Path) -> list[dict]:
    """The complete lines of a file of JSON lines; an incomplete last one is removed from it."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)
    return [json.loads(line) for line in content[:complete].splitlines()]


def write_json(out: Path, name: str, content: dict) -> None:
    """Writes a JSON file into the folder `out`, whole or not at all."""
    with new_files(out) as folder:
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def fingerprint(checkpoint: str | Path) -> str:
    """What a checkpoint is, so that a resumed evaluation does not go on with another: SHA-256 of a folder's weights and
    sampling defaults, or the Hub id.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return str(checkpoint)
    digest = hashlib.sha256()
    for file in [folder / "model_index.json", *sorted(folder.rglob("*.safetensors"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def describe_run(module: str) -> dict:
    """What a summary says about how it was made."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}",
        "hardware": f"{device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}",
    }
