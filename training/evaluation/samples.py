"""What an editor made of a benchmark: a folder with the pictures and `samples.jsonl`, one line a sample.

    id                      str, unique in the folder
    task                    str, the subset it belongs to
    instruction             str, the action in words
    before, output, target  paths relative to the folder; target is None where no true outcome is known

Whatever edits pictures can be measured once it has filled such a folder.
"""

import json
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    id: str
    task: str
    instruction: str
    before: Path
    output: Path
    target: Path | None


def read_samples(folder: str | Path) -> list[Sample]:
    """The samples of a folder, in its order, with paths that can be opened.

    Raises:
        ValueError: the folder has no `samples.jsonl`, or a line of it lacks something or repeats an id.
    """
    path = Path(folder) / "samples.jsonl"
    if not path.is_file():
        raise ValueError(f"`folder` {str(folder)!r} holds no samples.jsonl; name a folder with an editor's outputs.")
    lines = path.read_bytes().splitlines()
    samples = [_read_line(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise ValueError(f"`folder` {str(folder)!r} holds an empty samples.jsonl; let the editor finish first.")
    ids = [sample.id for sample in samples]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(
            f"`id` {repeated[0]!r} stands twice in {str(path)!r}; make ids unique, with the task in them."
        )
    return samples


def _read_line(line: bytes, path: Path, number: int) -> Sample:
    try:
        row = json.loads(line)
        target = row.get("target")
        return Sample(
            id=str(row["id"]),
            task=str(row["task"]),
            instruction=row["instruction"] or "",
            before=path.parent / row["before"],
            output=path.parent / row["output"],
            target=path.parent / target if target else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`samples.jsonl` line {number} of {str(path)!r} is wrong ({type(error).__name__}: {error}); "
            "each line is an object with id, task, instruction, before, output and target."
        ) from None
