import numpy as np

from training.evaluation.over_editing import changed_elsewhere, is_clean, is_exact, malformed, misdrawn

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


def test_misdrawn_counts_from_the_true_outcome_to_no_change():
    shifted = np.roll(TRUTH, 1, axis=1)
    errors = [misdrawn(image / 255, TRUTH / 255, BEFORE, TRUTH) for image in [TRUTH, shifted, BEFORE]]
    assert errors == [0, 16 / 64, 1]
    assert misdrawn(picture((24, 24)), TRUTH / 255, BEFORE, TRUTH) == 48 / 64
    assert misdrawn(picture((0, 0)), TRUTH / 255, BEFORE, TRUTH) == 0  # is changed elsewhere


def test_exact_pictures_are_clean_and_drawn_right():
    pictures = [TRUTH / 255, picture((0, 0)), picture((24, 24)), 0.9 * TRUTH / 255]
    assert [is_exact(image, TRUTH / 255, BEFORE, TRUTH) for image in pictures] == [True, False, False, True]


def test_an_action_that_changes_nothing_is_not_misdrawn():
    assert misdrawn(TRUTH / 255, BEFORE / 255, BEFORE, BEFORE) == 0


def test_a_thing_beside_its_place_is_well_formed():
    errors = [malformed(np.roll(TRUTH, by, axis=1) / 255, TRUTH / 255, BEFORE, TRUTH) for by in (0, 3, 5)]
    out_of_reach = 2 * 8 + 4  # two columns of the thing, and the middle of where it is not
    assert errors == [0, 0, out_of_reach / 64]


def test_half_a_thing_and_two_of_one_are_malformed():
    half, other = TRUTH.copy(), TRUTH.copy()
    half[:, 32:] = 0
    other[..., 1:] = 0  # red, which is white elsewhere
    errors = [malformed(image, TRUTH / 255, BEFORE, TRUTH) for image in (half / 255, picture((0, 0)), other / 255)]
    assert errors[:2] == [(8 + 2) / 64 / 2, (64 + 25) / 64 / 2]
    assert np.isclose(errors[2], (2 * 64 + 60 + 2 * 4) / 3 / 64 / 2)  # at its rim red is nearer to the dark floor
    nothing = malformed(BEFORE / 255, TRUTH / 255, BEFORE, TRUTH)
    assert nothing == (64 + 4) / 64 / 2  # the floor is near, but for the middle
    assert malformed(TRUTH / 255, BEFORE / 255, BEFORE, BEFORE) == 0
