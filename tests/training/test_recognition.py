import pytest
import torch

from training.recognition import RecognitionWeights, weighted_loss

DISTANCE = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 6.0]])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (RecognitionWeights("none", floor=0.0, clip=None), [[0, 1, 3], [0, 0, 6]]),
        (RecognitionWeights("none", floor=0.0, clip=2.0), [[0, 1, 2], [0, 0, 2]]),
        (RecognitionWeights("picture", floor=0.0, clip=None), [[0, 0.75, 2.25], [0, 0, 3]]),
        (RecognitionWeights("picture", floor=0.2, clip=1.0), [[0.2, 0.8, 1], [0.2, 0.2, 1]]),
        (RecognitionWeights("batch", floor=0.0, clip=None), [[0, 0.6, 1.8], [0, 0, 3.6]]),
        (RecognitionWeights("picture", floor=1.0), [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_weights_of_a_hand_computed_example(weights, expected):
    assert torch.allclose(weights(DISTANCE), torch.tensor(expected, dtype=torch.float32))


def test_a_picture_without_change_has_finite_weights():
    assert torch.equal(RecognitionWeights(floor=0.1)(torch.zeros(2, 3)), torch.full((2, 3), 0.1))


def test_loss_of_a_hand_computed_example():
    # Two classes with log odds 0 and log 3: probabilities 1/2 and 3/4 for the first.
    logits = torch.tensor([[0.0, 0.0], [3.0, 1.0]]).log().nan_to_num(neginf=0.0)
    expected = (1.0 * torch.tensor(2.0).log() + 3.0 * torch.tensor(4 / 3).log()) / 4
    targets, weights = torch.tensor([0, 0]), torch.tensor([1.0, 3.0])
    assert torch.allclose(weighted_loss(logits, targets, weights), expected)


def test_parts_of_a_step_add_up_to_the_whole_step():
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(6, 4), torch.randint(4, (6,)), torch.rand(6)
    parts = [
        weighted_loss(*(x[half] for x in (logits, targets, weights)), weights.sum())
        for half in (slice(2), slice(2, 6))
    ]
    assert torch.allclose(sum(parts), weighted_loss(logits, targets, weights))
