"""The probe on a tiny real checkpoint, against plain forwards, and its counting by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage

from tests.tiny import IMAGE_SIZE, plain_logits
from training.evaluation import probe
from training.evaluation.probe import (
    MANIPULATIONS,
    Probe,
    Rivals,
    Trajectory,
    TripletPool,
    figures,
    manipulate,
    preference,
)
from training.triplets import load_triplets, shards_of

AURORA = Path(__file__).parents[4] / "shared" / "data" / "aurora_bench"
CODES = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))
REFERENCE = Trajectory(CODES[0], "open the door", CODES[1])
RIVALS = Rivals("turn the lamp on", "push the red cube to the left", 7)


def pool_of(rows: list[tuple[str, str, str | None]], **more: list) -> TripletPool:
    """Rows of source, scene and action, with noise as pictures."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(len(rows), 2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    columns = {
        "id": [f"t{i}" for i in range(len(rows))],
        "source": [row[0] for row in rows],
        "scene": [row[1] for row in rows],
        "action": [row[2] for row in rows],
        "class": [""] * len(rows),
        "before": [PILImage.fromarray(pair[0]) for pair in pixels],
        "after": [PILImage.fromarray(pair[1]) for pair in pixels],
        **more,
    }
    return TripletPool(Dataset.from_dict(columns).cast_column("before", Image()).cast_column("after", Image()))


def draws(pool: TripletPool, index: int) -> list[Rivals]:
    return [pool.draw_rivals(index, np.random.default_rng(seed)) for seed in range(50)]


def test_rivals_are_drawn_where_they_belong():
    pool = pool_of(
        [
            ("playroom", "a", "open the door"),
            ("playroom", "a", "turn the lamp on"),
            ("playroom", "a", "swing the door open"),  # the same action in other words
            ("playroom", "b", "close the drawer"),
            ("playroom", "b", None),
            ("droid", "c", "close the drawer"),
        ]
    )
    drawn = draws(pool, 0)
    assert {rivals.random_action for rivals in drawn} == {"turn the lamp on", "close the drawer"}
    assert {rivals.counterfactual_action for rivals in drawn} == {"turn the lamp on"}
    assert {rivals.observation for rivals in drawn} == {3, 4}
    assert set(draws(pool, 5)) == {Rivals(None, None, None)}


def test_the_contrast_that_the_data_names_is_the_counterfactual_action():
    rows = [("x", "a", "open the bin"), ("x", "a", "lift the bin")]
    pool = pool_of(rows, counterfactual=["close the bin", None])
    assert draws(pool, 0)[0].counterfactual_action == "close the bin"
    assert draws(pool, 1)[0].counterfactual_action == "open the bin"


def test_manipulations_change_one_thing():
    manipulated = manipulate(REFERENCE, RIVALS, CODES[2])
    expected = {
        "random action": Trajectory(CODES[0], "turn the lamp on", CODES[1]),
        "counterfactual action": Trajectory(CODES[0], "push the red cube to the left", CODES[1]),
        "random observation": Trajectory(CODES[0], "open the door", CODES[2]),
        "copy": Trajectory(CODES[0], "open the door", CODES[0]),
        "inverse": Trajectory(CODES[1], "open the door", CODES[0]),
    }
    assert list(manipulated) == list(expected)
    assert all(manipulated[name].same_as(expected[name]) for name in expected)
    assert list(manipulate(REFERENCE, Rivals(None, None, None), None)) == ["copy", "inverse"]


@pytest.fixture(scope="module")
def tiny_probe(checkpoint):
    rows = [("x", "a", "open the door"), ("x", "a", "turn the lamp on"), ("x", "b", "close the drawer")]
    return Probe(checkpoint, pool_of(rows), ("fdp", "idp"), seed=0)


def naive_fdp(pipe, trajectory: Trajectory) -> float:
    """log p(after | before, action), token by token from a plain forward, normalised over the codes."""
    prompt = pipe.family.forward_prompt_ids(trajectory.before, trajectory.action)
    ids = pipe.family.image_token_ids
    logits = plain_logits(pipe.world_model, torch.cat([prompt, ids[trajectory.after]]))[len(prompt) - 1 : -1, ids]
    return logits.log_softmax(-1)[torch.arange(16), trajectory.after].sum().item()


def naive_idp(pipe, trajectory: Trajectory) -> tuple[float, float]:
    """Sum and mean of log p(action | before, after) from the stock forward, whose text probabilities leave images out."""
    prompt = pipe.family.inverse_prompt_ids(trajectory.before, trajectory.after)
    words = pipe.processor.tokenizer(
        f"{trajectory.action}</s>", add_special_tokens=False, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        logits = pipe.dynamics_model(input_ids=torch.cat([prompt[None], words], 1)).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.log_softmax(-1).gather(-1, words[0][:, None])
    return log_probs.sum().item(), log_probs.mean().item()


def test_scores_are_those_of_plain_forwards(pipe, tiny_probe):
    trajectories = {"reference": REFERENCE, **manipulate(REFERENCE, RIVALS, CODES[2])}
    fdp, idp = (tiny_probe.score(task, trajectories) for task in ("fdp", "idp"))
    for name, trajectory in trajectories.items():
        assert fdp[name]["sum"] == pytest.approx(naive_fdp(pipe, trajectory), abs=1e-3)
        assert fdp[name]["mean"] == pytest.approx(naive_fdp(pipe, trajectory) / 16, abs=1e-4)
        assert (idp[name]["sum"], idp[name]["mean"]) == pytest.approx(naive_idp(pipe, trajectory), abs=1e-4)


def test_a_copy_that_is_the_reference_does_not_win(tiny_probe):
    still = Trajectory(CODES[0], "open the door", CODES[0])
    trajectories = {"reference": still, **manipulate(still, RIVALS, CODES[2])}
    row = {task: tiny_probe.score(task, trajectories) for task in ("fdp", "idp")}
    result = figures([row])
    for task in ("fdp", "idp"):
        assert result[task]["copy"] == {"percent": 0.0, "low": 0.0, "high": 79.3, "n": 1, "ties": 1}


def test_a_row_holds_what_was_drawn_and_comes_out_the_same_again(tiny_probe):
    row = tiny_probe(0)
    assert row["random_action"] in ("turn the lamp on", "close the drawer")
    assert (row["counterfactual_action"], row["random_observation"]) == ("turn the lamp on", "t2")
    assert set(row["fdp"]) == set(row["idp"]) == {"reference", *MANIPULATIONS}
    assert all(math.isfinite(score["sum"]) for task in ("fdp", "idp") for score in row[task].values())
    assert tiny_probe(0) == row


def test_preferences_are_counted_by_hand():
    def row(reference: float, copy: float) -> dict:
        return {"idp": {"reference": {"mean": reference}, "copy": {"mean": copy}}}

    rows = [row(-1, -2), row(-1, -1), row(-2, -1), row(-0.5, -3), {"idp": {"reference": {"mean": -1}}}, {}]
    cell = preference(rows, "idp", "copy", "mean")
    assert (cell["percent"], cell["n"], cell["ties"]) == (50.0, 4, 1)


def test_actions_of_different_length_by_mean_and_by_sum():
    scores = {"reference": {"sum": -6.0, "mean": -1.0}, "random action": {"sum": -4.0, "mean": -2.0}}
    result = figures([{"idp": scores}])
    assert (result["idp"]["random action"]["percent"], result["idp_sum"]["random action"]["percent"]) == (100.0, 0.0)


@pytest.fixture
def run(checkpoint, triplet_folder, tmp_path, monkeypatch):
    def run(*arguments: str) -> Path:
        command = ["probe", str(triplet_folder), "--checkpoint", checkpoint, "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        probe.main()
        return tmp_path

    return run


def test_a_probe_resumes_and_writes_its_figures(run, triplet_folder):
    run("--limit", "2")
    rows = (run("--limit", "4") / "rows.jsonl").read_text().splitlines()
    summary = json.loads((run("--limit", "4") / "summary.json").read_text())
    ids = [json.loads(line)["id"] for line in rows]
    assert len(set(ids)) == 4
    assert set(ids) <= set(load_triplets(shards_of(triplet_folder))["id"])
    assert {cell["n"] for task in ("fdp", "idp") for cell in summary["all"][task].values()} == {4}
    assert list(summary["per_source"]) == ["playroom"]
    assert (run("--limit", "4") / "probe.png").stat().st_size > 5000


def test_another_seed_does_not_mix_with_the_rows_there(run):
    run("--limit", "1")
    with pytest.raises(ValueError, match="`out` .* holds a run with"):
        run("--limit", "1", "--seed", "1")


@pytest.mark.skipif(not AURORA.is_dir(), reason="AURORA-Bench is not beside the checkout")
def test_aurora_bench_by_its_subsets(monkeypatch, tmp_path):
    command = ["probe", str(AURORA), "--tasks", "idp", "--limit", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    probe.main()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert all(row["source"].startswith("aurora-bench/") and "fdp" not in row for row in rows)
    assert all(math.isfinite(score["mean"]) for row in rows for score in row["idp"].values())
