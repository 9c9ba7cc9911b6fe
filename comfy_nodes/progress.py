"""What ComfyUI shows while a pipeline works, and where its Stop takes effect: between two steps or batches."""

import math
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image
from torch import Tensor

PREVIEW_SIZE = 512


class Progress:
    """A `callback_on_step_end` that moves the bar of the node being run.

    Args:
        total: what `step` + 1 ends with; None for the pipeline's own `num_timesteps`.
        preview: gives a picture after a step, from the step's tensors, or None.
    """

    def __init__(self, total: int | None = None, preview: Callable[[dict], Image.Image | None] | None = None):
        self._bar = comfy.utils.ProgressBar(total)
        self._preview = preview

    def __call__(self, pipe: Any, step: int, timestep: int, tensors: dict) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = self._preview(tensors) if self._preview else None
        self._bar.update_absolute(
            step + 1,
            total=self._bar.total or pipe.num_timesteps,
            preview=picture and ("JPEG", picture, PREVIEW_SIZE),
        )


class CandidatePreview:
    """Draws the candidates while they are sampled: what has no token yet looks as before.

    Args:
        decode: codes int64 [k, N] -> images [k, H, W, 3] in 0-1.
        before_codes: int64 [N].
        num_candidates: K, over all batches.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], before_codes: Tensor, num_candidates: int):
        self._decode = decode
        self._before_codes = before_codes
        self._tiles = _to_pil(decode(before_codes[None])) * num_candidates
        self._finished = 0
        self._next_time = 0.0

    def __call__(self, tensors: dict) -> Image.Image | None:
        codes = tensors["codes"]
        count, length = codes.shape
        finished = length == len(self._before_codes)
        start = time.monotonic()
        if not finished and start < self._next_time:
            return None
        rest = self._before_codes[length:].expand(count, -1)
        self._tiles[self._finished : self._finished + count] = _to_pil(self._decode(torch.cat([codes, rest], dim=1)))
        self._finished += count * finished
        now = time.monotonic()
        self._next_time = now + max(1.0, 10 * (now - start))  # previews take at most a tenth of the time
        return _sheet(self._tiles)


def _to_pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(np.rint(image.cpu().numpy() * 255).astype(np.uint8)) for image in images]


def _sheet(tiles: list[Image.Image]) -> Image.Image:
    width, height = tiles[0].size
    columns = 2 ** math.ceil(math.log2(len(tiles)) / 2)  # 8 candidates fill two rows of 4
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return sheet
