"""Flaws that a refiner learns to mend: what moved is bent, or is of another colour in part.

World models draw such things, most of all where the words are new to them; among the draws of one training they are rare.
"""

import torch
from torch import Tensor
from torch.nn import functional

from training.playroom.scenes import COLOURS

BENT, RECOLOURED = 0.3, 0.15  # of the pictures
BEND, CELL = 0.7, 8  # pixels: standard deviation of a knot's shift, and distance of the knots
COLOURED = 0.4  # least difference of the largest and smallest channel in [-1, 1]: floor, walls and bowl are grey


def spoil(drawn: Tensor, before: Tensor) -> Tensor:
    """Bends or recolours what differs from `before` in some pictures at random.

    Args:
        drawn, before: pixels, float [B, 3, H, W] in [-1, 1].
    """
    pictures = []
    for picture, old in zip(drawn, before, strict=True):
        changed = _solid((picture - old).abs().amax(0) > 0.2)
        if torch.rand(()) < BENT:
            picture = bend(picture, changed)
        if torch.rand(()) < RECOLOURED:
            picture = recolour(picture, changed)
        pictures.append(picture)
    return torch.stack(pictures)


def bend(picture: Tensor, where: Tensor) -> Tensor:
    """Moves the pixels [3, H, W] a little to and fro, near what is true in `where`, [H, W]."""
    height, width = where.shape
    knots = torch.randn(1, 2, height // CELL, width // CELL) * BEND
    shifts = functional.interpolate(knots, (height, width), mode="bicubic")[0].to(picture) * _soften(where, 7)
    rows, columns = (torch.arange(n, device=picture.device, dtype=picture.dtype) for n in (height, width))
    places = torch.stack([columns[None] + shifts[0], rows[:, None] + shifts[1]], -1)
    size = torch.tensor([width, height], device=picture.device, dtype=picture.dtype)
    grid = (2 * places + 1) / size - 1  # as `grid_sample` counts: pixel centres, from edge to edge
    return functional.grid_sample(picture[None], grid[None], padding_mode="border", align_corners=False)[0]


def recolour(picture: Tensor, where: Tensor) -> Tensor:
    """Gives coloured pixels of [3, H, W] near what is true in `where`, [H, W], another colour on one side of a line."""
    high, low = (picture + 1).amax(0) / 2, (picture + 1).amin(0) / 2
    coloured = where & (2 * (high - low) > COLOURED)
    if not coloured.any():
        return picture
    rows, columns = coloured.nonzero().T
    chosen = torch.randint(len(rows), ())
    angle = 2 * torch.pi * torch.rand(())
    y, x = (torch.arange(n, device=picture.device) for n in where.shape)
    beyond = (y[:, None] - rows[chosen]) * angle.sin() + (x[None] - columns[chosen]) * angle.cos()
    share = torch.sigmoid(beyond / (0.5 + 2 * torch.rand(()))) * _soften(coloured, 3)
    colour = torch.tensor(list(COLOURS.values()))[torch.randint(len(COLOURS), ())].to(picture)[:, None, None]
    other = 2 * (low + (high - low) * colour / colour.max()) - 1
    return torch.lerp(picture, other, share)


def _solid(where: Tensor) -> Tensor:
    """What is true in [H, W] without what is narrower than three pixels, as the edges of what stayed are."""
    inside = -functional.max_pool2d(-where.float()[None], 3, 1, 1)
    return functional.max_pool2d(inside, 3, 1, 1)[0] > 0


def _soften(where: Tensor, width: int) -> Tensor:
    """Float [H, W]: 1 where [H, W] is true, less the farther from there."""
    grown = functional.max_pool2d(where.float()[None], width, 1, width // 2)
    return functional.avg_pool2d(grown, 3, 1, 1, count_include_pad=False)[0]
