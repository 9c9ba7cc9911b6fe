"""Inverse dynamics in words: what a dynamics model says happened, against what is known to have happened.

    python -m training.evaluation.naming runs/playroom/triplets/validation --checkpoint CHECKPOINT --out runs/naming

The answer is greedy, at most 128 tokens (arXiv 2506.06006, evaluation). Measured are exact match and the verb alone, ROUGE-1 and
ROUGE-L with stemmer, corpus BLEU, all in 0-1 but for shares in percent, and, with `--bert MODEL`, BERTScore F1 rescaled with the
model's baseline. In the playroom paraphrases of one action match.

The baseline always says the same: the sentence, and for the verb the verb, that is the most frequent in `--train`, or without
it in the very set that is measured, which flatters the baseline.

TRIPLETS is a folder of Parquet shards or of AURORA-Bench. `rows.jsonl` takes one line a triplet and an interrupted run goes on
after the last; `summary.json` holds the figures with 95 % intervals (Wilson for shares, bootstrap over triplets for means).
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from bert_score import BERTScorer
from bert_score.utils import model2layers
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from bwm_pipelines import DynamicsVerifierPipeline, default_checkpoint
from bwm_pipelines.pipelines.dynamics_verifier import NamedActionOutput
from training.evaluation.aurora_bench_data import is_aurora_bench, load_aurora_bench
from training.evaluation.intervals import mean, proportion
from training.evaluation.rows import claim, describe_run, fingerprint, resume_rows, write_json
from training.evaluation.wording import plain, verb
from training.triplets import load_triplets, shards_of

MAX_NEW_TOKENS = 128
BATCH_SIZE = 16


class Namer:
    """Names what happened in rows of labelled triplets."""

    def __init__(self, verifier: DynamicsVerifierPipeline, rows: Dataset):
        self.verifier, self.rows = verifier, rows

    def __call__(self, indices: list[int]) -> list[dict]:
        """The rows of a batch of triplets; `score` is the mean log p of the answer's tokens in nats.

        Where the model's logits are not finite nothing was named: "" with the score None.
        """
        rows = [self.rows[index] for index in indices]
        befores, afters = [row["before"] for row in rows], [row["after"] for row in rows]
        answers = self.verifier.name_actions(befores, afters, max_new_tokens=MAX_NEW_TOKENS)
        return [
            {name: row[name] for name in ("id", "source", "class", "action")} | _answer(named)
            for row, named in zip(rows, answers, strict=True)
        ]


def _answer(named: NamedActionOutput) -> dict:
    finite = math.isfinite(named.score)
    return {"named": named.action if finite else "", "score": named.score if finite else None}


def measure(rows: list[dict], bert: BERTScorer | None = None) -> dict:
    """The metrics of rows with `action` (the reference), `named` and `source`.

    Shares are in percent; ROUGE F1, BLEU and BERTScore F1 in 0-1, where a rescaled BERTScore may be negative.
    """
    references, named = [row["action"] for row in rows], [row["named"] for row in rows]
    rouge = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    rouges = [rouge.score(reference, name) for reference, name in zip(references, named, strict=True)]
    return {
        "exact": proportion(plain(row["named"], row["source"]) == plain(row["action"], row["source"]) for row in rows),
        "verb": proportion(verb(row["named"], row["source"]) == verb(row["action"], row["source"]) for row in rows),
        "rouge1": mean(scores["rouge1"].fmeasure for scores in rouges),
        "rougeL": mean(scores["rougeL"].fmeasure for scores in rouges),
        "bleu": BLEU().corpus_score(named, [references]).score / 100,
        **({"bertscore": mean(bert_f1(bert, named, references))} if bert else {}),
    }


def bert_f1(bert: BERTScorer, named: list[str], references: list[str]) -> list[float]:
    """BERTScore F1 of each pair; what says nothing scores 0."""
    told = [i for i, name in enumerate(named) if name.strip()]
    scores = np.zeros(len(named))
    if told:
        scores[told] = bert.score([named[i] for i in told], [references[i] for i in told])[2].numpy()
    return scores.tolist()


def always_the_most_frequent(rows: list[dict], training: list[dict]) -> list[dict]:
    """The rows as a baseline would name them: for each source the sentence that is the most frequent in `training`."""
    sentences = [(row["source"], plain(row["action"], row["source"])) for row in training]
    return [row | {"named": _most_frequent(sentences, row["source"])} for row in rows]


def most_frequent_verb(rows: list[dict], training: list[dict]) -> dict:
    """Share of rows, in percent, that have the verb most frequent in `training` for their source."""
    verbs = [(row["source"], verb(row["action"], row["source"])) for row in training]
    return proportion(verb(row["action"], row["source"]) == _most_frequent(verbs, row["source"]) for row in rows)


def _most_frequent(values: list[tuple[str, str]], source: str) -> str:
    counts = Counter(value for own, value in values if own == source)
    # Equally frequent ones in alphabetical order, so that the order of the rows has no say.
    return min(counts, key=lambda value: (-counts[value], value), default="")


def summarise(rows: list[dict], training: list[dict] | None, bert: BERTScorer | None) -> dict:
    """Model and baseline over all rows, and the model for each class."""
    counted = rows if training is None else training
    classes = sorted({row["class"] for row in rows})
    return {
        "triplets": len(rows),
        "all": measure(rows, bert),
        "baseline": {
            **measure(always_the_most_frequent(rows, counted), bert),
            "verb": most_frequent_verb(rows, counted),
            "counted_in": "the measured set itself" if training is None else "the training set",
        },
        "per_class": {name: measure([row for row in rows if row["class"] == name], bert) for name in classes},
    }


def build_bert(model: str, layers: int | None, baseline: Path | None) -> BERTScorer:
    """A BERTScore that rescales with a baseline.

    Args:
        model: a folder or an id on the Hub; "roberta-large" is the usual one for English.
        layers: which layer's embeddings to compare; may be left out for models that bert-score knows.
        baseline: file of baselines for a model that bert-score has none for.

    Raises:
        ValueError: bert-score does not know the model, and its layer or baseline is missing.
    """
    if model not in model2layers and (layers is None or baseline is None):
        raise ValueError(
            f"`bert` {model!r} is unknown to bert-score; give its layer and its file of baselines as well."
        )
    return BERTScorer(
        model_type=model,
        num_layers=layers,
        lang="en",
        rescale_with_baseline=True,
        baseline_path=baseline and str(baseline),
    )


def _open(folder: Path) -> Dataset:
    return load_aurora_bench(folder) if is_aurora_bench(folder) else load_triplets(shards_of(folder))


def _labels(folder: Path) -> list[dict]:
    rows = _open(folder).select_columns(["source", "action"])
    return [row for row in rows if row["action"] is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path, help="folder of Parquet shards, or of AURORA-Bench")
    parser.add_argument(
        "--checkpoint", default=str(default_checkpoint()), help="pipeline folder; default: the embedded one"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl and summary.json")
    parser.add_argument("--limit", type=int, help="triplets, drawn at random; default: all that have an action")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--train", type=Path, help="triplets in which the baseline counts verbs and sentences")
    parser.add_argument("--bert", help="model of BERTScore, a folder or a Hub id; default: BERTScore is left out")
    parser.add_argument("--bert-layers", type=int, help="its layer, for a model that bert-score does not know")
    parser.add_argument("--bert-baseline", type=Path, help="its baselines, for a model that bert-score does not know")
    args = parser.parse_args()
    bert = build_bert(args.bert, args.bert_layers, args.bert_baseline) if args.bert else None
    rows = _open(args.triplets)
    settings = {"triplets": str(args.triplets), "checkpoint": fingerprint(args.checkpoint), "seed": str(args.seed)}
    claim(args.out, settings)
    labelled = [i for i, action in enumerate(rows["action"][:]) if action is not None]
    order = np.random.default_rng(args.seed).permutation(labelled)[: args.limit].tolist()
    verifier = DynamicsVerifierPipeline.from_pretrained(args.checkpoint)
    namer = Namer(verifier.to("cuda" if torch.cuda.is_available() else "cpu"), rows)
    named = resume_rows(args.out / "rows.jsonl", order, namer, unit="triplet", batch_size=BATCH_SIZE)
    summary = describe_run("training.evaluation.naming") | summarise(named, args.train and _labels(args.train), bert)
    write_json(args.out, "summary.json", summary)
    print(json.dumps({"all": summary["all"], "baseline": summary["baseline"]}, indent=1))


if __name__ == "__main__":
    main()
