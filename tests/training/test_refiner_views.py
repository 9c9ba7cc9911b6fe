"""A refiner sees crops around the change, mirror images and other colours, of all pictures of a row alike."""

import torch

from training import refiner_views
from training.refiner_views import CROP, Views, corner_of_crop, vary


def test_all_pictures_of_a_row_are_varied_alike(monkeypatch):
    monkeypatch.setattr(refiner_views, "CROPPED", 1.0)
    before = torch.zeros(2, 3, 96, 96)
    before[0, 0, 80:90, 80:90], before[1, 1, :10, 40:50] = 1.0, 1.0
    for seed in range(8):
        torch.manual_seed(seed)
        targets = [torch.zeros(2, 3, 96, 96), torch.zeros(1, 3, 96, 96)]
        varied = vary(Views(before, before.clone(), before - 1, targets))
        assert varied.before.shape == (2, 3, CROP, CROP) and varied.targets[0].shape == (2, 3, CROP, CROP)
        assert varied.before.sum((1, 2, 3)).tolist() == [100, 100]  # the whole change is in sight
        torch.testing.assert_close(varied.drawn, varied.before)
        torch.testing.assert_close(varied.seen, varied.before - 1)


def test_what_does_not_change_is_cropped_in_the_middle():
    picture = torch.rand(3, 96, 96)
    top, left = corner_of_crop(picture, picture)
    assert 0 <= top <= 32 and 0 <= left <= 32 and top % 8 == left % 8 == 0
