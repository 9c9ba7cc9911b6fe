import json
import sys

from tests.training.evaluation.test_outcomes import ROW
from training.evaluation import collisions
from training.playroom.episodes import play_episode
from training.playroom.room import Room

SCENE = 7  # of the training split: it has actions of either kind


def test_rows_are_told_apart_by_what_the_action_moves(tmp_path, monkeypatch):
    room = Room()
    everything, colliding = (
        [o.action.phrase() for o in play_episode(room, "train", SCENE, 48, colliding=kind).outcomes]
        for kind in (False, True)
    )
    rows = [ROW | {"scene": SCENE, "truth": phrase, "success": [phrase in colliding] * 8} for phrase in everything]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["collisions", str(tmp_path)])
    collisions.main()
    summary = json.loads((tmp_path / "collisions.json").read_text())
    assert summary["moves_another_thing"]["verified_k1"]["n"] == len(colliding) > 0
    assert summary["moves_no_other"]["verified_k1"]["n"] == len(everything) - len(colliding) > 0
    assert summary["moves_another_thing"]["verified_k1"]["percent"] == 100.0
    assert summary["moves_no_other"]["verified_k1"]["percent"] == 0.0
