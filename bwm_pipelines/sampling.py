"""Sampling of image tokens: one prefill for all candidates, then one token at a time by inverse CDF.

Every candidate has uniform numbers of its own, so that candidate i is the same image however many others are sampled
beside it (in fp32 on one device; in bf16 logits depend on the batch shape).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

Step = Callable[[Tensor, Cache | None], tuple[Tensor, Cache]]
"""(ids int64 [B, S], cache of the tokens before or None) -> (logits over the codes [B, C], cache with these tokens)."""


class Interrupted(Exception):
    """Raised out of a pipeline call whose `_interrupt` was set: nothing half-done is returned."""


def candidate_generators(generator: torch.Generator | None, num_candidates: int) -> list[torch.Generator]:
    """One CPU generator a candidate, from a single draw of `generator` (None: torch's global one).

    Candidate i's generator depends on that draw and on i only.
    """
    device = generator.device if generator is not None else "cpu"
    root = torch.Generator().manual_seed(torch.randint(2**62, (1,), generator=generator, device=device).item())
    seeds = [torch.randint(2**62, (1,), generator=root).item() for _ in range(num_candidates)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def candidate_uniforms(generators: list[torch.Generator], num_tokens: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [K, N] on the CPU, row i from generator i."""
    rows = [torch.rand(num_tokens, generator=g, device=g.device, dtype=torch.float64).cpu() for g in generators]
    return torch.stack(rows)


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Set logits [B, C] to -inf outside the `top_k` largest, and outside the fewest that reach the probability `top_p`.

    The largest logit always stays; of `top_p` the part is taken that `top_k` left.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -math.inf)
    if top_p is not None and top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        removed = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(removed, -math.inf)
    return logits


def pick_codes(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample by inverse CDF: logits float64 [B, C], uniforms float64 [B] in [0, 1) -> codes int64 [B].

    A code whose probability is 0 is never picked.
    """
    cdf = logits.softmax(-1).cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)


class _RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, length, dim] that grow within buffers made once.

    The stock layer copies everything for every token, which took most of the time of a small model on a CPU.
    """

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


def repeat_cache(cache: Cache, times: int, room: int) -> Cache:
    """A copy of a cache of batch 1 with batch `times` and room for so many more tokens; the original stays."""
    return Cache(layers=[_RoomyLayer(layer, times, room) for layer in cache.layers])


@dataclass
class _Branch:
    """A prompt being continued: logits [B, C] of its next token and the cache of all tokens before."""

    logits: Tensor
    cache: Cache

    def repeat(self, times: int, room: int) -> "_Branch":
        return _Branch(self.logits.expand(times, -1), repeat_cache(self.cache, times, room))


def sample_codes(
    step: Step,
    prefix_ids: Tensor,
    *,
    code_token_ids: Tensor,
    num_tokens: int,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float = 1.0,
    unconditional_ids: Tensor | None = None,
    candidate_batch_size: int | None = None,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Sample K continuations of N image tokens that share one prompt.

    Args:
        step: one forward pass, see `Step`.
        prefix_ids: the prompt, int64 [S].
        code_token_ids: token id of every code, int64 [C].
        num_tokens: N.
        uniforms: float64 [K, N] in [0, 1).
        temperature: divides the logits; 0 takes the likeliest token.
        top_k, top_p: see `filter_logits`; None for no limit.
        guidance_scale: g in unconditional + g * (conditional - unconditional), on logits; 1 is no guidance.
        unconditional_ids: the prompt without its action, int64 [S']; needed if `guidance_scale` is not 1.
        candidate_batch_size: candidates that run at once; None for all K.
        on_token: called after every token of a chunk of k candidates with their codes so far, int64 [k, t]; what it
            raises ends the sampling.

    Returns:
        Codes, int64 [K, N], on the device of `prefix_ids`.

    Raises:
        ValueError: the logits are not finite.
    """
    code_token_ids = code_token_ids.to(prefix_ids.device)
    # Apple's GPUs know no float64: there the picking is done on the CPU.
    uniforms = uniforms if prefix_ids.device.type == "mps" else uniforms.to(prefix_ids.device)
    guided = guidance_scale != 1 and unconditional_ids is not None
    prompts = [prefix_ids, unconditional_ids] if guided else [prefix_ids]
    prefilled = [_Branch(*step(ids[None], None)) for ids in prompts]

    def sample_chunk(uniforms: Tensor) -> Tensor:
        branches = [branch.repeat(len(uniforms), num_tokens) for branch in prefilled]
        codes = torch.empty(len(uniforms), 0, dtype=torch.int64, device=prefix_ids.device)
        for position in range(num_tokens):
            if position > 0:
                ids = code_token_ids[codes[:, -1:]]
                branches = [_Branch(*step(ids, branch.cache)) for branch in branches]
            logits = _guide(branches, guidance_scale).to(uniforms)
            if not logits.isfinite().all():
                raise ValueError(
                    f"`world_model` gave logits that are not finite at image token {position}; its weights are "
                    "damaged or its dtype overflows, load it in float32 or bfloat16."
                )
            code = _next_codes(logits, uniforms[:, position], temperature, top_k, top_p)
            codes = torch.cat([codes, code[:, None].to(codes.device)], dim=1)
            if on_token is not None:
                on_token(codes)
        return codes

    return torch.cat([sample_chunk(chunk) for chunk in uniforms.split(candidate_batch_size or len(uniforms))])


def _guide(branches: list[_Branch], scale: float) -> Tensor:
    if len(branches) == 1:
        return branches[0].logits
    conditional, unconditional = (branch.logits.float() for branch in branches)
    return unconditional + scale * (conditional - unconditional)


def _next_codes(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return pick_codes(filter_logits(logits / temperature, top_k, top_p), uniforms)
