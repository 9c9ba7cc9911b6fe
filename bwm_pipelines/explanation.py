"""Explanation of a score: which patches of the image after, and which words of the action, does it rest on?

Patches are tried by occlusion (Zeiler and Fergus, arXiv 1311.2901) on the tokens themselves: a changed patch and its
neighbours get back the codes of the image before, and what the action's log-probability loses is the evidence that
stood there. Words are read off directly, as log p(action | before, after) is a sum over the action's tokens.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from transformers import PreTrainedModel

from bwm_pipelines.families import ChameleonFamily
from bwm_pipelines.verification import action_log_probs


class Evidence(NamedTuple):
    """What a score rests on: `heatmap` float32 [grid, grid] and `log_probs` float32 [A], both in nats on the CPU.

    `unchanged_log_probs` float32 [A] are those of the image before as its own after.
    """

    heatmap: Tensor
    log_probs: Tensor
    unchanged_log_probs: Tensor


def changed_patches(before_codes: Tensor, after_codes: Tensor) -> Tensor:
    """Indices of the patches whose code changed: int64 [N] and [N] -> int64 [M]."""
    return (before_codes != after_codes).nonzero().squeeze(-1)


def occlusions(before_codes: Tensor, after_codes: Tensor, grid_size: int, window: int) -> Tensor:
    """The image after, once for each changed patch, with that patch and its neighbours as they were before.

    Args:
        before_codes, after_codes: int64 [N], N = `grid_size` squared.
        window: side, in patches, of the square around the patch; odd.

    Returns:
        int64 [M, N].
    """
    patches = changed_patches(before_codes, after_codes)
    centres = torch.zeros(len(patches), len(before_codes), device=before_codes.device)
    centres.scatter_(1, patches[:, None], 1.0)
    squares = max_pool2d(centres.reshape(-1, 1, grid_size, grid_size), window, stride=1, padding=window // 2)
    return torch.where(squares.reshape(centres.shape) > 0, before_codes, after_codes)


def gather_evidence(
    family: ChameleonFamily,
    model: PreTrainedModel,
    before_codes: Tensor,
    after_codes: Tensor,
    action: str,
    *,
    window: int = 3,
    batch_size: int | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Evidence:
    """Find where in the image after the evidence of an action lies.

    The evidence of a changed patch is the mean log p(action token | before, after) minus that with the patch and its
    neighbours undone. A patch that did not change has exactly 0.

    Args:
        family: the token layout of `model`.
        model: the inverse dynamics model.
        before_codes, after_codes: int64 [N] on the same device.
        action: the action in words.
        window: see `occlusions`.
        batch_size: images that run at once; None for all.
        on_chunk: see `action_log_probs`; it is called for M + 2 images, M the number of changed patches.

    Raises:
        ValueError: a log-probability is not finite.
    """
    undone = occlusions(before_codes, after_codes, family.grid_size, window)
    log_probs = action_log_probs(
        lambda ids, cache, num_logits: family.text_step(model, ids, cache, num_logits),
        family.inverse_prompt_ids(before_codes, torch.stack([before_codes, after_codes, *undone])),
        family.action_ids(action),
        candidate_batch_size=batch_size,
        on_chunk=on_chunk,
    ).cpu()
    if not log_probs.isfinite().all():
        raise ValueError(
            "`dynamics_model` gave log-probabilities that are not finite; its weights are damaged or its dtype "
            "overflows, load it in float32 or bfloat16."
        )
    scores = log_probs.mean(-1)
    heatmap = torch.zeros(len(before_codes))
    heatmap[changed_patches(before_codes, after_codes).cpu()] = scores[1] - scores[2:]
    return Evidence(
        heatmap=heatmap.reshape(family.grid_size, family.grid_size),
        log_probs=log_probs[1],
        unchanged_log_probs=log_probs[0],
    )


def words_of_tokens(family: ChameleonFamily, action: str) -> tuple[list[str], list[int]]:
    """The words of an action, split at white space, and the word to which each token but eos belongs."""
    words = list(re.finditer(r"\S+", action))
    starts = [word.start() for word in words]
    offsets = family.tokenizer(action, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    owners = [max(0, bisect_right(starts, max(start, end - 1)) - 1) for start, end in offsets]
    return [word.group() for word in words], owners


def sum_by_word(log_probs: Tensor, owners: list[int], num_words: int) -> list[float]:
    """Log-probability of each word: the sum over its tokens. The last of `log_probs` [A] is eos and no word's."""
    sums = torch.zeros(num_words, dtype=torch.float64)
    return sums.index_add(0, torch.tensor(owners), log_probs[:-1].double()).tolist()
