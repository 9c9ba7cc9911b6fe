"""The recognition-weighted loss of the world model (Eq. 2 of the paper)."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Normalisation = Literal["none", "picture", "batch"]


@dataclass(frozen=True)
class RecognitionWeights:
    """From how much each patch changes to how much its token counts: w = floor + (1 - floor) * min(distance / scale, clip).

    The paper gives the distance only; normalisation, floor and clip are choices of ours.

    Args:
        normalisation: scale is 1 ("none"), the mean distance of each picture ("picture") or of the batch ("batch").
        floor: weight of a patch that does not change, 0 to 1. At 1 every token counts the same: the plain loss.
        clip: upper bound of the normalised distance, or None.
    """

    normalisation: Normalisation = "picture"
    floor: float = 0.1
    clip: float | None = 1.0

    def __call__(self, distance: Tensor) -> Tensor:
        """Squared L2 distance of the encoder features, float [..., N] -> weights, float [..., N]."""
        if self.normalisation == "picture":
            distance = distance / distance.mean(-1, keepdim=True).clamp_min(1e-12)
        elif self.normalisation == "batch":
            distance = distance / distance.mean().clamp_min(1e-12)
        if self.clip is not None:
            distance = distance.clamp_max(self.clip)
        return self.floor + (1 - self.floor) * distance


EVEN = RecognitionWeights(floor=1.0)


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor, weight_sum: Tensor | None = None) -> Tensor:
    """Mean token cross-entropy in nats, each token counting by its weight.

    Args:
        logits: float [T, V].
        targets: int64 [T].
        weights: float [T].
        weight_sum: what to divide by; default: the sum of `weights`. A step that is spread over accumulated batches or
            processes gives the sum over all of them.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * weights).sum() / (weights.sum() if weight_sum is None else weight_sum)
