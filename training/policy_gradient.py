"""Policy gradient: what the world model draws becomes likelier the nearer it comes to the true outcome.

Cross-entropy judges code by code, given true ones before it. A picture is judged as a whole, and goes on from codes that
were drawn. So here the world model draws several after images of an action, and each is rewarded for its nearness to the
true one, in pixels: sequence-level training (Ranzato et al., arXiv 1511.06732) by REINFORCE, with the mean of an image's
rivals as its baseline (Kool et al. 2019). Not of the paper.
"""

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines.families import ChameleonFamily
from bwm_pipelines.sampling import sample_codes

TEMPERATURE = 0.7  # of the draws: a little more varied than those of the shipped checkpoint, so that some are better
HOPELESS = (
    0.5  # error, as a share of the change, from which on a picture earns nothing: not for leaving a thing out either
)


@torch.no_grad()
def draw(
    family: ChameleonFamily, model: ChameleonForConditionalGeneration, prompt: Tensor, before: Tensor, draws: int
) -> Tensor:
    """After images as `model` draws them, from torch's global generator.

    Args:
        family: the token layout of `model`.
        model: the world model.
        prompt: int64 [S], see `ChameleonFamily.forward_prompt_ids`.
        before: codes of the before image, int64 [N].
        draws: K, how many.

    Returns:
        Codes, int64 [K, N].
    """
    uniforms = torch.rand(draws, len(before), dtype=torch.float64)
    with torch.autocast(prompt.device.type, enabled=False):  # the caches of a sampler have the weights' dtype
        return sample_codes(family, model, prompt, uniforms=uniforms, draft=before, temperature=TEMPERATURE)


@torch.no_grad()
def rewards(family: ChameleonFamily, drawn: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What drawn after images earn: 1 for the true one, 0 for an error of `HOPELESS` times the change and more.

    Both are sums of absolute differences of pixels as the image tokenizer shows them. Where nothing changes, only the
    true image earns anything.

    Args:
        family: the image tokenizer.
        drawn: codes, int64 [K, N].
        before, after: codes of the true images, int64 [N].

    Returns:
        float32 [K], in [0, 1].
    """
    with torch.autocast(drawn.device.type, enabled=False):
        shown = family.decode_image(torch.cat([before[None], after[None], drawn]))
    change = (shown[0] - shown[1]).abs().sum()
    errors = (shown[2:] - shown[1]).abs().sum((1, 2, 3))
    return (1 - errors / (HOPELESS * change).clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0)


def advantages(rewards: Tensor) -> Tensor:
    """How much more each of K images earned than the mean of the others: float [K] -> float [K]."""
    return (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1)


def negated_reward(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """A loss whose value is the mean reward, negated, and whose gradient is the policy gradient's.

    Args:
        log_probs: of K drawn images, by the model that drew them, float [K]. Its gradient is used, not its value.
        rewards: float [K], K at least 2.

    Returns:
        float scalar.
    """
    surrogate = (advantages(rewards) * log_probs).mean()
    return surrogate.detach() - surrogate - rewards.mean()
