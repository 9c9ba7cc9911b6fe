"""Verification: how probable is the action between two images, to the inverse dynamics model?

Candidates are ranked by log p(action | before, candidate) (arXiv 2506.06006, section 3.3). The score is the mean over
the action's tokens, eos included, in nats: the action is the same for all candidates, so its length cannot change the
ranking. The margin is the score minus that of the image before as its own after, "nothing changed": a candidate that
does not beat it shows no sign of the action.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from bwm_pipelines.families import ChameleonFamily

TextStep = Callable[[Tensor, Cache | None, int], tuple[Tensor, Cache]]
"""(ids int64 [B, S], cache or None, L) -> (logits over the vocabulary at the last L positions [B, L, V], cache)."""


class Ranking(NamedTuple):
    """Candidates ranked by their scores.

    `scores` and `margins` are in nats and in the order the candidates were given. `order` lists candidates best first,
    without the `excluded` ones, whose scores are not finite. `changed` says whether any candidate beats
    `unchanged_score`.
    """

    order: list[int]
    scores: list[float]
    margins: list[float]
    unchanged_score: float
    changed: bool
    excluded: list[int]


def action_log_probs(
    step: TextStep,
    prompts: Tensor,
    action_ids: Tensor,
    *,
    candidate_batch_size: int | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Tensor:
    """Log-probability of each token of one action after each of K prompts, by one teacher-forced pass.

    What the prompts have in common at their start (the image before) is computed, and kept, once.

    Args:
        step: one forward pass, see `TextStep`.
        prompts: int64 [K, S].
        action_ids: int64 [A], the last is eos.
        candidate_batch_size: prompts that run at once; None for all K.
        on_chunk: called after every such batch with the number of its prompts; what it raises ends the scoring.

    Returns:
        float32 [K, A] in nats.
    """
    action_ids = action_ids.to(prompts.device)
    shared = min(_common_prefix_length(prompts), prompts.shape[1] - 1)
    _, prefilled = step(prompts[:1, :shared], None, 1)
    prefix = Cache(layers=[_PrefixLayer(layer) for layer in prefilled.layers])
    chunks = []
    for chunk in prompts[:, shared:].split(candidate_batch_size or len(prompts)):
        actions = action_ids.expand(len(chunk), -1)
        ids = torch.cat([chunk, actions[:, :-1]], dim=1)
        logits, _ = step(ids, prefix, len(action_ids))
        chunks.append(logits.float().log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1))
        if on_chunk is not None:
            on_chunk(len(chunk))
    return torch.cat(chunks)


def score_candidates(
    family: ChameleonFamily,
    model: PreTrainedModel,
    before_codes: Tensor,
    candidate_codes: Tensor,
    action: str,
    *,
    candidate_batch_size: int | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Ranking:
    """Score and rank candidates by the action's probability to a dynamics model.

    Args:
        family: the token layout of `model`.
        model: the inverse dynamics model.
        before_codes: int64 [N].
        candidate_codes: int64 [K, N] on the same device.
        action: the action in words.
        candidate_batch_size, on_chunk: see `action_log_probs`.

    Raises:
        ValueError: see `rank`.
    """
    afters = torch.cat([before_codes[None], candidate_codes])
    log_probs = action_log_probs(
        lambda ids, cache, num_logits: family.text_step(model, ids, cache, num_logits),
        family.inverse_prompt_ids(before_codes, afters),
        family.action_ids(action),
        candidate_batch_size=candidate_batch_size,
        on_chunk=on_chunk,
    )
    scores = log_probs.mean(-1)
    # A copy has a margin of exactly 0: rounding, which depends on the batch, must not let it beat "nothing changed".
    scores[(afters == before_codes).all(-1)] = scores[0]
    unchanged_score, *scores = scores.tolist()
    return rank(scores, unchanged_score)


def rank(scores: list[float], unchanged_score: float) -> Ranking:
    """Rank candidates by their scores; equal ones keep their order.

    Raises:
        ValueError: the score of "nothing changed", or every candidate's, is not finite.
    """
    finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
    if not finite or not math.isfinite(unchanged_score):
        raise ValueError(
            "`dynamics_model` gave no finite score to any candidate or to the unchanged image; its weights are damaged "
            "or its dtype overflows, load it in float32 or bfloat16."
        )
    order = sorted(finite, key=lambda i: -scores[i])
    return Ranking(
        order=order,
        scores=scores,
        margins=[score - unchanged_score for score in scores],
        unchanged_score=unchanged_score,
        changed=scores[order[0]] > unchanged_score,
        excluded=[i for i in range(len(scores)) if i not in finite],
    )


def greedy_actions(
    step: TextStep,
    prompts: Tensor,
    *,
    eos_token_id: int,
    image_token_ids: Tensor,
    max_new_tokens: int,
    on_token: Callable[[], None] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """After each of B prompts the likeliest token, one after another, until eos.

    Args:
        step: one forward pass, see `TextStep`.
        prompts: int64 [B, S].
        eos_token_id: ends an action, and belongs to it.
        image_token_ids: never chosen, as they are no words.
        max_new_tokens: where to stop if eos does not come.
        on_token: called after every token of the batch; what it raises ends the search.

    Returns:
        For each prompt, tokens int64 [A] and their log-probabilities float32 [A] in nats, on the CPU. If logits are not
        finite the action ends there, and the last of its log-probabilities is NaN.
    """
    image_token_ids = image_token_ids.to(prompts.device)
    tokens, log_probs = prompts[:, :0], prompts[:, :0].float()
    lengths = torch.zeros_like(prompts[:, 0])
    running = torch.ones_like(lengths, dtype=torch.bool)
    ids, cache = prompts, None
    while running.any() and tokens.shape[1] < max_new_tokens:
        logits, cache = step(ids, cache, 1)
        log_p = logits[:, -1].float().log_softmax(-1)
        ids = log_p.index_fill(1, image_token_ids, -math.inf).argmax(-1, keepdim=True)
        finite = logits[:, -1].isfinite().all(-1)
        tokens = torch.cat([tokens, ids], dim=1)
        log_probs = torch.cat([log_probs, log_p.gather(1, ids).where(finite[:, None], math.nan)], dim=1)
        lengths += running
        # Rows that have ended run on beside the others; what they say from here on is cut off below.
        running &= finite & (ids[:, 0] != eos_token_id)
        if on_token is not None:
            on_token()
    return [
        (row[:length].cpu(), row_log_probs[:length].cpu())
        for row, row_log_probs, length in zip(tokens, log_probs, lengths.tolist(), strict=True)
    ]


class _PrefixLayer(DynamicLayer):
    """Keys and values of a prefix [1, heads, length, dim], one and the same for every row and every forward pass.

    Prefix and rows meet only while a layer attends, so that at most one layer's worth of copies exists at a time.
    """

    def __init__(self, prefilled: DynamicLayer):
        super().__init__()
        self.lazy_initialization(prefilled.keys, prefilled.values)
        self.keys, self.values = prefilled.keys, prefilled.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def _common_prefix_length(rows: Tensor) -> int:
    return int((rows == rows[:1]).all(0).cumprod(0).sum())
