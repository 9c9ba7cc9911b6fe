import json

import pytest

from training.evaluation.rows import claim, resume_rows


def test_a_run_that_was_killed_while_writing_goes_on(tmp_path):
    path, done = tmp_path / "rows.jsonl", []

    def evaluate(items: list[int]) -> list[dict]:
        done.extend(items)
        return [{"square": item * item} for item in items]

    resume_rows(path, [1, 2], evaluate, unit="item")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])  # the second line is cut short
    rows = resume_rows(path, [1, 2, 3], evaluate, unit="item")
    assert rows == [{"square": 1}, {"square": 4}, {"square": 9}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert done == [1, 2, 2, 3]


def test_batches(tmp_path):
    path, batches = tmp_path / "rows.jsonl", []

    def evaluate(items: list[int]) -> list[dict]:
        batches.append(items)
        return [{"item": item} for item in items]

    resume_rows(path, [1], evaluate, unit="item", batch_size=2)
    rows = resume_rows(path, [1, 2, 3, 4], evaluate, unit="item", batch_size=2)
    assert (rows, batches) == ([{"item": i} for i in (1, 2, 3, 4)], [[1], [2, 3], [4]])


def test_fewer_items_than_there_are_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    resume_rows(path, [1, 2, 3], lambda items: [{"item": item} for item in items], unit="item")
    assert resume_rows(path, [1, 2], lambda items: [{"item": -1} for _ in items], unit="item") == [
        {"item": 1},
        {"item": 2},
    ]


def test_a_folder_belongs_to_one_run(tmp_path):
    claim(tmp_path, {"seed": "0"})
    claim(tmp_path, {"seed": "0"})
    with pytest.raises(ValueError, match="`out` .* holds a run with {'seed': '0'}"):
        claim(tmp_path, {"seed": "1"})
