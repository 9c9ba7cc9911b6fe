import json

import pytest
import torch
from diffusers import VQModel
from transformers import ChameleonForConditionalGeneration

from training import fit
from training.fit import build_family, build_model, forward_logits, newest_complete_checkpoint, shared_prefix_length
from training.recognition import RecognitionWeights
from training.sequences import IGNORED, OBJECTIVES, SceneCollator, load_codes

PER_ACTION = ("id", "after", "distance", "action", "inverse", "class")


@pytest.fixture(scope="module")
def family(vqgan_folder):
    return build_family(VQModel.from_pretrained(vqgan_folder), image_size=32)


@pytest.fixture(scope="module")
def scenes(codes_folder):
    return list(load_codes(codes_folder))[:2]


def collate(family, objective, scenes):
    return SceneCollator(family, objective, 3, family.processor.tokenizer.pad_token_id)(scenes)


def test_labels_stand_where_the_objective_learns(family, scenes):
    world, dynamics = (collate(family, objective, scenes) for objective in ("world", "dynamics"))
    is_image = torch.isin(world["input_ids"], family.image_token_ids)
    assert ((world["labels"] != IGNORED).sum(-1) == family.num_image_tokens).all()
    assert is_image[world["labels"] != IGNORED].all()
    learned = dynamics["labels"][0, 0]
    assert family.action_text(learned[learned != IGNORED]) in scenes[0]["action"]
    assert learned[learned != IGNORED][-1] == family.processor.tokenizer.eos_token_id


def test_the_base_learns_the_after_image_but_not_the_before_image(family, scenes):
    sequences = SceneCollator(family, "base", 1, 0)
    after = torch.tensor(scenes[0]["after"][0])
    ids, labels, weights = sequences.inverse_sequence(scenes[0], 0)
    images = torch.isin(ids, family.image_token_ids).nonzero().flatten()
    assert (labels[images[: len(after)]] == IGNORED).all()
    assert (labels[images[len(after) :]] == family.image_token_ids[after]).all()
    assert torch.equal(weights, (labels != IGNORED).float())


def test_the_world_model_learns_what_changes(family, scenes):
    weights = RecognitionWeights(floor=0.2)
    batch = SceneCollator(family, "world", 1, 0, weights)([{**scenes[0], **{k: scenes[0][k][:1] for k in PER_ACTION}}])
    learned = batch["labels"][0, 0] != IGNORED
    assert torch.equal(batch["weights"][0, 0][learned], weights(torch.tensor(scenes[0]["distance"][0])))
    assert (batch["weights"][0, 0][~learned] == 0).all()


def test_the_world_model_learns_without_words_too(family, scenes):
    dropped = SceneCollator(family, "world", 1, 0, action_dropout=1.0)
    ids, labels, _ = dropped.forward_sequence(scenes[0], 0)
    assert torch.equal(ids[labels == IGNORED], family.forward_prompt_ids(torch.tensor(scenes[0]["before"]), ""))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_reading_the_shared_prefix_once_changes_nothing(family, scenes, objective):
    model = build_model(family.processor.tokenizer, width=64, layers=2, positions=128).eval()
    batch = collate(family, objective, scenes)
    ids = batch["input_ids"]
    first = int((batch["labels"].flatten(0, 1) != IGNORED).any(0).int().argmax()) - 1
    with torch.no_grad(), family.image_logits(model):
        expected = model(input_ids=ids.flatten(0, 1)).logits[:, first:]
        assert torch.allclose(forward_logits(model, ids, first), expected, atol=1e-5)
    shared = shared_prefix_length(ids)
    assert (ids[:, 0, :shared] == ids[:, 1, :shared]).all()
    assert (shared > family.num_image_tokens) == bool((ids[0, 0, 2:10] == ids[0, 1, 2:10]).all() and shared > 16)


def run(codes_folder, vqgan_folder, out, monkeypatch, objective="dynamics", steps=2, *more):
    monkeypatch.setattr(fit, "build_family", lambda vqgan: build_family(vqgan, image_size=32))
    arguments = ["fit", objective, "--codes", codes_folder, "--vqgan", vqgan_folder, "--out", out, "--steps", steps]
    arguments += ["--scenes", 1, "--actions-per-scene", 2, "--width", 64, "--layers", 1, "--log-every", 1, *more]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in [*arguments, "--save-every", 2, "--cpu"]])
    fit.main()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_goes_on_from_the_newest_complete_checkpoint(codes_folder, vqgan_folder, tmp_path, monkeypatch):
    run(codes_folder, vqgan_folder, tmp_path, monkeypatch, "dynamics", 2)
    (tmp_path / "checkpoint-3").mkdir()  # as a kill in the middle of saving leaves it
    log = run(codes_folder, vqgan_folder, tmp_path, monkeypatch, "dynamics", 4)
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    assert newest_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert ChameleonForConditionalGeneration.from_pretrained(tmp_path / "final").config.hidden_size == 64


def test_the_loss_falls_and_a_model_can_start_from_another(codes_folder, vqgan_folder, tmp_path, monkeypatch):
    log = run(codes_folder, vqgan_folder, tmp_path / "base", monkeypatch, "base", 30, "--lr", 3e-3)
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    init = ("--init", tmp_path / "base" / "final")
    (tuned, *_) = run(codes_folder, vqgan_folder, tmp_path / "world", monkeypatch, "world", 2, *init)
    fresh_loss = torch.tensor(len(build_family(VQModel.from_pretrained(vqgan_folder), 32).image_token_ids)).log()
    assert tuned["loss"] < fresh_loss
