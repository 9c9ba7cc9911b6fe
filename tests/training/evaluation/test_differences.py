import json

import pytest

from tests.training.evaluation.test_outcomes import ROW
from training.evaluation import differences

WORSE = ROW | {"scene": 1, "action": "shut the door"}  # right twice of eight, never exactly
BETTER = WORSE | {"success": [True] * 8, "elsewhere": [0.0] * 8, "misdrawn": [0.1] * 6 + [0.3] * 2}


def test_differences_are_those_of_the_same_episodes():
    cells = differences.differences([WORSE, WORSE], [WORSE, BETTER])
    assert cells["right, all candidates"]["first"] == 25.0 and cells["right, all candidates"]["second"] == 62.5
    means = {name: cell["difference"]["mean"] for name, cell in cells.items()}
    assert means == {
        "right, all candidates": 37.5,
        "exact, all candidates": 37.5,
        "right, K = 1": 50.0,
        "exact, K = 1": 50.0,
        "right, K = 8, verified": 50.0,
        "exact, K = 8, verified": 50.0,
        "error from the truth, all candidates": 0.0,
        "error from the truth, K = 8, verified": 0.0,
        "well formed, all candidates": 0.0,
        "well formed, K = 8, verified": 0.0,
    }
    spread = cells["right, K = 1"]["difference"]
    assert (spread["low"], spread["high"], spread["n"]) == (0.0, 100.0, 2)


def test_later_measures_are_compared_where_both_have_them():
    nearer = WORSE | {"from_truth": [0.1] * 8}
    cells = differences.differences([WORSE], [nearer])
    assert cells["error from the truth, K = 8, verified"] == {
        "first": 100.0,
        "second": 10.0,
        "difference": {"mean": -90.0, "low": -90.0, "high": -90.0, "n": 1},
    }
    old = {name: value for name, value in WORSE.items() if name not in ("from_truth", "malformed")}
    assert differences.differences([old], [nearer]).keys() == differences.MEASURES["success"].keys()


def test_shapes_are_compared_as_well():
    first = [{"scene": i, "action": "open the door", "distance": 0.2} for i in range(2)]
    cells = differences.differences(first, [first[0] | {"distance": 0.05}, first[1]])
    assert cells["whole"]["first"] == 0.0 and cells["whole"]["difference"]["mean"] == 50.0
    assert cells["distance from the nearest rendering"]["difference"]["mean"] == pytest.approx(-7.5)


def test_other_episodes_are_refused():
    with pytest.raises(ValueError, match="other episodes"):
        differences.differences([WORSE], [WORSE | {"scene": 2}])


def test_rows_of_different_evaluations_are_refused():
    shapes = {"scene": 1, "action": WORSE["action"], "distance": 0.1}
    with pytest.raises(ValueError, match="nothing in common"):
        differences.differences([shapes], [WORSE])


def test_the_command_writes_its_figures_beside_the_second_run(tmp_path, monkeypatch, capsys):
    for name, row in (("first", WORSE), ("second", BETTER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("sys.argv", ["differences", str(tmp_path / "first"), str(tmp_path / "second")])
    differences.main()
    written = json.loads((tmp_path / "second" / "difference.json").read_text())
    assert (
        written["first"] == str(tmp_path / "first")
        and written["exact, K = 1"] == json.loads(capsys.readouterr().out)["exact, K = 1"]
    )
