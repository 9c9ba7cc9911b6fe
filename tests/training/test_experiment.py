"""The whole chain in miniature, from the simulator to the evaluated world model, by the commands of the experiment."""

import json

import pytest

from training.experiment.jobs import run
from training.experiment.plan import QUESTIONS, VARIANTS, Plan, Size
from training.experiment.plots import write_plots
from training.experiment.report import difference, figures, mean_over_seeds, summarise, tables

MINIATURE = Size(
    picture=32,
    width=64,
    labelled_scenes=2,
    pool_scenes=2,
    tokenizer_steps=3,
    base_steps=2,
    steps=4,
    episodes=1,
    rollouts=1,
    probed_scenes=1,
)


def chain_to(name, jobs):
    """The job of that name and all that it needs."""
    needed = {name: jobs[name]}
    for before in jobs[name].needs:
        needed |= chain_to(before, jobs)
    return needed


@pytest.fixture
def plan(tmp_path):
    return Plan(MINIATURE, [0], tmp_path / "runs", tmp_path / "results")


def test_every_job_needs_only_jobs_that_there_are(plan):
    assert {need for job in plan.jobs.values() for need in job.needs} <= plan.jobs.keys()
    evaluated = {f"outcomes-{name}-0" for name in ("base", *VARIANTS, *QUESTIONS)}
    assert evaluated <= plan.jobs.keys()


def test_the_chain_from_the_simulator_to_the_evaluated_world_model(plan):
    jobs = chain_to("outcomes-cwm-0", plan.jobs) | chain_to("rollouts-cwm-0", plan.jobs)
    run(jobs, plan.out, workers=2)
    (row,) = (plan.results / "outcomes/cwm-0/rows.jsonl").read_text().splitlines()
    assert len(json.loads(row)["success"]) == 8
    report = json.loads((plan.out / "synthetic-0.5-0/filter.json").read_text())
    assert report["steps"][-1]["accepted"] <= 6
    assert (plan.out / "cwm-0/checkpoint-2").is_dir()

    before = (plan.out / "logs/cwm-0.log").stat().st_mtime
    run(jobs, plan.out, workers=1)
    assert (plan.out / "logs/cwm-0.log").stat().st_mtime == before


def test_a_job_that_fails_says_so_and_is_not_done(plan):
    plan.jobs = {"labelled": plan.jobs["labelled"]}
    plan.jobs["labelled"].command[2] = "nowhere"
    with pytest.raises(Exception, match="training.playroom.triplets"):
        run(plan.jobs, plan.out, workers=1)
    assert not (plan.out / "done/labelled").exists()


def outcome_row(scene, success, **more):
    return {
        "scene": scene,
        "verb": "push left" if scene % 2 else "lamp on",
        "success": [success] * 8,
        "copy": [not success] * 8,
        "elsewhere": [0.0] * 8,
        "scores": [-1.0] * 8,
        "named": "turn the lamp on",
        "truth": "turn the lamp on",
        **more,
    }


def test_a_mean_over_seeds_keeps_the_seeds_apart():
    rows = [outcome_row(scene, scene < 5, seed=seed) for scene in range(10) for seed in (0, 1)]
    rows += [outcome_row(scene, True, seed=2) for scene in range(10)]
    cell = figures(rows)["K = 1"]
    assert cell["percent"] == pytest.approx(66.67) and cell["per_seed"] == [50, 50, 100]
    assert cell["low"] < 50 and cell["high"] > 80 and cell["episodes"] == 10


def test_a_difference_is_paired():
    rows = [outcome_row(scene, scene % 2, seed=0) for scene in range(10)]
    better = [outcome_row(scene, 1, seed=0) for scene in range(10)]
    cell = difference(better, rows, lambda row: row["success"][0])
    assert cell["percent"] == 50
    assert difference(rows, rows, lambda row: row["success"][0])["high"] == 0
    assert mean_over_seeds(better, lambda row: row["success"][0])["low"] == 100


def test_the_report_says_what_the_rows_hold(plan, monkeypatch):
    for name, success in [(f"{variant}-0", 1) for variant in (*VARIANTS, *QUESTIONS)] + [("base-0", 0)]:
        write_rows(plan, "outcomes", name, [outcome_row(scene, success) for scene in range(4)])
    for step in (1, 2, 3):
        write_rows(plan, "outcomes", f"c_ft-0-step-{step}", [outcome_row(scene, 0) for scene in range(4)])
    for name in ("c_ft", "cwm"):
        write_rows(plan, "rollouts", f"{name}-0", [{"scene": 0, "success": [True, True, False, True, True, True]}])
    for name, copied in (("dynamics", -2.0), ("no_negatives", -0.5)):
        probed = {"reference": {"mean": -1.0}, "copy": {"mean": copied}}
        write_rows(plan, "probe", f"{name}-0", [{"id": scene, "idp": probed} for scene in range(4)])
    (plan.out / "done/annotated-0").touch()
    monkeypatch.setattr("training.experiment.report.annotation_quality", lambda folder: ANNOTATION)
    summary = json.loads(json.dumps(summarise(plan)))
    assert summary["variants"]["base"]["K = 8"]["percent"] == 0
    assert summary["differences"]["cwm - base"]["K = 1"]["percent"] == 100
    assert [point["CWM"]["percent"] for point in summary["learning_curve"]] == [0, 0, 0, 100]
    assert summary["rollouts"]["cwm"]["3"]["all steps"]["percent"] == 0
    assert summary["probe"]["dynamics"]["copy"]["percent"] == 100
    assert "| cwm | 100.0 (100.0 to 100.0)" in tables(summary)
    assert "| copy | 100.0 (100.0 to 100.0) | 0.0 (0.0 to 0.0) |" in tables(summary)
    assert "tokenizer" in summary["not_run"]
    write_plots(summary, plan.results)
    assert len(list(plan.results.glob("*.png"))) == 5


def test_a_report_on_part_of_the_jobs_leaves_out_the_rest(plan):
    write_rows(plan, "outcomes", "c_ft-0", [outcome_row(scene, 1) for scene in range(4)])
    summary = json.loads(json.dumps(summarise(plan)))
    assert list(summary["variants"]) == ["c_ft"] and summary["differences"] == {}
    assert "outcomes-cwm-0" in summary["not_run"] and "outcomes-c_ft-0" not in summary["not_run"]
    assert "| c_ft | 100.0" in tables(summary)
    write_plots(summary, plan.results)
    assert [picture.name for picture in plan.results.glob("*.png")] == ["candidates.png"]


ANNOTATION = [{"accepted": 0.5, "pairs": 2, "minimum_score": -0.5, "right_percent": 50.0}]


def write_rows(plan, suite, name, rows):
    """As if that evaluation was done."""
    folder, done = plan.results / suite / name, plan.out / "done"
    folder.mkdir(parents=True)
    done.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (done / f"{suite}-{name}").touch()
