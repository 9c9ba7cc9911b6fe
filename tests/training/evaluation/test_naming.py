"""Metrics by hand, BERTScore with a tiny real model, and a run on the tiny checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from bert_score import BERTScorer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from training.evaluation import naming
from training.evaluation.naming import (
    always_the_most_frequent,
    bert_f1,
    build_bert,
    measure,
    most_frequent_verb,
    summarise,
)


def row(action: str, named: str, source: str = "droid") -> dict:
    return {"id": action, "source": source, "class": action.split()[0], "action": action, "named": named}


def test_exact_match_and_verb():
    rows = [
        row("Open the door", "open the door."),
        row("Open the door", "open the drawer"),
        row("open the door", "swing the door open", source="playroom"),
        row("push the red cube left", "slide the blue ball left", source="playroom"),
    ]
    result = measure(rows)
    assert (result["exact"]["percent"], result["verb"]["percent"]) == (50.0, 100.0)


def test_rouge_counts_stems_and_order():
    """Of "moving cups left" against "move left cup" all 3 stems match; of the longest common subsequence 2 do."""
    result = measure([row("move left cup", "moving cups left")])
    assert result["rouge1"]["mean"] == pytest.approx(1.0)
    assert result["rougeL"]["mean"] == pytest.approx(2 / 3)


def test_bleu_is_between_0_and_1():
    same, different = (
        measure([row("put the cup on the table", named)]) for named in ("put the cup on the table", "no")
    )
    assert same["bleu"] == pytest.approx(1.0)
    assert different["bleu"] < 0.05


def test_the_baseline_says_what_is_most_frequent_in_training():
    training = [row("open the tap", ""), row("open the door", ""), row("open the door", ""), row("put it down", "")]
    rows = [row("Open the window", "x"), row("open the door", "x"), row("put it down", "x"), row("put it up", "x")]
    assert {r["named"] for r in always_the_most_frequent(rows, training)} == {"open the door"}
    assert most_frequent_verb(rows, training)["percent"] == 50.0
    summary = summarise(rows, training, None)
    assert (summary["all"]["exact"]["percent"], summary["baseline"]["exact"]["percent"]) == (0.0, 25.0)
    assert summary["baseline"]["counted_in"] == "the training set"
    assert list(summary["per_class"]) == ["Open", "open", "put"]


def test_each_source_has_its_own_baseline():
    rows = [row("open the door", "x"), row("lift the cup", "x", source="other")]
    assert [r["named"] for r in always_the_most_frequent(rows, rows)] == ["open the door", "lift the cup"]
    assert always_the_most_frequent(rows[:1], rows[1:])[0]["named"] == ""


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory) -> Path:
    """A tiny BERT with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "open", "close", "the", "door", "drawer"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    (folder / "baseline.csv").write_text("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,0.2,0.2,0.2\n2,0.5,0.5,0.5\n")
    return folder


@pytest.fixture(scope="module")
def bert(bert_folder) -> BERTScorer:
    return build_bert(str(bert_folder), 2, bert_folder / "baseline.csv")


def test_bertscore_is_rescaled_with_its_baseline(bert, bert_folder):
    pair = ["open the door"], ["close the drawer"]
    (raw,) = BERTScorer(model_type=str(bert_folder), num_layers=2).score(*pair)[2].tolist()
    (rescaled,) = bert_f1(bert, *pair)
    assert raw < 0.999
    assert rescaled == pytest.approx((raw - 0.5) / (1 - 0.5), abs=1e-5)
    assert measure([row("open the door", "open the door")], bert)["bertscore"]["mean"] == pytest.approx(1.0, abs=1e-5)


def test_an_empty_answer_scores_0(bert):
    assert bert_f1(bert, ["", "open the door"], ["open the door"] * 2) == pytest.approx([0.0, 1.0], abs=1e-5)
    assert bert_f1(bert, [""], ["open the door"]) == [0.0]


def test_a_model_unknown_to_bert_score_needs_layer_and_baseline(bert_folder):
    with pytest.raises(
        ValueError, match="`bert` .* is unknown to bert-score; give its layer and its file of baselines"
    ):
        build_bert(str(bert_folder), 2, None)


def test_a_run_resumes_and_writes_its_figures(checkpoint, triplet_folder, bert_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(naming, "MAX_NEW_TOKENS", 4)  # random weights rarely say eos

    def run(limit: int) -> dict:
        arguments = ["naming", str(triplet_folder), "--checkpoint", checkpoint, "--out", str(tmp_path)]
        arguments += ["--limit", str(limit), "--train", str(triplet_folder), "--bert", str(bert_folder)]
        arguments += ["--bert-layers", "2", "--bert-baseline", str(bert_folder / "baseline.csv")]
        monkeypatch.setattr("sys.argv", arguments)
        naming.main()
        return json.loads((tmp_path / "summary.json").read_text())

    run(1)
    summary = run(3)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({r["id"] for r in rows}) == summary["triplets"] == summary["all"]["bertscore"]["n"] == 3
    assert summary["baseline"]["counted_in"] == "the training set"
    assert all(r["score"] < 0 for r in rows)
