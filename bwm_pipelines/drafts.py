"""Codes of K candidates while they are sampled: those that are decided, then guesses.

Every token of a candidate has a uniform number, so the tokens before it decide it. A guess is right or wrong, never
likely: a step computes the logits after several guesses at once, and all tokens up to the first wrong guess are what
one step a token would have given. This is Jacobi decoding (Santilli et al. 2023, arXiv 2305.10427) of the map from
uniform numbers to tokens, begun at a draft. An edit leaves most of an image as it is, so the image before is a good one.
"""

from collections import deque

import torch
from torch import Tensor
from torch.nn.functional import pad

STEPS_AHEAD = 1
"""How many steps the host is ahead of an Nvidia GPU."""


class DraftedCodes:
    """Codes of K candidates, decided or guessed; all of it stays on the device, where it is changed in place.

    Args:
        draft: guesses of the N codes, int64 [N].
        num_candidates: K.
        block: B, how many codes a step decides or guesses.

    Attributes:
        codes: int64 [K, N + B]; those from N on mean nothing.
        decided: int64 [K, 1], how many of a candidate's codes are decided.
    """

    def __init__(self, draft: Tensor, num_candidates: int, block: int):
        self.codes = pad(draft, (0, block)).repeat(num_candidates, 1)
        self.decided = torch.zeros(num_candidates, 1, dtype=torch.int64, device=draft.device)
        self._num_tokens = len(draft)
        self._block = torch.arange(block, device=draft.device)

    def next_places(self) -> Tensor:
        """Where the next step's codes stand: int64 [K, B]."""
        return self.decided + self._block

    def before(self, places: Tensor) -> Tensor:
        """The codes that stand before `places`, int64 [K, B]; there must be one before each."""
        return self.codes.gather(1, places - 1)

    def decide(self, places: Tensor, chosen: Tensor) -> None:
        """Take the codes `chosen` for `places`, int64 [K, T] each: decided as far as the guesses before them were right."""
        right = chosen == self.codes.gather(1, places)
        self.codes.scatter_(1, places, chosen)
        self.decided.add_(1 + right[:, :-1].cumprod(1).sum(1, keepdim=True)).clamp_max_(self._num_tokens)


class Progress:
    """How many codes are decided, as far as the host knows: on an Nvidia GPU it does not wait for the newest step.

    Attributes:
        least, most: of any candidate.
        steps_unknown: steps begun whose outcome is not in them.
    """

    def __init__(self, codes: DraftedCodes):
        self._decided = codes.decided
        self._waiting: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        self.least, self.most = self._bounds().tolist()

    @property
    def steps_unknown(self) -> int:
        return len(self._waiting)

    def note_step(self) -> None:
        """To be called after each step."""
        if not self._decided.is_cuda:
            self.least, self.most = self._bounds().tolist()
            return
        done = torch.cuda.Event()
        self._waiting.append((self._bounds().to("cpu", non_blocking=True), done))
        done.record()
        if len(self._waiting) > STEPS_AHEAD:
            bounds, done = self._waiting.popleft()
            done.synchronize()
            self.least, self.most = bounds.tolist()

    def _bounds(self) -> Tensor:
        return torch.stack(self._decided.aminmax())
