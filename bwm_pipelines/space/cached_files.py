"""Files that the page shows, in Gradio's cache.

Given a picture itself, Gradio writes its file anew each time it is sent, also while a browser loads it, which then gets
a torn one. Files that are renamed into place once can be sent as often as wanted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image


def cached_file(name: str, save: Callable[[Path], object]) -> str:
    """The path of what `save` writes, the same for the same content."""
    with tempfile.TemporaryDirectory(prefix="bwm-") as folder:
        save(Path(folder, name))
        return save_file_to_cache(Path(folder, name), cache_dir=get_upload_folder())


def cached_picture(image: Image.Image) -> str:
    """The path of an image as a PNG."""
    return cached_file("image.png", image.save)
