"""Over-editing: what a picture changes beyond what the action changes."""

import numpy as np
from scipy.ndimage import binary_dilation

from training.playroom.episodes import VISIBLE_SHARE, VISIBLE_STEP

MARGIN = 8  # pixels around the true change that are not judged: an edge may land beside its place


def changed_elsewhere(image: np.ndarray, shown: np.ndarray, before: np.ndarray, truth: np.ndarray) -> float:
    """Share of the picture, 0 to 1, that visibly differs from what it should show, away from the true change.

    Args:
        image: the picture to judge, float [H, W, 3] in [0, 1].
        shown: the true outcome as the image tokenizer shows it, float [H, W, 3] in [0, 1].
        before, truth: the true pictures before and after the action, uint8 [H, W, 3].
    """
    change = np.abs(truth.astype(np.int16) - before).max(-1) > VISIBLE_STEP
    elsewhere = ~binary_dilation(change, np.ones((2 * MARGIN + 1, 2 * MARGIN + 1)))
    return float((elsewhere & (np.abs(image - shown).max(-1) > VISIBLE_STEP / 255)).mean())


def is_clean(share: float) -> bool:
    """True if a person would not see that anything else changed; see `training.playroom.episodes.visibly_different`."""
    return share <= VISIBLE_SHARE
