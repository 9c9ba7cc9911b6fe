import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import VQModel

from training import image_tokenizer
from training.image_tokenizer import (
    Codebook,
    TokenizerLoss,
    build_vqgan,
    crops_of_changes,
    unchanged_cells,
    with_codes,
)
from training.triplets import load_readable, to_pixels

PROJECT = Path(image_tokenizer.__file__).parents[1]


def test_cells_near_a_change_do_not_count_as_unchanged():
    before = torch.zeros(1, 3, 64, 64)
    after = before.clone()
    after[..., 20:24, 20:24] = 1  # in cell (2, 2) of 8 x 8
    still = unchanged_cells(before, after, 8)[0]
    changed = {(i, j) for i in range(8) for j in range(8) if not still[i, j]}
    assert changed == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}


def test_crops_show_the_same_place_of_both_pictures():
    before = torch.rand(2, 3, 64, 64)
    a, b = crops_of_changes(before, before + 1, 32, copies=3)
    assert a.shape == (6, 3, 32, 32)
    assert torch.allclose(a + 1, b)


def test_crops_are_mostly_of_what_changed():
    torch.manual_seed(0)
    before = torch.zeros(1, 3, 96, 96)
    after = before.clone()
    after[..., 80:84, 8:12] = 1
    _, crops = crops_of_changes(before, after, 48, copies=400)
    share = (crops.amax((1, 2, 3)) == 1).float().mean()
    # 1 of 144 cells is drawn 1 / (1 + 143 * 0.05) of the time, and crops around other cells may show it by chance
    assert 0.123 < share < 0.5


def test_another_codebook_leaves_the_autoencoder_as_it_is():
    vqgan = build_vqgan(channels=(8, 8, 8, 16), codes=32, size=32).eval()
    other = with_codes(vqgan, 40).eval()
    latents = vqgan.encode(torch.rand(1, 3, 32, 32)).latents
    decoded = [each.decoder(each.post_quant_conv(latents)) for each in (vqgan, other)]
    assert torch.equal(*decoded) and other.config.num_vq_embeddings == 40


def test_the_codebook_moves_to_the_features_and_revives_dead_codes():
    torch.manual_seed(0)
    features = torch.cat([torch.randn(200, 2) * 0.05 + centre for centre in torch.tensor([[3.0, 0], [-3, 0], [0, 3]])])
    codebook = Codebook(torch.randn(6, 2) * 0.01)
    codebook.place_among(features)
    assert torch.cdist(features, codebook.embedding).amin(1).mean() < 0.2
    Codebook(torch.zeros(900, 2)).place_among(features)  # more codes than features
    codebook.embedding[0] = codebook.sums[0] = torch.tensor([90.0, 90.0])
    codebook.counts[0] = 0
    assert codebook.revive(features) == 1
    assert torch.cdist(codebook.embedding[:1], features).min() < 1e-6


def test_the_loss_compares_the_quantised_picture(monkeypatch):
    torch.manual_seed(0)
    vqgan = build_vqgan(channels=(8, 8, 8, 16), codes=32, size=32).eval()
    loss = TokenizerLoss(vqgan, torch.zeros(1, 3, 1, 1))
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    terms = loss(pixels[:1], pixels[1:], vqgan.quantize.embedding.weight, quantised=True)
    codes = terms["codes"].view(2, -1)
    again = vqgan.decode(codes, force_not_quantize=True, shape=(2, 4, 4, 16)).sample
    assert torch.allclose(terms["squared_error"] * 4, (again - pixels).square().mean(), atol=1e-5)


def run(triplet_folder, out, monkeypatch, steps, *more):
    small = lambda codes, size: build_vqgan(channels=(8, 8, 8, 16), codes=codes, size=size)
    monkeypatch.setattr(image_tokenizer, "build_vqgan", small)
    monkeypatch.setattr(image_tokenizer, "WARM_UP_STEPS", 4)
    monkeypatch.setattr(image_tokenizer, "CODES", 32)
    arguments = [
        "x",
        "--triplets",
        triplet_folder,
        "--out",
        out,
        "--steps",
        steps,
        "--batch",
        4,
        "--log-every",
        1,
        *more,
    ]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in [*arguments, "--save-every", 4, "--cpu"]])
    image_tokenizer.main()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_resumes_and_saves_a_model_that_loads(triplet_folder, tmp_path, monkeypatch):
    run(triplet_folder, tmp_path, monkeypatch, 8)
    (tmp_path / "checkpoint.tmp").mkdir()  # as a kill in the middle of saving leaves it
    log = run(triplet_folder, tmp_path, monkeypatch, 60)
    assert [row["step"] for row in log] == list(range(1, 61))
    assert sum(row["psnr"] for row in log[-5:]) > sum(row["psnr"] for row in log[:5])
    assert VQModel.from_pretrained(tmp_path / "vqgan").config.num_vq_embeddings == 32


def test_training_goes_on_from_a_trained_tokenizer_with_another_codebook(triplet_folder, tmp_path, monkeypatch):
    first = run(triplet_folder, tmp_path / "first", monkeypatch, 40)
    log = run(triplet_folder, tmp_path / "more", monkeypatch, 5, "--init", tmp_path / "first" / "vqgan", "--codes", 48)
    assert log[0]["psnr"] > first[0]["psnr"]  # nothing of it is forgotten in a warm-up
    assert VQModel.from_pretrained(tmp_path / "more" / "vqgan").config.num_vq_embeddings == 48


def test_two_processes_save_the_codebook_that_they_trained(triplet_folder, vqgan_folder, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", PROJECT / "training/fsdp2.yaml"]
    launch += ["--num_processes", 2, "--mixed_precision", "no", "-m", "training.image_tokenizer", "--cpu"]
    launch += ["--triplets", triplet_folder, "--init", vqgan_folder, "--codes", 48, "--steps", 5, "--batch", 4]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [str(part) for part in [*launch, "--out", tmp_path]]
    subprocess.run(command, check=True, env=environment, cwd=PROJECT, timeout=300)
    trained, untrained = (VQModel.from_pretrained(folder) for folder in (tmp_path / "vqgan", vqgan_folder))
    with torch.no_grad():
        features = untrained.encode(to_pixels(load_readable(triplet_folder)["after"])).latents.permute(0, 2, 3, 1)
    distance = lambda vqgan: torch.cdist(features.flatten(0, 2), vqgan.quantize.embedding.weight).amin(1).mean()
    assert distance(trained) < 0.8 * distance(untrained)


def test_a_killed_training_ends_as_an_undisturbed_one(triplet_folder, tmp_path, monkeypatch):
    whole = run(triplet_folder, tmp_path / "whole", monkeypatch, 12)
    log, killed = image_tokenizer.log, tmp_path / "killed"

    def killed_at_step_6(out, step, *rest):
        log(out, step, *rest)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_tokenizer, "log", killed_at_step_6)
        run(triplet_folder, killed, monkeypatch, 12)
    assert run(triplet_folder, killed, monkeypatch, 12)[-6:] == whole[-6:]
    weights = VQModel.from_pretrained(tmp_path / "whole" / "vqgan").state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in VQModel.from_pretrained(killed / "vqgan").state_dict().items())


@pytest.mark.parametrize("size", [32, 96])
def test_a_tokenizer_makes_a_grid_of_an_eighth(size):
    latents = build_vqgan(size=size).encode(torch.zeros(1, 3, size, size)).latents
    assert latents.shape == (1, 16, size // 8, size // 8)
