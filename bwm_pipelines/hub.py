"""Files of a checkpoint, from a folder or from the Hub; what cannot be had is refused in one line."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bwm_pipelines.adapters import CONFIG, WEIGHTS

INDEX = "model_index.json"
ADAPTERS_FOLDER = "adapters"
OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")
_TROUBLE = (OSError, HTTPError, HFValidationError)
PICKLES = ["*.bin", "*.ckpt", "*.pkl", "*.pt", "*.pth"]


def fetch_index(name: str, revision: str | None = None, **options: Any) -> tuple[Path, str | None]:
    """The folder in which the `model_index.json` of a checkpoint lies, and its commit, None for a folder of one's own.

    Args:
        name: a folder, or the id of a repository on the Hub.
        revision: branch, tag or commit on the Hub.
        options: those of `huggingface_hub.hf_hub_download` that are in `OPTIONS`.

    Raises:
        ValueError: in one line, why it cannot be had.
    """
    if os.path.isdir(name):
        return Path(name), None
    try:
        folder = Path(hf_hub_download(name, INDEX, revision=revision, **options)).parent
    except _TROUBLE as error:
        raise ValueError(_refusal(error, "pretrained_model_name_or_path", name, revision, INDEX)) from error
    return folder, folder.name


def fetch_folders(name: str, commit: str, folders: list[str], **options: Any) -> None:
    """Download those of some folders that a repository on the Hub has to where `fetch_index` put its index.

    Weights in other formats than safetensors are left out.

    Raises:
        ValueError: in one line, why they cannot be had.
    """
    patterns = [INDEX, *(f"{folder}/*" for folder in folders)]
    try:
        snapshot_download(name, revision=commit, allow_patterns=patterns, ignore_patterns=PICKLES, **options)
    except _TROUBLE as error:
        what = f"the whole of {', '.join(folders)}"
        raise ValueError(_refusal(error, "pretrained_model_name_or_path", name, commit, what)) from error


def fetch_adapter(source: str, argument: str, **options: Any) -> Path:
    """The folder of a PEFT adapter.

    Args:
        source: a folder, or the id of a repository on the Hub, `owner/name` or `owner/name@revision`.
        argument: the name that errors give it.

    Raises:
        ValueError: in one line, why it cannot be had.
    """
    if os.path.isdir(source):
        return Path(source)
    name, _, revision = source.partition("@")
    try:
        hf_hub_download(name, CONFIG, revision=revision or None, **options)
        return Path(hf_hub_download(name, WEIGHTS, revision=revision or None, **options)).parent
    except _TROUBLE as error:
        raise ValueError(_refusal(error, argument, name, revision or None, f"{CONFIG} and {WEIGHTS}")) from error


def _refusal(error: Exception, argument: str, name: str, revision: str | None, file: str) -> str:
    """One line on why something is not to be had, and what to do. Kinds of errors overlap: mind the order."""
    log_in = "log in with `hf auth login` or give `token`"
    match error:
        case HFValidationError():
            return f"`{argument}`: {name!r} is no folder here, and no Hub id either (owner/name); check the name."
        case GatedRepoError():
            return (
                f"`{argument}`: {name!r} is gated; accept its licence at {constants.ENDPOINT}/{name}, then {log_in}."
            )
        case RepositoryNotFoundError():
            return (
                f"`{argument}`: {name!r} is no folder here, and no repository on the Hub that you may read; check the "
                f"name, and if it is private {log_in}."
            )
        case RevisionNotFoundError():
            return f"`revision`: {name!r} has no revision {revision!r}; name a branch, a tag or a commit that it has."
        case LocalEntryNotFoundError():
            return (
                f"`{argument}`: {name!r} is no folder here, and the cache lacks {file} of it while the Hub is out of "
                "reach or switched off; check the name, or load it once with a connection."
            )
        case EntryNotFoundError():
            return f"`{argument}`: {name!r} has no {file}; give a whole checkpoint, `bwm convert` makes one."
        case _:
            reason = str(error).strip().partition("\n")[0]
            return f"`{argument}`: {name!r} cannot be fetched from the Hub ({reason}); try again, or {log_in}."
