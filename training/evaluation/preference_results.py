"""What human raters prefer: a CSV with one line for each comparison, and each system's share of wins and mean score.

id, rater    which sample, and who rated it
order        the systems as they were shown, from left to right, as a JSON list
best, worst  systems
seconds      from showing to answering
time         of the answer, UTC, ISO 8601
"""

import csv
import json
from pathlib import Path

import numpy as np

from bwm_pipelines.new_files import new_files
from training.evaluation.bootstrap import bootstrap_means, interval
from training.evaluation.intervals import text

COLUMNS = ("id", "rater", "order", "best", "worst", "seconds", "time")


def read_results(path: Path) -> list[dict]:
    """The comparisons of a CSV, `order` as a list; none if there is no file yet.

    Raises:
        ValueError: the file is no such CSV.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"`results` {str(path)!r} has the columns {reader.fieldnames}, not {list(COLUMNS)}; name another file."
            )
        return [row | {"order": json.loads(row["order"])} for row in reader]


def append_result(path: Path, result: dict) -> None:
    """Adds one comparison to the CSV, which is made if absent; a kill at any moment leaves the old file or the new one."""
    results = [*read_results(path), result]
    with new_files(path.parent) as folder, (folder / path.name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row | {"order": json.dumps(row["order"], ensure_ascii=False)} for row in results)


def summarise(results: list[dict]) -> dict:
    """For each system the share of comparisons in which it was best and worst, in percent, and its score: the mean of +1
    for best, -1 for worst and 0 otherwise, as in the paper. The 95 % intervals are bootstrapped over samples and raters."""
    systems = sorted({system for row in results for system in row["order"]})
    return {system: _summarise_system(results, system) for system in systems}


def _summarise_system(results: list[dict], system: str) -> dict:
    shown = [row for row in results if system in row["order"]]
    best, worst = (np.array([row[choice] == system for row in shown], float) for choice in ("best", "worst"))
    units = [row["id"] for row in shown], [row["rater"] for row in shown]

    def cell(name: str, values: np.ndarray) -> dict:
        low, high = interval(bootstrap_means(np.random.default_rng(0), values, *units))
        return {name: float(values.mean()), "low": low, "high": high, "n": len(values)}

    return {
        "best": cell("percent", 100 * best),
        "worst": cell("percent", 100 * worst),
        "score": cell("mean", best - worst),
    }


def table(results: list[dict]) -> str:
    """A markdown table of `summarise`, the best score first."""
    summary = summarise(results)
    raters, samples = (len({row[unit] for row in results}) for unit in ("rater", "id"))
    lines = [
        f"{len(results)} comparisons of {samples} samples by {raters} raters; 95 % intervals over samples and raters.",
        "",
        "| system | best | worst | score, -1 to 1 | n |",
        "|---|---|---|---|---|",
    ]
    for system in sorted(summary, key=lambda name: -summary[name]["score"]["mean"]):
        cells = summary[system]
        best, worst, score = (text(cells[name]) for name in ("best", "worst", "score"))
        lines.append(f"| {system} | {best} | {worst} | {score} | {cells['score']['n']} |")
    return "\n".join(lines)
