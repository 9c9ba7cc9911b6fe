"""Checks of a checkpoint on its way in: what cannot work is refused in one line, before it gives wrong images.

transformers fills a missing tensor with random numbers and goes on, and nobody looks for NaN.
"""

import json
from importlib import import_module
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel


def check_folder(folder: Path, required: list[str], optional: list[str]) -> None:
    """Refuse a pipeline folder from which a component, or a tensor of one, is missing.

    Reads configs and the headers of the safetensors files, not the weights.

    Args:
        folder: what `save_pretrained` wrote.
        required: names of components that must be there.
        optional: names of components that may be there.

    Raises:
        ValueError: in one line, what is missing and where.
    """
    index = _read_json(folder / "model_index.json")
    for name in [*required, *optional]:
        library, class_name = index.get(name) or (None, None)
        if library is not None and (folder / name).is_dir():
            _check_component(folder / name, library, class_name)
        elif library is not None or name in required:
            raise ValueError(f"`pretrained_model_name_or_path`: {folder} has no {name}; get the whole checkpoint.")


def check_index(folder: Path, required: list[str]) -> None:
    """Refuse a pipeline folder whose index lacks a component: possible before the weights are there.

    Raises:
        ValueError: in one line, what is missing and where.
    """
    for name in required:
        if not has_weights(folder, name):
            raise ValueError(f"`pretrained_model_name_or_path`: {folder} has no {name}; get the whole checkpoint.")


def has_weights(folder: Path, component: str) -> bool:
    """Whether the index of a pipeline folder names that component.

    Raises:
        ValueError: the index is missing or damaged.
    """
    library, _ = _read_json(folder / "model_index.json").get(component) or (None, None)
    return library is not None


def check_finite(models: dict[str, nn.Module]) -> None:
    """Refuse models with a tensor that holds NaN or infinity.

    Raises:
        ValueError: the first such tensor, by component and name.
    """
    unique = {model: component for component, model in reversed(models.items())}
    for model, component in unique.items():
        for name, tensor in model.state_dict().items():
            plain = (
                type(tensor) is torch.Tensor and tensor.is_floating_point()
            )  # quantized ones are classes of their own
            if plain and not tensor.is_meta and not torch.isfinite(tensor).all():
                raise ValueError(
                    f"`pretrained_model_name_or_path`: tensor {name} of {component} holds NaN or infinity; "
                    "get an undamaged checkpoint."
                )


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(
            f"`pretrained_model_name_or_path`: {path.parent} has no {path.name}; give the folder of a whole checkpoint."
        ) from None
    except ValueError:
        raise ValueError(f"`pretrained_model_name_or_path`: {path} is damaged; get the checkpoint again.") from None


def _check_component(folder: Path, library: str, class_name: str) -> None:
    model_class = getattr(import_module(library), class_name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel | ModelMixin)):
        return
    if "quantization_config" in _read_json(folder / "config.json"):
        return  # the tensors of a quantized model are not those of the plain class
    model = _without_weights(model_class, folder)
    found = _tensor_shapes(folder)
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, tensor in model.state_dict().items():
        if name not in found and name not in tied:
            raise ValueError(f"`pretrained_model_name_or_path`: tensor {name} is missing from {folder}; get it again.")
        if name in found and found[name] != list(tensor.shape):
            raise ValueError(
                f"`pretrained_model_name_or_path`: tensor {name} of {folder} has the shape {found[name]} but its "
                f"config.json asks for {list(tensor.shape)}; get the checkpoint again."
            )


def _without_weights(model_class: type[nn.Module], folder: Path) -> nn.Module:
    with torch.device("meta"):
        if issubclass(model_class, PreTrainedModel):
            return model_class(model_class.config_class.from_pretrained(folder))
        return model_class.from_config(model_class.load_config(folder))


def _tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Shape of every tensor in the safetensors files of a folder."""
    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                shapes |= {name: file.get_slice(name).get_shape() for name in names}
        except SafetensorError:
            raise ValueError(
                f"`pretrained_model_name_or_path`: {path} is damaged; get the checkpoint again."
            ) from None
    return shapes
