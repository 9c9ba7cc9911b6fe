"""The drop-down of checkpoints: pipeline folders in ComfyUI's model folders, and the one that comes with the pack."""

import os
from pathlib import Path

import folder_paths

CATEGORY = "world_models"
EMBEDDED = "playroom (embedded)"


def register_folder() -> None:
    """Let ComfyUI look into `models/world_models`, beside what `extra_model_paths.yaml` names."""
    folder_paths.add_model_folder_path(CATEGORY, os.path.join(folder_paths.models_dir, CATEGORY))


def installed() -> dict[str, Path]:
    """Folders by the names in the drop-down: the embedded one first, then those that hold a `model_index.json`."""
    from bwm_pipelines import default_checkpoint

    found = {}
    for root in folder_paths.get_folder_paths(CATEGORY):
        for folder, subfolders, files in os.walk(root, followlinks=True):
            if "model_index.json" in files:
                subfolders.clear()
                found.setdefault(os.path.relpath(folder, root).replace(os.sep, "/"), Path(folder))
    reserved = {".", EMBEDDED}
    return {EMBEDDED: default_checkpoint()} | {name: found[name] for name in sorted(found.keys() - reserved)}


def find(name: str) -> Path:
    """Folder of a name in the drop-down.

    Raises:
        ValueError: the drop-down has no such name.
    """
    folders = installed()
    if name not in folders:
        raise ValueError(
            f"`checkpoint` {name!r} is not installed.\n"
            f"Copy the checkpoint's whole folder, the one with model_index.json, into {folder_paths.models_dir}"
            f"{os.sep}{CATEGORY} and press R to refresh,\n"
            f"or choose one of: {', '.join(folders)}."
        )
    return folders[name]


def fingerprint(folder: Path) -> str:
    """Changes when a file of the checkpoint does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return repr([(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files])
