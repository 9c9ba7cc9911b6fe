"""Runs a stage over many rows, part by part, on one machine (`datasets`) or on many (Ray Data).

A stage is a class. `__init__` loads what it needs; `__call__(batch)` maps columns to columns, `dict[str, list]` to
`dict[str, list]`, and may return another number of rows. It raises for no single bad row: that row gets a text in the column
`error`, which is None elsewhere. Columns that the rows do not have, other than `error`, are declared in its class attribute
`features`, a `datasets.Features`. Pictures come as `{"bytes", "path"}`, as they are stored, because opening them is what fails; they may leave like
that or as PIL images, which become PNG.

Both engines hand out numbers of parts. Whoever gets one runs the stage over that part's rows and renames a finished file into
place, so a part that runs twice, because a worker died, is still there once.
"""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from tqdm import tqdm

from bwm_pipelines.new_files import new_files

MANIFEST = "manifest.json"
ATTEMPTS = 3


def run(
    stage: type,
    arguments: dict[str, Any],
    rows: Dataset,
    out: str | Path,
    *,
    engine: Literal["datasets", "ray"] = "datasets",
    rows_per_part: int = 64,
    workers: int = 1,
    num_gpus: float = 0,
) -> None:
    """Writes what a stage makes of the rows, one Parquet file for each part of them; existing parts are left alone.

    Args:
        stage: the class, see above.
        arguments: keyword arguments of the class; plain values and paths.
        rows: on several machines, each must see the files that it maps, and `out`, under the same path.
        out: folder for the parts and `manifest.json`, which says what they are parts of.
        engine: "datasets" runs in this process, or in `workers` processes; "ray" in as many actors of the Ray cluster that is
            initialised or named by RAY_ADDRESS, or else of one on this machine.
        rows_per_part: rows that the stage gets at a time. A worker holds the pictures of one part, no more.
        workers: how many instances of the stage run side by side.
        num_gpus: what each Ray worker takes of a GPU; "datasets" leaves the choice to the stage.

    Raises:
        ValueError: an argument cannot work, or `out` holds parts of another run.
        RuntimeError: a worker died; Ray tries its part again first, up to `ATTEMPTS` times in all.
    """
    if engine not in ("datasets", "ray"):
        raise ValueError(f"`engine` must be 'datasets' or 'ray', got {engine!r}.")
    for name, value in (("rows_per_part", rows_per_part), ("workers", workers)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    out = Path(out).absolute()
    _claim(out, stage, arguments, rows, rows_per_part)
    writer = {"stage": stage, "arguments": arguments, "rows": rows, "out": out, "rows_per_part": rows_per_part}
    missing = [part for part in range(-(-len(rows) // rows_per_part)) if not part_path(out, part).exists()]
    for leftover in out.glob(".*.begun"):
        leftover.unlink()
    if not missing:
        return
    if engine == "ray":
        _run_on_ray(writer, missing, workers, num_gpus)
    else:
        _run_here(writer, missing, workers)


def part_path(out: Path, part: int) -> Path:
    return out / f"{part:06d}.parquet"


def begun_path(out: Path, part: int) -> Path:
    """A file of one byte for each worker that began a part and did not live to end it, in the run that is going on."""
    return out / f".{part:06d}.begun"


class PartWriter:
    """Runs a stage over parts of the rows, given by their numbers; each becomes a file, unless there is one."""

    def __init__(
        self, stage: type, arguments: dict, rows: Dataset, out: Path, rows_per_part: int, threads: int | None = None
    ):
        self.stage_class, self.arguments = stage, arguments
        self.rows, self.out, self.rows_per_part = rows.with_format("arrow"), out, rows_per_part
        self.features = rows.features | getattr(stage, "features", {}) | {"error": Value("string")}
        self.threads = threads

    @cached_property
    def stage(self) -> Any:
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        return self.stage_class(**self.arguments)

    def __call__(self, batch: dict) -> dict:
        """Numbers of parts, in the column `part`, to the same numbers when their files are there."""
        for part in batch["part"]:
            if not part_path(self.out, int(part)).exists():
                self.write(int(part))
        return batch

    def write(self, part: int) -> None:
        begun = begun_path(self.out, part)
        if begun.exists() and begun.stat().st_size >= ATTEMPTS:
            raise RuntimeError(f"Part {part} of {self.out} killed the worker {ATTEMPTS} times; look at its rows.")
        with begun.open("ab") as file:
            file.write(b".")
        try:
            table = self.table(part)
            with (
                new_files(self.out) as folder,
                pq.ParquetWriter(folder / part_path(self.out, part).name, table.schema) as writer,
            ):
                if len(table) > 0:  # `datasets` cannot read an empty row group
                    writer.write_table(table)
        finally:
            begun.unlink()

    def table(self, part: int) -> pa.Table:
        start = part * self.rows_per_part
        columns = self.stage(self.rows[start : start + self.rows_per_part].to_pydict())
        unknown = [name for name in columns if name not in self.features]
        if unknown:
            raise ValueError(
                f"`stage` gives a column {unknown[0]!r} of unknown type; declare it in "
                f"`{self.stage_class.__name__}.features`."
            )
        features = Features({name: self.features[name] for name in columns})
        return pa.Table.from_pydict(features.encode_batch(columns), schema=features.arrow_schema)


def _run_here(writer: dict, parts: list[int], workers: int) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    Dataset.from_dict({"part": parts}).map(
        PartWriter(**writer, threads=threads),
        batched=True,
        batch_size=1,
        num_proc=min(workers, len(parts)) if workers > 1 else None,
        new_fingerprint="parts",  # or else all rows would be pickled to find one
        desc=f"{writer['stage'].__name__}, parts of {writer['rows_per_part']} rows",
    )


def _run_on_ray(writer: dict, parts: list[int], workers: int, num_gpus: float) -> None:
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        done = ray.data.from_items([{"part": part} for part in parts]).map_batches(
            PartWriter,
            fn_constructor_kwargs=writer,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
            num_gpus=num_gpus,
        )
        for _ in tqdm(done.iter_rows(), total=len(parts), desc=writer["stage"].__name__, unit="part"):
            pass


def _claim(out: Path, stage: type, arguments: dict, rows: Dataset, rows_per_part: int) -> None:
    """Writes the manifest of a run, or compares it with the one that is there.

    Raises:
        ValueError: `out` holds something else.
    """
    manifest = {
        "stage": stage.__qualname__,
        "arguments": json.loads(json.dumps(arguments, default=str)),
        "rows": len(rows),
        "rows_sha256": _digest(rows),
        "rows_per_part": rows_per_part,
    }
    path = out / MANIFEST
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in manifest if begun.get(name) != manifest[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"`out` {str(out)!r} holds a run with other {name} ({begun.get(name)!r}, now {manifest[name]!r}); "
                "name another folder, or repeat the arguments of that run."
            )
        return
    if next(out.glob("*.parquet"), None):
        raise ValueError(f"`out` {str(out)!r} holds Parquet files but no {MANIFEST}; name another folder.")
    with new_files(out) as folder:
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _digest(rows: Dataset) -> str:
    """SHA-256 over all rows as they are stored, pictures included, whatever files and chunks they come from."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(64):
        # Built anew, so that what the memory holds between and beyond the values is the same for the same rows.
        table = pa.Table.from_pydict(batch.to_pydict(), schema=batch.schema.remove_metadata())
        with pa.BufferOutputStream() as sink:
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            digest.update(sink.getvalue())
    return digest.hexdigest()
