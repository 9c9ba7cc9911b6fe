"""Similarity by hand on flat pictures, and CLIP and DINO with tiny real models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

from training.evaluation import similarity
from training.evaluation.samples import read_samples
from training.evaluation.similarity import FeatureSimilarity, draw_others, l1, measure_folder, psnr, tables


def flat(grey: int, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), (grey,) * 3)


def noise(seed: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8))


def test_l1_and_psnr_of_flat_pictures():
    assert l1(flat(0), flat(51)) == pytest.approx(0.2)
    assert psnr(flat(0), flat(51)) == pytest.approx(-10 * np.log10(0.04))  # mean squared error 0.2 ** 2
    assert (l1(flat(9), flat(9)), psnr(flat(9), flat(9))) == (0.0, 100.0)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 16, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_clip_i_is_the_cosine_of_the_projected_embeddings(clip_folder):
    image, target = noise(0), noise(1)
    same, different = FeatureSimilarity(clip_folder).to_target([target, image], target)
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPImageProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        pixels = processor(images=[image, target], return_tensors="pt").pixel_values
        one, other = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    assert same == pytest.approx(1.0, abs=1e-5)
    assert different == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-5)
    assert different < 0.9999


def test_dino_is_the_cosine_of_the_class_tokens(dino_folder):
    image, target = noise(0), noise(1)
    (scored,) = FeatureSimilarity(dino_folder).to_target([image], target)
    model, processor = ViTModel.from_pretrained(dino_folder), ViTImageProcessor.from_pretrained(dino_folder)
    with torch.no_grad():
        pixels = processor(images=[image, target], return_tensors="pt").pixel_values
        one, other = model(pixel_values=pixels).last_hidden_state[:, 0]
    assert scored == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-5)
    assert scored < 0.9999


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two samples of one task and one without target. Grey levels: before 0 and 102, output 51, target 51 and 153."""
    lines = []
    for name, before, output, target in (("a", 0, 51, 51), ("b", 102, 51, 153), ("c", 0, 0, None)):
        paths = {"before": before, "output": output, "target": target}
        paths = {kind: (f"{name}-{kind}.png", grey) for kind, grey in paths.items() if grey is not None}
        for file, grey in paths.values():
            # Only the output has the model's size; the others come as the data has them.
            flat(grey, 8 if "output" in file else 20).save(tmp_path / file)
        lines.append(
            {"id": name, "task": "t", "instruction": "x", "target": None} | {k: v[0] for k, v in paths.items()}
        )
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_output_stands_beside_its_reference_lines(folder):
    cells = measure_folder(folder, {})["tasks"]["t"]
    rows = [json.loads(line) for line in (folder / "similarity.jsonl").read_text().splitlines()]
    assert [row["l1"] for row in rows] == [
        pytest.approx({"output": 0.0, "copy": 0.2, "random other image": 0.2, "ground truth": 0.0}),
        pytest.approx({"output": 0.4, "copy": 0.2, "random other image": 0.6, "ground truth": 0.0}),
    ]
    assert {line: cell["l1"]["mean"] for line, cell in cells.items()} == pytest.approx(
        {"output": 0.2, "copy": 0.2, "random other image": 0.4, "ground truth": 0.0}
    )


def test_tables_always_print_the_reference_lines_and_what_they_are_for(folder):
    text = tables(measure_folder(folder, {}))
    assert "no evidence of an edit" in text and "CLIP-I" not in text
    for line in ("output", "copy", "random other image", "ground truth"):
        assert text.count(f"\n| {line} |") == 2  # the task's table and that of all tasks
    assert text == (folder / "similarity.md").read_text()


def test_a_task_of_one_has_no_random_other_image(folder):
    (only, _, _) = read_samples(folder)
    assert draw_others([only]) == [None]


def test_command_line(folder, clip_folder, dino_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["similarity", str(folder), "--clip", clip_folder, "--dino", dino_folder])
    similarity.main()
    assert "| L1 (lower is nearer) | PSNR, dB | CLIP-I | DINO |" in capsys.readouterr().out
    cells = json.loads((folder / "similarity.json").read_text())["tasks"]["t"]
    assert cells["ground truth"]["clip_i"]["mean"] == pytest.approx(1.0, abs=1e-5)
    assert cells["ground truth"]["dino"]["mean"] == pytest.approx(1.0, abs=1e-5)
