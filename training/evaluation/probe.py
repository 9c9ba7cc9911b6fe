"""The trajectory-preference probe (arXiv 2506.06006, section 2): does a model prefer what really happened?

    python -m training.evaluation.probe runs/playroom/triplets/validation --checkpoint CHECKPOINT --out runs/probe

For triplets (before, action, after): how often is the reference more likely than the same triplet with one thing wrong?

    random action          the action of another triplet of the same source
    counterfactual action  another action that is possible in the same scene, or the contrast that the data names
    random observation     the image after of another scene of the same source
    copy                   nothing changed: after := before
    inverse                before and after swapped

Two tasks: forward dynamics prediction (FDP) scores log p(after | before, action) with the world model, inverse dynamics
prediction (IDP) log p(action | before, after) with the dynamics model. 50 % is chance. The reference has to be strictly more
likely: a tie is a failure, so a model to which both are the same gets no credit, nor does a pair whose after has the very
codes of its before.

FDP compares sums over image tokens, of which there are always equally many. The paper does not say how IDP compares actions of
different length: the mean over tokens, eos included, is what the verifier reports and what `idp` uses; `idp_sum` gives
the sums beside it where the action is what was changed (elsewhere they agree).

TRIPLETS is a folder of Parquet shards or of AURORA-Bench. `rows.jsonl` takes one line a triplet and an interrupted run goes on
after the last; `summary.json` holds shares with 95 % Wilson intervals, `probe.png` plots them.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline, default_checkpoint
from bwm_pipelines.new_files import new_files
from training.evaluation.aurora_bench_data import is_aurora_bench, load_aurora_bench
from training.evaluation.intervals import proportion, text
from training.evaluation.likelihood import image_log_probs, words_log_probs
from training.evaluation.rows import claim, describe_run, fingerprint, resume_rows, write_json
from training.evaluation.wording import plain
from training.triplets import load_triplets, shards_of

TASKS = ("fdp", "idp")
ACTION_MANIPULATIONS = ("random action", "counterfactual action")
MANIPULATIONS = (*ACTION_MANIPULATIONS, "random observation", "copy", "inverse")


class Trajectory(NamedTuple):
    """Image before, action, image after; the images as codes, int64 [N]."""

    before: Tensor
    action: str
    after: Tensor

    def same_as(self, other: "Trajectory") -> bool:
        return self.action == other.action and self.before.equal(other.before) and self.after.equal(other.after)


class Rivals(NamedTuple):
    """What a triplet is manipulated with; None where the data has nothing of the kind. `observation` is a row number."""

    random_action: str | None
    counterfactual_action: str | None
    observation: int | None


class TripletPool:
    """Labelled triplets and what each can be manipulated with."""

    def __init__(self, rows: Dataset):
        self.rows = rows
        columns = {name: np.array(rows[name][:], dtype=object) for name in ("source", "scene", "action")}
        self.source, self.scene, self.action = columns.values()
        self.labelled = np.array([action is not None for action in self.action], dtype=bool)
        self.plain = np.array([a and plain(a, s) for a, s in zip(self.action, self.source, strict=True)], dtype=object)

    def draw_rivals(self, index: int, rng: np.random.Generator) -> Rivals:
        """Draws the rivals of row `index`, evenly over the rows that qualify."""
        own_source = self.source == self.source[index]
        own_scene = self.scene == self.scene[index]
        other_action = own_source & self.labelled & (self.plain != self.plain[index])

        def draw(qualifies: np.ndarray) -> int | None:
            candidates = np.flatnonzero(qualifies)
            return int(rng.choice(candidates)) if len(candidates) else None

        random, in_scene = draw(other_action), draw(other_action & own_scene)
        contrast = self.rows[index].get("counterfactual")
        return Rivals(
            random_action=None if random is None else self.action[random],
            counterfactual_action=contrast or (None if in_scene is None else self.action[in_scene]),
            observation=draw(own_source & ~own_scene),
        )


def manipulate(reference: Trajectory, rivals: Rivals, observation: Tensor | None) -> dict[str, Trajectory]:
    """The reference with one thing wrong, for each manipulation that the rivals allow; `observation` is codes [N]."""
    before, action, after = reference
    manipulated = {
        "random action": rivals.random_action and Trajectory(before, rivals.random_action, after),
        "counterfactual action": rivals.counterfactual_action
        and Trajectory(before, rivals.counterfactual_action, after),
        "random observation": None if observation is None else Trajectory(before, action, observation),
        "copy": Trajectory(before, action, before),
        "inverse": Trajectory(after, action, before),
    }
    return {name: trajectory for name, trajectory in manipulated.items() if trajectory}


class Probe:
    """Scores triplets of a pool with the models of a checkpoint.

    Args:
        checkpoint: a pipeline folder or an id on the Hub; only the models that `tasks` need are loaded.
        pool: the triplets.
        tasks: which of `TASKS`.
        seed: of what is drawn for the manipulations.
    """

    def __init__(self, checkpoint: str, pool: TripletPool, tasks: tuple[str, ...], seed: int):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pool, self.seed, self.pipes = pool, seed, {}
        if "fdp" in tasks:
            self.pipes["fdp"] = ChameleonWorldModelPipeline.from_pretrained(checkpoint, dynamics_model=None).to(device)
        if "idp" in tasks:
            self.pipes["idp"] = DynamicsVerifierPipeline.from_pretrained(checkpoint).to(device)

    def __call__(self, index: int) -> dict:
        """The row of one triplet: its rivals, and for each task the log p of the reference and of each manipulation.

        A log p is given as `sum` and `mean` over the tokens, in nats.
        """
        row = self.pool.rows[index]
        rivals = self.pool.draw_rivals(index, np.random.default_rng([self.seed, index]))
        others = [] if rivals.observation is None else [self.pool.rows[rivals.observation]["after"]]
        pipe = next(iter(self.pipes.values()))
        before, after, *observation = pipe.encode_images([row["before"], row["after"], *others])
        reference = Trajectory(before, row["action"], after)
        manipulated = manipulate(reference, rivals, observation[0] if observation else None)
        trajectories = {"reference": reference, **manipulated}
        return {
            "id": row["id"],
            "source": row["source"],
            "class": row["class"],
            "action": row["action"],
            "random_action": rivals.random_action,
            "counterfactual_action": rivals.counterfactual_action,
            "random_observation": None if rivals.observation is None else self.pool.rows[rivals.observation]["id"],
            **{task: self.score(task, trajectories) for task in self.pipes},
        }

    def score(self, task: str, trajectories: dict[str, Trajectory]) -> dict[str, dict[str, float]]:
        """Sum and mean of the token log p of each trajectory, in nats; all of them run as one batch."""
        family, chosen = self.pipes[task].family, list(trajectories.values())
        if task == "fdp":
            prompts = [family.forward_prompt_ids(before, action) for before, action, _ in chosen]
            model, answers = self.pipes[task].world_model, [trajectory.after for trajectory in chosen]
            log_probs = image_log_probs(family, model, prompts, answers)
        else:
            prompts = [family.inverse_prompt_ids(before, after) for before, _, after in chosen]
            model, answers = self.pipes[task].dynamics_model, [trajectory.action for trajectory in chosen]
            log_probs = words_log_probs(family, model, prompts, answers)
        scores = [{"sum": one.sum().item(), "mean": one.mean().item()} for one in log_probs]
        # A trajectory that is the reference ties with it: rounding, which depends on the batch, must not decide.
        return {
            name: scores[0] if trajectory.same_as(chosen[0]) else score
            for (name, trajectory), score in zip(trajectories.items(), scores, strict=True)
        }


def preference(rows: list[dict], task: str, manipulation: str, statistic: str) -> dict:
    """How often the reference is strictly more likely: percent with interval, `n`, and how many `ties` failed."""
    pairs = [
        (row[task]["reference"][statistic], row[task][manipulation][statistic])
        for row in rows
        if task in row and manipulation in row[task]
    ]
    cell = proportion(reference > manipulated for reference, manipulated in pairs)
    return {**cell, "ties": sum(reference == manipulated for reference, manipulated in pairs)}


def figures(rows: list[dict]) -> dict:
    """Preferences in percent for each task and manipulation."""
    return {
        "fdp": {name: preference(rows, "fdp", name, "sum") for name in MANIPULATIONS},
        "idp": {name: preference(rows, "idp", name, "mean") for name in MANIPULATIONS},
        "idp_sum": {name: preference(rows, "idp", name, "sum") for name in ACTION_MANIPULATIONS},
    }


def summarise(rows: list[dict]) -> dict:
    """The figures of all rows, of each source and of each class."""
    groups = {"source": defaultdict(list), "class": defaultdict(list)}
    for row in rows:
        for column, by_value in groups.items():
            by_value[row[column]].append(row)
    return {
        "triplets": len(rows),
        "chance_percent": 50,
        "ties": "count as failures",
        "all": figures(rows),
        **{f"per_{name}": {value: figures(part) for value, part in sorted(by.items())} for name, by in groups.items()},
    }


def table(cells: dict) -> str:
    """Preference for the reference, with interval and n, for each manipulation and task as a Markdown table."""
    columns = {"fdp": "FDP", "idp": "IDP", "idp_sum": "IDP, by sum"}
    lines = [f"| reference preferred over | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for name in MANIPULATIONS:
        shown = [cells[task].get(name, {"n": 0}) for task in columns]
        lines.append(f"| {name} | {' | '.join(_cell(c) for c in shown)} |")
    return "\n".join(lines)


def _cell(cell: dict) -> str:
    return f"{text(cell)}, n = {cell['n']}" if cell["n"] else "-"


def plot(summary: dict, path: Path) -> None:
    """Bars of the preference for the reference, FDP and IDP beside each other, with intervals and chance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.8))
    for offset, task, label, colour in (
        (-0.2, "fdp", "FDP (world model)", "#b8c4d0"),
        (0.2, "idp", "IDP (dynamics model)", "#2b6cb0"),
    ):
        cells = {i: summary["all"][task][name] for i, name in enumerate(MANIPULATIONS)}
        cells = {i: cell for i, cell in cells.items() if cell["n"]}
        values = [cell["percent"] for cell in cells.values()]
        errors = [
            [c["percent"] - c["low"] for c in cells.values()],
            [c["high"] - c["percent"] for c in cells.values()],
        ]
        if cells:
            axes.bar(
                [i + offset for i in cells], values, 0.38, yerr=errors, label=label, color=colour, error_kw={"lw": 0.8}
            )
    axes.axhline(50, color="#888", lw=0.8, ls="--", label="chance")
    axes.set_xticks(range(len(MANIPULATIONS)), [name.replace(" ", "\n") for name in MANIPULATIONS])
    axes.set_ylabel("reference preferred, %")
    axes.set_title(f"{summary['triplets']} triplets", fontsize=10)
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path, help="folder of Parquet shards, or of AURORA-Bench")
    parser.add_argument(
        "--checkpoint", default=str(default_checkpoint()), help="pipeline folder; default: the embedded one"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl, summary.json and probe.png")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--limit", type=int, help="triplets, drawn at random; default: all that have an action")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = (
        load_aurora_bench(args.triplets) if is_aurora_bench(args.triplets) else load_triplets(shards_of(args.triplets))
    )
    pool = TripletPool(rows)
    settings = {"triplets": str(args.triplets), "checkpoint": fingerprint(args.checkpoint), "seed": str(args.seed)}
    claim(args.out, settings | {"tasks": " ".join(sorted(args.tasks))})
    order = np.random.default_rng(args.seed).permutation(np.flatnonzero(pool.labelled))[: args.limit].tolist()
    probe = Probe(args.checkpoint, pool, tuple(args.tasks), args.seed)
    summary = describe_run("training.evaluation.probe") | summarise(
        resume_rows(args.out / "rows.jsonl", order, lambda batch: list(map(probe, batch)), unit="triplet")
    )
    write_json(args.out, "summary.json", summary)
    with new_files(args.out) as folder:
        plot(summary, folder / "probe.png")
    print(table(summary["all"]))


if __name__ == "__main__":
    main()
