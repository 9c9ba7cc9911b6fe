"""Scheduled sampling: training sequences that go on from the model's own draws.

When it samples, a world model goes on from codes that it drew itself and that are a little off, whereas in training all
codes before the one to predict are true; so errors add up. Here the codes of some after images are drawn by the model
(Bengio et al., arXiv 1506.03099), all of a picture at once and pass by pass (Duckworth et al., arXiv 1906.04331): each
given the ones before it, which are true in the first pass and those of the pass before in the next. What is to be
predicted stays the truth.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical

from training.sequences import IGNORED

PASSES = 2
TEMPERATURES = 0.5, 1.0  # of the draws, uniform in between


@torch.no_grad()
def draw_answers(predict: Callable[[Tensor], Tensor], ids: Tensor, labels: Tensor, share: float) -> Tensor:
    """Replaces what a model is to predict by what it would draw, in some of the sequences.

    Args:
        predict: from sequences, int64 [n, 1, length], to the logits of their last T tokens, float [n, T, vocabulary].
        ids: int64 [scenes, actions, length].
        labels: of the last T tokens, int64 [scenes * actions, T]; those that are `IGNORED` stay as they are.
        share: of the sequences, above 0, at most 1; at least one is drawn. Only these are read.

    Returns:
        int64 [scenes, actions, length].
    """
    sequences = ids.flatten(0, 1)
    chosen = torch.randperm(len(labels), device=ids.device)[: math.ceil(share * len(labels))]
    prompts, answers = sequences[chosen].tensor_split([-labels.shape[1]], dim=1)
    low, high = TEMPERATURES
    temperatures = torch.empty(len(chosen), 1, 1, device=ids.device).uniform_(low, high)
    predicted, drawn = labels[chosen] != IGNORED, sequences[chosen]
    for _ in range(PASSES):
        draws = Categorical(logits=predict(drawn[:, None]).float() / temperatures).sample()
        drawn = torch.cat([prompts, torch.where(predicted, draws, answers)], dim=1)
    return sequences.index_copy(0, chosen, drawn).view_as(ids)
