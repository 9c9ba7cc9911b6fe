"""Two processes with shards of one model, launched by the shipped configuration (FSDP2 over gloo)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import fsdp_on_cpu
from tests.training.test_fit import RECIPES, recipe_file, run

WEIGHTED = {"objective": "world", "actions_per_scene": 3, "weights": {"floor": 0.0, "clip": None}}


def run_sharded(recipe: Path, checkpoint: Path, codes: Path, out: Path, mixed_precision: str = "no") -> list[dict]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", RECIPES.parent / "fsdp2.yaml"]
    launch += ["--num_processes", 2, "--mixed_precision", mixed_precision, fsdp_on_cpu.__file__, recipe]
    launch += ["--checkpoint", checkpoint, "--codes", codes, "--out", out]
    project = RECIPES.parents[1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
    subprocess.run([str(part) for part in launch], check=True, env=environment, cwd=project, timeout=300)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_shards_train_as_a_whole_and_go_on_after_a_kill(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    files = checkpoint_folder, codes_folder
    one = recipe_file(tmp_path, **WEIGHTED, trainer={"per_device_train_batch_size": 2})
    expected = run(monkeypatch, one, *files, tmp_path / "one")
    two = recipe_file(tmp_path, **WEIGHTED)
    log = run_sharded(two, *files, tmp_path / "two")
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in log[:4]] == pytest.approx([row[key] for row in expected[:4]], rel=1e-4)
    whole = load_file(tmp_path / "one" / "final" / "model.safetensors")
    shards = load_file(tmp_path / "two" / "final" / "model.safetensors")
    assert whole.keys() == shards.keys() and all(torch.allclose(whole[key], shards[key], atol=1e-6) for key in whole)

    shutil.rmtree(tmp_path / "two" / "final")
    (tmp_path / "two" / "checkpoint-4" / "manifest.json").unlink()  # killed while saving
    log = run_sharded(two, *files, tmp_path / "two")
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 3, 4]
    resumed = load_file(tmp_path / "two" / "final" / "model.safetensors")
    assert all(torch.equal(resumed[key], shards[key]) for key in shards)


@pytest.mark.parametrize("changes", [{"reversals": 0.5}, {"objective": "world", "own_draws": 0.5}])
def test_shards_of_other_kinds_of_training(checkpoint_folder, codes_folder, tmp_path, changes):
    """With reversed pairs, the sequences of a scene begin alike in one process and differ in the other."""
    recipe = recipe_file(tmp_path, actions_per_scene=3, **changes)
    log = run_sharded(recipe, checkpoint_folder, codes_folder, tmp_path / "out")
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]


def test_an_adapter_of_a_sharded_model_in_bf16(checkpoint_folder, codes_folder, tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    recipe = recipe_file(tmp_path, lora=lora, trainer={"max_steps": 2, "bf16": True})
    log = run_sharded(recipe, checkpoint_folder, codes_folder, tmp_path / "out", mixed_precision="bf16")
    assert all(0 < row["loss"] < 10 for row in log[:2])
    adapter = load_file(tmp_path / "out" / "final" / "adapter_model.safetensors")
    assert any(value.abs().sum() > 0 for name, value in adapter.items() if "lora_B" in name)
