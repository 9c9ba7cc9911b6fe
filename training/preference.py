"""Preferences among a world model's own draws: those nearer to the true outcome are to become likelier than the others.

Cross-entropy judges code by code, given true ones before it; what people see is a whole picture that goes on from codes that
were drawn. Direct preference optimisation (Rafailov et al., arXiv 2305.18290) on pairs of draws of one action, which
`training.draws` wrote with their errors, beside the negative log-likelihood of the better one (Pang et al., arXiv
2404.19733), which keeps it from becoming less likely as well. Not of the paper.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid

from bwm_pipelines.families import ChameleonFamily
from training.sequences import IGNORED, load_codes

GOOD = 0.4  # error, as a share of the change, up to which a draw can be preferred
GAP = 0.1  # in error between the two of a pair


def pairs_of(errors: list[float]) -> list[tuple[int, int]]:
    """Which of K draws to prefer to which: (better, worse) indices of those that differ by `GAP` and more."""
    return [
        (better, worse)
        for better, good in enumerate(errors)
        for worse, bad in enumerate(errors)
        if good <= GOOD and bad - good >= GAP
    ]


@dataclass
class PairCollator:
    """Draws one pair of each row and lays it out as two forward sequences that begin alike.

    What is drawn depends on seed, epoch and rows only, so that a resumed training sees what an undisturbed one sees.
    """

    family: ChameleonFamily
    seed: int = 0
    epoch: int = 0

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        """Returns `input_ids` and `labels`, int64 [pairs, 2, length], the better first, and their `log_probs`, float [pairs, 2]."""
        rng = random.Random(f"{self.seed} {self.epoch} {[(row['scene'], row['action']) for row in rows]}")
        pairs = [rng.choice(pairs_of(row["error"])) for row in rows]
        sequences = [self._sequence(row, i) for row, pair in zip(rows, pairs, strict=True) for i in pair]
        fill = self.family.tokenizer.pad_token_id, IGNORED
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=value).view(len(rows), 2, -1)
            for column, value in zip(zip(*sequences, strict=True), fill, strict=True)
        )
        log_probs = [[row["log_prob"][i] for i in pair] for row, pair in zip(rows, pairs, strict=True)]
        return {"input_ids": ids, "labels": labels, "log_probs": torch.tensor(log_probs)}

    def _sequence(self, row: dict, i: int) -> tuple[Tensor, Tensor]:
        prompt = self.family.forward_prompt_ids(torch.tensor(row["before"]), row["action"])
        answer = self.family.image_token_ids[torch.tensor(row["drawn"][i])]
        return torch.cat([prompt, answer]), torch.cat([torch.full_like(prompt, IGNORED), answer])


def preference_losses(log_probs: Tensor, reference: Tensor, tokens: int, beta: float) -> Tensor:
    """The loss of each pair.

    Args:
        log_probs: of the better and the worse image by the model that is trained, float [pairs, 2], in nats.
        reference: the same by the model that drew them.
        tokens: of one image: the likelihood of the better one counts by the token.
        beta: how strongly the two models are held together.

    Returns:
        float [pairs].
    """
    better, worse = (log_probs - reference).unbind(1)
    return -logsigmoid(beta * (better - worse)) - log_probs[:, 0] / tokens


def load_draws(folder: str | Path) -> Dataset:
    """Rows that `training.draws` wrote and that hold a pair.

    Raises:
        ValueError: the folder holds no shards, or no pair.
    """
    rows = load_codes(folder)
    rows = rows.select([i for i, errors in enumerate(rows["error"][:]) if pairs_of(errors)])
    if not len(rows):
        raise ValueError(f"No two draws in {str(folder)!r} differ by {GAP} with the better one within {GOOD}.")
    return rows
