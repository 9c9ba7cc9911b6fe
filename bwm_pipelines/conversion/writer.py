"""Safetensors written part by part, so that a model never stands in memory whole, and a conversion can go on."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from bwm_pipelines.conversion.plan import Plan, specs_of

PART_SIZE = 2 * 10**9
RECIPE = "conversion.json"


@contextmanager
def unfinished(dest: Path, recipe: dict[str, Any]) -> Iterator[Path]:
    """Yield the folder in which `dest` grows; it becomes `dest` at the end.

    What an interruption or a full disk leaves stays for the next try; what proves wrong does not.

    Args:
        recipe: what the result depends on. A folder begun with another recipe is begun again.

    Raises:
        ValueError: `dest` exists, or cannot be written to.
    """
    if dest.exists():
        raise ValueError(f"`dest` {str(dest)!r} exists already; name a new folder.")
    folder = dest.with_name(f".{dest.name}.unfinished")
    text = json.dumps(recipe, indent=2, sort_keys=True)
    try:
        if folder.exists() and not ((folder / RECIPE).is_file() and (folder / RECIPE).read_text("utf-8") == text):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"`dest` {str(dest)!r} cannot be written to ({error.strerror}); name another.") from None
    try:
        yield folder
    except ValueError:
        shutil.rmtree(folder)
        raise
    (folder / RECIPE).unlink()
    os.replace(folder, dest)


def write_model(folder: Path, name: str, plan: Plan, part_size: int, bar: tqdm) -> None:
    """Write the tensors of a plan as safetensors; parts that are there already are kept.

    Args:
        folder: the component's folder.
        name: of the file, without `.safetensors`, as its library wants it.
        part_size: bytes of one file at most, unless one tensor has more.
        bar: moves by the bytes of each tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specs = specs_of(plan)
    parts = split_torch_state_dict_into_shards(
        specs, filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=part_size
    )
    for file, names in parts.filename_to_tensors.items():
        if _is_whole(folder / file, {target: specs[target] for target in names}):
            bar.update(sum(specs[target].nbytes for target in names))
        else:
            _write_part(folder / file, {target: plan[target] for target in names}, bar)
    if parts.is_sharded:
        index = {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def copy_model(folder: Path, copy: Path) -> None:
    """The same model a second time, its large files as links to the same data where the disk can."""
    copy.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (copy / file.name).unlink(missing_ok=True)
        try:
            os.link(file, copy / file.name)
        except OSError:
            shutil.copy2(file, copy / file.name)


def size_of(plans: Iterable[Plan]) -> int:
    """Bytes that plans will write."""
    return sum(spec.nbytes for plan in plans for spec in specs_of(plan).values())


def _write_part(file: Path, plan: Plan, bar: tqdm) -> None:
    temporary = file.with_name(f".{file.name}.tmp")  # the same in every try: what a killed one left is written over
    try:
        with ExitStack() as stack:
            reads = {
                id(weights): stack.enter_context(weights.open())
                for weights in {id(origin.weights): origin.weights for origin in plan.values()}.values()
            }
            tensors: dict[str, Tensor] = {}
            for target, origin in plan.items():
                tensors[target] = origin.change(reads[id(origin.weights)](origin.name)).contiguous()
                bar.update(tensors[target].nbytes)
            save_file(tensors, temporary, metadata={"format": "pt"})
            del tensors
        os.replace(temporary, file)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error}); what is there is kept, run the command again.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _is_whole(file: Path, specs: dict[str, Tensor]) -> bool:
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()} == {  # noqa: SIM118
                name: tuple(spec.shape) for name, spec in specs.items()
            }
    except SafetensorError:
        return False
