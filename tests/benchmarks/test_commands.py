"""That the benchmarks run and say what they promise; never how long anything takes."""

import json
import sys

import pytest
import torch
from PIL import Image

from tests.benchmarks import growth, sampling
from tests.benchmarks.models import build_subject
from tests.benchmarks.plain_loop import plain_codes


def run(monkeypatch, capsys, command, *arguments: str) -> tuple[str, dict]:
    """What a command printed, and its last line read as JSON."""
    monkeypatch.setattr(sys, "argv", ["command", "--preset", "tiny", "--device", "cpu", *arguments])
    command.main()
    printed = capsys.readouterr().out
    return printed, json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def subject():
    return build_subject("tiny", device=torch.device("cpu"))


def test_sampling_compares_every_method_in_one_table(monkeypatch, capsys, tmp_path):
    out, profile = tmp_path / "report.json", tmp_path / "profile"
    options = ["-k", "3", "--rounds", "1", "--out", str(out), "--profile", str(profile)]
    printed, report = run(monkeypatch, capsys, sampling, *options)
    methods = [line["method"] for line in report["rows"]]
    assert methods[:3] == ["generate, 3 calls", "generate(num_return_sequences=3)", "plain loop"]
    assert all(f"| {method} |" in printed for method in methods)
    assert {(line["method"], line["K"]) for line in report["rows"][3:]} == {
        ("sample_codes", 3),
        ("sample_codes, no draft", 3),
        ("sample_codes, one candidate", 1),
        ("sample_codes, guided", 3),
    }
    assert set(report["times_faster_than"]) == set(methods[:3])
    assert all(line["tokens/s"] > 0 for line in report["rows"])
    assert json.loads(out.read_text()) == report
    assert (profile / "trace.json.gz").stat().st_size > 0
    assert "aten::bmm" in (profile / "operations.txt").read_text()


def test_sampling_takes_other_sizes(monkeypatch, capsys):
    options = ["--rounds", "1", "--without-stock", "--prefix", "9", "--image-tokens", "5", "--vocabulary", "100"]
    _, report = run(monkeypatch, capsys, sampling, "-k", "2", *options)
    assert (report["prefix"], report["image_tokens"]) == (9, 5)
    assert report["model"] == "tiny, vocabulary 100, float32"


def test_growth_draws_what_it_measures(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "growth.png"
    sizes = ["--candidates", "1", "2", "--image-tokens", "2", "3", "--prefix", "2", "9", "--block", "1", "3"]
    _, report = run(monkeypatch, capsys, growth, str(picture), *sizes)
    assert report["sizes"] == {"candidates": [1, 2], "image_tokens": [2, 3], "prefix": [2, 9], "block": [1, 3]}
    assert all(len(times) == 2 for name in report["sizes"] for times in report[name].values())
    assert Image.open(picture).size[0] > 1000


def test_plain_loop_and_sampler_give_the_same_tokens(subject):
    uniforms = sampling.uniforms(subject, 4)
    with torch.no_grad():
        codes = sampling.ours(subject, subject.prompts[0], 4)
        assert sampling.ours_without_draft(subject, subject.prompts[0], 4).equal(codes)
        assert plain_codes(subject.family, subject.model, subject.prompts[0], uniforms).equal(codes)


def test_generate_gives_image_tokens_only_with_the_mask_lifted(subject):
    with torch.no_grad():
        ids = sampling.generate(subject, subject.prompts[0], 3)[:, subject.prefix :]
    assert ids.shape == (3, subject.num_tokens)
    assert torch.isin(ids, subject.family.image_token_ids).any()


def test_step_bytes_are_those_of_chameleon_7b():
    """Weights 13.0 GB, of which the head's 8192 rows 0.07; half a MiB a token in the cache."""
    with torch.device("meta"):
        subject = build_subject("7b", device=torch.device("meta"))
    assert subject.kv_bytes() == 2**19
    assert subject.weight_bytes() == pytest.approx(13.02e9, rel=1e-3)
    assert subject.step_bytes(8) == pytest.approx(15.71e9, rel=1e-3)
