"""What image codes show, drawn once more beside the picture before the action.

An image tokenizer shows each patch from a few bits, so an edge bends and a small thing melts into what it touches. The
picture before the action shows most of what stands in the picture after it, sharp and in its colours. A refiner sees both.
"""

import math

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def refine(refiner: UNet2DModel, drawn: Tensor, before: Tensor) -> Tensor:
    """Each pixel of the drawn picture goes part of the way to the picture before, and part of the way elsewhere.

    Args:
        refiner: from both pictures, and with its time always 0, says how far to go to the picture before (a logit), and
            what to add. It has 6 f² channels in and 4 f² out: one pixel of it is a square of f x f pixels.
        drawn: what codes of the after images show, float [B, 3, H, W] in [-1, 1].
        before: the before images, likewise.

    Returns:
        float [B, 3, H, W], about [-1, 1].
    """
    factor = math.isqrt(refiner.config.in_channels // 6)
    pixels = pixel_unshuffle(torch.cat([drawn, before], dim=1).to(refiner.dtype), factor)
    share, change = pixel_shuffle(refiner(pixels, 0).sample, factor).to(drawn.dtype).split([1, 3], dim=1)
    return torch.lerp(drawn, before, share.sigmoid()) + change
