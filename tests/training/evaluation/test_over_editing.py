import numpy as np

from training.evaluation.over_editing import changed_elsewhere, is_clean

BEFORE = np.zeros((64, 64, 3), np.uint8)
TRUTH = BEFORE.copy()
TRUTH[28:36, 28:36] = 255


def picture(*patches):
    image = TRUTH.copy()
    for top, left in patches:
        image[top : top + 8, left : left + 8] = 255
    return image / 255


def test_only_what_lies_away_from_the_true_change_counts():
    shares = [
        changed_elsewhere(picture(*patches), TRUTH / 255, BEFORE, TRUTH) for patches in ([], [(24, 24)], [(0, 0)])
    ]
    assert shares == [0, 0, 64 / 64**2]
    assert [is_clean(share) for share in shares] == [True, True, False]


def test_a_change_that_is_left_out_is_no_over_editing():
    assert changed_elsewhere(BEFORE / 255, TRUTH / 255, BEFORE, TRUTH) == 0


def test_what_the_tokenizer_does_to_the_picture_does_not_count():
    blurred = TRUTH / 255 + 0.5
    assert changed_elsewhere(blurred, blurred, BEFORE, TRUTH) == 0
