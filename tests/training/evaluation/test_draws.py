import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bwm_pipelines import ChameleonWorldModelPipeline
from training.evaluation import draws
from training.evaluation.draws import draw_scene, errors
from training.recipe import Recipe
from training.sequences import load_codes


@pytest.fixture(scope="module")
def pipe(checkpoint_folder):
    pipe = ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder, dynamics_model=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def scene(codes_folder):
    return next(s for s in load_codes(codes_folder) if any(s["before"] != after for after in s["after"]))


def test_errors_are_relative_to_the_change():
    before, after = np.zeros((8, 8, 3)), np.ones((8, 8, 3))
    assert errors(np.stack([after, before, (before + 3 * after) / 4]), before, after) == [0.0, 1.0, 0.25]


def test_a_row_holds_what_the_checkpoint_draws_and_how_far_that_is_from_the_truth(pipe, scene):
    recipe = Recipe("world", actions_per_scene=len(scene["action"]))
    rows = draw_scene(pipe, scene, recipe, 3)
    assert {row["action"] for row in rows} <= set(scene["action"]) and rows == draw_scene(pipe, scene, recipe, 3)
    row = rows[0]
    after = scene["after"][scene["action"].index(row["action"])]
    shown = pipe.family.decode_image(torch.tensor([row["before"], after, *row["drawn"]]))
    change, *distances = ((one - shown[1]).abs().sum().item() for one in (shown[0], *shown[2:]))
    assert len({*map(tuple, row["drawn"])}) > 1
    assert row["error"] == pytest.approx([distance / change for distance in distances], rel=1e-4)
    assert all(0 < least <= error for least, error in zip(row["malformed"], row["error"], strict=True))


def test_an_action_that_changes_nothing_has_no_row(pipe, scene):
    still = Recipe("world", actions_per_scene=len(scene["action"]), still=float("inf"))
    assert draw_scene(pipe, scene, still, 3) == []


def test_finished_shards_are_kept_and_a_lost_one_comes_back_the_same(
    checkpoint_folder, codes_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(draws, "SCENES_PER_SHARD", 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: world\n")
    out = tmp_path / "out"
    command = ["draws", codes_folder, "--checkpoint", checkpoint_folder, "--recipe", recipe, "--candidates", 2]
    monkeypatch.setattr("sys.argv", [str(part) for part in [*command, "--out", out, "--workers", 1]])
    draws.main()
    first, second, *_ = sorted(out.iterdir())
    lost, kept = pq.read_table(first), os.stat(second).st_mtime_ns
    first.unlink()
    draws.main()
    assert pq.read_table(first).equals(lost) and os.stat(second).st_mtime_ns == kept
