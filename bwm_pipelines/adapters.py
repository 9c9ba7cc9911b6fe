"""Two PEFT adapters on one base, so that the world model (CWM) and the dynamics model (CDM) need its memory once.

They are put into the layers of the base, as transformers' own integration does, which leaves it a stock class. peft is
asked for only where there is an adapter.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

ADAPTERS = {"world_model": "cwm", "dynamics_model": "cdm"}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what PEFT puts before the names of a model's own tensors


def has_adapter(model: nn.Module, component: str | None = None) -> bool:
    """Whether an adapter is in `model`: any, or that of a component."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return False
    return component is None or ADAPTERS[component] in model.peft_config


def load_adapter(model: PreTrainedModel, component: str, folder: Path) -> None:
    """Put the adapter of a component into `model`, beside those it has, and switch it on.

    Args:
        folder: what `save_pretrained` of a PEFT model wrote, in safetensors.

    Raises:
        ImportError: peft is missing or too old.
        ValueError: the adapter is damaged, or was made for another base.
    """
    name = ADAPTERS[component]
    try:
        from peft import PeftConfig
        from peft.functional import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
    except ImportError:
        raise ImportError(f"`{name}`: adapters need peft; install it with: pip install 'peft>=0.20'") from None
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(f"`{name}`: {folder} has no {file}; give the folder of a PEFT adapter in safetensors.")
    try:
        config = PeftConfig.from_pretrained(str(folder), inference_mode=True)
        tensors = {key.removeprefix(_PREFIX): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
        # Not `model.load_adapter`, which takes the tensors of the other adapter for missing ones.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # that of the other adapter
            inject_adapter_in_model(config, model, name)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"`{name}`: {folder} cannot be put onto this base ({reason}).") from error
    model._hf_peft_config_loaded = True
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape:
            raise ValueError(
                f"`{name}`: tensor {key} of {folder} is missing, or is not one for this base; give the base it was "
                "made for."
            )
    set_peft_model_state_dict(model, tensors, adapter_name=name)
    model.eval()
    _switch(model, name)


@contextmanager
def adapter_of(component: str, model: nn.Module) -> Iterator[None]:
    """Within this context `model` computes as that component: with its adapter, or bare where it has none.

    What was switched on before comes back, however the context ends, so that one use may interrupt another. Not for
    two threads that share one model.
    """
    if not has_adapter(model):
        yield
        return
    before = _active(model)
    try:
        _switch(model, ADAPTERS[component] if has_adapter(model, component) else None)
        yield
    finally:
        _switch(model, before)


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Within this context `model` is the bare stock model, its adapters taken out: that is how a base is saved."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    wrappers = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            wrappers[name] = module, module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            wrappers[name] = module, module.original_module
    try:
        model._hf_peft_config_loaded = False
        for name, (_, inner) in wrappers.items():
            model.set_submodule(name, inner)
        yield
    finally:
        for name, (wrapper, _) in wrappers.items():
            model.set_submodule(name, wrapper)
        model._hf_peft_config_loaded = True


def save_adapter(model: PreTrainedModel, component: str, folder: Path) -> None:
    """Write the adapter of a component as a PEFT adapter folder."""
    with adapter_of(component, model):
        model.save_pretrained(folder)


def _active(model: PreTrainedModel) -> str | None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return None if layer.disable_adapters else layer.active_adapters[0]


def _switch(model: PreTrainedModel, name: str | None) -> None:
    from peft.functional import set_adapter
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            module.enable_adapters(name is not None)
    if name is not None:
        set_adapter(model, [name], inference_mode=True)
