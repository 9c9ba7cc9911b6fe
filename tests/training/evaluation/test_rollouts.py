import json

from training.evaluation import rollouts
from training.evaluation.rollouts import summarise
from training.playroom.actions import fold


def test_a_rollout_holds_as_long_as_every_step_succeeds():
    summary = summarise([{"success": [True, False, True]}, {"success": [True, True, True]}], {})
    assert [cell["percent"] for cell in summary["step"].values()] == [100, 50, 100]
    assert [cell["percent"] for cell in summary["all_steps_to"].values()] == [100, 50, 50]


def test_rollouts_are_played_and_resumed(checkpoint, tmp_path, monkeypatch):
    def run(episodes):
        arguments = ["--steps", "2", "--num-candidates", "2", "--episodes", str(episodes), "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["rollouts", "--checkpoint", checkpoint, *arguments])
        rollouts.main()
        return [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    (first,) = run(1)
    rows = run(2)
    assert rows[0] == first and len({row["scene"] for row in rows}) == 2
    assert len(first["actions"]) == len(first["success"]) == 2
    assert all(fold(action) for action in first["actions"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["all_steps_to"]["2"]["n"] == 2
