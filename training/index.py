"""What a folder or a JSON file of raw data lists, and a choice from it."""

import json
from collections.abc import Iterable
from pathlib import Path

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm"}


def read_index(path: Path) -> list[dict]:
    """The rows of a JSON file, a list of objects, or of a JSON Lines file, an object a line.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    except OSError as error:
        raise ValueError(f"`source` {str(path)!r} cannot be read ({error.strerror}); check the path.") from None
    except ValueError as error:
        raise ValueError(f"`source` {str(path)!r} is no JSON ({error}); give a list of objects.") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"`source` {str(path)!r} is no list of objects; give the data set's index.")
    return rows


def list_videos(folder: Path) -> list[dict]:
    """The videos of a folder, each with `video`, its path in the folder, and `class`, "" if unknown.

    Everything that `index.json` or `index.jsonl` says of a video is kept. It names the file in `video` or `file`, and
    the class in `class`, `verb` or `atomic_actions`. Without an index these are all video files in the folder and
    below, and the class is the sub-folder, as in UCF-101 and Kinetics.

    Raises:
        ValueError: the folder holds no video, or its index does not name one.
    """
    for name in ("index.json", "index.jsonl"):
        if (folder / name).exists():
            return [_named(row, folder / name) for row in read_index(folder / name)]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise ValueError(f"`source` {str(folder)!r} holds neither index.json nor videos; name a folder of videos.")
    paths = [path.relative_to(folder) for path in files]
    return [{"video": path.as_posix(), "class": path.parent.as_posix().removeprefix(".")} for path in paths]


def _named(row: dict, index: Path) -> dict:
    video = row.get("video") or row.get("file")
    if not video:
        raise ValueError(f"`source` {str(index)!r} has a row without `video` or `file`: {row}; name the video there.")
    name = row.get("class") or row.get("verb") or row.get("atomic_actions") or ""
    if isinstance(name, list):  # a set of actions, in no particular order
        name = " ".join(sorted({action for action in name if action}))
    return {**row, "video": video, "class": name}


def choose(rows: list[dict], conditions: Iterable[str]) -> list[dict]:
    """The rows that meet every condition, "key=value" or "key!=value", for example "lab!=5ed85189".

    Raises:
        ValueError: a condition has another form, names a key that no row has, or leaves no row.
    """
    for condition in conditions:
        key, equals, value = condition.partition("=")
        key, wanted = key.removesuffix("!"), not key.endswith("!")
        if not equals:
            raise ValueError(f"`where` must be key=value or key!=value, got {condition!r}.")
        if not any(key in row for row in rows):
            raise ValueError(f"`where` {condition!r} names {key!r}, but rows have {sorted(rows[0])}.")
        if not any((str(row.get(key)) == value) is wanted for row in rows):
            raise ValueError(f"`where` {condition!r} leaves no row; give a value that occurs.")
        rows = [row for row in rows if (str(row.get(key)) == value) is wanted]
    return rows
