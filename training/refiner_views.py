"""What a refiner sees of its pictures: parts of them, mirror images, and other colours."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CROPPED, CROP = 0.8, 64  # of the steps see squares of so many pixels around the change, for a third of the time
MIRRORED, EXCHANGED = 0.5, 0.3  # of the steps see mirror images, and red for green


class Views(NamedTuple):
    """What one step shows of a batch; pixels float [B, 3, H, W] in [-1, 1], `targets` a list of [M, 3, H, W]."""

    before: Tensor
    drawn: Tensor
    seen: Tensor
    targets: list[Tensor]

    def map(self, change: Callable[[Tensor, int], Tensor]) -> "Views":
        """Changes the pictures [..., 3, H, W] of each row by its number."""
        rows = range(len(self.before))
        plain = (torch.stack([change(pictures[i], i) for i in rows]) for pictures in self[:3])
        return Views(*plain, [change(self.targets[i], i) for i in rows])


def vary(views: Views) -> Views:
    """Crops, mirrors and recolours the pictures of a step at random: a refiner reads no words that this would belie."""
    size = views.before.shape[-1]
    if size > CROP and torch.rand(()) < CROPPED:
        corners = [corner_of_crop(before, some[0]) for before, some in zip(views.before, views.targets, strict=True)]
        views = views.map(lambda x, i: x[..., corners[i][0] :, corners[i][1] :][..., :CROP, :CROP])
    if torch.rand(()) < MIRRORED:
        views = views.map(lambda x, i: x.flip(-1))
    if torch.rand(()) < EXCHANGED:
        views = views.map(lambda x, i: x[..., [1, 0, 2], :, :])
    return views


def corner_of_crop(before: Tensor, after: Tensor) -> list[int]:
    """Top and left of a square of `CROP` pixels, in eights, around the middle of what changes, float [3, H, W], or near it."""
    changed, limit = ((before - after).abs().amax(0) > 0.2).nonzero(), before.shape[-1] - CROP
    middle = (changed.amin(0) + changed.amax(0)) / 2 if len(changed) else torch.full((2,), before.shape[-1] / 2)
    corner = middle.cpu() - CROP / 2 + torch.empty(2).uniform_(-10, 10)
    return (8 * (corner / 8).round()).clamp(0, limit).int().tolist()
