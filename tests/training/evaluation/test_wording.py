import pytest

from training.evaluation.wording import plain, verb


@pytest.mark.parametrize(
    ("action", "source", "expected"),
    [
        ("Shut the door.", "playroom", "close the door"),
        ("Shut  the door.", "droid", "shut the door"),
        ("fly to the moon", "playroom", "fly to the moon"),
    ],
)
def test_paraphrases_are_one_action_in_the_playroom_only(action, source, expected):
    assert plain(action, source) == expected


@pytest.mark.parametrize(
    ("action", "source", "expected"),
    [
        ("slide the red cube left", "playroom", "push left"),
        ("Pick up the cube and put it down", "droid", "pick"),
        ("fly to the moon", "playroom", "fly"),
        ("", "droid", ""),
    ],
)
def test_verbs(action, source, expected):
    assert verb(action, source) == expected
