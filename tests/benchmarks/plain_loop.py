"""The loop that sampled image tokens before: the stock forward for every token, the prompt copied for each candidate.

Kept as what the sampler is measured against.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, ChameleonForConditionalGeneration
from transformers.cache_utils import DynamicLayer

from bwm_pipelines.families import ChameleonFamily
from bwm_pipelines.sampling import pick_codes


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, length, dim] that grow within buffers made once."""

    def __init__(self, prefix: DynamicLayer, times: int, room: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = prefix.keys.dtype, prefix.keys.device, True
        self._buffers = [self._with_room(states, times, room) for states in (prefix.keys, prefix.values)]
        self._show(prefix.keys.shape[-2])

    @staticmethod
    def _with_room(states: Tensor, times: int, room: int) -> Tensor:
        _, heads, length, dim = states.shape
        buffer = states.new_empty(times, heads, length + room, dim)
        buffer[:, :, :length] = states
        return buffer

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values


def plain_codes(
    family: ChameleonFamily,
    model: ChameleonForConditionalGeneration,
    prompt_ids: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """What `sample_codes` gives for these arguments, int64 [K, N]."""
    num_candidates, num_tokens = uniforms.shape
    uniforms = uniforms.to(prompt_ids.device)
    tokens = family.image_token_ids.to(prompt_ids.device)
    logits, cache = family.prefill(model, prompt_ids)
    logits = logits.expand(num_candidates, -1)
    cache = Cache(layers=[RoomyLayer(layer, num_candidates, num_tokens) for layer in cache.layers])
    codes = torch.empty(num_candidates, 0, dtype=torch.int64, device=prompt_ids.device)
    for position in range(num_tokens):
        if position > 0:
            with family.image_logits(model):
                ids = tokens[codes[:, -1:]]
                logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            logits = logits[:, -1, tokens]
        if not logits.isfinite().all():
            raise ValueError(f"Logits are not finite at image token {position}.")
        codes = torch.cat([codes, pick_codes(logits.double() / temperature, uniforms[:, position])[:, None]], dim=1)
    return codes
