import math

import pytest
import torch
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline
from tests.training.test_fit import recipe_file, run
from training import preference
from training.preference import PairCollator, load_draws, pairs_of, preference_losses
from training.sequences import IGNORED


def test_pairs_differ_enough_and_the_better_one_is_good():
    assert pairs_of([0.1, 0.15, 0.3, 0.9]) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert pairs_of([0.5, 0.9]) == [] and pairs_of([0.3, 0.35]) == []


def test_the_loss_of_a_hand_computed_pair():
    log_probs, reference = torch.tensor([[-8.0, -12.0]]), torch.tensor([[-9.0, -10.0]])
    (loss,) = preference_losses(log_probs, reference, tokens=16, beta=0.5).tolist()
    assert loss == pytest.approx(math.log(1 + math.exp(-0.5 * (1 + 2))) + 8 / 16)


def test_draws_without_a_pair_are_refused(draws_folder, monkeypatch):
    monkeypatch.setattr(preference, "GAP", 1e9)
    with pytest.raises(ValueError, match="No two draws"):
        load_draws(draws_folder)


@pytest.fixture
def rows(draws_folder, monkeypatch):
    monkeypatch.setattr(preference, "GOOD", 100.0)  # what an untrained model draws
    return load_draws(draws_folder)


def test_a_pair_begins_alike_and_the_better_one_is_first(rows, checkpoint_folder):
    family = ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder).family
    batch = PairCollator(family, seed=3)(list(rows)[:2])
    again = PairCollator(family, seed=3)(list(rows)[:2])
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    for row, ids, labels, log_probs in zip(rows, *batch.values(), strict=False):
        answers = [family.image_token_ids[torch.tensor(drawn)].tolist() for drawn in row["drawn"]]
        better, worse = (answers.index(one[one != IGNORED].tolist()) for one in labels)
        assert (better, worse) in pairs_of(row["error"])
        assert log_probs.tolist() == pytest.approx([row["log_prob"][better], row["log_prob"][worse]])
        prompt = family.forward_prompt_ids(torch.tensor(row["before"]), row["action"])
        assert (ids[:, : len(prompt)] == prompt).all() and (labels[:, : len(prompt)] == IGNORED).all()


def test_the_better_draws_become_likelier_than_the_worse(rows, checkpoint_folder, draws_folder, tmp_path, monkeypatch):
    recipe = recipe_file(
        tmp_path,
        objective="preference",
        trainer={"max_steps": 15, "learning_rate": 1e-3, "per_device_train_batch_size": 4},
    )
    log = run(monkeypatch, recipe, checkpoint_folder, draws_folder, tmp_path / "out")
    family = ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder).family
    tuned = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "out" / "final")
    batch = PairCollator(family, seed=5)(list(rows))
    ids, labels = batch["input_ids"].flatten(0, 1), batch["labels"].flatten(0, 1)[:, 1:]
    with torch.no_grad(), family.image_logits(tuned):
        logits = tuned(input_ids=ids).logits[:, :-1]
    text = torch.ones(logits.shape[-1], dtype=torch.bool)
    text[family.image_token_ids] = False
    log_probs = logits.masked_fill(text, float("-inf")).log_softmax(-1)
    log_probs = log_probs.gather(-1, labels.clamp_min(0)[..., None])[..., 0].where(labels != IGNORED, 0.0).sum(1)
    margins = (log_probs.view(-1, 2) - batch["log_probs"]).diff(dim=1).neg()
    assert margins.mean() > 0.5
    tokens = labels[0].ne(IGNORED).sum()
    untrained = math.log(2) - (batch["log_probs"][:, 0].mean() / tokens).item()
    assert log[0]["loss"] == pytest.approx(untrained, rel=0.1)
