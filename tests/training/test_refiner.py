"""A refiner learns to show the true picture from what codes show and the picture before; killed runs go on."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DModel
from pyarrow import Table

from bwm_pipelines import ChameleonWorldModelPipeline
from training import refiner, steps
from training.playroom.fitted_draws import NEARBY, SCHEMA, fit_shard
from training.refiner import (
    FAR,
    build_refiner,
    collate_drawn,
    load_drawn,
    nearest,
    refine,
    show,
)
from training.triplets import load_triplets, shards_of, to_pixels


@pytest.fixture(scope="module")
def world(checkpoint_folder) -> ChameleonWorldModelPipeline:
    world = ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder, dynamics_model=None)
    world.set_progress_bar_config(disable=True)
    return world


@pytest.fixture(scope="module")
def draws_folder(checkpoint_folder, tmp_path_factory):
    """Fitted draws of two scenes, every other one as near to its rendering as those of a trained model."""
    folder = tmp_path_factory.mktemp("draws")
    options = {"scenes": 2, "commands": 2, "candidates": 2, "earlier": 0, "colliding": False}
    fit_shard(0, checkpoint=str(checkpoint_folder), first=0, out=folder, **options)
    rows = pq.read_table(folder / "00000.parquet").to_pylist()
    for i, row in enumerate(rows):
        row["distance"] = 2 * FAR if i % 2 else FAR / 2
    pq.write_table(Table.from_pylist(rows, SCHEMA), folder / "00000.parquet")
    return folder


def test_a_new_refiner_shows_the_mean_of_both_pictures():
    drawn, before = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    shown = refine(build_refiner((8, 32), size=16), drawn, before)
    torch.testing.assert_close(shown, (drawn + before) / 2)


def test_the_share_and_the_change_belong_to_their_pixels():
    refiner = build_refiner((8, 32), size=16)
    bias = torch.full((4, 4), -100.0)  # [share and colours, pixels of a square of two]: nothing of the picture before
    bias[0, 1] = 100.0  # all of it at the top right of each square
    bias[1:] = torch.tensor([0.1, 0.2, 0.3])[:, None]
    with torch.no_grad():
        refiner.conv_out.bias.copy_(bias.flatten())
    drawn, before = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    shown = refine(refiner, drawn, before)[0]
    for colour, change in enumerate((0.1, 0.2, 0.3)):
        expected = torch.tensor([[change, 1 + change], [change, change]])
        torch.testing.assert_close(shown[colour, :2, :2], expected)


def test_draws_far_from_any_rendering_are_left_out(draws_folder):
    rows, table = load_drawn(draws_folder), pq.read_table(draws_folder / "00000.parquet").to_pylist()
    assert len(rows) == len(table) / 2
    assert rows["action"][:] == [row["action"] for row in table[::2]]


def test_draws_that_are_all_far_are_refused(checkpoint_folder, triplet_folder, draws_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(refiner, "FAR", 0.0)
    with pytest.raises(ValueError, match="no draw within 0.0"):
        run(checkpoint_folder, triplet_folder, draws_folder, tmp_path, monkeypatch, 1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_free_draws_are_shown_as_they_are(world, triplet_folder, draws_folder, share, monkeypatch):
    monkeypatch.setattr(refiner, "SHOWN_SHARE", share)
    free, labelled = load_drawn(draws_folder), load_triplets(shards_of(triplet_folder))
    batch = collate_drawn([free[0], labelled[0], free[1]])
    assert [len(targets) for targets in batch.targets] == [1 + NEARBY, 1, 1 + NEARBY]
    assert batch.shown[1] is None
    pixels, seen = show(world, batch, still=2.0)
    torch.testing.assert_close(pixels[[0, 2]], to_pixels([free[0]["shown"], free[1]["shown"]]))
    shown_before = world.family.decode_image(world.family.encode_image(batch.before))
    torch.testing.assert_close(seen, shown_before if share else batch.before)


def test_the_nearest_of_what_would_do_is_the_target():
    first, second = torch.rand(2, 3, 8, 8)
    shown = torch.stack([first, second]) + 0.1
    targets = nearest(shown, [torch.stack([second, first]), first[None]])
    torch.testing.assert_close(targets, torch.stack([first, first]))


def run(checkpoint_folder, triplet_folder, draws_folder, out, monkeypatch, steps):
    arguments = ["x", "--checkpoint", checkpoint_folder, "--triplets", triplet_folder, "--out", out, "--steps", steps]
    arguments += ["--draws", draws_folder, "--batch", 4, "--log-every", 1, "--save-every", 4, "--cpu"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    monkeypatch.setattr(refiner, "build_refiner", lambda size: build_refiner((8, 32), size))
    refiner.main()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_refiner_learns(checkpoint_folder, triplet_folder, draws_folder, tmp_path, monkeypatch):
    log = run(checkpoint_folder, triplet_folder, draws_folder, tmp_path, monkeypatch, 120)
    assert sum(row["loss"] for row in log[-5:]) < 0.8 * sum(row["loss"] for row in log[:5])
    assert UNet2DModel.from_pretrained(tmp_path / "refiner").config.in_channels == 24


def test_a_killed_training_ends_as_an_undisturbed_one(
    checkpoint_folder, triplet_folder, draws_folder, tmp_path, monkeypatch
):
    folders = checkpoint_folder, triplet_folder, draws_folder
    whole = run(*folders, tmp_path / "whole", monkeypatch, 12)
    log, killed = steps.log, tmp_path / "killed"

    def killed_at_step_6(out, step, *rest):
        log(out, step, *rest)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, "log", killed_at_step_6)
        run(*folders, killed, monkeypatch, 12)
    assert run(*folders, killed, monkeypatch, 12)[-6:] == whole[-6:]
    weights = UNet2DModel.from_pretrained(tmp_path / "whole" / "refiner").state_dict()
    finished = UNet2DModel.from_pretrained(killed / "refiner").state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in finished.items())
