"""Readers' pages hold every pick and as many true outcomes, and their grades are counted for each source."""

import json

import numpy as np
import pytest

from training.evaluation import acceptance
from training.evaluation.acceptance import GAP, LINE, SIDE, TRUE, Item, compare, count, draw_page


def test_pages_hold_picks_and_truths(checkpoint_folder, tmp_path, monkeypatch):
    arguments = [
        "acceptance",
        "pages",
        "--checkpoint",
        str(checkpoint_folder),
        "--episodes",
        "2",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    acceptance.main()
    key = json.loads((tmp_path / "key.json").read_text())
    assert sorted(source for source, _ in key) == sorted([str(checkpoint_folder)] * 2 + [TRUE] * 2)
    assert len({scene for _, scene in key}) == 4
    assert (tmp_path / "page-00.png").exists() and not (tmp_path / "page-01.png").exists()

    reading = tmp_path / "reading.json"
    reading.write_text(json.dumps({str(i): 2 if source == TRUE else 0 for i, (source, _) in enumerate(key)}))
    monkeypatch.setattr("sys.argv", ["acceptance", "count", str(tmp_path), str(reading)])
    acceptance.main()
    accepted = json.loads((tmp_path / "accepted.json").read_text())
    assert accepted[TRUE]["flawless_for_all"]["percent"] == 100
    assert accepted[str(checkpoint_folder)]["accepted_by_any"]["percent"] == 0


def test_a_pair_stands_under_its_number():
    before, after = np.full((4, 4, 3), 10, np.uint8), np.full((4, 4, 3), 200, np.uint8)
    page = draw_page([Item(TRUE, 0, "open the door", before, after)] * 3, first=20)
    assert page.height == 2 * (SIDE + LINE + GAP)
    for x, value in ((GAP + 5, 10), (GAP + SIDE + GAP + 5, 200)):
        assert page.getpixel((x, LINE + 5)) == (value,) * 3
    assert np.asarray(page.crop((0, 0, 300, LINE))).min() == 0


def test_grades_of_two_readers_are_joined():
    key = [("a", 1), ("a", 2), ("a", 3), (TRUE, 4)]
    accepted = count(key, [{"0": 2, "1": 1, "2": 0, "3": 2}, {"0": 1, "1": 0, "2": 0, "3": 2}])
    assert [accepted["a"][name]["percent"] for name in ("accepted_by_all", "accepted_by_any")] == [33.3, 66.7]
    assert accepted["a"]["flawless_for_all"]["percent"] == 0 and accepted[TRUE]["flawless_for_all"]["n"] == 1


def test_checkpoints_are_compared_in_the_same_scenes():
    key = [("b", 2), ("a", 1), ("b", 1), ("a", 2), (TRUE, 3)]
    compared = compare(key, [{"0": 2, "1": 0, "2": 1, "3": 0, "4": 2}, {"0": 0, "1": 0, "2": 2, "3": 0, "4": 2}])
    (pair,) = compared.items()
    assert pair[0] == "b beside a" and (pair[1]["gained"], pair[1]["lost"]) == (1, 0)
    assert pair[1]["difference"] == {"mean": 50.0, "low": 0.0, "high": 100.0, "n": 2}


@pytest.mark.parametrize("reading", [{"0": 2}, {"0": 2, "1": 3}])
def test_a_missing_or_unknown_grade_is_said(reading):
    with pytest.raises(ValueError, match="number 0 has no grade 0, 1 or 2 for 1"):
        count([("a", 1), (TRUE, 2)], [reading])
