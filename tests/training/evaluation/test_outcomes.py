import json

import pytest

from training.evaluation import outcomes
from training.evaluation.outcomes import clean_success, exact_success, figures, moves_a_thing, paired, picked

ROW = {
    "scores": [-2.0, -1.0, -3.0, -0.5, -9, -9, -9, -9],
    "success": [False, True, False, False, False, False, False, True],
    "elsewhere": [0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "misdrawn": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3],
    "malformed": [0.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
    "from_truth": [0.1, 0.2, 0.2, 1.5, 0.2, 0.2, 0.2, 0.2],
    "copy": [True] + [False] * 7,
    "named": "Shut the door.",
    "truth": "close the door",
    "tokenizer_nearest": True,
}


def test_the_verifier_picks_among_the_first_k_by_score():
    assert [picked(ROW, k) for k in (1, 2, 4, 8)] == [0, 1, 3, 3]


def test_figures_count_what_was_picked():
    result = figures([ROW, ROW])
    assert result["changed_elsewhere_k1"]["mean"] == 0
    assert (result["error_from_truth_k1"]["mean"], result["error_from_truth_k8_verified"]["mean"]) == (10, 100)
    percents = {name: cell["percent"] for name, cell in result.items() if "percent" in cell}
    assert percents == {
        "verified_k1": 0.0,
        "verified_k2": 100.0,
        "verified_k4": 0.0,
        "verified_k8": 0.0,
        "oracle_k8": 100.0,
        "clean_k1": 0.0,
        "clean_k8_verified": 0.0,
        "exact_k1": 0.0,
        "exact_k8_verified": 0.0,
        "exact_oracle_k8": 0.0,
        "well_formed_k1": 100.0,
        "well_formed_k8_verified": 0.0,
        "well_formed_oracle_k8": 100.0,
        "copies_k1": 100.0,
        "copies_k8_verified": 0.0,
        "named_exactly": 100.0,
        "tokenizer_nearest": 100.0,
    }


def test_a_success_is_clean_if_nothing_else_changed():
    assert [clean_success(ROW, i) for i in (0, 1, 7)] == [False, False, True]


def test_a_clean_success_is_exact_if_it_is_drawn_right():
    row = ROW | {"misdrawn": [0.1] * 8}
    assert [exact_success(ROW, 7), exact_success(row, 7), exact_success(row, 1)] == [False, True, False]


def test_picks_are_compared_with_the_first_candidate():
    row = ROW | {"verb": "stack"}
    worse = row | {"success": [True] + [False] * 7}
    expected = {"gained": 0, "lost": 1, "missed": 2, "missed_per_verb": {"stack": 2}}
    assert paired([row, worse]) == expected
    assert moves_a_thing("stack") and not moves_a_thing("lamp on")


def run(checkpoint, out, monkeypatch, *more):
    arguments = ["outcomes", "--checkpoint", checkpoint, "--out", str(out), *more]
    monkeypatch.setattr("sys.argv", arguments)
    outcomes.main()
    return (out / "rows.jsonl").read_text().splitlines()


def test_an_evaluation_resumes_and_writes_its_figures(checkpoint, tmp_path, monkeypatch):
    (first,) = run(checkpoint, tmp_path, monkeypatch, "--episodes", "1")
    rows = run(checkpoint, tmp_path, monkeypatch, "--episodes", "3", "--workers", "2")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert rows[0] == first
    assert len({json.loads(row)["scene"] for row in rows}) == len(rows) == summary["episodes"] == 3
    assert summary["all"]["verified_k8"]["n"] == 3
    assert (tmp_path / "per_verb.png").stat().st_size > 5000


def test_an_evaluation_does_not_go_on_with_another_seed(checkpoint, tmp_path, monkeypatch):
    run(checkpoint, tmp_path, monkeypatch, "--episodes", "1")
    with pytest.raises(ValueError, match="another folder"):
        run(checkpoint, tmp_path, monkeypatch, "--episodes", "2", "--seed", "1")
