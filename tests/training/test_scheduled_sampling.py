import pytest
import torch
import torch.nn.functional as F

from training.scheduled_sampling import draw_answers
from training.sequences import IGNORED

PROMPT, ANSWER, VOCABULARY = [7, 10], [50, 60, 70], 100
IDS = torch.tensor([[PROMPT + ANSWER, PROMPT + ANSWER]])  # a scene with two actions


def count_on(ids: torch.Tensor) -> torch.Tensor:
    """Logits of a model that is sure that each token is the one before plus 1."""
    return 1e4 * F.one_hot(ids.flatten(0, 1)[:, 1:-1] + 1, VOCABULARY).float()


def test_the_second_pass_goes_on_from_what_the_first_drew():
    labels = torch.tensor([ANSWER, ANSWER])
    drawn = draw_answers(count_on, IDS, labels, share=1.0)
    assert drawn[0].tolist() == [[7, 10, 11, 12, 52]] * 2  # the first pass drew 11, 51, 61


def test_what_is_not_predicted_stays():
    labels = torch.tensor([[50, IGNORED, 70], [IGNORED, IGNORED, IGNORED]])
    drawn = draw_answers(count_on, IDS, labels, share=1.0)
    assert drawn[0].tolist() == [[7, 10, 11, 60, 61], [7, 10, 50, 60, 70]]


@pytest.mark.parametrize("share", [0.001, 0.3])
def test_a_share_of_the_sequences_is_drawn(share):
    torch.manual_seed(0)
    labels = torch.tensor(ANSWER).repeat(2000, 1)
    drawn = draw_answers(count_on, IDS.repeat(1, 1000, 1), labels, share)
    changed = (drawn != IDS[:, :1]).any(-1).float().mean().item()
    assert changed == pytest.approx(share)
