import json

import pytest

from training import evaluate
from training.evaluate import figures, picked, proportion

ROW = {
    "scores": [-2.0, -1.0, -3.0, -0.5, -9, -9, -9, -9],
    "success": [False, True, False, False, False, False, False, True],
    "copy": [True] + [False] * 7,
    "named": "Shut the door.",
    "truth": "close the door",
    "tokenizer_nearest": True,
}


def test_the_verifier_picks_among_the_first_k_by_score():
    assert [picked(ROW, k) for k in (1, 2, 4, 8)] == [0, 1, 3, 3]


def test_figures_count_what_was_picked():
    result = figures([ROW, ROW])
    percents = {name: cell["percent"] for name, cell in result.items()}
    assert percents == {
        "verified_k1": 0.0,
        "verified_k2": 100.0,
        "verified_k4": 0.0,
        "verified_k8": 0.0,
        "oracle_k8": 100.0,
        "copies_k1": 100.0,
        "copies_k8_verified": 0.0,
        "named_exactly": 100.0,
        "tokenizer_nearest": 100.0,
    }


def test_intervals_are_wilson_s():
    cell = proportion([True] * 80 + [False] * 20)
    assert cell == {"percent": 80.0, "low": 71.1, "high": 86.7, "n": 100}  # Wilson 1927, as published tables give it
    assert proportion([]) == {"n": 0}


@pytest.fixture
def tiny_run(checkpoint, tmp_path, monkeypatch):
    def run(episodes):
        arguments = ["evaluate", "--checkpoint", checkpoint, "--episodes", str(episodes), "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", arguments)
        evaluate.main()
        return tmp_path

    return run


def test_an_evaluation_resumes_and_writes_its_figures(tiny_run, monkeypatch):
    monkeypatch.setattr(evaluate, "draw_command", lambda rng, episode: (0, "open the door"))
    tiny_run(1)
    rows = (tiny_run(2) / "rows.jsonl").read_text().splitlines()
    summary = json.loads((tiny_run(2) / "summary.json").read_text())
    assert len({json.loads(row)["scene"] for row in rows}) == len(rows) == summary["episodes"] == 2
    assert summary["all"]["verified_k8"]["n"] == 2
    assert (tiny_run(2) / "per_verb.png").stat().st_size > 5000
