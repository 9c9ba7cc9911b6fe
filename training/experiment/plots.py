"""Plots of the experiment's figures."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from training.evaluation.outcomes import CANDIDATE_COUNTS


def write_plots(summary: dict, folder: Path) -> None:
    """Writes a picture for each part of the experiment that was run."""
    drawings = {
        "candidates": (draw_candidates, summary["variants"]),
        "asymmetry": (draw_asymmetry, summary["learning_curve"][1:]),
        "annotation": (draw_annotation, summary["annotation"]),
        "over_editing": (draw_over_editing, "weights_full" in summary["first_seed"]),
        "rollouts": (draw_rollouts, any(summary["rollouts"].values())),
    }
    for name, draw in ((name, draw) for name, (draw, was_run) in drawings.items() if was_run):
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        draw(summary, axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)


def draw_candidates(summary: dict, axes: Axes) -> None:
    """Outcome accuracy over K for every variant."""
    for offset, (name, cells) in enumerate(summary["variants"].items()):
        places = [k * 1.03 ** (offset - 2) for k in CANDIDATE_COUNTS]
        _line(axes, places, [cells[f"K = {k}"] for k in CANDIDATE_COUNTS], name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CANDIDATE_COUNTS, [str(k) for k in CANDIDATE_COUNTS])
    _label(axes, "candidates K, the verifier picks", "outcome accuracy, %")


def draw_asymmetry(summary: dict, axes: Axes) -> None:
    """The dynamics model's exact names and the world model's successes over the training."""
    curve = summary["learning_curve"]
    for name, label in (("CDM", "CDM names the action"), ("CWM", "world model, K = 1")):
        _line(axes, [point["step"] for point in curve], [point[name] for point in curve], label)
    _label(axes, "training steps on the same labelled triplets", "right, %")


def draw_annotation(summary: dict, axes: Axes) -> None:
    """How often the annotated words are right among the best-scored pairs."""
    for seed, entries in summary["annotation"].items():
        shares = [100 * entry["accepted"] for entry in entries]
        axes.plot(shares, [entry["right_percent"] for entry in entries], "o-", ms=3, label=f"seed {seed}")
    _label(axes, "accepted share of the pool by score, %", "words right, %")


def draw_over_editing(summary: dict, axes: Axes) -> None:
    """Loss-weight strength: success against change where nothing should change."""
    floors = {"no_weighting": 1, "weights_half": 0.5, "cwm": 0.1, "weights_full": 0}
    for name, floor in floors.items():
        if name not in summary["first_seed"]:
            continue
        cells = summary["first_seed"][name]
        axes.plot(cells["changed elsewhere, K = 1"]["percent"], cells["K = 1"]["percent"], "o", label=f"floor {floor}")
    _label(axes, "changed elsewhere, % of the picture, K = 1", "outcome accuracy, K = 1, %")


def draw_rollouts(summary: dict, axes: Axes) -> None:
    """Share of rollouts that are true so far."""
    for name, steps in summary["rollouts"].items():
        _line(axes, [int(n) for n in steps], [cells["all steps"] for cells in steps.values()], name)
    axes.set_xticks([1, 3, 6])
    _label(axes, "actions in a row", "all steps right, %")


def _line(axes: Axes, places: Iterable[float], cells: list[dict], label: str) -> None:
    values = [cell["percent"] for cell in cells]
    errors = [[cell["percent"] - cell["low"] for cell in cells], [cell["high"] - cell["percent"] for cell in cells]]
    axes.errorbar(list(places), values, yerr=errors, marker="o", ms=3, lw=1.2, elinewidth=0.8, label=label)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
