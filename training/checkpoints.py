"""Checkpoints of a training that a kill at any moment cannot spoil."""

import hashlib
import json
import os
import shutil
from pathlib import Path

MANIFEST = "manifest.json"


def seal(checkpoint: Path) -> None:
    """Writes beside the files of a checkpoint what they are: name -> SHA-256. The last file, under a temporary name first."""
    temporary = checkpoint / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(_digests(checkpoint), indent=1))
    os.replace(temporary, checkpoint / MANIFEST)


def newest_sealed(folder: Path) -> Path | None:
    """The newest `checkpoint-<step>` whose files are what its manifest says; later, broken ones are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        if _is_sealed(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _is_sealed(checkpoint: Path) -> bool:
    try:
        return json.loads((checkpoint / MANIFEST).read_text()) == _digests(checkpoint)
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
