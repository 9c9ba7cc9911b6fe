"""What one visitor may ask for, so that all are answered. Every refusal is a ValueError that says what to do."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from bwm_pipelines.images import open_image


class Limits(NamedTuple):
    """The largest of everything; `runs_per_minute` holds for one session, `waiting` for all together."""

    candidates: int = 16
    actions: int = 6
    edits: int = 16
    characters: int = 200
    megabytes: int = 12
    megapixels: int = 24
    runs_per_minute: int = 20
    waiting: int = 32


def read_upload(path: str | os.PathLike[str], limits: Limits) -> Image.Image:
    """An uploaded image: RGB, upright.

    Raises:
        ValueError: the file is too large, damaged or no image. The message holds its name, never its folder.
    """
    name = Path(path).name
    size = os.path.getsize(path)
    if size > limits.megabytes * 1e6:
        raise ValueError(
            f"“{name}” has {size / 1e6:.1f} MB; at most {limits.megabytes} MB are allowed, make it smaller."
        )
    try:
        image = open_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(f"`image` {str(path)!r}", f"“{name}”")) from None
    pixels = image.width * image.height / 1e6
    if pixels > limits.megapixels:
        raise ValueError(
            f"“{name}” has {pixels:.1f} megapixels; at most {limits.megapixels} are allowed, make it smaller."
        )
    return image


def check_image(image: object, what: str) -> None:
    if image is None:
        raise ValueError(f"Please give {what}.")


def check_action(action: str | None, limits: Limits) -> str:
    """The action without white space around it."""
    action = (action or "").strip()
    if not action:
        raise ValueError("Please say in words what happens, such as “open the door”.")
    if len(action) > limits.characters:
        raise ValueError(
            f"The action has {len(action)} characters; at most {limits.characters} are allowed, shorten it."
        )
    return action


def check_whole(name: str, value: float | None, lowest: int, highest: int) -> int:
    if value is None or not lowest <= value <= highest or value != int(value):
        raise ValueError(f"{name} must be a whole number from {lowest} to {highest}, got {value}.")
    return int(value)


class RateLimit:
    """So many runs in any minute for each session."""

    def __init__(self, runs_per_minute: int):
        self._runs_per_minute = runs_per_minute
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()

    def count(self, session: str) -> None:
        """Count one run.

        Raises:
            ValueError: the session has had its runs for this minute.
        """
        with self._lock:
            now = time.monotonic()
            self._forget(now - 60)
            times = self._times[session]
            if len(times) >= self._runs_per_minute:
                wait = int(times[0] + 60 - now) + 1
                raise ValueError(f"That was much in one minute; please wait {wait} seconds.")
            times.append(now)

    def _forget(self, before: float) -> None:
        for session, times in list(self._times.items()):
            while times and times[0] < before:
                times.popleft()
            if not times:
                del self._times[session]
