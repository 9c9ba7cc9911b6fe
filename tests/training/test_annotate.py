"""The annotator against the library's own naming of each pair alone."""

import json
import sys

import pytest
import torch
from datasets import Image

from bwm_pipelines.images import square
from training import annotate
from training.annotate import Annotator
from training.filter import changed_share
from training.triplets import load_triplets, shards_of

TOKENS = 6


@pytest.fixture(scope="module")
def rows(triplet_folder):
    return load_triplets(shards_of(triplet_folder)).select(range(7))


@pytest.fixture(scope="module")
def batch(rows) -> dict[str, list]:
    return rows.with_format("arrow")[:].to_pydict()


@pytest.fixture(scope="module")
def annotator(checkpoint):
    return Annotator(checkpoint, batch_size=3, max_new_tokens=TOKENS)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_annotations_are_those_of_each_pair_alone(checkpoint, verifier, rows, batch, batch_size):
    annotated = Annotator(checkpoint, batch_size=batch_size, max_new_tokens=TOKENS)(batch)
    alone = [verifier.name_action(row["before"], row["after"], max_new_tokens=TOKENS) for row in rows]
    assert annotated["action"] == [named.action for named in alone]
    assert annotated["score"] == pytest.approx([named.score for named in alone], abs=1e-5)
    assert annotated["error"] == [None] * len(rows)
    assert len(set(annotated["action"])) > 1


def test_change_is_that_of_the_pictures_as_the_model_sees_them(annotator, rows, batch):
    squares = [[square(row[name], 16) for name in ("before", "after")] for row in rows]
    assert annotator(batch)["change"] == [changed_share(*pair) for pair in squares]


def test_what_belongs_to_the_words_before_goes_and_the_rest_stays(annotator, batch):
    annotated = annotator(batch)
    assert annotated["label"] == batch["action"]
    assert annotated["inverse"] == [None] * len(batch["id"])
    for name in ("id", "scene", "before", "after", "source", "class"):
        assert annotated[name] == batch[name]
    unlabelled = annotator({name: batch[name] for name in ("before", "after")})
    assert unlabelled["action"] == annotated["action"] and unlabelled["label"] == [None] * len(batch["id"])


def test_a_bad_row_costs_that_row_only(annotator, batch, tmp_path):
    before, after, error = list(batch["before"]), list(batch["after"]), [None] * len(batch["id"])
    before[0] = {"bytes": before[0]["bytes"][:60], "path": None}
    after[1] = None
    before[2] = {"bytes": None, "path": str(tmp_path / "missing.png")}
    after[3] = {"bytes": None, "path": None}
    error[4] = "the video is damaged"
    annotated = annotator(batch | {"before": before, "after": after, "error": error})
    assert annotated["error"] == [
        "`before` is no picture that can be opened",
        "`after` is no picture that can be opened",
        "`before` is no picture that can be opened",
        "`after` is no picture that can be opened",
        "the video is damaged",
        None,
        None,
    ]
    assert annotated["action"][:5] == annotated["score"][:5] == [None] * 5
    sound = annotator(batch)
    assert annotated["action"][5:] == sound["action"][5:]
    assert annotated["score"][5:] == pytest.approx(sound["score"][5:], abs=1e-5)


def test_pictures_may_be_files(annotator, batch, tmp_path):
    path = tmp_path / "before.png"
    path.write_bytes(batch["before"][0]["bytes"])
    from_file = [{"bytes": None, "path": str(path)}]
    annotated = annotator({"before": from_file, "after": batch["after"][:1]})
    assert annotated["action"] == annotator(batch)["action"][:1]


@pytest.mark.parametrize(
    ("weight", "error"), [(torch.nan, "the model's logits are not finite"), (0.0, "the model gives no words")]
)
def test_a_model_without_an_answer_says_so(checkpoint, batch, weight, error):
    annotator = Annotator(checkpoint, max_new_tokens=2)
    with torch.no_grad():
        annotator.pipe.dynamics_model.lm_head.weight.fill_(weight)
    annotated = annotator(batch)
    assert annotated["error"] == [error] * len(batch["id"])
    assert annotated["action"] == annotated["score"] == [None] * len(batch["id"])


def test_command_annotates_a_folder_and_overwrites_nothing(
    checkpoint, triplet_folder, annotator, tmp_path, monkeypatch, capsys
):
    arguments = [triplet_folder, "--checkpoint", checkpoint, "--out", tmp_path, "--max-new-tokens", TOKENS]

    def command(*options) -> dict:
        monkeypatch.setattr(sys, "argv", ["annotate", *map(str, [*arguments, *options])])
        annotate.main()
        return json.loads(capsys.readouterr().out)

    triplets = load_triplets(shards_of(triplet_folder))
    assert command("--rows-per-part", 5) == {"pairs": len(triplets), "errors": 0}
    annotated = load_triplets(shards_of(tmp_path))
    assert annotated["id"] == triplets["id"] and annotated["label"] == triplets["action"]
    assert annotated.features["before"] == Image()
    expected = annotator(triplets.with_format("arrow")[:].to_pydict())
    assert annotated["action"][:] == expected["action"]
    assert annotated["score"][:] == pytest.approx(expected["score"], abs=1e-5)

    written = {path: path.stat().st_mtime_ns for path in shards_of(tmp_path)}
    command("--rows-per-part", 5)
    assert written == {path: path.stat().st_mtime_ns for path in shards_of(tmp_path)}
    with pytest.raises(ValueError, match="holds a run with other arguments"):
        command("--rows-per-part", 5, "--batch-size", 2)
