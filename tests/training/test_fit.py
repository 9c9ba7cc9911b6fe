import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import ChameleonForConditionalGeneration, TrainerCallback

from bwm_pipelines import ChameleonWorldModelPipeline
from training import fit
from training.fit import forward_logits, shared_prefix_length
from training.recipe import OBJECTIVES, Recipe
from training.sequences import IGNORED, SceneCollator, load_codes

RECIPES = Path(fit.__file__).parent / "recipes"


@pytest.fixture(scope="module")
def pipe(checkpoint_folder):
    return ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_reading_the_shared_prefix_once_changes_nothing(pipe, codes_folder, objective):
    model, family = pipe.world_model.eval(), pipe.family
    batch = SceneCollator(family, Recipe(objective, actions_per_scene=3))(list(load_codes(codes_folder))[:2])
    ids = batch["input_ids"]
    shared = shared_prefix_length(ids)
    first = int((batch["labels"].flatten(0, 1) != IGNORED).any(0).int().argmax()) - 1
    with torch.no_grad(), family.image_logits(model):
        expected = model(input_ids=ids.flatten(0, 1)).logits[:, first:]
        for prefix in (0, min(shared, first)):
            assert torch.allclose(forward_logits(model, model, ids, prefix, first), expected, atol=1e-5)
    assert (ids[:, 0, :shared] == ids[:, 1, :shared]).all()
    assert (shared > family.num_image_tokens) == bool((ids[0, 0, 2:10] == ids[0, 1, 2:10]).all() and shared > 16)


def recipe_file(folder: Path, **changes) -> Path:
    trainer = {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "per_device_train_batch_size": 1, "use_cpu": True}
    recipe = {
        "objective": "dynamics",
        "actions_per_scene": 2,
        "trainer": trainer | changes.pop("trainer", {}),
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def run(monkeypatch, recipe: Path, checkpoint: Path, codes: Path, out: Path, *more) -> list[dict]:
    arguments = ["fit", recipe, "--checkpoint", checkpoint, "--codes", codes, "--out", out, *more]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    fit.main()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{"copies": 0.3, "reversals": 0.3}, {"objective": "world", "own_draws": 0.5}])
def test_a_killed_training_ends_as_an_undisturbed_one(checkpoint_folder, codes_folder, tmp_path, monkeypatch, changes):
    recipe = recipe_file(tmp_path, **changes, trainer={"max_steps": 6})
    files = checkpoint_folder, codes_folder
    run(monkeypatch, recipe, *files, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        trainer = fit.SceneTrainer
        patch.setattr(fit, "SceneTrainer", lambda callbacks, **kw: trainer(callbacks=[*callbacks, KillAt(3)], **kw))
        run(monkeypatch, recipe, *files, tmp_path / "killed")
    shutil.copytree(tmp_path / "killed" / "checkpoint-2", tmp_path / "killed" / "checkpoint-4")
    (tmp_path / "killed" / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")  # killed while saving
    log = run(monkeypatch, recipe, *files, tmp_path / "killed")
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    whole, killed = (
        ChameleonForConditionalGeneration.from_pretrained(tmp_path / name / "final").state_dict()
        for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_the_loss_falls_and_a_model_can_start_from_another(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    base = recipe_file(tmp_path, objective="base", trainer={"max_steps": 30, "learning_rate": 3e-3})
    log = run(monkeypatch, base, checkpoint_folder, codes_folder, tmp_path / "base")
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    world = recipe_file(tmp_path, objective="world", trainer={"max_steps": 1, "learning_rate": 0.0})
    init = ("--init", tmp_path / "base" / "final")
    (tuned, *_) = run(monkeypatch, world, checkpoint_folder, codes_folder, tmp_path / "tuned", *init)
    (fresh, *_) = run(monkeypatch, world, checkpoint_folder, codes_folder, tmp_path / "fresh")
    assert tuned["loss"] < fresh["loss"]


def test_own_draws_are_what_a_model_goes_on_from(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    """The first log holds the loss of the same scenes, with the same targets, after true codes and after own draws."""
    losses = []
    for share in (0.0, 1.0):
        recipe = recipe_file(tmp_path, objective="world", own_draws=share, trainer={"max_steps": 1})
        losses.append(run(monkeypatch, recipe, checkpoint_folder, codes_folder, tmp_path / str(share))[0]["loss"])
    assert losses[0] != losses[1]


def test_accumulated_batches_weigh_as_one(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    """The first log holds the loss of the same two scenes, in one batch and in two."""
    settings = {"objective": "world", "actions_per_scene": 3, "weights": {"floor": 0.0, "clip": None}}
    losses = []
    for name, batch, accumulated in (("one", 2, 1), ("two", 1, 2)):
        trainer = {"max_steps": 1, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        recipe = recipe_file(tmp_path, **settings, trainer=trainer)
        losses.append(run(monkeypatch, recipe, checkpoint_folder, codes_folder, tmp_path / name)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_processes_weigh_as_one(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    """Two processes with a scene each, under DDP, which accelerate takes on CPUs; `test_sharded` has FSDP."""
    settings = {"objective": "world", "actions_per_scene": 3, "weights": {"floor": 0.0, "clip": None}}
    one = recipe_file(tmp_path, **settings, trainer={"max_steps": 1, "per_device_train_batch_size": 2})
    (expected, *_) = run(monkeypatch, one, checkpoint_folder, codes_folder, tmp_path / "one")
    two = recipe_file(tmp_path, **settings, trainer={"max_steps": 1})
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", RECIPES.parent / "fsdp2.yaml"]
    launch += ["--num_processes", 2, "--mixed_precision", "no", "-m", "training.fit", two]
    launch += ["--checkpoint", checkpoint_folder, "--codes", codes_folder, "--out", tmp_path / "two"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([str(part) for part in launch], check=True, env=environment, cwd=RECIPES.parents[1])
    (line, *_) = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert json.loads(line)["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_lora_trains_an_adapter_only(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    recipe = recipe_file(tmp_path, lora={"r": 2, "target_modules": ["q_proj", "v_proj"]}, trainer={"max_steps": 2})
    run(monkeypatch, recipe, checkpoint_folder, codes_folder, tmp_path / "out")
    final = tmp_path / "out" / "final"
    assert (final / "adapter_config.json").exists() and not (final / "model.safetensors").exists()
    base = ChameleonForConditionalGeneration.from_pretrained(checkpoint_folder / "world_model")
    adapted = PeftModel.from_pretrained(base, final)
    assert any(value.abs().sum() > 0 for name, value in adapted.state_dict().items() if "lora_B" in name)


def test_real_and_synthetic_triplets_are_trained_on_as_one(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    recipe, scenes = (
        recipe_file(tmp_path, trainer={"max_steps": -1, "num_train_epochs": 1}),
        len(load_codes(codes_folder)),
    )
    log = run(
        monkeypatch, recipe, checkpoint_folder, codes_folder, tmp_path / "out", "--codes", codes_folder, codes_folder
    )
    assert log[-1]["step"] == 2 * scenes


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_recipe_is_taken_by_the_trainer(path, tmp_path):
    recipe = Recipe.read(path)
    fit.TrainingArguments(output_dir=str(tmp_path), **{**recipe.trainer, "bf16": False})
    assert recipe.lora is None or fit.LoraConfig(**recipe.lora).r == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objektive": 1}, "unknown key"),
        ({"objective": "all"}, "must be one of"),
        ({"class_weights": {"open": 0}}, "above 0"),
        ({"own_draws": 0.5}, "needs the objective 'world'"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe.read(recipe_file(tmp_path, **changes))
