"""Episodes: every chosen action played from one state, with the pictures before and after."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from training.playroom.actions import Action
from training.playroom.physics import play
from training.playroom.room import Room, State
from training.playroom.scenes import is_held_out, sample_scene, scene_seed

# An outcome counts as visible when this share of the picture differs by more than VISIBLE_STEP grey levels (of 255).
VISIBLE_SHARE, VISIBLE_STEP = 0.004, 40
MOVED = 0.015  # m, more than what shivers in place
OVERSAMPLED = {"knock over": 3.0, "stack": 2.0, "put in drawer": 2.0, "push": 4.0}  # weight of a verb family, else 1


@dataclass(frozen=True)
class Outcome:
    """What the room looks like after an action; `after` is uint8 [size, size, 3], of the room's `state`."""

    action: Action
    after: np.ndarray
    state: State


@dataclass(frozen=True)
class Episode:
    """One state and the outcomes of actions played from it; `before` is uint8 [size, size, 3], of the room's `state`."""

    seed: int
    before: np.ndarray
    state: State
    outcomes: tuple[Outcome, ...]


def visibly_different(a: np.ndarray, b: np.ndarray) -> bool:
    """True if a person would see that two uint8 pictures [H, W, 3] differ."""
    step = np.abs(a.astype(np.int16) - b).max(axis=-1)
    return bool((step > VISIBLE_STEP).mean() > VISIBLE_SHARE)


def play_episode(
    room: Room,
    split: str,
    index: int,
    size: int,
    max_actions: int | None = None,
    earlier: int = 0,
    colliding: bool = False,
) -> Episode:
    """Plays actions of scene `index` of a split, each from the same state, and photographs the visible outcomes.

    With `max_actions` a random choice is played, balanced over verbs; otherwise every possible action. Training episodes
    leave out the held-out combinations. The state is the scene's first one, or that after `earlier` random actions, which
    nobody commands or sees: then things may lie, be stacked or in the bowl from the start. If `colliding`, only actions are
    played that move another thing as well, of which a scene may have none.
    """
    seed = scene_seed(split, index)
    room.load(sample_scene(seed))
    for action_rng in np.random.default_rng([seed, 6]).spawn(earlier):
        play(room, *choose_balanced(action_rng, room.possible_actions(), 1))
    state, before = room.save(), room.render(size)
    actions = [a for a in room.possible_actions() if split != "train" or not commands_held_out(a)]
    if colliding:
        actions = [action for action in actions if moves_another(room, state, action)]
    if max_actions is not None:
        actions = choose_balanced(np.random.default_rng([seed, 1]), actions, max_actions)
    return Episode(seed, before, state, visible_outcomes(room, state, before, actions))


def visible_outcomes(room: Room, state: State, before: np.ndarray, actions: list[Action]) -> tuple[Outcome, ...]:
    """Plays each action from `state`, of which `before` is the picture; those whose outcome nobody would see are left out."""
    outcomes = []
    for action in actions:
        room.restore(state)
        play(room, action)
        after = room.render(before.shape[0])
        if visibly_different(before, after):
            outcomes.append(Outcome(action, after, room.save()))
    return tuple(outcomes)


def moves_another(room: Room, state: State, action: Action) -> bool:
    """True if the action, played from `state`, moves a thing that it is not about by more than `MOVED`."""
    room.restore(state)
    others = [room.pose(slot)[:3] for noun, slot in room.slots.items() if noun != action.x]
    before = [place.copy() for place in others]
    play(room, action)
    return any(np.linalg.norm(place - old) > MOVED for place, old in zip(others, before, strict=True))


def commands_held_out(action: Action) -> bool:
    """True if the action is a held-out combination of verb, colour and shape."""
    return action.x is not None and is_held_out(action.family, *action.x.split())


def choose_balanced(rng: np.random.Generator, actions: list[Action], count: int) -> list[Action]:
    """Up to `count` different actions, so that rare verbs are not drowned by the many pushes."""
    if not actions:
        return []
    by_family = defaultdict(list)
    for action in actions:
        by_family[action.family].append(action)
    weights = np.array([OVERSAMPLED.get(a.family, 1.0) / len(by_family[a.family]) for a in actions])
    picks = rng.choice(len(actions), size=min(count, len(actions)), replace=False, p=weights / weights.sum())
    return [actions[i] for i in picks]
