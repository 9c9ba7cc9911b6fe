"""Pictures in groups, each group under its words: what the pages for people to look at are made of."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

INCHES, CAPTION_INCHES = 1.05, 0.5  # side of a picture, height of the words above a group
LINE = 17  # characters above each picture of a group
GOOD, BAD, NEUTRAL = "#157f5b", "#b4540a", "#1d1d1f"


class Group(NamedTuple):
    """Pictures that belong together, and the words above them."""

    words: str
    pictures: Sequence[Image.Image]
    colour: str = NEUTRAL


def draw_groups(groups: Sequence[Group], columns: int, names: Sequence[str]) -> Figure:
    """A page with so many groups side by side.

    Args:
        groups: at least one, with equally many pictures each.
        columns: groups a row.
        names: what the pictures of a group are, written under those of the last row.
    """
    size, rows = len(names), -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows,
        columns * (size + 1) - 1,
        figsize=(INCHES * columns * (size + 0.25), rows * (INCHES + CAPTION_INCHES)),
        gridspec_kw={
            "width_ratios": ([1] * size + [0.2]) * (columns - 1) + [1] * size,
            "wspace": 0.04,
            "hspace": 0.45,
        },
        squeeze=False,
    )
    for cell in axes.flat:
        cell.axis("off")
    for i, group in enumerate(groups):
        row, first = i // columns, i % columns * (size + 1)
        for j, picture in enumerate(group.pictures):
            axes[row, first + j].imshow(picture, interpolation="nearest")
            if i + columns >= len(groups):
                axes[row, first + j].text(0.5, -0.05, names[j], transform=axes[row, first + j].transAxes, fontsize=6,
                                          ha="center", va="top", color="#6c6c70")  # fmt: skip
        words = "\n".join(textwrap.wrap(group.words, LINE * size))
        axes[row, first].text(
            0, 1.05, words, transform=axes[row, first].transAxes, fontsize=7, va="bottom", color=group.colour
        )
    return figure


def save(figure: Figure, path: str) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
