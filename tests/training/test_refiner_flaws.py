"""Flaws touch what moved, and nothing else."""

import torch

from training import refiner_flaws
from training.playroom.scenes import COLOURS
from training.refiner_flaws import bend, recolour, spoil


def a_moved_square(size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture before the action, grey, and one with a green square, float [3, size, size]."""
    before = torch.full((3, size, size), 0.1)
    after = before.clone()
    after[:, 16:32, 16:32] = 2 * torch.tensor(COLOURS["green"])[:, None, None] - 1
    return before, after


def test_only_what_moved_is_spoiled(monkeypatch):
    monkeypatch.setattr(refiner_flaws, "BENT", 1.0)
    monkeypatch.setattr(refiner_flaws, "RECOLOURED", 1.0)
    before, after = a_moved_square()
    after[:, 40, 5:45] = 1.0  # an edge that shimmers is no thing
    torch.manual_seed(0)
    spoiled = spoil(after[None].expand(4, -1, -1, -1), before[None].expand(4, -1, -1, -1))
    differs = (spoiled - after).abs().amax(1) > 1e-3
    assert differs.flatten(1).any(1).all()
    differs[:, 11:37, 11:37] = False
    assert not differs.any()


def test_recoloured_things_have_another_colour_on_one_side():
    _, after = a_moved_square()
    where = (after - 0.1).abs().amax(0) > 0.2
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        picture = recolour(after, where)
        seen |= {tuple(pixel.argsort().tolist()) for pixel in picture[:, 18:30, 18:30].flatten(1).T}
        assert picture.min() >= -1 and picture.max() <= 1
    assert {(2, 1, 0), (0, 2, 1), (0, 1, 2)} <= seen  # yellow, still green, and blue


def test_a_grey_thing_keeps_its_colour():
    before = torch.full((3, 48, 48), 0.1)
    torch.testing.assert_close(recolour(before, torch.ones(48, 48, dtype=torch.bool)), before)


def test_bent_things_stay_about_where_they_are(monkeypatch):
    _, after = a_moved_square()
    where = torch.ones(48, 48, dtype=torch.bool)
    monkeypatch.setattr(refiner_flaws, "BEND", 0.0)
    torch.testing.assert_close(bend(after, where), after, atol=1e-5, rtol=0)
    monkeypatch.setattr(refiner_flaws, "BEND", 0.7)
    torch.manual_seed(0)
    difference = (bend(after, where) - after).abs().amax(0)
    assert difference.max() > 0.1 and difference[20:28, 20:28].max() < 1e-5 and difference[:11].max() < 1e-5
