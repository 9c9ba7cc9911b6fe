"""Attention of K candidates that continue the same prompt: its keys and values are kept once and read once.

A candidate's token attends to its prompt and to the tokens the candidate already has. Scores against both are computed
apart and meet in one softmax, so the result is exact and nothing of the prompt is copied K times. With guidance there
are two prompts, with and without the action; the shorter is padded, and a bias of -inf hides its padding.

Shapes: G prompts; K candidates; R = G * K rows, those of one prompt after those of the other; H heads, F of them with
keys and values; D their size; P tokens of the longest prompt; N of a candidate.
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
    """Keys and values of one layer: [G * F, P, D] of the prompts, [G * F * K, N, D] of the candidates."""

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
    """G times [1, F, P_g, D] -> [G * F, P, D]; a single one is not copied."""
    if len(states) == 1:
        return states[0][0]
    longest = max(part.shape[-2] for part in states)
    return torch.cat([pad(part[0], (0, 0, 0, longest - part.shape[-2])) for part in states])


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
        query: [R, H, D], already scaled.
        key, value: [R, F, D].
        states: of the layer; the suffixes are written at `position`.
        position: int64 [1], 0 for a candidate's first token.
        window: how many suffix tokens to attend to, at least `position` + 1.
        bias: see `SharedPrefixCache.bias`.

    Returns:
        [R, H * D].
    """
    rows, heads, size = query.shape
    groups, prefix_length, _ = states.prefix_keys.shape
    kv_heads = key.shape[1]
    num_prompts = groups // kv_heads
    candidates = rows // num_prompts

    def by_head(states: Tensor) -> Tensor:
        """[R, heads, D] -> [G * F, K * heads / F, D]"""
        split = states.reshape(num_prompts, candidates, kv_heads, -1, size)
        return split.transpose(1, 2).reshape(groups, -1, size)

    def by_candidate(states: Tensor, length: int) -> Tensor:
        """[G * F, K * heads / F, length] -> [G * F * K, heads / F, length]"""
        return states.reshape(groups * candidates, -1, length)

    for suffix, new in ((states.suffix_keys, key), (states.suffix_values, value)):
        suffix.index_copy_(1, position, by_candidate(by_head(new), size))
    keys, values = states.suffix_keys[:, :window], states.suffix_values[:, :window]

    query = by_head(query)
    from_suffix = torch.bmm(by_candidate(query, size), keys.mT).view(groups, -1, window)
    scores = torch.cat([torch.bmm(query, states.prefix_keys.mT), from_suffix], dim=-1)
    if bias is not None:
        scores = (scores.view(num_prompts, -1, prefix_length + window) + bias).view_as(scores)
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    from_prefix = torch.bmm(weights[..., :prefix_length], states.prefix_values)
    from_suffix = torch.bmm(by_candidate(weights[..., prefix_length:], window), values)
    mixed = from_prefix + from_suffix.view_as(from_prefix)
    mixed = mixed.view(num_prompts, kv_heads, candidates, -1, size).transpose(1, 2)
    return mixed.reshape(rows, heads * size)
