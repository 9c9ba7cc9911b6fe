"""Teacher forcing: the log-probability a model gives to tokens that are known, after prompts that may differ in length.

The conventions are those of use: a token of an image among the codes, as it is sampled; a token of an action as the
verifier scores it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bwm_pipelines.families.chameleon import ChameleonFamily


@torch.no_grad()
def image_log_probs(
    family: ChameleonFamily, world_model: PreTrainedModel, prompts: Sequence[Tensor], codes: Sequence[Tensor]
) -> list[Tensor]:
    """log p of each token of K images, each after its own forward prompt, by one pass over all of them.

    Args:
        family: the token layout of `world_model`.
        world_model: the forward dynamics model.
        prompts: K times int64 [S_k], as `family.forward_prompt_ids` gives them.
        codes: K times VQ codes, int64 [N].

    Returns:
        K times float32 [N] in nats, normalised over the codes.

    Raises:
        ValueError: a sequence is longer than the model's context.
    """
    image_token_ids = family.image_token_ids.to(prompts[0].device)

    def logits(ids: Tensor, num_logits: int) -> Tensor:
        with family.image_logits(world_model):
            return world_model(input_ids=ids, use_cache=False, logits_to_keep=num_logits).logits[..., image_token_ids]

    _check_context(world_model, max(map(len, prompts)) + family.num_image_tokens)
    return _log_probs(logits, prompts, [image_token_ids[one] for one in codes], codes, family.tokenizer.pad_token_id)


@torch.no_grad()
def words_log_probs(
    family: ChameleonFamily, dynamics_model: PreTrainedModel, prompts: Sequence[Tensor], actions: Sequence[str]
) -> list[Tensor]:
    """log p of each token of K actions, each after its own inverse prompt, by one pass over all of them.

    Args:
        family: the token layout of `dynamics_model`.
        dynamics_model: the inverse dynamics model.
        prompts: K times int64 [S_k], as `family.inverse_prompt_ids` gives them.
        actions: K actions in words.

    Returns:
        K times float32 [A_k] in nats, the last for eos.

    Raises:
        ValueError: a sequence is longer than the model's context.
    """
    words = [family.action_ids(action).to(prompts[0].device) for action in actions]
    _check_context(dynamics_model, max(len(p) + len(a) for p, a in zip(prompts, words, strict=True)))
    return _log_probs(
        lambda ids, num_logits: family.text_step(dynamics_model, ids, None, num_logits)[0],
        prompts,
        words,
        words,
        family.tokenizer.pad_token_id,
    )


def _check_context(model: PreTrainedModel, length: int) -> None:
    if length > (context := model.config.max_position_embeddings):
        raise ValueError(
            f"`prompts` with what follows take {length} tokens, the model reads {context}; shorten the action."
        )


def _log_probs(
    logits: Callable[[Tensor, int], Tensor],
    prompts: Sequence[Tensor],
    answers: Sequence[Tensor],
    labels: Sequence[Tensor],
    pad_token_id: int,
) -> list[Tensor]:
    """`answers` are token ids, `labels` their places among the logits."""
    sequences = [torch.cat([prompt, answer[:-1]]) for prompt, answer in zip(prompts, answers, strict=True)]
    # Padded on the right without a mask: attention is causal, so nothing that is scored sees the padding.
    ids = pad_sequence(sequences, batch_first=True, padding_value=pad_token_id)
    first = min(len(prompt) for prompt in prompts) - 1
    kept = logits(ids, ids.shape[1] - first)
    starts = [len(prompt) - 1 - first for prompt in prompts]
    return [
        row[start : start + len(label)].float().log_softmax(-1).gather(-1, label[:, None]).squeeze(-1)
        for row, start, label in zip(kept, starts, labels, strict=True)
    ]
