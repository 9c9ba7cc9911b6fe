"""Chameleon's transformer: from Meta's names, order of rotary dimensions and model-parallel files to transformers'.

Meta rotates the dimensions (2i, 2i + 1) of a head together, transformers (i, i + d / 2). The rows of the query and key
projections, and the weights and biases of the norms after them, are therefore put in another order. Both orders have
the same shapes: a mistake here loads without a word and gives nonsense, so that `verify` compares logits.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonVQVAEConfig, PreTrainedTokenizerFast

from bwm_pipelines.conversion.plan import Origin, Plan, check_used
from bwm_pipelines.conversion.weights import Read, Weights

META_MODULES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_normalization": "self_attn.q_norm",
    "attention.k_normalization": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
META_ENDS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
VQ_PREFIX = "model.vqmodel."

# How model parallelism splits a tensor. What it does not split every rank holds whole, but the norms of queries and keys:
# each rank has its own, for its own heads.
SPLIT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
SPLIT_COLUMNS = ("wo", "w2", "tok_embeddings")
PER_RANK = ("q_normalization", "k_normalization")


class MetaWeights(Weights):
    """The files of all model-parallel ranks as one: tensors joined, the norms of queries and keys as [ranks, head]."""

    def __init__(self, ranks: list[Weights]):
        self.ranks = ranks
        self.files = [file for rank in ranks for file in rank.files]
        names = ranks[0].specs.keys()
        for rank in ranks[1:]:
            if rank.specs.keys() != names:
                odd = min(rank.specs.keys() ^ names)
                raise ValueError(f"`source`: only some of {ranks[0].files[0].parent}/consolidated.*.pth have {odd}.")
        try:
            self.specs = {name: _join(name, [rank.specs[name] for rank in ranks]) for name in names}
        except RuntimeError:
            raise ValueError(
                f"`source`: {self.files[0].parent} mixes files whose shapes do not fit together."
            ) from None

    @contextmanager
    def open(self) -> Iterator[Read]:
        with ExitStack() as stack:
            reads = [stack.enter_context(rank.open()) for rank in self.ranks]
            yield lambda name: _join(name, [read(name) for read in reads])


def _join(name: str, parts: list[Tensor]) -> Tensor:
    module = name.split(".")[-2] if "." in name else name
    if module in PER_RANK:
        return torch.stack(parts)
    if len(parts) == 1:
        return parts[0]
    if module in SPLIT_ROWS:
        return torch.cat(parts)
    if module in SPLIT_COLUMNS:
        return torch.cat(parts, dim=1)
    # Equal in principle; trained apart, they may differ in the last bits.
    return torch.stack(parts).float().mean(dim=0).to(parts[0].dtype)


def halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of all heads, [heads * d, ...], from Meta's order of rotary dimensions to transformers'."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def per_head(tensor: Tensor, heads: int) -> Tensor:
    """A norm of queries or keys, from [ranks, d] in Meta's order to [heads, d] in transformers'."""
    return (
        halves(tensor.flatten(), len(tensor))
        .unflatten(0, (len(tensor), -1))
        .repeat_interleave(heads // len(tensor), 0)
    )


def meta_module(module: str) -> str | None:
    """transformers' name of a module of Meta's transformer, such as `layers.0.attention.wq`; None if there is none."""
    if module in META_ENDS:
        return META_ENDS[module]
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    return f"model.layers.{layer[1]}.{META_MODULES[layer[2]]}" if layer and layer[2] in META_MODULES else None


def meta_change(module: str, config: ChameleonConfig) -> Callable[[Tensor], Tensor] | None:
    """How the rows of a module of Meta's transformer must be reordered; None if they need not."""
    name = module.rpartition(".")[2]
    heads = config.num_attention_heads if name.endswith(("wq", "q_normalization")) else config.num_key_value_heads
    if name in ("wq", "wk"):
        return partial(halves, heads=heads)
    return partial(per_head, heads=heads) if name in PER_RANK else None


def meta_plan(weights: MetaWeights, config: ChameleonConfig) -> Plan:
    """The plan for a transformer in Meta's layout.

    Raises:
        ValueError: a tensor that no Chameleon has.
    """
    plan: Plan = {}
    used = []
    for name in weights.specs:
        module, _, kind = name.rpartition(".")
        target = meta_module(module)
        if target is not None:
            change = meta_change(module, config)
            plan[f"{target}.{kind}"] = Origin(weights, name, change) if change else Origin(weights, name)
            used.append(name)
    check_used(weights, used, lambda name: name == "rope.freqs", str(weights.files[0]))
    return plan


def meta_config(
    params: dict[str, Any], weights: MetaWeights, vq_config: ChameleonVQVAEConfig, tokenizer: PreTrainedTokenizerFast
) -> ChameleonConfig:
    """The configuration of a transformer in Meta's layout.

    Args:
        params: `params.json` and `consolidate_params.json`, merged.

    Raises:
        ValueError: a parameter or a tensor that tells a size is missing, or the model has no query-key norm.
    """
    if not params.get("qk_normalization", True):
        raise ValueError(
            "`source`: params.json has no qk_normalization; transformers' Chameleon cannot do without it."
        )
    try:
        theta = float(params.get("rope_theta", 10_000))
        return ChameleonConfig(
            vocab_size=len(weights.specs["tok_embeddings.weight"]),
            hidden_size=params["dim"],
            intermediate_size=len(weights.specs["layers.0.feed_forward.w1.weight"]),
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
            max_position_embeddings=4096 if theta <= 10_000 else 16_384,
            rms_norm_eps=params["norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            swin_norm=params.get("swin_norm", False),
            model_parallel_size=len(weights.ranks),
            vq_config=vq_config.to_dict(),
            vocabulary_map=tokenizer.get_vocab(),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype=weights.specs["tok_embeddings.weight"].dtype,
        )
    except KeyError as error:
        raise ValueError(f"`source`: {weights.files[0].parent} has no {error.args[0]}; is it Meta's layout?") from None


def transformers_plan(weights: Weights) -> Plan:
    """The plan for a model in transformers' layout: every tensor as it is, but the image decoder, which it has not.

    Raises:
        ValueError: the weights are those of GAIR's fork, whose queries and keys were never reordered.
    """
    for name, spec in weights.specs.items():
        if re.fullmatch(r"model\.layers\.\d+\.self_attn\.[qk]_norm\.weight", name) and spec.ndim == 1:
            raise ValueError(
                f"`source`: {name} of {weights.files[0]} has one dimension, so that it was saved by GAIR's old fork of "
                "transformers, whose queries and keys are in another order; convert the Meta layout it was made from."
            )
    ignored = (f"{VQ_PREFIX}decoder.", "rotary_emb.inv_freq")
    return {name: Origin(weights, name) for name in weights.specs if not any(part in name for part in ignored)}
