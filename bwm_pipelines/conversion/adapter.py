"""A PEFT adapter becomes one for transformers' Chameleon, checked tensor by tensor against its base.

An adapter that was trained on Meta's own modules has Meta's names, and the rows of what it adds to queries and keys in
Meta's order; they are treated as the base's weights are.
"""

import re
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from bwm_pipelines.conversion.language_model import META_ENDS, META_MODULES, meta_change, meta_module
from bwm_pipelines.conversion.layouts import AdapterLayout
from bwm_pipelines.conversion.plan import Origin, Plan, check_exact, unchanged
from bwm_pipelines.conversion.weights import Weights

PREFIX = "base_model.model."
META_MODULE = re.compile(rf"{re.escape(PREFIX)}(layers\.\d+|tok_embeddings|output)\.")
META_NAMES = {
    theirs.rpartition(".")[2]: ours.rpartition(".")[2] for theirs, ours in (META_MODULES | META_ENDS).items()
}
EMBEDDINGS = ("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")  # PEFT saves them beside their adapters
HAS_ROWS = ("lora_B", "weight")  # what has one row an output of its module


def adapter_plan(adapter: AdapterLayout, base: ChameleonConfig) -> tuple[Plan, dict[str, Any]]:
    """The plan for the tensors of `adapter_model.safetensors`, and the content of `adapter_config.json`.

    Args:
        base: the configuration of the model it was trained on.

    Raises:
        ImportError: peft is not installed.
        ValueError: the adapter is incomplete or does not fit the base.
    """
    weights, config = Weights([adapter.weights]), dict(adapter.config)
    if config.get("use_dora"):
        raise ValueError(
            f"`source`: {adapter.folder} is a DoRA adapter, whose magnitudes transformers does not load; merge it into its "
            "base with PEFT and convert the merged model."
        )
    if any(META_MODULE.match(name) for name in weights.specs):
        plan = dict(_from_meta(weights, name, base) for name in weights.specs)
        for key in ("target_modules", "modules_to_save"):
            if isinstance(config.get(key), list):
                config[key] = sorted({META_NAMES.get(name.rpartition(".")[2], name) for name in config[key]})
    else:
        plan = {name: Origin(weights, name) for name in weights.specs}
    embeddings = any(name.endswith(EMBEDDINGS) for name in plan)
    check_exact(plan, _wanted(config, base, embeddings, adapter), f"the adapter {adapter.folder}")
    return plan, config


def _from_meta(weights: Weights, name: str, base: ChameleonConfig) -> tuple[str, Origin]:
    module, mark, rest = name.removeprefix(PREFIX).partition(".lora_")
    if mark:
        rest = f"lora_{rest}"
    else:
        module, _, rest = module.rpartition(".")
    target = meta_module(module)
    if target is None:
        raise ValueError(f"`source`: {name} of {weights.files[0]} belongs to no module of Meta's Chameleon.")
    change = meta_change(module, base) if rest.startswith(HAS_ROWS) else None
    return f"{PREFIX}{target}.{rest}", Origin(weights, name, change or unchanged)


def _wanted(
    config: dict[str, Any], base: ChameleonConfig, embeddings: bool, adapter: AdapterLayout
) -> dict[str, Tensor]:
    """The tensors that PEFT would save for this adapter, on the device "meta"."""
    try:
        from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
    except ImportError:
        raise ImportError("`source`: adapters need peft; install it with: pip install 'peft>=0.20'") from None
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(base)
    try:
        inject_adapter_in_model(PeftConfig.from_peft_type(**config), model, low_cpu_mem_usage=True)
        state = get_peft_model_state_dict(model, save_embedding_layers=embeddings)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"`source`: the adapter {adapter.folder} does not fit its base ({reason}).") from error
    return {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
