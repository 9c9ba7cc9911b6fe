"""Attention of K candidates that continue the same prompt: its keys and values are kept once and read once.

A candidate's token attends to its prompt and to the tokens the candidate already has. Scores against both are computed
apart and meet in one softmax, so the result is exact and nothing of the prompt is copied K times. With guidance there
are two prompts, with and without the action; the shorter is padded, and a bias of -inf hides its padding.

Shapes: G prompts; K candidates; R = G * K rows, those of one prompt after those of the other; H heads, F of them with
keys and values; D their size; P tokens of the longest prompt; N of a candidate. Heads come first, so that what a step
adds and reads lies together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class LayerStates(NamedTuple):
    """Keys and values of one layer: [F * G, P, D] of the prompts, [F * R, N, D] of the candidates."""

    prefix_keys: Tensor
    prefix_values: Tensor
    suffix_keys: Tensor
    suffix_values: Tensor


class SharedPrefixCache:
    """Keys and values of G prompts, and room for N tokens of each of K candidates.

    Args:
        prefilled: for each prompt the cache of its stock forward pass, batch 1.
        num_candidates: K.
        num_tokens: N.
    """

    def __init__(self, prefilled: Sequence[Cache], num_candidates: int, num_tokens: int):
        self.prefix_lengths = [cache.get_seq_length() for cache in prefilled]
        layers = zip(*(cache.layers for cache in prefilled), strict=True)
        self.layers = [_layer_states(parts, num_candidates, num_tokens) for parts in layers]
        self._bias = self._padding_bias(num_tokens) if len(set(self.prefix_lengths)) > 1 else None

    def _padding_bias(self, num_tokens: int) -> Tensor:
        """0 for tokens, -inf for the padding of a shorter prompt: [G, 1, P + N]."""
        like = self.layers[0].prefix_keys
        longest = max(self.prefix_lengths)
        bias = like.new_zeros(len(self.prefix_lengths), 1, longest + num_tokens)
        for row, length in zip(bias, self.prefix_lengths, strict=True):
            row[:, length:longest] = -math.inf
        return bias

    def bias(self, window: int, position: Tensor | None = None) -> Tensor | None:
        """What is added to attention scores: [G, 1, P + window] of 0 and -inf, or None for nothing.

        Args:
            window: how many of the N tokens the scores cover.
            position: int64 [1], the last of them that a candidate has; None if it has all of them.
        """
        prefix = max(self.prefix_lengths)
        bias = None if self._bias is None else self._bias[..., : prefix + window]
        if position is None:
            return bias
        places = torch.arange(-prefix, window, device=position.device)
        zero = bias if bias is not None else self.layers[0].prefix_keys.new_zeros(())
        return torch.where(places <= position, zero, -math.inf).expand(len(self.prefix_lengths), 1, -1)


def _layer_states(prompts: Sequence[DynamicLayer], num_candidates: int, num_tokens: int) -> LayerStates:
    prefix_keys = _stack_padded([prompt.keys for prompt in prompts])
    prefix_values = _stack_padded([prompt.values for prompt in prompts])
    heads, _, size = prefix_keys.shape
    # Zeros rather than empty memory: a value of a hidden token has the weight 0, but 0 times NaN is NaN.
    suffixes = (prefix_keys.new_zeros(heads * num_candidates, num_tokens, size) for _ in range(2))
    return LayerStates(prefix_keys, prefix_values, *suffixes)


def _stack_padded(states: Sequence[Tensor]) -> Tensor:
    """G times [1, F, P_g, D] -> [F * G, P, D]; a single one is not copied."""
    if len(states) == 1:
        return states[0][0]
    longest = max(part.shape[-2] for part in states)
    return torch.stack([pad(part[0], (0, 0, 0, longest - part.shape[-2])) for part in states], dim=1).flatten(0, 1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    states: LayerStates,
    position: Tensor,
    window: int,
    bias: Tensor | None,
) -> Tensor:
    """Attention of every candidate's newest token, which is stored on the way.

    Args:
        query: [H, R, D], already scaled.
        key, value: [F, R, D].
        states: of the layer; the suffixes are written at `position`.
        position: int64 [1], 0 for a candidate's first token.
        window: how many suffix tokens to attend to, at least `position` + 1.
        bias: see `SharedPrefixCache.bias`.

    Returns:
        [R, H * D].
    """
    kv_heads, rows, size = key.shape
    groups, prefix_length, _ = states.prefix_keys.shape
    shared = kv_heads * rows
    states.suffix_keys.index_copy_(1, position, key.reshape(shared, 1, size))
    states.suffix_values.index_copy_(1, position, value.reshape(shared, 1, size))
    keys, values = states.suffix_keys[:, :window], states.suffix_values[:, :window]

    # Queries of the heads that share keys stand beside each other: [F, R, H / F, D].
    query = query.view(kv_heads, -1, rows, size).transpose(1, 2)
    from_prefix = torch.bmm(query.reshape(groups, -1, size), states.prefix_keys.mT)
    from_suffix = torch.bmm(query.reshape(shared, -1, size), keys.mT)
    scores = torch.cat([from_prefix, from_suffix.view(groups, -1, window)], dim=-1)
    if bias is not None:
        scores = (scores.view(kv_heads, len(bias), -1, prefix_length + window) + bias).view_as(scores)
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    to_prefix, to_suffix = weights.split((prefix_length, window), dim=-1)
    from_prefix = torch.bmm(to_prefix, states.prefix_values)
    from_suffix = torch.bmm(to_suffix.reshape(shared, -1, window), values)
    mixed = from_prefix.view_as(from_suffix) + from_suffix
    return mixed.view(kv_heads, rows, -1).transpose(0, 1).reshape(rows, -1)
