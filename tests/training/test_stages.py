"""Stages under both engines: no row lost, none twice, whatever dies in between."""

import io
import os
import signal
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from training.stages import ATTEMPTS, PartWriter, begun_path, part_path, run

ROWS_PER_PART = 4


class Square:
    """Squares numbers. Where a file is named that does not exist yet, it makes it and sends itself a signal at number 9."""

    features = Features(square=Value("int64"))

    def __init__(self, killed: Path | None = None, by: int = signal.SIGKILL):
        self.killed, self.by = killed, by

    def __call__(self, batch):
        if 9 in batch["number"] and self.killed is not None and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), self.by)
        return batch | {"square": [number**2 for number in batch["number"]], "error": [None] * len(batch["number"])}


class Multiples:
    """Each number as often as it says, and 3 not at all."""

    def __call__(self, batch):
        return {"number": [number for number in batch["number"] for _ in range(number if number != 3 else 0)]}


class Undeclared:
    def __call__(self, batch):
        return {"surprise": batch["number"]}


class Shrink:
    """Pictures out, in the form that is nearest."""

    def __call__(self, batch):
        return {"picture": [Pictures.open(io.BytesIO(cell["bytes"])).resize((1, 1)) for cell in batch["picture"]]}


def picture(shade: int) -> dict:
    buffer = io.BytesIO()
    Pictures.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def numbers(count: int = 18, shade: int = 0) -> Dataset:
    columns = {"number": range(count), "picture": [picture(shade + number) for number in range(count)]}
    return Dataset.from_dict(columns, features=Features(number=Value("int64"), picture=Image()))


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("*.parquet"))


def read(out: Path) -> dict:
    """All columns of all parts, in order, and pictures as they are stored; every file must be whole."""
    return Dataset.from_parquet([str(path) for path in parts(out)]).with_format("arrow")[:].to_pydict()


def assert_all_squares(out: Path) -> None:
    assert read(out) == numbers().with_format("arrow")[:].to_pydict() | {
        "square": [number**2 for number in range(18)],
        "error": [None] * 18,
    }
    assert {path.name for path in out.iterdir()} == {"manifest.json", *(f"{part:06d}.parquet" for part in range(5))}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_row_once_and_in_order(tmp_path, workers):
    run(Square, {}, numbers(), tmp_path, rows_per_part=ROWS_PER_PART, workers=workers)
    assert_all_squares(tmp_path)


def test_a_stage_may_give_more_rows_or_none(tmp_path):
    run(Multiples, {}, numbers(4).select_columns("number"), tmp_path, rows_per_part=1)
    assert read(tmp_path) == {"number": [1, 2, 2]}
    assert len(parts(tmp_path)) == 4


def test_pictures_may_leave_opened_and_come_back_so(tmp_path):
    run(Shrink, {}, numbers(2), tmp_path)
    shrunk = Dataset.from_parquet(str(part_path(tmp_path, 0)))["picture"]
    assert [image.getpixel((0, 0)) for image in shrunk] == [(0, 0, 0), (1, 0, 0)]


def test_finished_parts_are_left_alone_and_missing_ones_made(tmp_path):
    run(Square, {}, numbers(), tmp_path, rows_per_part=ROWS_PER_PART)
    whole = parts(tmp_path)[1].read_bytes()
    parts(tmp_path)[1].unlink()
    part_path(tmp_path, 3).write_text("done before")
    run(Square, {}, numbers(), tmp_path, rows_per_part=ROWS_PER_PART, workers=2)
    assert part_path(tmp_path, 1).read_bytes() == whole
    assert part_path(tmp_path, 3).read_text() == "done before"


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also in a process that a shell started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_leaves_whole_parts_and_goes_on(tmp_path):
    arguments = {"killed": tmp_path / "killed", "by": int(signal.SIGINT)}
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Square, arguments, numbers(), out, rows_per_part=ROWS_PER_PART)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "000000.parquet", "000001.parquet"}
    assert read(out)["number"] == list(range(8))
    run(Square, arguments, numbers(), out, rows_per_part=ROWS_PER_PART)
    assert_all_squares(out)


def test_a_killed_process_ends_the_run_and_the_next_goes_on(tmp_path):
    arguments = {"killed": tmp_path / "killed"}
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="died"):
        run(Square, arguments, numbers(), out, rows_per_part=ROWS_PER_PART, workers=2)
    assert not part_path(out, 2).exists()
    run(Square, arguments, numbers(), out, rows_per_part=ROWS_PER_PART, workers=2)
    assert_all_squares(out)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster on this machine, given more time to start than Ray allows: other work may keep both cores."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_agent_register_timeout_ms", "600000")
        environment.setenv("RAY_raylet_start_wait_time_s", "600")
        environment.setenv("RAY_worker_register_timeout_seconds", "600")
        ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'ray[data]'")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
        yield
        ray.shutdown()


def test_ray_tries_the_part_of_a_killed_worker_again(tmp_path, cluster):
    out = tmp_path / "out"
    arguments = {"killed": tmp_path / "killed"}
    run(Square, arguments, numbers(), out, engine="ray", rows_per_part=ROWS_PER_PART)
    assert (tmp_path / "killed").exists()
    assert_all_squares(out)


def test_one_engine_goes_on_where_the_other_ended(tmp_path, cluster):
    run(Square, {}, numbers(), tmp_path, rows_per_part=ROWS_PER_PART)
    kept = part_path(tmp_path, 0).stat().st_mtime_ns
    part_path(tmp_path, 4).unlink()
    run(Square, {}, numbers(), tmp_path, engine="ray", rows_per_part=ROWS_PER_PART)
    assert part_path(tmp_path, 0).stat().st_mtime_ns == kept
    assert_all_squares(tmp_path)


def test_a_part_that_always_kills_its_worker_is_given_up(tmp_path):
    writer = PartWriter(Square, {}, numbers(), tmp_path, ROWS_PER_PART)
    begun_path(tmp_path, 1).write_bytes(b"." * ATTEMPTS)
    with pytest.raises(RuntimeError, match=f"Part 1 .* killed the worker {ATTEMPTS} times"):
        writer({"part": [0, 1, 2]})
    assert [path.name for path in parts(tmp_path)] == ["000000.parquet"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stage": Shrink}, "other stage"),
        ({"arguments": {"by": 2}}, "other arguments"),
        ({"rows": numbers(17)}, r"other rows \(18, now 17\)"),
        ({"rows": numbers(shade=1)}, "other rows_sha256"),
        ({"rows_per_part": 5}, r"other rows_per_part \(4, now 5\)"),
    ],
)
def test_parts_of_other_runs_are_never_mixed(tmp_path, changed, message):
    same = {"stage": Square, "arguments": {}, "rows": numbers(), "rows_per_part": ROWS_PER_PART}
    run(**same, out=tmp_path)
    with pytest.raises(ValueError, match=f"^`out` .* holds a run with {message}[^\n]*$"):
        run(**same | changed, out=tmp_path)


def test_rows_are_the_same_whatever_they_are_read_from(tmp_path):
    run(Square, {}, numbers(), tmp_path / "out", rows_per_part=ROWS_PER_PART)
    numbers().to_parquet(tmp_path / "rows.parquet", batch_size=5)
    part_path(tmp_path / "out", 4).unlink()
    run(
        Square, {}, Dataset.from_parquet(str(tmp_path / "rows.parquet")), tmp_path / "out", rows_per_part=ROWS_PER_PART
    )
    assert_all_squares(tmp_path / "out")


def test_a_folder_of_other_parquet_files_is_refused(tmp_path):
    (tmp_path / "00000.parquet").touch()
    with pytest.raises(ValueError, match="holds Parquet files but no manifest.json"):
        run(Square, {}, numbers(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "`engine` must be 'datasets' or 'ray', got 'spark'"),
        ({"rows_per_part": 0}, "`rows_per_part` must be at least 1, got 0"),
        ({"workers": 0}, "`workers` must be at least 1, got 0"),
        ({"stage": Undeclared}, "`stage` gives a column 'surprise' of unknown type.*`Undeclared.features`"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(**{"stage": Square, "arguments": {}, "rows": numbers(), "out": tmp_path} | options)
    assert not parts(tmp_path)
