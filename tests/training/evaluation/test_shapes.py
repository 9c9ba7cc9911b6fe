import json

import pytest

from training.evaluation import shapes
from training.evaluation.outcomes import by_part
from training.evaluation.shapes import figures

ROW = {"verb": "stack", "held_out": False, "distance": 0.03}


def test_picks_near_a_rendering_are_whole():
    rows = [ROW, ROW | {"distance": 0.3}, ROW | {"held_out": True, "verb": "push left"}]
    summary = by_part(rows, figures)
    assert summary["all"]["whole"]["percent"] == pytest.approx(66.7)
    assert summary["all"]["distance"]["mean"] == pytest.approx(0.12)
    assert summary["held_out_combinations"]["whole"]["n"] == 1
    assert summary["per_verb"]["stack"]["whole"]["percent"] == 50


def test_an_evaluation_resumes_and_writes_its_figures(checkpoint, tmp_path, monkeypatch):
    def run(episodes):
        monkeypatch.setattr(
            "sys.argv", ["shapes", "--checkpoint", checkpoint, "--out", str(tmp_path), "--episodes", episodes]
        )
        shapes.main()
        return (tmp_path / "rows.jsonl").read_text().splitlines()

    (first,) = run("1")
    rows = run("2")
    assert rows[0] == first and len(rows) == 2
    assert all(json.loads(row)["distance"] > 0.1 for row in rows)  # an untrained model draws noise
    assert json.loads((tmp_path / "summary.json").read_text())["all"]["whole"]["n"] == 2
