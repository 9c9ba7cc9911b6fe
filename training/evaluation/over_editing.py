"""How a picture departs from the true outcome: away from what the action changes, there, and apart from mere displacement."""

import numpy as np
from scipy.ndimage import binary_dilation

from training.playroom.episodes import VISIBLE_SHARE, VISIBLE_STEP

MARGIN = 8  # pixels around the true change that belong to it: an edge may land beside its place
MISDRAWN = 0.2  # `misdrawn` above which, by eye, things have mostly lost their shape, place or colour
DISPLACEMENT = 3  # pixels by which a thing may be out of place and still be well drawn
MALFORMED = 0.08  # `malformed` above which, by eye, most pictures have a thing that lost its shape or colour, or its place by far


def changed_elsewhere(image: np.ndarray, shown: np.ndarray, before: np.ndarray, truth: np.ndarray) -> float:
    """Share of the picture, 0 to 1, that visibly differs from what it should show, away from the true change.

    Args:
        image: the picture to judge, float [H, W, 3] in [0, 1].
        shown: the true outcome as the image tokenizer shows it, float [H, W, 3] in [0, 1].
        before, truth: the true pictures before and after the action, uint8 [H, W, 3].
    """
    elsewhere = ~_around_the_change(before, truth)
    return float((elsewhere & (np.abs(image - shown).max(-1) > VISIBLE_STEP / 255)).mean())


def misdrawn(image: np.ndarray, shown: np.ndarray, before: np.ndarray, truth: np.ndarray) -> float:
    """Error around the true change, relative to the change itself: 0 is the true outcome, 1 about as far as no change.

    The arguments are those of `changed_elsewhere`; 0 if the action changes nothing.
    """
    there = _around_the_change(before, truth)
    change = np.abs(truth.astype(np.float32) - before)[there].sum() / 255
    return float(np.abs(image - shown)[there].sum() / change) if there.any() else 0.0


def malformed(image: np.ndarray, shown: np.ndarray, before: np.ndarray, truth: np.ndarray) -> float:
    """Error of a picture that `DISPLACEMENT` does not explain, relative to the change: each pixel of either picture counts by
    how far it is from the nearest in colour of those around its place in the other one.

    Unlike `misdrawn` it forgives a thing that stands beside its place, and does not forgive half a thing, two of one, or another's
    colour. The arguments are those of `changed_elsewhere`; 0 if the action changes nothing.
    """
    change = np.abs(truth.astype(np.float32) - before).sum() / 255
    unexplained = _unexplained(image, shown) + _unexplained(shown, image)
    return float(unexplained / 2 / change) if change else 0.0


def is_clean(share: float) -> bool:
    """True if a person would not see that anything else changed; see `training.playroom.episodes.visibly_different`."""
    return share <= VISIBLE_SHARE


def is_exact(image: np.ndarray, shown: np.ndarray, before: np.ndarray, truth: np.ndarray) -> bool:
    """True if a picture is clean and not `MISDRAWN`; the arguments are those of `changed_elsewhere`."""
    pictures = image, shown, before, truth
    return is_clean(changed_elsewhere(*pictures)) and misdrawn(*pictures) <= MISDRAWN


def _around_the_change(before: np.ndarray, truth: np.ndarray) -> np.ndarray:
    change = np.abs(truth.astype(np.int16) - before).max(-1) > VISIBLE_STEP
    return binary_dilation(change, np.ones((2 * MARGIN + 1, 2 * MARGIN + 1)))


def _unexplained(image: np.ndarray, other: np.ndarray) -> float:
    """Sum over the pixels of `image`, [H, W, 3], of the least difference from one within `DISPLACEMENT` in `other`."""
    reach, (height, width) = range(2 * DISPLACEMENT + 1), image.shape[:2]
    padded = np.pad(other, ((DISPLACEMENT, DISPLACEMENT), (DISPLACEMENT, DISPLACEMENT), (0, 0)), mode="edge")
    shifted = (padded[y : y + height, x : x + width] for y in reach for x in reach)
    return float(np.minimum.reduce([np.abs(image - one).sum(-1) for one in shifted]).sum())
