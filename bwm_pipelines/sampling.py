"""Sampling of image tokens: the prompt is read once for all candidates, then one token at a time by inverse CDF.

What the model computes for a token is the family's, see `ChameleonFamily.prefill` and `continue_prompts`. Every candidate has uniform numbers of its own, so that candidate i is the same image however many others are sampled
beside it (in fp32 on one device; in bf16 logits depend on the batch shape).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bwm_pipelines.compilation import Recorded
from bwm_pipelines.families import ChameleonFamily

WINDOW = 256
"""A compiled step attends to the tokens drawn so far, rounded up to a multiple of this."""


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
    # Logits that are not finite are reported later; until then they must not give a code that does not exist.
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def sample_codes(
    family: ChameleonFamily,
    model: PreTrainedModel,
    prompt_ids: Tensor,
    *,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float = 1.0,
    unconditional_ids: Tensor | None = None,
    candidate_batch_size: int | None = None,
    on_token: Callable[[Tensor], None] | None = None,
    compiled: bool | None = None,
) -> Tensor:
    """Sample K continuations of N image tokens that share one prompt.

    Args:
        family: the token layout of `model`.
        model: the world model.
        prompt_ids: int64 [S].
        uniforms: float64 [K, N] in [0, 1).
        temperature: divides the logits; 0 takes the likeliest token.
        top_k, top_p: see `filter_logits`; None for no limit.
        guidance_scale: g in unconditional + g * (conditional - unconditional), on logits; 1 is no guidance.
        unconditional_ids: the prompt without its action, int64 [S']; needed if `guidance_scale` is not 1.
        candidate_batch_size: candidates that run at once; None for all K.
        on_token: called after every token of a chunk of k candidates with their codes so far, int64 [k, t]; what it
            raises ends the sampling.
        compiled: whether the step is compiled, and on an Nvidia GPU recorded as CUDA graphs; None for where it pays,
            on an Nvidia GPU. Changes nothing but the time.

    Returns:
        Codes, int64 [K, N], on the device of `prompt_ids`.

    Raises:
        ValueError: the logits are not finite.
    """
    device = prompt_ids.device
    compiled = device.type == "cuda" if compiled is None else compiled
    # Apple's GPUs know no float64: there the picking is done on the CPU.
    uniforms = uniforms if device.type == "mps" else uniforms.to(device)
    guided = guidance_scale != 1 and unconditional_ids is not None
    prompts = [prompt_ids, unconditional_ids] if guided else [prompt_ids]
    prompt_logits, caches = zip(*(family.prefill(model, ids) for ids in prompts), strict=True)

    def sample_chunk(uniforms: Tensor) -> Tensor:
        num_candidates, num_tokens = uniforms.shape
        step = family.continue_prompts(model, caches, num_candidates, num_tokens - 1, compiled=compiled)
        codes = torch.zeros(num_candidates, num_tokens, dtype=torch.int64, device=device)
        sums = uniforms.new_zeros(num_tokens)
        # On the device, like all that changes from token to token: nothing waits, and a CUDA graph can be replayed.
        position = torch.zeros(1, dtype=torch.int64, device=device)

        def draw(logits: Tensor) -> None:
            """Codes at `position` from logits [R, C]."""
            logits = _guide(logits.unflatten(0, (len(prompts), -1)), guidance_scale).to(uniforms)
            place = position.to(uniforms.device)
            sums.index_copy_(0, place, logits.sum().reshape(1))
            drawn = _next_codes(logits, uniforms.index_select(1, place).squeeze(1), temperature, top_k, top_p)
            codes.index_copy_(1, position, drawn[:, None].to(device))

        def advance(window: int) -> None:
            """From the codes at `position` to those after it."""
            logits = step(codes.index_select(1, position).squeeze(1), position, window)
            position.add_(1)
            draw(logits)

        if device.type == "cuda" and compiled and step.fixed_windows:
            advance = Recorded(advance, position)
        draw(torch.cat([logits.expand(num_candidates, -1) for logits in prompt_logits]))
        for length in range(1, num_tokens + 1):
            if length > 1:
                advance(_window(length - 1, num_tokens - 1) if step.fixed_windows else length - 1)
            if on_token is not None:
                on_token(codes[:, :length])
        _check_finite(sums)
        return codes

    return torch.cat([sample_chunk(chunk) for chunk in uniforms.split(candidate_batch_size or len(uniforms))])


def _window(length: int, limit: int) -> int:
    """`length` rounded up, so that a step of fixed shapes serves many tokens."""
    return min(math.ceil(length / WINDOW) * WINDOW, limit)


def _guide(logits: Tensor, scale: float) -> Tensor:
    """Logits [1, K, C], or [2, K, C] with and without the action -> [K, C]."""
    if len(logits) == 1:
        return logits[0]
    conditional, unconditional = logits.float()
    return unconditional + scale * (conditional - unconditional)


def _next_codes(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return pick_codes(filter_logits(logits / temperature, top_k, top_p), uniforms)


def _check_finite(sums: Tensor) -> None:
    """Raise unless the sum of every token's logits, [N], is finite."""
    failed = (~sums.isfinite()).nonzero().flatten().tolist()
    if failed:
        raise ValueError(
            f"`world_model` gave logits that are not finite at image token {failed[0]}; its weights are "
            "damaged or its dtype overflows, load it in float32 or bfloat16."
        )
