"""Teacher-forced log-probabilities against a plain forward of each sequence alone."""

import pytest
import torch

from bwm_pipelines.verification import action_log_probs
from tests.tiny import plain_logits
from training.evaluation.likelihood import image_log_probs, words_log_probs

BEFORE = torch.arange(16)
ACTIONS = ["open the door", "push the red cube to the left"]  # of different length


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))


def test_image_tokens_are_scored_among_the_codes(pipe, images):
    """One plain forward over the whole vocabulary, cut down to the image tokens as sampling does."""
    prompts = [pipe.family.forward_prompt_ids(BEFORE, action) for action in ACTIONS]
    assert len(prompts[0]) < len(prompts[1]), "equal lengths would not test the padding"
    scored = image_log_probs(pipe.family, pipe.world_model, prompts, images)
    ids = pipe.family.image_token_ids
    for log_probs, prompt, codes in zip(scored, prompts, images, strict=True):
        logits = plain_logits(pipe.world_model, torch.cat([prompt, ids[codes]]))[len(prompt) - 1 : -1, ids]
        expected = logits.log_softmax(-1)[torch.arange(16), codes]
        torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=0)


def test_words_are_scored_as_the_verifier_does(pipe, images):
    prompts = [pipe.family.inverse_prompt_ids(BEFORE, after) for after in images]
    scored = words_log_probs(pipe.family, pipe.dynamics_model, prompts, ACTIONS)
    with torch.no_grad():
        for log_probs, prompt, action in zip(scored, prompts, ACTIONS, strict=True):
            (expected,) = action_log_probs(
                lambda *arguments: pipe.family.text_step(pipe.dynamics_model, *arguments),
                prompt[None],
                pipe.family.action_ids(action),
            )
            torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=0)


def test_what_does_not_fit_into_the_context_is_refused(pipe, images):
    action = "open the door " * 20
    with pytest.raises(ValueError, match="`prompts` with what follows take .* tokens, the model reads 96"):
        image_log_probs(pipe.family, pipe.world_model, [pipe.family.forward_prompt_ids(BEFORE, action)], images[:1])
    with pytest.raises(ValueError, match="`prompts` with what follows take .* tokens, the model reads 96"):
        prompt = pipe.family.inverse_prompt_ids(BEFORE, images[0])
        words_log_probs(pipe.family, pipe.dynamics_model, [prompt], [action])
