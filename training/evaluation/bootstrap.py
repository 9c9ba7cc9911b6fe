"""Bootstrap intervals of means, over samples, over raters, or over both at once."""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000


def bootstrap_means(rng: np.random.Generator, values: ArrayLike, *units: ArrayLike) -> np.ndarray:
    """Means of values [N] resampled with replacement, [RESAMPLES].

    Each of `units` [N] names what every value belongs to: its sample, its rater. Values of one unit are drawn together.
    Of several kinds of units each is drawn by itself, and a value counts as often as all its units were drawn (the
    pigeonhole bootstrap, Owen 2007); it rather widens an interval than narrows it. A resample without any value is NaN.
    """
    values = np.asarray(values, float)
    weights = np.ones((RESAMPLES, len(values)))
    for labels in units:
        names, index = np.unique(np.asarray(labels), return_inverse=True)
        weights *= rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)[:, index]
    with np.errstate(invalid="ignore"):
        return weights @ values / weights.sum(1)


def interval(means: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap means."""
    low, high = np.nanquantile(means, (0.025, 0.975))
    return float(low), float(high)
