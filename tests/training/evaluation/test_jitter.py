import json

import pytest
from diffusers import VQModel

from training.evaluation import jitter
from training.evaluation.jitter import THRESHOLDS, measure
from training.triplets import load_triplets, shards_of


def test_a_higher_threshold_keeps_more_codes(triplet_folder, vqgan_folder):
    vqgan = VQModel.from_pretrained(vqgan_folder)
    row = measure(vqgan, load_triplets(shards_of(triplet_folder))[0])
    assert row["codes"] == 16 and row["changed"] == sorted(row["changed"], reverse=True)
    assert row["psnr"][0] > 0
    assert all(error > 0.1 for error in row["misdrawn"])  # an untrained tokenizer shows nothing


def test_a_picture_that_does_not_change_keeps_all_codes(triplet_folder, vqgan_folder):
    triplet = load_triplets(shards_of(triplet_folder))[0]
    row = measure(VQModel.from_pretrained(vqgan_folder), triplet | {"after": triplet["before"]})
    assert row["changed"] == [0] * len(THRESHOLDS)
    assert row["psnr"] == pytest.approx([row["psnr"][0]] * len(THRESHOLDS))
    assert row["misdrawn"] == [0] * len(THRESHOLDS)


def test_the_command_writes_a_summary(triplet_folder, vqgan_folder, tmp_path, monkeypatch):
    arguments = ["--vqgan", str(vqgan_folder), "--limit", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["jitter", str(triplet_folder), *arguments])
    jitter.main()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["still 2"]["changed"]["n"] == 2
