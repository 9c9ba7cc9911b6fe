import json
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from training import filter as filtering
from training.filter import changed_share, choose, stratified_top_k
from training.triplets import load_triplets, shards_of


def pairs(**columns) -> pd.DataFrame:
    """Annotated pairs without fault, but for the columns given."""
    count = len(next(iter(columns.values())))
    sound = {"id": [str(i) for i in range(count)], "source": "video", "class": "", "action": "go", "score": -1.0}
    return pd.DataFrame({**sound, "change": 0.5, "error": None, **columns}, index=range(count))


def test_algorithm_1_by_hand():
    triplets = pairs(
        **{
            "class": ["throw", "throw", "open", "open", "open", "wave", "open"],
            "score": [-0.5, -0.2, -0.9, -0.3, -0.1, -2.0, -0.7],
        }
    )
    # Round 1: open 4, throw 1, wave 5; round 2: open 3, throw 0; round 3: open 6; round 4: open 2.
    order = [4, 1, 5, 3, 0, 6, 2]
    for k in range(1, 9):
        assert list(stratified_top_k(triplets, k).index) == order[:k]


def test_equal_scores_go_by_order():
    assert list(stratified_top_k(pairs(score=[-1.0] * 5), 3).index) == [0, 1, 2]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-9, 0)), min_size=1, max_size=40),
    st.integers(1, 50),
)
def test_algorithm_1_is_balanced_and_takes_the_best_of_each_class(rows, k):
    triplets = pairs(**{"class": [name for name, _ in rows], "score": [score for _, score in rows]})
    chosen = stratified_top_k(triplets, k)
    assert len(chosen) == min(k, len(triplets)) and chosen.index.is_unique
    taken = chosen["class"].value_counts()
    for name, candidates in triplets.groupby("class"):
        mine = chosen[chosen["class"] == name]["score"]
        best = candidates["score"].sort_values(ascending=False)
        assert list(mine) == list(best[: len(mine)])
        # A class may only have fewer than another by more than one if it has no more to give.
        assert len(mine) == len(candidates) or len(mine) >= taken.max() - 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 0)), min_size=1, max_size=30), st.integers(1, 30))
def test_algorithm_1_is_the_round_robin_of_the_paper(rows, k):
    """Against the loop itself: classes in turn, each giving its best unused, the classes ordered anew in each round."""
    queues = {}
    for i in sorted(range(len(rows)), key=lambda i: -rows[i][1]):
        queues.setdefault(rows[i][0], []).append(i)
    taken = []
    while any(queues.values()):
        heads = [queue.pop(0) for queue in queues.values() if queue]
        taken += sorted(heads, key=lambda i: (-rows[i][1], i))
    triplets = pairs(**{"class": [name for name, _ in rows], "score": [score for _, score in rows]})
    assert list(stratified_top_k(triplets, k).index) == taken[:k]


def test_k_below_1_is_refused():
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        choose(pairs(score=[-1.0]), top_k=0)


def test_each_step_is_switched_by_itself_and_reported():
    triplets = pairs(
        id=["a", "b", "c", "d", "e", "e", "f", "g"],
        action=["go", None, " ", "go", "go", "go", "go", "nothing changed"],
        error=["no picture", None, None, None, None, None, None, None],
        score=[-1.0, -1.0, -1.0, -3.0, -1.0, -0.5, -2.0, -0.1],
        change=[0.5, 0.5, 0.5, 0.5, 0.9, 0.5, 0.001, 0.5],
    )

    def chosen(**options) -> list[int]:
        return list(choose(triplets, **options)[0].index)

    assert chosen() == [3, 4, 6]
    assert chosen(minimum_score=-2.0) == [4, 6]
    assert chosen(minimum_change=0.01) == [3, 4]
    assert chosen(maximum_change=0.5) == [3, 6]
    assert chosen(top_k=2) == [4, 6]
    _, report = choose(triplets, minimum_score=-2.0, minimum_change=0.01, maximum_change=0.8, top_k=5)
    assert [(step["step"], step["pairs"], step["accepted"]) for step in report] == [
        ("no error", 8, 5),
        ("not repeated", 5, 4),
        ("something changed", 4, 3),
        ("change 0.01 to 0.8", 3, 1),
        ("score at least -2", 1, 0),
        ("top 5 over classes", 0, 0),
    ]


def test_ids_of_different_sources_are_not_repeats():
    assert len(choose(pairs(id=["a", "a"], source=["robots", "kitchens"]))[0]) == 2


def test_change_is_the_share_of_pixels_that_visibly_differ():
    before = np.full((4, 4, 3), 100, np.uint8)
    after = before.copy()
    after[0, :, 1] = 255  # a row, in one channel
    after[1, :2] -= 60  # two pixels, darker
    after[3] += 20  # what a video's noise does
    assert changed_share(Pictures.fromarray(before), Pictures.fromarray(after)) == 6 / 16
    assert changed_share(Pictures.fromarray(before), Pictures.fromarray(before)) == 0


@pytest.fixture
def annotated(tmp_path, triplet_folder):
    """A folder of playroom triplets with scores of our own; the worst first."""
    rows = load_triplets(shards_of(triplet_folder))
    count = len(rows)
    for name, values, kind in (
        ("score", [i / count - 1 for i in range(count)], "float32"),
        ("change", [0.5] * count, "float32"),
        ("error", [None] * count, "string"),
    ):
        rows = rows.add_column(name, values, feature=Value(kind))
    folder = tmp_path / "annotated"
    folder.mkdir()
    rows.to_parquet(folder / "000000.parquet")
    return folder


def run_command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["filter", *map(str, arguments)])
    filtering.main()


def test_command_writes_whole_rows_in_their_order(annotated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(filtering, "ROWS_PER_SHARD", 4)
    rows = load_triplets(shards_of(annotated)).with_format("arrow")[:]
    out = tmp_path / "out"
    run_command(monkeypatch, annotated, "--out", out, "--minimum-score", -0.5)
    kept = load_triplets(shards_of(out))
    assert kept.features["before"] == Image()
    assert kept.with_format("arrow")[:].to_pylist() == rows.slice(len(rows) // 2).to_pylist()
    assert len(shards_of(out)) == -(-len(kept) // 4)
    report = json.loads((out / "filter.json").read_text())
    assert report["minimum_score"] == -0.5 and report["steps"][-1]["accepted"] == len(kept)
    assert f"score at least -0.5: {len(kept)} of {len(rows)} pairs (50.0%)" in capsys.readouterr().out


def test_command_overwrites_nothing(annotated, monkeypatch):
    with pytest.raises(ValueError, match="`out` .* holds shards already"):
        run_command(monkeypatch, annotated, "--out", annotated)


def test_nothing_left_is_said_and_nothing_written(annotated, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no pair is left of 12"):
        run_command(monkeypatch, annotated, "--out", tmp_path / "out", "--minimum-score", 1)
    assert not (tmp_path / "out").exists()


def test_rows_must_have_been_annotated(triplet_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`annotated` has no column 'score'"):
        run_command(monkeypatch, triplet_folder, "--out", tmp_path / "out")


def test_a_column_without_any_error_is_read_too():
    features = Features({name: Value("string") for name in ("id", "source", "class", "action", "error")})
    rows = Dataset.from_dict({name: ["x"] for name in features if name != "error"} | {"error": [None]}, features)
    rows = rows.add_column("score", [-1.0]).add_column("change", [0.5])
    assert len(choose(filtering.columns_of(rows))[0]) == 1
