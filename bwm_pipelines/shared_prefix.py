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
        self._padding = self._padding_bias()

    def _padding_bias(self) -> Tensor:
        """0 for tokens, -inf for the padding of a shorter prompt: [G, 1, P]."""
        bias = self.layers[0].prefix_keys.new_zeros(len(self.prefix_lengths), 1, max(self.prefix_lengths))
        for row, length in zip(bias, self.prefix_lengths, strict=True):
            row[:, length:] = -math.inf
        return bias

    def bias(self, places: Tensor, window: int) -> Tensor:
        """What is added to attention scores, 0 or -inf: each token sees its prompt and its candidate's tokens up to it.

        Args:
            places: int64 [T], where among its candidate's tokens each of T tokens stands.
            window: how many of the N tokens the scores cover.

        Returns:
            [G, T, 1, P + window].
        """
        hidden = torch.arange(window, device=places.device) > places[:, None]
        suffix = self._padding.new_zeros(()).where(~hidden, -math.inf).expand(len(self._padding), -1, -1)
        return torch.cat([self._padding.expand(-1, len(places), -1), suffix], dim=-1).unsqueeze(2)


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
    query: Tensor, key: Tensor, value: Tensor, states: LayerStates, slots: Tensor, window: int, bias: Tensor
) -> Tensor:
    """Attention of the T newest tokens of every row, which are stored on the way.

    Args:
        query: [H, R * T, D], already scaled.
        key, value: [F, R * T, D].
        states: of the layer; the suffixes are written at `slots`.
        slots: int64 [R * T], row * N + place of each token.
        window: how many suffix tokens to attend to.
        bias: [G, K * T, 1, P + window], see `SharedPrefixCache.bias`.

    Returns:
        [R * T, H * D].
    """
    kv_heads, tokens, size = key.shape
    groups, prefix_length, _ = states.prefix_keys.shape
    states.suffix_keys.view(kv_heads, -1, size).index_copy_(1, slots, key)
    states.suffix_values.view(kv_heads, -1, size).index_copy_(1, slots, value)
    keys, values = states.suffix_keys[:, :window], states.suffix_values[:, :window]

    # Queries of the heads that share keys stand beside each other: [F, R * T, H / F, D].
    query = query.view(kv_heads, -1, tokens, size).transpose(1, 2)
    from_prefix = torch.bmm(query.reshape(groups, -1, size), states.prefix_keys.mT)
    from_suffix = torch.bmm(query.reshape(len(keys), -1, size), keys.mT)
    scores = torch.cat([from_prefix, from_suffix.view(groups, -1, window)], dim=-1)
    scores = (scores.view(kv_heads, *bias.shape[:2], -1, prefix_length + window) + bias).view_as(scores)
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    to_prefix, to_suffix = weights.split((prefix_length, window), dim=-1)
    from_prefix = torch.bmm(to_prefix, states.prefix_values)
    from_suffix = torch.bmm(to_suffix.reshape(len(keys), -1, window), values)
    mixed = from_prefix.view_as(from_suffix) + from_suffix
    return mixed.view(kv_heads, tokens, -1).transpose(0, 1).reshape(tokens, -1)
