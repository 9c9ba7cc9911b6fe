"""A small benchmark in AURORA-Bench's layout, edited by the tiny checkpoint; and the real one where it is at hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline
from training.evaluation import aurora_bench
from training.evaluation.aurora_bench import choose_samples, sample_seed
from training.evaluation.aurora_bench_data import load_aurora_bench, read_contrasts, read_test_set
from training.evaluation.samples import read_samples

AURORA = Path(__file__).parents[4] / "shared" / "data" / "aurora_bench"


@pytest.fixture
def benchmark(tmp_path) -> Path:
    """Two tasks of two samples: one has no target, of one the target's file is missing."""
    root = tmp_path / "benchmark"
    rng = np.random.default_rng(0)
    (root / "data").mkdir(parents=True)
    for name in "abcdef":
        Image.fromarray(rng.integers(256, size=(24, 40, 3), dtype=np.uint8)).save(root / f"data/{name}.png")
    rows = [
        {"task": "kitchen", "instruction": "open the door", "input": "data/a.png", "output": "data/b.png"},
        {"task": "kitchen", "instruction": "turn the lamp on", "input": "data/c.png", "output": "data/missing.png"},
        {"task": "shop", "instruction": "close the drawer", "input": "data/d.png"},
        {"task": "shop", "instruction": "open the drawer", "input": "data/e.png", "output": "data/f.png"},
    ]
    (root / "test.json").write_text(json.dumps(rows))
    for task, entries in {
        "kitchen": [{"prompt": "open the door", "pos": "close the door"}, {"prompt": "lift it"}],
        "shop": [{"prompt": "mow", "pos": "open the drawer", "neg": "shut the drawer"}],
    }.items():
        (root / "disc_edit_data" / task).mkdir(parents=True)
        (root / "disc_edit_data" / task / "valid.json").write_text(json.dumps(entries))
    return root


@pytest.fixture
def run(benchmark, checkpoint, tmp_path, monkeypatch):
    def run(*arguments: str) -> Path:
        out = tmp_path / "out"
        command = ["aurora_bench", str(benchmark), "--checkpoint", checkpoint, "--out", str(out), "-k", "2"]
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        aurora_bench.main()
        return out

    return run


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_sample_is_edited_and_those_with_a_target_are_compared(run):
    out = run()
    samples = read_samples(out)
    assert [sample.id for sample in samples] == ["kitchen-000", "kitchen-001", "shop-002", "shop-003"]
    assert [sample.target is not None for sample in samples] == [True, False, False, True]
    for sample in samples:
        sizes = {Image.open(path).size for path in (sample.before, sample.output, sample.target) if path}
        assert sizes == {(16, 16)}
    assert set(lines(out / "samples.jsonl")[1]) == {"id", "task", "instruction", "before", "output", "target"}
    assert lines(out / "samples.jsonl")[1]["target"] is None
    assert [row["id"] for row in lines(out / "similarity.jsonl")] == ["kitchen-000", "shop-003"]
    tasks = json.loads((out / "summary.json").read_text())["tasks"]
    assert {task: (cells["samples"], cells["with_target"]) for task, cells in tasks.items()} == {
        "kitchen": (2, 1),
        "shop": (2, 1),
        "all tasks": (4, 2),
    }
    assert "| kitchen | 2 |" in (out / "tables.md").read_text()


def test_the_output_is_the_best_candidate_of_the_pipeline(run, pipe):
    out = run("--seed", "3")
    for row, sample in zip(lines(out / "rows.jsonl"), read_samples(out), strict=True):
        generator = torch.Generator().manual_seed(sample_seed(3, sample.id))
        expected = pipe(Image.open(sample.before), sample.instruction, num_candidates=2, generator=generator)
        assert Image.open(sample.output).tobytes() == expected.images[0].tobytes()
        assert (row["score"], row["margin"]) == pytest.approx((max(expected.scores), max(expected.margins)), abs=1e-4)
        unedited = pipe.encode_images(Image.open(sample.before))[0]
        assert row["changed_tokens"] == pytest.approx((expected.codes[0] != unedited).sum().item() / 16)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(run, monkeypatch):
    call = ChameleonWorldModelPipeline.__call__

    def killed_at_the_third(self, image, action, **options):
        if action == "close the drawer":
            raise KeyboardInterrupt
        return call(self, image, action, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ChameleonWorldModelPipeline, "__call__", killed_at_the_third)
        run()
    out = run()
    assert len(lines(out / "rows.jsonl")) == 4
    first = {path: path.read_bytes() for path in sorted(out.rglob("*.png"))}
    rows = (out / "rows.jsonl").read_text()
    for path in [*first, out / "rows.jsonl"]:
        path.unlink()
    run()
    assert {path: path.read_bytes() for path in first} == first
    assert (out / "rows.jsonl").read_text() == rows


def test_tasks_and_limit(benchmark):
    samples = read_test_set(benchmark)
    assert [s["id"] for s in choose_samples(samples, None, 1)] == ["kitchen-000", "shop-002"]
    assert [s["id"] for s in choose_samples(samples, ["shop"], None)] == ["shop-002", "shop-003"]
    with pytest.raises(ValueError, match="`tasks` must be among kitchen, shop, got moon"):
        choose_samples(samples, ["moon"], None)


def test_triplets_are_the_samples_with_a_target_and_know_their_contrast(benchmark):
    rows = load_aurora_bench(benchmark)
    assert rows["id"][:] == ["kitchen-000", "shop-003"]
    assert rows["source"][:] == ["aurora-bench/kitchen", "aurora-bench/shop"]
    assert rows["counterfactual"][:] == ["close the door", "shut the drawer"]
    assert rows[0]["before"].size == (40, 24)


def test_a_folder_that_is_no_benchmark_is_refused(tmp_path, benchmark):
    with pytest.raises(ValueError, match="`folder` .* holds no test.json"):
        read_test_set(tmp_path)
    (benchmark / "data/a.png").unlink()
    with pytest.raises(ValueError, match="sample 0 of test.json lacks its picture or instruction"):
        read_test_set(benchmark)


@pytest.mark.skipif(not AURORA.is_dir(), reason="AURORA-Bench is not beside the checkout")
def test_the_real_benchmark_s_files():
    samples, contrasts = read_test_set(AURORA), read_contrasts(AURORA)
    assert len({sample["id"] for sample in samples}) == len(samples)
    missing = [sample["id"] for sample in samples if sample["task"] == "something" and sample["target"] is None]
    assert len(missing) == 2  # of Something's 50 targets two were never published
    assert contrasts["something", "Open waste basket"] == "Close waste basket"
    assert contrasts["whatsup", "Move the book behind the knife"] == "Move the book in front of the knife"
    assert (
        "kubric",
        "move the green-purple pencil case further left",
    ) not in contrasts  # its contrast is another edit's
