"""Memory: what a call needs beside the weights, and how many candidates fit at once.

Counted is what tensors hold at the moment when they hold most; `tests/test_memory.py` compares that with runs. A tenth of
what is free is left alone, for the allocator and for what kernels use inside themselves.
"""

from collections.abc import Iterator
from typing import NamedTuple

import psutil
import torch
from diffusers import VQModel
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedConfig

GIB = 2**30
USABLE = 0.9


class Need(NamedTuple):
    """Bytes beside the weights: `once` for all candidates, `prefill` before them, `each` for one that runs."""

    once: int
    prefill: int
    each: int

    def total(self, batch_size: int) -> int:
        """Bytes with so many candidates at once."""
        return self.once + max(self.prefill, batch_size * self.each)

    def largest_batch(self, available: int) -> int:
        """How many candidates fit at once into so many bytes; 0 if none does."""
        return (available - self.once) // self.each if self.total(1) <= available else 0


# --- What a call needs ---


def kv_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers of a language model."""
    return 2 * config.num_hidden_layers * _kv_width(config) * dtype.itemsize


def sampling_need(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    prefix_tokens: int,
    new_tokens: int,
    num_codes: int,
    guided: bool,
    block: int = 1,
) -> Need:
    """What `sample_codes` needs for candidates of one prompt.

    Args:
        config: of the world model.
        dtype: of its activations.
        prefix_tokens: S, the prompt.
        new_tokens: N, the image.
        num_codes: C, over which the sampler holds logits.
        guided: whether there is an unconditional branch beside the prompt.
        block: tokens of a candidate that a step computes.
    """
    kv, prompts = kv_bytes_per_token(config, dtype), 2 if guided else 1
    # Two prompts are kept as they were read and side by side; of the head there is a copy of the codes' rows.
    kept = prefix_tokens * kv * (4 if guided else 1)
    head = num_codes * config.hidden_size * dtype.itemsize
    scores = config.num_attention_heads * (prefix_tokens + new_tokens) * (dtype.itemsize + torch.float32.itemsize)
    rotations = prompts * 2 * new_tokens * config.hidden_size // config.num_attention_heads * dtype.itemsize
    logits = num_codes * 6 * torch.float64.itemsize
    return Need(
        once=kept + head + rotations,
        prefill=prefix_tokens * _layer_bytes(config, dtype),
        each=prompts * ((new_tokens + block) * kv + block * (scores + _layer_bytes(config, dtype))) + block * logits,
    )


def verification_need(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    shared_tokens: int,
    own_tokens: int,
    action_tokens: int,
) -> Need:
    """What `score_candidates` needs; the image before as its own after is one candidate more.

    Args:
        config: of the dynamics model.
        dtype: of its activations.
        shared_tokens: the image before, once for all candidates.
        own_tokens: the image after, what is asked, and the action.
        action_tokens: A, where the head runs.
    """
    all_tokens, grouped = shared_tokens + own_tokens, config.num_key_value_heads < config.num_attention_heads
    keys_and_values = 2 * all_tokens * (_kv_width(config) + grouped * config.hidden_size)
    mask = own_tokens * all_tokens
    attention = 6 * own_tokens * config.hidden_size + keys_and_values + mask
    logits = action_tokens * config.vocab_size * (dtype.itemsize + 2 * torch.float32.itemsize)
    return Need(
        once=shared_tokens * kv_bytes_per_token(config, dtype) + mask,
        prefill=shared_tokens * _layer_bytes(config, dtype),
        each=max(own_tokens * _layer_bytes(config, dtype), attention * dtype.itemsize, logits),
    )


def image_need(vqgan: VQModel, image_size: int) -> Need:
    """What encoding or decoding one image after another, or many at once, needs. Most of it is at full resolution."""
    outer, inner = (vqgan.config.block_out_channels * 2)[:2]
    tokens = (image_size // 2 ** (len(vqgan.config.block_out_channels) - 1)) ** 2
    convolutions = (2 * outer + 3 * max(outer, inner)) * image_size**2
    distances = tokens * (vqgan.config.num_vq_embeddings + 4 * vqgan.config.vq_embed_dim)
    return Need(once=0, prefill=0, each=max(convolutions, distances) * vqgan.dtype.itemsize)


def _kv_width(config: PreTrainedConfig) -> int:
    return config.hidden_size // config.num_attention_heads * config.num_key_value_heads


def _layer_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Activations of one token where a layer holds most: inside its feed-forward, beside the input of model and layer."""
    return (4 * config.hidden_size + 3 * config.intermediate_size) * dtype.itemsize


# --- Weights ---


def weight_bytes(*models: nn.Module, missing_from: torch.device | None = None) -> int:
    """Bytes of the weights of models; what they share, such as the base of two adapters, counts once.

    Args:
        models: PyTorch modules; quantized weights count as they are stored.
        missing_from: only weights that are on another kind of device, and so would have to be moved there.
    """
    tensors = {id(tensor): tensor for model in models for tensor in model.parameters()}
    elsewhere = [
        tensor
        for tensor in tensors.values()
        if missing_from is None or tensor.device.type not in (missing_from.type, "meta")
    ]
    return sum(part.nbytes for tensor in elsewhere for part in stored_tensors(tensor))


def stored_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that hold a tensor: itself, or the numbers and scales inside a quantized one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from stored_tensors(getattr(tensor, name))


def planned_weight_bytes(config: ChameleonConfig, dtype: torch.dtype, *, int8: bool = False) -> int:
    """Bytes of the weights that a config describes, before there are any.

    Args:
        config: of a language model.
        dtype: of the weights.
        int8: whether torchao's weight-only int8 holds all linear layers but the head, a row of which
            has one scale in `dtype` and one int8 zero point.
    """
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if int8:
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not model.lm_head:
                size += module.weight.numel() * (1 - dtype.itemsize) + module.out_features * (dtype.itemsize + 1)
    return size


# --- What is free ---


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can take on a device; None where nobody can tell, as on Apple's GPUs."""
    if device.type == "cuda":
        reserved_in_vain = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved_in_vain
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return None


def fitting_batch_size(need: Need, count: int, given: int | None, *, device: torch.device, weights: int = 0) -> int:
    """How many of `count` candidates to run at once: what the caller gave, else as many as fit.

    Args:
        need: of the call.
        count: how many there are.
        given: the caller's `candidate_batch_size`, or None.
        device: where it runs.
        weights: bytes of weights that have to come to the device first, see `weight_bytes`.

    Returns:
        At least 1 and at most `count`.

    Raises:
        ValueError: so many, or even one, do not fit.
    """
    asked = min(count, given or count)
    free = free_bytes(device)
    if free is None:
        return asked
    fitting = need.largest_batch(int(free * USABLE) - weights)
    if fitting >= asked or (fitting and given is None):
        return min(asked, fitting)
    needed = (need.total(asked if fitting else 1) + weights) / USABLE / GIB
    room = f"{needed:.3g} GiB of which {free / GIB:.3g} GiB are free on {device}"
    if fitting:
        raise ValueError(f"`candidate_batch_size` {given} needs {room}; set it to {fitting} or leave it out.")
    raise ValueError(
        f"`candidate_batch_size`: even one candidate needs {room}; load the models in int8 or bfloat16, or call "
        "`enable_model_cpu_offload()`."
    )
