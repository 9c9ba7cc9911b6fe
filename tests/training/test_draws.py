import os
import sys

import pyarrow.parquet as pq
import pytest
import torch

from bwm_pipelines import ChameleonWorldModelPipeline
from training import draws
from training.draws import draw_scene, errors
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


def test_errors_are_relative_to_the_change(pipe, scene):
    before = torch.tensor(scene["before"])
    after = next(torch.tensor(after) for after in scene["after"] if after != scene["before"])
    assert errors(pipe.family, torch.stack([after, before]), before, after).tolist() == [0.0, 1.0]


def test_a_row_holds_what_the_checkpoint_draws_and_how_likely_it_was(pipe, scene):
    recipe = Recipe("world", actions_per_scene=len(scene["action"]))
    rows = draw_scene(pipe, scene, recipe, 3)
    assert {row["action"] for row in rows} <= set(scene["action"]) and rows == draw_scene(pipe, scene, recipe, 3)
    family, row = pipe.family, rows[0]
    drawn = torch.tensor(row["drawn"])
    assert drawn.shape == (3, family.num_image_tokens) and len({*map(tuple, row["drawn"])}) > 1
    prompt = family.forward_prompt_ids(torch.tensor(row["before"]), row["action"])
    ids = torch.cat([prompt.expand(3, -1), family.image_token_ids[drawn]], dim=1)
    with torch.no_grad(), family.image_logits(pipe.world_model):
        logits = pipe.world_model(input_ids=ids).logits[:, len(prompt) - 1 : -1, family.image_token_ids]
    expected = logits.log_softmax(-1).gather(-1, drawn[..., None]).sum((1, 2))
    assert row["log_prob"] == pytest.approx(expected.tolist(), abs=1e-3)


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


def test_one_candidate_cannot_be_compared(checkpoint_folder, codes_folder, tmp_path, monkeypatch, capsys):
    command = [
        "draws",
        codes_folder,
        "--checkpoint",
        checkpoint_folder,
        "--recipe",
        "r",
        "--candidates",
        1,
        "--out",
        tmp_path,
    ]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    with pytest.raises(SystemExit):
        draws.main()
    assert "at least 2" in capsys.readouterr().err
