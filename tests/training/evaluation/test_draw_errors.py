import json

import pytest

from training.evaluation import draw_errors
from training.evaluation.draw_errors import compare, read_draws
from training.evaluation.draws import draw_shard
from training.recipe import Recipe
from training.sequences import load_codes


def rows(*errors: list[float]) -> list[dict]:
    """Pictures that are malformed by half of their error."""
    return [
        {"scene": str(i // 2), "action": f"action {i}", "error": error, "malformed": [e / 2 for e in error]}
        for i, error in enumerate(errors)
    ]


def test_hand_computed_differences():
    first = rows([0.1, 2.0], [0.5, 0.5], [0.3, 0.3])  # two actions of one scene, one of another
    second = rows([0.1, 0.1], [0.5, 0.5], [0.3, 0.1])
    result = compare(first, second)
    assert result["actions"] == 3
    means = {
        name: (cell["mean"]["mean"], cell["difference"]["mean"]) for name, cell in result.items() if name != "actions"
    }
    assert means == {
        "error": pytest.approx((25.0, -16.25)),  # scenes: 30 and 20; before 52.5 and 30
        "error of the best": pytest.approx((20.0, -10.0)),  # 30 and 10; before 30 and 30
        "near": pytest.approx((50.0, 37.5)),  # 50 and 50; before 25 and 0
        "near, the best": pytest.approx((75.0, 50.0)),  # 50 and 100; before 50 and 0
        "well formed": pytest.approx((50.0, 37.5)),  # those that are near, too
        "well formed, the best": pytest.approx((75.0, 50.0)),
    }


def test_other_actions_are_refused():
    with pytest.raises(ValueError, match="same actions"):
        compare(rows([0.1]), rows([0.1], [0.2]))


def test_the_command_compares_draws_with_the_first(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    shard, draws = ("00000.parquet", load_codes(codes_folder).to_list()), tmp_path / "draws"
    draw_shard(shard, checkpoint=str(checkpoint_folder), recipe=Recipe("world"), candidates=2, out=draws)
    monkeypatch.setattr("sys.argv", ["x", str(draws), str(draws), "--out", str(tmp_path)])
    draw_errors.main()
    summary = json.loads((tmp_path / "draw_errors.json").read_text())["draws"]
    assert summary["actions"] == len(read_draws(draws)) > 0
    assert summary["error"]["difference"]["mean"] == 0 and summary["error"]["mean"]["mean"] > 0
