"""Render and compare finds where in a picture the things lie that an action moved."""

import numpy as np
import pytest

from training.playroom.episodes import play_episode
from training.playroom.render_and_compare import (
    descend,
    moved_poses,
    nearest_rendering,
    renderings_near,
    scatter,
    unlikeness,
)
from training.playroom.scenes import sample_scene


@pytest.fixture(scope="module")
def episode(rooms):
    episode = play_episode(rooms[0], "train", 0, 96)
    rooms[1].load(sample_scene(episode.seed))
    return episode


def outcome_of(episode, family):
    return next(outcome for outcome in episode.outcomes if outcome.action.family == family)


def test_a_rough_room_looks_almost_like_the_other(rooms, episode):
    for room in rooms:
        room.restore(episode.state)
    step = np.abs(rooms[0].render(96).astype(int) - rooms[1].render(96)).max(-1)
    assert 0 < (step > 30).mean() < 0.01


def test_a_thing_is_found_where_a_picture_shows_it(rooms, episode):
    room, outcome = rooms[0], outcome_of(episode, "push")
    room.restore(outcome.state)
    room.pose(room.slots[outcome.action.x])[:2] += (0.06, -0.05)
    shown = room.save()
    room.restore(shown)
    picture = room.render(96)
    found = nearest_rendering(*rooms, episode.state, outcome.state, picture, np.random.default_rng(0))
    assert unlikeness(found, picture) < 0.1 * unlikeness(outcome.after, picture)


def test_what_only_opens_stays_where_it_is(rooms, episode):
    outcome = next(outcome for outcome in episode.outcomes if outcome.action.x is None)
    noise = np.random.default_rng(0).integers(0, 256, outcome.after.shape, np.uint8)
    found = nearest_rendering(*rooms, episode.state, outcome.state, noise, np.random.default_rng(0))
    np.testing.assert_array_equal(found, outcome.after)


def test_what_is_nearby_differs_a_little(rooms, episode):
    outcome = outcome_of(episode, "push")
    states, rng = (episode.state, outcome.state), np.random.default_rng(0)
    found, *others = renderings_near(*rooms, *states, outcome.after, rng, others=4)
    distances = [unlikeness(other, found) for other in others]
    assert len(set(distances)) == 4
    assert all(0 < distance < unlikeness(outcome.after, episode.before) for distance in distances)


def test_only_what_an_action_moves_is_moved(rooms, episode):
    outcome = outcome_of(episode, "push")
    poses = moved_poses(rooms[0], episode.state, outcome.state)
    assert rooms[0].slots[outcome.action.x] in poses and len(poses) < len(rooms[0].slots) + 1


def test_the_search_ends_near_the_least_distance():
    goal = np.array([[0.05, -0.12, 0.4], [-0.2, 0.0, 1.0]])

    def distance(shifts: np.ndarray) -> float:
        return float(np.abs(shifts - goal).sum())

    rng = np.random.default_rng(0)
    shifts = scatter(distance, np.zeros((2, 3)), rng)
    scattered = distance(shifts)
    assert scattered < distance(np.zeros((2, 3)))
    assert distance(descend(distance, shifts, np.array([0.03, 0.03, 0.3]), 300, rng)) < 0.2 * scattered
