"""The figures of the experiment, from the rows that its evaluations wrote: `summary.json` and `tables.md`.

Shares are in percent. A mean over seeds has a 95 % interval by bootstrap over episodes and seeds at once; next to it stands
each seed's own mean. A difference between two variants is taken episode by episode and seed by seed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from training.evaluation.bootstrap import bootstrap_means, interval
from training.evaluation.outcomes import CANDIDATE_COUNTS, clean_success, moves_a_thing, picked
from training.evaluation.probe import MANIPULATIONS
from training.evaluation.rows import describe_run, read_rows, write_json
from training.experiment.plan import CURVE_POINTS, QUESTIONS, ROLLED_OUT, VARIANTS, Plan
from training.playroom.actions import fold
from training.triplets import load_triplets, shards_of

Measure = Callable[[dict], float]
"""A row of `training.evaluation.outcomes` -> a number, or a truth value."""

MEASURES: dict[str, Measure] = {
    **{f"K = {k}": lambda row, k=k: row["success"][picked(row, k)] for k in CANDIDATE_COUNTS},
    "oracle": lambda row: any(row["success"]),
    "clean, K = 8": lambda row: clean_success(row, picked(row, 8)),
    "copies, K = 8": lambda row: row["copy"][picked(row, 8)],
    "changed elsewhere, K = 1": lambda row: row["elsewhere"][0],
}
ACCEPTED_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)


def write_report(plan: Plan) -> None:
    """Writes `summary.json`, `tables.md` and the plots into the folder of results."""
    from training.experiment.plots import write_plots

    summary = summarise(plan)
    write_json(plan.results, "summary.json", summary)
    (plan.results / "tables.md").write_text(tables(summary), encoding="utf-8")
    write_plots(summary, plan.results)


def summarise(plan: Plan) -> dict:
    """All figures, as JSON can hold them."""
    first = plan.seeds[:1]
    variants = _those_with_rows({name: outcome_rows(plan, name, plan.seeds) for name in ("base", *VARIANTS)})
    asked = ("c_ft", "no_weighting", "cwm", *QUESTIONS)
    questions = _those_with_rows({name: outcome_rows(plan, name, first) for name in asked})
    return {
        **describe_run("training.experiment"),
        "size": vars(plan.size),
        "seeds": plan.seeds,
        "not_run": [name for name in plan.jobs if not (plan.out / "done" / name).exists()],
        "variants": {name: figures(rows) for name, rows in variants.items()},
        "differences": {
            f"cwm - {name}": {k: difference(variants["cwm"], rows, MEASURES[k]) for k in ("K = 1", "K = 8")}
            for name, rows in variants.items()
            if name != "cwm" and "cwm" in variants
        },
        "verbs": {name: by_verb(rows) for name, rows in variants.items()},
        "first_seed": {name: figures(rows) for name, rows in questions.items()},
        "learning_curve": learning_curve(plan),
        "annotation": {
            seed: annotation_quality(plan.out / f"annotated-{seed}")
            for seed in plan.seeds
            if (plan.out / "done" / f"annotated-{seed}").exists()
        },
        "accepted_words_right_percent": {
            name: round(100 * float(words_right(plan.out / name).mean()), 1)
            for name in plan.jobs
            if name.startswith("synthetic-") and (plan.out / "done" / name).exists()
        },
        "probe": {name: probe_figures(plan, name) for name in ("dynamics", "no_negatives")},
        "rollouts": {name: rollout_figures(plan, name) for name in ROLLED_OUT},
    }


# --- Outcomes -----------------------------------------------------------------------------------------------------------


def outcome_rows(plan: Plan, name: str, seeds: list[int], suffix: str = "") -> list[dict]:
    """The rows of a variant, each with its training seed."""
    return [
        row | {"seed": seed} for seed in seeds for row in finished_rows(plan, "outcomes", f"{name}-{seed}{suffix}")
    ]


def finished_rows(plan: Plan, suite: str, name: str) -> list[dict]:
    """What an evaluation wrote; nothing if it is not done."""
    done = (plan.out / "done" / f"{suite}-{name}").exists()
    return read_rows(plan.results / suite / name / "rows.jsonl") if done else []


def _those_with_rows(variants: dict[str, list[dict]]) -> dict[str, list[dict]]:
    return {name: rows for name, rows in variants.items() if rows}


def mean_over_seeds(rows: list[dict], measure: Measure) -> dict:
    """Mean in percent with its interval over episodes and seeds, and each seed's mean."""
    values = np.array([100.0 * measure(row) for row in rows])
    seeds, scenes = (np.array([row[unit] for row in rows]) for unit in ("seed", "scene"))
    units = [scenes] if len(set(seeds)) == 1 else [scenes, seeds]
    low, high = interval(bootstrap_means(np.random.default_rng(0), values, *units))
    per_seed = [round(float(values[seeds == seed].mean()), 2) for seed in sorted(set(seeds))]
    return {
        "percent": round(float(values.mean()), 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "per_seed": per_seed,
        "episodes": len(set(scenes)),
    }


def figures(rows: list[dict]) -> dict:
    return {name: mean_over_seeds(rows, measure) for name, measure in MEASURES.items()}


def difference(rows: list[dict], others: list[dict], measure: Measure) -> dict:
    """How much more the first variant has, paired by episode and seed, in percent points."""
    theirs = {(row["seed"], row["scene"]): measure(row) for row in others}
    pairs = [(row, theirs[place]) for row in rows if (place := (row["seed"], row["scene"])) in theirs]
    paired = [row | {"gain": float(measure(row)) - other} for row, other in pairs]
    return mean_over_seeds(paired, lambda row: row["gain"])


def by_verb(rows: list[dict]) -> dict:
    """K = 1 and K = 8 for spatial instructions (pushes), for what else moves a thing, for fixtures, and for each verb."""
    groups = {
        "spatial (push)": lambda verb: verb.startswith("push"),
        "moves a thing otherwise": lambda verb: moves_a_thing(verb) and not verb.startswith("push"),
        "door, drawer, lamp": lambda verb: not moves_a_thing(verb),
    } | {verb: (lambda verb, one=verb: verb == one) for verb in sorted({row["verb"] for row in rows})}
    chosen = {name: [row for row in rows if belongs(row["verb"])] for name, belongs in groups.items()}
    return {
        name: {k: mean_over_seeds(some, MEASURES[k]) for k in ("K = 1", "K = 8")}
        for name, some in chosen.items()
        if some
    }


# --- The asymmetry, annotation, rollouts --------------------------------------------------------------------------------


def learning_curve(plan: Plan) -> list[dict]:
    """Exact names by the CDM against successes of the CWM's first candidate, both after the same steps on the same labels."""
    curve = []
    for point in range(1, CURVE_POINTS + 1):
        step = plan.size.steps * point // CURVE_POINTS
        rows = outcome_rows(plan, "c_ft", plan.seeds, "" if point == CURVE_POINTS else f"-step-{step}")
        if not rows:
            continue
        named = mean_over_seeds(rows, lambda row: fold(row["named"]) == row["truth"])
        curve.append({"step": step, "CDM": named, "CWM": mean_over_seeds(rows, MEASURES["K = 1"])})
    return curve


def annotation_quality(folder: Path) -> list[dict]:
    """How often the annotated words are the true action, among the best pairs by score: one entry for each share."""
    right = words_right(folder)
    counts = [round(share * len(right)) for share in ACCEPTED_SHARES]
    return [
        {
            "accepted": share,
            "pairs": count,
            "minimum_score": round(float(right.index[count - 1]), 3),
            "right_percent": round(100 * float(right.iloc[:count].mean()), 1),
        }
        for share, count in zip(ACCEPTED_SHARES, counts, strict=True)
    ]


def words_right(folder: Path) -> pd.Series:
    """Whether the annotated words are the true action, for each scored pair, by score: the best first."""
    rows = load_triplets(shards_of(folder)).select_columns(["action", "label", "score"]).to_pandas()
    rows = rows[rows["score"].notna()].sort_values("score", ascending=False, kind="stable")
    right = [fold(said) == fold(true) for said, true in zip(rows["action"], rows["label"], strict=True)]
    return pd.Series(right, index=rows["score"])


def probe_figures(plan: Plan, name: str) -> dict:
    """How often a dynamics model prefers what really happened, for each manipulation."""
    rows = [row | {"seed": seed} for seed in plan.seeds for row in finished_rows(plan, "probe", f"{name}-{seed}")]
    figures = {}
    for manipulation in MANIPULATIONS:
        some = [row | {"scene": row["id"]} for row in rows if manipulation in row["idp"]]
        if some:
            figures[manipulation] = mean_over_seeds(some, lambda row, name=manipulation: prefers(row, name))
    return figures


def prefers(row: dict, manipulation: str) -> bool:
    """Whether the true triplet is strictly likelier, by the mean over tokens."""
    return row["idp"]["reference"]["mean"] > row["idp"][manipulation]["mean"]


def rollout_figures(plan: Plan, name: str) -> dict:
    """Share of rollouts that are still true after each number of steps."""
    rows = [row | {"seed": seed} for seed in plan.seeds for row in finished_rows(plan, "rollouts", f"{name}-{seed}")]
    if not rows:
        return {}
    return {
        steps: {
            "this step": mean_over_seeds(rows, lambda row, n=steps: row["success"][n - 1]),
            "all steps": mean_over_seeds(rows, lambda row, n=steps: all(row["success"][:n])),
        }
        for steps in (1, 3, 6)
    }


# --- Tables -------------------------------------------------------------------------------------------------------------


def tables(summary: dict) -> str:
    """The figures as Markdown."""
    names = list(MEASURES)
    parts = [
        _table("World model", names, summary["variants"]),
        _table("Difference, paired", ["K = 1", "K = 8"], summary["differences"]),
        *(_table(f"{name}, by verb", ["K = 1", "K = 8"], verbs) for name, verbs in summary["verbs"].items()),
        _table(f"Seed {summary['seeds'][0]} only", names, summary["first_seed"]),
        _table("Steps", ["CDM", "CWM"], {f"{point['step']}": point for point in summary["learning_curve"]}),
        *(
            _table(f"Rollouts of {name}, steps", ["this step", "all steps"], rollouts)
            for name, rollouts in summary["rollouts"].items()
        ),
        _annotation_table(summary["annotation"]),
        _table("The probe prefers the truth to", ["with negatives", "without"], _side_by_side(summary["probe"])),
        f"Not run: {', '.join(summary['not_run']) or 'nothing'}.\n",
    ]
    return "\n".join(parts)


def _side_by_side(probe: dict) -> dict[str, dict]:
    ours, plain = probe["dynamics"], probe["no_negatives"]
    return {name: {"with negatives": ours[name], "without": plain[name]} for name in ours if name in plain}


def _table(title: str, columns: list[str], rows: dict[str, dict]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(_cell(cells[column]) for column in columns)} |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def _cell(cell: dict) -> str:
    spread = f"; {' / '.join(f'{value:.1f}' for value in cell['per_seed'])}" if len(cell["per_seed"]) > 1 else ""
    return f"{cell['percent']:.1f} ({cell['low']:.1f} to {cell['high']:.1f}{spread})"


def _annotation_table(annotation: dict) -> str:
    lines = ["| Accepted share of the pool | lowest score, nats | words right, % |", "|---|---|---|"]
    for entries in zip(*annotation.values(), strict=True):
        scores, right = (" / ".join(f"{e[key]:g}" for e in entries) for key in ("minimum_score", "right_percent"))
        lines.append(f"| {entries[0]['accepted']:.1%} | {scores} | {right} |")
    return "\n".join(lines) + "\n"
