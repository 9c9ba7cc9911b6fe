"""Shares and means with their 95 % intervals."""

from collections.abc import Iterable

import numpy as np
from scipy.stats import binomtest

from training.evaluation.bootstrap import bootstrap_means, interval


def proportion(successes: Iterable[bool]) -> dict:
    """Share of successes with its 95 % Wilson interval, in percent."""
    values = list(successes)
    if not values:
        return {"n": 0}
    interval = binomtest(sum(values), len(values)).proportion_ci(method="wilson")
    percent = [round(100 * x, 1) for x in (sum(values) / len(values), interval.low, interval.high)]
    return {"percent": percent[0], "low": percent[1], "high": percent[2], "n": len(values)}


def mean(values: Iterable[float]) -> dict:
    """Mean with its 95 % bootstrap interval over the values, from a fixed seed."""
    array = np.array(list(values), dtype=np.float64)
    if not len(array):
        return {"n": 0}
    low, high = interval(bootstrap_means(np.random.default_rng(0), array, np.arange(len(array))))
    return {"mean": float(array.mean()), "low": low, "high": high, "n": len(array)}


def text(cell: dict) -> str:
    """A share or a mean for a table: "71.0 % (65.6-75.8)", "0.412 (0.377-0.449)", or "-" if nothing was counted."""
    if not cell["n"]:
        return "-"
    if "percent" in cell:
        return f"{cell['percent']:.1f} % ({cell['low']:.1f}-{cell['high']:.1f})"
    return f"{cell['mean']:.3f} ({cell['low']:.3f}-{cell['high']:.3f})"
