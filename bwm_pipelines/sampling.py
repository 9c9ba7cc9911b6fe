"""Sampling of image tokens: the prompt is read once for all candidates, then tokens are drawn by inverse CDF.

What the model computes for a token is the family's, see `ChameleonFamily.prefill` and `continue_prompts`. Every
candidate has uniform numbers of its own, so that candidate i is the same image however many others are sampled beside
it, and however many of its tokens a step decides, see `bwm_pipelines.drafts` (in fp32 on one device; in bf16 logits
depend on the batch shape).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bwm_pipelines.compilation import Recorded
from bwm_pipelines.drafts import DraftedCodes, Progress
from bwm_pipelines.families import ChameleonFamily

BLOCK = 12
"""Tokens of a candidate that a step computes if there is a draft."""
STEP_TOKENS = 256
"""No step computes more tokens of all candidates because of a draft: multiplying then takes longer than it saves."""
WINDOW = 256
"""A compiled step attends to the tokens drawn so far, rounded up to a multiple of this."""


class Sampled(NamedTuple):
    """What was drawn.

    Attributes:
        codes: int64 [K, N].
        features: the mean of the codebook's entries over the distribution that each code was drawn from, given the
            codes drawn before it, float [K, N, D]; None if no codebook was given.
    """

    codes: Tensor
    features: Tensor | None


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
    draft: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float = 1.0,
    unconditional_ids: Tensor | None = None,
    codebook: Tensor | None = None,
    candidate_batch_size: int | None = None,
    on_step: Callable[[Tensor, int], None] | None = None,
    compiled: bool | None = None,
) -> Sampled:
    """Sample K continuations of N image tokens that share one prompt.

    Args:
        family: the token layout of `model`.
        model: the world model.
        prompt_ids: int64 [S].
        uniforms: float64 [K, N] in [0, 1).
        draft: codes that the image probably resembles, int64 [N] on the device of `prompt_ids`: for an edit those of
            the image before. A step then decides as many tokens as were guessed right, and one. Changes nothing but
            the time.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k, top_p: see `filter_logits`; None for no limit.
        guidance_scale: g in unconditional + g * (conditional - unconditional), on logits; 1 is no guidance.
        unconditional_ids: the prompt without its action, int64 [S']; needed if `guidance_scale` is not 1.
        codebook: the image tokenizer's entries, float [C, D], if their means are wanted.
        candidate_batch_size: candidates that run at once; None for all K.
        on_step: called after a step of a chunk of k candidates with the t codes that all of them have, int64 [k, t], and
            how many of these are new; what it raises ends the sampling.
        compiled: whether the step is compiled, and on an Nvidia GPU recorded as CUDA graphs; None for where it pays,
            on an Nvidia GPU. Changes nothing but the time.

    Returns:
        Codes, and means if there is a codebook, on the device of `prompt_ids`.

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
    prompt_logits = torch.stack(prompt_logits)[:, :, None]

    def sample_chunk(uniforms: Tensor) -> Sampled:
        num_candidates, num_tokens = uniforms.shape
        affordable = max(1, STEP_TOKENS // (len(prompts) * num_candidates))
        block = 1 if draft is None else min(BLOCK, affordable)
        step = family.continue_prompts(model, caches, num_candidates, num_tokens - 1, block=block, compiled=compiled)
        guesses = torch.zeros(num_tokens, dtype=torch.int64, device=device) if draft is None else draft
        candidates = DraftedCodes(guesses, num_candidates, step.block)
        sums = uniforms.new_zeros(num_tokens + step.block)
        features = None if codebook is None else codebook.new_zeros(*candidates.codes.shape, codebook.shape[1])

        def decide(places: Tensor, logits: Tensor) -> None:
            """Codes at `places`, int64 [K, T], from logits [G, K, T, C]."""
            logits = _guide(logits, guidance_scale).to(uniforms)
            drawn = uniforms.gather(1, places.clamp_max(num_tokens - 1).to(uniforms.device))
            sums.index_add_(0, places.flatten().to(sums.device), logits.sum(-1).flatten())
            kept = _kept_logits(logits.flatten(0, 1), temperature, top_k, top_p)
            candidates.decide(places, pick_codes(kept, drawn.flatten()).view_as(drawn).to(device))
            if features is not None:
                means = kept.softmax(-1).to(codebook) @ codebook
                features.scatter_(1, places[:, :, None].expand(-1, -1, means.shape[1]), means.view(*places.shape, -1))

        def advance(window: int) -> None:
            places = candidates.next_places()
            decide(places, step(candidates.before(places), places - 1, window))

        decide(candidates.next_places()[:, :1], prompt_logits.expand(-1, num_candidates, -1, -1))
        if device.type == "cuda" and compiled and step.fixed_windows:
            advance = Recorded(advance, candidates.decided)
        progress, reported = Progress(candidates), 0
        while True:
            if on_step is not None and progress.least > reported:
                on_step(candidates.codes[:, : progress.least], progress.least - reported)
                reported = progress.least
            if progress.least == num_tokens:
                break
            reached = progress.most + step.block * (progress.steps_unknown + 1) - 1
            advance(_window(reached, num_tokens - 1, step.fixed_windows))
            progress.note_step()
        _check_finite(sums[:num_tokens])
        return Sampled(candidates.codes[:, :num_tokens], None if features is None else features[:, :num_tokens])

    chunks = [sample_chunk(chunk) for chunk in uniforms.split(candidate_batch_size or len(uniforms))]
    codes, features = zip(*chunks, strict=True)
    return Sampled(torch.cat(codes), None if codebook is None else torch.cat(features))


def _window(length: int, limit: int, fixed: bool) -> int:
    """`length`, rounded up if a step of fixed shapes is to serve many tokens."""
    return min(math.ceil(length / WINDOW) * WINDOW if fixed else length, limit)


def _guide(logits: Tensor, scale: float) -> Tensor:
    """Logits [1, ...], or [2, ...] with and without the action -> [...]."""
    if len(logits) == 1:
        return logits[0]
    conditional, unconditional = logits.float()
    return unconditional + scale * (conditional - unconditional)


def _kept_logits(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits of the distribution to draw from, [B, C]."""
    if temperature == 0:
        return torch.full_like(logits, -math.inf).scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    return filter_logits(logits / temperature, top_k, top_p)


def _check_finite(sums: Tensor) -> None:
    """Raise unless the sum of every token's logits, [N], is finite."""
    failed = (~sums.isfinite()).nonzero().flatten().tolist()
    if failed:
        raise ValueError(
            f"`world_model` gave logits that are not finite at image token {failed[0]}; its weights are "
            "damaged or its dtype overflows, load it in float32 or bfloat16."
        )
