"""Cards: every figure is that of the evaluation's file, and licences are those the weights need."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hub_cards.cards import KINDS, Evaluation, main, make_card

SUMMARIES = sorted(Path(__file__).parents[2].glob("training/results/*_checkpoint/summary.json"))


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder as an evaluation leaves it."""
    cells = {
        "all": {"exact": {"percent": 12.5, "low": 3.25, "high": 36.0, "n": 16}, "bleu": {"n": 0}},
        "baseline": {"rouge": {"mean": 0.4375, "low": 0.25, "high": 0.5, "n": 16}},
        "per_verb": {"push": {"exact": {"percent": 99.0, "low": 98.0, "high": 100.0, "n": 1}}},
    }
    about = {"command": "python -m training.evaluation.naming runs/validation --out runs/naming", "seed": 0}
    (tmp_path / "summary.json").write_text(json.dumps(about | cells))
    return tmp_path


def test_metadata_holds_the_figures_of_the_summary(results, checkpoint):
    card = make_card("cdm", Path(checkpoint), [results], "someone/cdm")
    first, second = card.data.eval_results
    assert (first.dataset_config, first.metric_name, first.metric_value) == ("all", "exact", 12.5)
    assert first.metric_args == {"low": 3.25, "high": 36.0, "n": 16}
    assert (first.task_type, first.dataset_name) == ("image-to-text", "validation")
    assert (second.dataset_config, second.metric_type, second.metric_value) == ("baseline", "mean", 0.4375)
    assert "| exact | 12.5 % (3.2-36.0), n = 16 | - |" in card.text
    assert "| rouge | - | 0.438 (0.250-0.500), n = 16 |" in card.text


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.parent.name)
def test_committed_results_can_be_shown(path, checkpoint):
    card = make_card("playroom", Path(checkpoint), [path.parent])
    summary = json.loads(path.read_text())
    shown = {(r.dataset_config, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert shown["all", "verified k8"] == summary["all"]["verified_k8"]["percent"]
    assert len(shown) == len(card.data.eval_results)


@pytest.mark.parametrize("kind", KINDS)
def test_card_reads_back_and_is_not_measured_by_itself(kind, checkpoint, tmp_path):
    card = make_card(kind, Path(checkpoint), [], "someone/model")
    card.save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert "Not measured." in card.text
    assert '"someone/model"' in card.text
    assert "2506.06006" in card.text
    for heading in ("What it is for", "Limits", "Training data", "Weights", "Licence", "Citation"):
        assert f"\n## {heading}\n" in card.text
    assert "{" + "{" not in card.text
    if kind != "playroom":
        assert (card.data.license, card.data.license_name) == ("other", "chameleon-research-license")
        assert "noncommercial research only" in card.text
    else:
        assert card.data.license == "apache-2.0"


@pytest.mark.parametrize("text", [None, "{}", '{"command": "python -m training.evaluation.naming x", "all": {}}'])
def test_results_without_figures(tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match="^`results`: .*; give "):
        Evaluation.read(tmp_path)


def test_command_writes_the_card_into_the_folder(checkpoint, results, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model_index.json").write_bytes((Path(checkpoint) / "model_index.json").read_bytes())
    monkeypatch.setattr("sys.argv", ["cards", "playroom", str(folder), "--results", str(results)])
    main()
    assert ModelCard.load(folder / "README.md").data.eval_results[0].metric_value == 12.5
