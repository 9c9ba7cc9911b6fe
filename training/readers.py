"""Labelled triplets from the layouts in which others publish them.

    python -m training.readers aurora data/ag/train.json --root . --size 256 --out runs/aurora/ag
    python -m training.readers aurora-bench aurora_bench --size 256 --out runs/aurora_bench
    python -m training.readers videos droid --where 'lab!=5ed85189' --size 256 --out runs/droid/train
    python -m training.readers videos droid --where 'lab=5ed85189' --size 256 --out runs/droid/held_out

`aurora` is a JSON list of `instruction`, `input`, `output`; the last two name pictures under --root. `aurora-bench` is
the folder of the benchmark's `test.json`, whose rows have a `task` and not always an `output`. `videos` is a folder of
clips of one action each: first and last frame are before and after; its index (see `training.index`) gives
`instruction`.

A row whose picture or video is missing or damaged, or that has no target, is left out and named on stderr. Finished
parts are kept, so an interrupted run resumes.
"""

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, Value
from tqdm import tqdm

from bwm_pipelines.images import open_image
from training.index import choose, list_videos, read_index
from training.stages import run
from training.triplets import shards_of
from training.video import decode, to_png


def aurora(index: list[dict]) -> Iterator[dict]:
    """Triplets of AURORA's training layout, those of one before image together; `before` and `after` are still paths.

    The source and class are the sub-set's name, which is the folder under `data/` that holds the pictures.
    """
    for number, row in sorted(enumerate(index), key=lambda numbered: str(numbered[1].get("input"))):
        parts = Path(row.get("input") or "").parts
        name = parts[parts.index("data") + 1] if "data" in parts[:-2] else ""
        yield _pair_row(row, f"{name}/{number}".lstrip("/"), f"aurora/{name}".rstrip("/"), name)


def aurora_bench(index: list[dict]) -> Iterator[dict]:
    """Triplets of AURORA-Bench, those of one before image together; `before` and `after` are still paths.

    The class is the task. Where the benchmark gives no target, `after` is None.
    """
    for number, row in sorted(enumerate(index), key=lambda numbered: str(numbered[1].get("input"))):
        task = row.get("task") or ""
        yield _pair_row(row, f"{task}/{number}", f"aurora-bench/{task}", task)


def _pair_row(row: dict, id: str, source: str, name: str) -> dict:
    return {
        "id": id,
        "scene": row.get("input"),
        "before": row.get("input"),
        "after": row.get("output"),
        "action": row.get("instruction"),
        "source": source,
        "class": name,
    }


def labelled_videos(index: list[dict], source: str) -> Iterator[dict]:
    """Triplets of clips that show one action each, with `video`, a path still to be opened, and `lab`, or None."""
    for row in index:
        yield {
            "id": row["video"],
            "scene": row["video"],
            "video": row["video"],
            "action": row.get("instruction"),
            "source": source,
            "class": row["class"],
            "lab": row.get("lab"),
        }


class OpenPictures:
    """Stage: the paths in `before` and `after`, under `root`, become pictures, squares of `size` pixels if given."""

    features: ClassVar = {"before": Image(), "after": Image()}

    def __init__(self, root: Path, size: int | None = None):
        self.root, self.size = Path(root), size

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        return _open_rows(batch, self._open)

    def _open(self, row: dict) -> dict:
        if not row["before"] or not row["after"]:
            raise ValueError(f"the index names no picture {'before' if not row['before'] else 'after'} the action")
        return {name: to_png(open_image(self.root / row[name]), self.size) for name in ("before", "after")}


class OpenVideos:
    """Stage: first and last frame of `video`, under `root`, become `before` and `after`, like the pictures above."""

    features: ClassVar = {"before": Image(), "after": Image()}

    def __init__(self, root: Path, size: int | None = None):
        self.root, self.size = Path(root), size

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        return _open_rows(batch, self._open)

    def _open(self, row: dict) -> dict:
        frames = decode(self.root / row["video"])
        ends = [*islice(frames, 1), *deque(frames, maxlen=1)]
        if len(ends) < 2:
            raise ValueError("the video has fewer than two frames")
        return {name: to_png(frame.to_image(), self.size) for name, frame in zip(self.features, ends, strict=True)}


def _open_rows(batch: dict[str, list], open_row: Callable[[dict], dict]) -> dict[str, list]:
    """Columns of the rows that can be opened; the others are named on stderr."""
    rows = []
    for row in (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)):
        try:
            rows.append(row | open_row(row))
        except Exception as error:  # noqa: BLE001 (decoders raise errors of every kind)
            tqdm.write(f"skipped {row['id']}: {error}", file=sys.stderr)
    return {
        name: [row[name] for row in rows] for name in (*batch, *(n for n in OpenPictures.features if n not in batch))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=("aurora", "aurora-bench", "videos"))
    parser.add_argument("source", type=Path, help="JSON file (aurora) or folder (aurora-bench, videos)")
    parser.add_argument("--root", type=Path, help="folder of the paths in the index; default: that of the index")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="or KEY!=VALUE; several: all of them"
    )
    parser.add_argument("--size", type=int, help="side of the centre square to store; default: pictures as they are")
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet shards")
    parser.add_argument("--engine", choices=("datasets", "ray"), default="datasets")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args()
    if args.layout == "videos":
        rows = labelled_videos(choose(list_videos(args.source), args.where), args.source.resolve().name)
        stage, root = OpenVideos, args.source
    else:
        file = args.source / "test.json" if args.source.is_dir() else args.source
        rows = (aurora if args.layout == "aurora" else aurora_bench)(choose(read_index(file), args.where))
        stage, root = OpenPictures, file.parent
    rows = list(rows)
    listed = Dataset.from_list(rows, features=Features({name: Value("string") for name in rows[0]}))
    arguments = {"root": (args.root or root).resolve(), "size": args.size}
    run(stage, arguments, listed, args.out, engine=args.engine, workers=args.workers)
    written = sum(pq.read_metadata(shard).num_rows for shard in shards_of(args.out))
    print(f"{written} triplets in {args.out}, {len(rows) - written} of {len(rows)} rows skipped", file=sys.stderr)
    if not written:
        sys.exit("No row could be read; --root must name the folder to which the paths in the index are relative.")


if __name__ == "__main__":
    main()
