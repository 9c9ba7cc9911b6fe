"""A decoder that has seen what the world model draws: same codes, other pictures, and killed runs go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import VQModel

from bwm_pipelines import ChameleonWorldModelPipeline
from training import decoder, steps
from training.decoder import TRUE_SHARE, drawn_pictures, forced_logits, load_labelled, pixel_weights
from training.triplets import load_triplets, shards_of, to_pixels


@pytest.fixture(scope="module")
def world(checkpoint_folder) -> ChameleonWorldModelPipeline:
    return ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder, dynamics_model=None)


def test_a_greedy_sample_is_the_likeliest_given_itself(world):
    before, actions = torch.randint(32, (2, 16)), ["open the door", "put the red cube in the bowl"]
    greedy = [
        world(codes[None], action, temperature=1e-6, guidance_scale=1.0, output_type="latent").codes[0]
        for codes, action in zip(before, actions, strict=True)
    ]
    logits = forced_logits(world.family, world.world_model, before, torch.stack(greedy), actions)
    assert torch.equal(logits.argmax(-1), torch.stack(greedy))


@pytest.mark.parametrize("expected", [False, True])
def test_a_quarter_of_the_pictures_keeps_the_codes_of_the_encoder(checkpoint_folder, triplet_folder, expected):
    options = {"dynamics_model": None, "expected_features": expected}
    world = ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder, **options)
    rows = load_triplets(shards_of(triplet_folder))[:8]
    before, after = to_pixels(rows["before"]), to_pixels(rows["after"])
    torch.manual_seed(0)
    codebook = world.vqgan.quantize.embedding.weight
    drawn = drawn_pictures(world, before, after, rows["action"], still=0.0)
    same = (drawn == codebook[world.family.encode_image(after)]).all(-1)
    assert same.all(-1).tolist() == [False] * 6 + [True] * 2 and TRUE_SHARE == 0.25
    is_entry = (drawn[:, :, None] == codebook).all(-1).any(-1)
    assert is_entry[6:].all() and is_entry[:6].all() != expected


def test_what_changes_counts_most():
    before, after = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    after[..., 16, 16] = 1.0
    weights = pixel_weights(before, after)[0, 0]
    assert weights[0, 0] == 1 and weights[14, 14] == 5 and weights[16, 16] == 7


def test_triplets_without_words_or_picture_are_left_out(triplet_folder, tmp_path):
    table = pq.read_table(shards_of(triplet_folder)[0])
    actions = table["action"].to_pylist()
    errors = [None] * len(actions)
    actions[0], errors[1] = None, "no such file"
    table = table.set_column(table.column_names.index("action"), "action", [actions]).append_column("error", [errors])
    pq.write_table(table, tmp_path / "0.parquet")
    assert load_labelled(tmp_path)["action"][:] == actions[2:]


def run(checkpoint_folder, triplet_folder, out, monkeypatch, steps):
    arguments = ["x", "--checkpoint", checkpoint_folder, "--triplets", triplet_folder, "--out", out, "--steps", steps]
    arguments += ["--batch", 4, "--log-every", 1, "--save-every", 4, "--cpu"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    decoder.main()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_only_the_decoder_learns(checkpoint_folder, triplet_folder, vqgan_folder, tmp_path, monkeypatch):
    log = run(checkpoint_folder, triplet_folder, tmp_path, monkeypatch, 40)
    assert sum(row["loss"] for row in log[-5:]) < 0.8 * sum(row["loss"] for row in log[:5])
    first, second = VQModel.from_pretrained(vqgan_folder), VQModel.from_pretrained(tmp_path / "vqgan")
    weights = dict(second.named_parameters())
    changed = {name.split(".")[0] for name, p in first.named_parameters() if not torch.equal(p, weights[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_the_processes_of_torchrun_train_together(checkpoint_folder, triplet_folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    launch += ["-m", "training.decoder", "--checkpoint", checkpoint_folder, "--triplets", triplet_folder]
    launch += ["--steps", 4, "--batch", 4, "--log-every", 1, "--save-every", 2, "--out", tmp_path]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [str(part) for part in launch]
    subprocess.run(command, check=True, env=environment, cwd=Path(decoder.__file__).parents[1], timeout=300)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()] == [1, 2, 3, 4]


def test_a_killed_training_ends_as_an_undisturbed_one(checkpoint_folder, triplet_folder, tmp_path, monkeypatch):
    whole = run(checkpoint_folder, triplet_folder, tmp_path / "whole", monkeypatch, 12)
    log, killed = steps.log, tmp_path / "killed"

    def killed_at_step_6(out, step, *rest):
        log(out, step, *rest)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, "log", killed_at_step_6)
        run(checkpoint_folder, triplet_folder, killed, monkeypatch, 12)
    assert run(checkpoint_folder, triplet_folder, killed, monkeypatch, 12)[-6:] == whole[-6:]
    weights = VQModel.from_pretrained(tmp_path / "whole" / "vqgan").state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in VQModel.from_pretrained(killed / "vqgan").state_dict().items())
