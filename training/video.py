"""Videos, frame by frame, and pictures as they are stored."""

import io
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

from bwm_pipelines.images import square, to_rgb


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a video in the order in which they are shown, one in memory at a time.

    Raises:
        av.FFmpegError: the file is missing or no video, or its data is damaged.
        ValueError: it holds sound alone, or FFmpeg marks a frame as damaged.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("the file has no video stream")
        for number, frame in enumerate(container.decode(video=0)):
            if frame.is_corrupt:
                raise ValueError(f"frame {number} is damaged")
            yield frame


def to_png(image: Image.Image, size: int | None) -> dict:
    """A picture as `datasets.Image` stores it: RGB, upright, and its centre square if a `size` in pixels is given."""
    buffer = io.BytesIO()
    (to_rgb(image) if size is None else square(image, size)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}
