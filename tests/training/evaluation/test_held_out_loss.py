import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline
from training import fit
from training.evaluation import held_out_loss
from training.recipe import Recipe
from training.recognition import weighted_loss
from training.sequences import IGNORED, SceneCollator, load_codes

RECIPE = Path(fit.__file__).parent / "recipes" / "playroom_cwm.yaml"


@pytest.fixture(scope="module")
def pipe(checkpoint_folder):
    return ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder)


@pytest.fixture(scope="module")
def other_folder(pipe, tmp_path_factory):
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("other")
    ChameleonForConditionalGeneration(pipe.world_model.config).save_pretrained(folder)
    return folder


def test_it_is_the_loss_of_training(pipe, codes_folder):
    recipe, family = Recipe.read(RECIPE), pipe.family
    collator = SceneCollator(family, replace(recipe, action_dropout=0.0))
    is_image = torch.isin(torch.arange(len(family.tokenizer)), family.image_token_ids)
    for scene in load_codes(codes_folder):
        losses = held_out_loss.losses_of(scene, family, pipe.world_model, recipe)
        assert losses.shape == (len(scene["action"]),)
        for i, loss in enumerate(losses):
            ids, labels, weights = collator.forward_sequence(scene, i, random.Random(0))
            with torch.no_grad(), family.image_logits(pipe.world_model):
                logits = pipe.world_model(input_ids=ids[None]).logits[0, :-1]
            told = labels[1:] != IGNORED
            logits = logits[told].masked_fill(~is_image, float("-inf"))
            assert loss == pytest.approx(
                weighted_loss(logits, labels[1:][told], weights[1:][told], 1.0).item(), rel=1e-4
            )


def test_the_command_compares_models_with_the_checkpoint(
    checkpoint_folder, codes_folder, other_folder, pipe, tmp_path, monkeypatch
):
    own = Path(checkpoint_folder) / "world_model"
    arguments = ["x", codes_folder, "--recipe", RECIPE, "--checkpoint", checkpoint_folder, "--out", tmp_path]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in [*arguments, "--models", own, other_folder]])
    held_out_loss.main()
    summary = json.loads((tmp_path / "held_out_loss.json").read_text())
    first, same, other = (summary[str(name)] for name in (checkpoint_folder, own, other_folder))
    assert first["difference"] == same["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    assert same["loss"] == first["loss"] and same["per_class"] == first["per_class"]
    expected = [
        held_out_loss.losses_of(scene, pipe.family, pipe.world_model, Recipe.read(RECIPE))
        for scene in load_codes(codes_folder)
    ]
    assert first["loss"]["mean"] == pytest.approx(
        torch.stack([loss.mean() for loss in expected]).mean().item(), rel=1e-5
    )
    assert other["difference"]["mean"] == pytest.approx(other["loss"]["mean"] - first["loss"]["mean"], rel=1e-3)
    assert other["difference"]["mean"] != 0
    classes = [name for scene in load_codes(codes_folder) for name in scene["class"]]
    assert set(other["per_class"]) == set(classes)
    every = torch.cat(expected)[[name == classes[0] for name in classes]]
    assert first["per_class"][classes[0]] == pytest.approx(every.mean().item(), rel=1e-5)
