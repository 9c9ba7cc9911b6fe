import pytest
import torch
from torch.distributions import Categorical

from bwm_pipelines import ChameleonWorldModelPipeline
from training.policy_gradient import HOPELESS, TEMPERATURE, advantages, draw, negated_reward, rewards
from training.sequences import load_codes


@pytest.fixture(scope="module")
def pipe(checkpoint_folder):
    return ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder)


@pytest.fixture(scope="module")
def scene(codes_folder):
    """Before and after of an action that changes several patches."""
    scenes = (
        (torch.tensor(s["before"]), torch.tensor(after)) for s in load_codes(codes_folder) for after in s["after"]
    )
    return next((before, after) for before, after in scenes if (before != after).sum() > 3)


def test_the_true_image_earns_all_and_an_unchanged_copy_nothing(pipe, scene):
    before, after = scene
    assert rewards(pipe.family, torch.stack([after, before]), before, after).tolist() == [1.0, 0.0]


def test_a_reward_falls_with_the_error_relative_to_the_change(pipe, scene):
    before, after = scene
    nearly = after.clone()
    nearly[-1] = (nearly[-1] + 1) % pipe.vqgan.config.num_vq_embeddings
    shown = pipe.family.decode_image(torch.stack([before, after, nearly]))
    error = (shown[2] - shown[1]).abs().sum() / (shown[1] - shown[0]).abs().sum()
    (earned,) = rewards(pipe.family, nearly[None], before, after).tolist()
    assert earned == pytest.approx(max(0, 1 - error.item() / HOPELESS), abs=1e-5) and earned < 1


def test_where_nothing_changes_only_the_same_image_earns(pipe, scene):
    before, after = scene
    assert rewards(pipe.family, torch.stack([before, after]), before, before).tolist() == [1.0, 0.0]


def test_an_advantage_is_over_the_mean_of_the_others():
    assert advantages(torch.tensor([1.0, 0.5, 0.0])).tolist() == pytest.approx([0.75, 0.0, -0.75])


def test_the_loss_is_the_reward_and_pushes_towards_what_earned_more():
    log_probs = torch.tensor([-3.0, -1.0], requires_grad=True)
    loss = negated_reward(log_probs, torch.tensor([1.0, 0.5]))
    loss.backward()
    assert loss.item() == pytest.approx(-0.75)
    assert log_probs.grad.tolist() == pytest.approx([-0.25, 0.25])


def test_what_is_rewarded_becomes_likely():
    torch.manual_seed(0)
    logits = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(100):
        drawn = Categorical(logits=logits.detach()).sample((8,))
        negated_reward(logits.log_softmax(-1)[drawn], (drawn == 3).float()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert logits.softmax(-1)[3] > 0.9


def test_draws_follow_the_model(pipe, scene):
    """The first code of many draws against its probabilities."""
    torch.manual_seed(0)
    before, _ = scene
    family, model = pipe.family, pipe.world_model.eval()
    prompt = family.forward_prompt_ids(before, "open the door")
    with torch.no_grad(), family.image_logits(model):
        logits = model(input_ids=prompt[None]).logits[0, -1, family.image_token_ids]
    expected = (logits / TEMPERATURE).softmax(-1)
    drawn = draw(family, model, prompt, before, 2000)
    frequencies = torch.bincount(drawn[:, 0], minlength=len(expected)) / len(drawn)
    assert drawn.shape == (2000, family.num_image_tokens)
    assert (frequencies - expected).abs().max() < 4 * (expected * (1 - expected) / len(drawn)).sqrt().max() + 1e-3
