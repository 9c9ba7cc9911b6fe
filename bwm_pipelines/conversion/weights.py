"""Tensors where they lie: checkpoint files whose shapes are known at once and whose values are read when asked for.

Files are mapped into memory, never read whole, and mapped anew for every group of reads: what was read for one output
file does not stay in memory while the next is written. This is the only place that opens pickles, and only
`weights_only=True`, which builds tensors and plain containers and refuses everything else.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Read = Callable[[str], Tensor]
UNSAFE = "holds objects other than tensors, which are not loaded; get it from its publisher again"


class Weights:
    """The tensors of one checkpoint, spread over files.

    Args:
        files: safetensors files, or zip files of `torch.save` that hold a state dict, bare or under `state_dict` as
            Lightning wraps it. Entries that are no tensors are left out.

    Raises:
        ValueError: a file is missing, damaged, or holds more than tensors.
    """

    def __init__(self, files: list[Path]):
        self.files = files
        self._file_of: dict[str, Path] = {}
        self.specs: dict[str, Tensor] = {}  # on the device "meta": shape and dtype only
        for file in files:
            specs = _safetensors_specs(file) if file.suffix == ".safetensors" else _torch_specs(file)
            self._file_of |= dict.fromkeys(specs, file)
            self.specs |= specs

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Yield a function from a tensor's name to its values, which must be copied to outlive the context."""
        with ExitStack() as stack:
            opened: dict[Path, Read] = {}

            def read(name: str) -> Tensor:
                file = self._file_of[name]
                if file not in opened:
                    if file.suffix == ".safetensors":
                        opened[file] = stack.enter_context(safe_open(file, framework="pt")).get_tensor
                    else:
                        opened[file] = _load(file).__getitem__
                return opened[file](name)

            yield read
            opened.clear()


def weights_of_folder(folder: Path) -> Weights:
    """The weights that transformers' `save_pretrained` wrote into a folder: safetensors or, before them, `.bin`.

    Raises:
        ValueError: there are none, or some are missing or damaged.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, LookupError, AttributeError):
                raise ValueError(f"`source`: {index} is damaged; get it again.") from None
            return Weights([folder / Path(name).name for name in names])
        if (folder / name).is_file():
            return Weights([folder / name])
    raise ValueError(f"`source`: {folder} has a config.json but no model.safetensors; get the whole checkpoint.")


def _safetensors_specs(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(_existing(file), framework="pt") as opened:
            names = opened.keys()
            slices = {name: opened.get_slice(name) for name in names}
            return {
                name: torch.empty(part.get_shape(), dtype=part[:0].dtype if part.get_shape() else None, device="meta")
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"`source`: {file} is damaged or cut off ({error}); get it again.") from None


def _torch_specs(file: Path) -> dict[str, Tensor]:
    return {
        name: torch.empty_like(value, device="meta")
        for name, value in _load(file).items()
        if isinstance(value, Tensor)
    }


def _load(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(_existing(file), map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError:
        raise ValueError(f"`source`: {file} {UNSAFE}.") from None
    except (RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"`source`: {file} is damaged or cut off ({reason}); get it again.") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if isinstance(state, dict):
        return state
    raise ValueError(f"`source`: {file} holds no state dict but a {type(loaded).__name__}; give a checkpoint.")


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(f"`source`: {file} is missing; get the whole checkpoint.")
    return file
