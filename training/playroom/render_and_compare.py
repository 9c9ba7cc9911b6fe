"""Render and compare: the rendering of an outcome that is nearest to a picture of it.

What a world model imagines lies a little elsewhere than what happened, and is bent or melted in places. The things that the
action moved are moved and turned here until the room looks most like that picture: whole things, where they were imagined.
"""

from collections.abc import Callable

import cv2
import mujoco
import numpy as np

from training.playroom.room import Room, State

SCATTER = np.array([0.09, 0.09, 0.9])  # m, m, rad: standard deviations around where a thing came to rest
STEP, LAST_STEP = SCATTER / 3, SCATTER / 10
TRIES, STEPS, LAST_STEPS = 26, 75, 12  # renderings: the first two for each thing
AROUND = np.array([0.008, 0.008, 0.12])  # m, m, rad: standard deviations of what is near, times one of `SPREADS`
SPREADS = 0.6, 1.2, 2.4
MOVED, TURNED = 0.008, 0.05  # m and entries of a quaternion: more than what shivers in place
BLUR, BLUR_WEIGHT = 7, 0.7  # pixels; blurred, a thing a little beside its place is nearer than one far from it

Distance = Callable[[np.ndarray], float]  # of shifts [things, 3]: x and y in m, angle in rad


def nearest_rendering(
    room: Room, sketch: Room, before: State, after: State, picture: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The first of `renderings_near`, uint8 [size, size, 3]."""
    return renderings_near(room, sketch, before, after, picture, rng)[0]


def renderings_near(
    room: Room,
    sketch: Room,
    before: State,
    after: State,
    picture: np.ndarray,
    rng: np.random.Generator,
    others: int = 0,
) -> np.ndarray:
    """Shifts and turns what differs between two states until the second one looks most like a picture.

    Args:
        room: renders the nearest one.
        sketch: a room with the same scene that renders faster (`Room(rough=True)`), for most of the search and the others.
        before, after: states of the scene; what lies alike in both stays where it is.
        picture: uint8 [size, size, 3].
        others: so many renderings more, of places and turns at random around the nearest.

    Returns:
        uint8 [1 + others, size, size, 3], the nearest one first. If only the door, the drawer or the lamp changed, all show
        `after`.
    """
    poses, size = moved_poses(room, before, after), len(picture)

    def distance_in(room: Room) -> Distance:
        room.restore(after)
        return lambda shifts: unlikeness(_render(room, poses, shifts, size), picture)

    shifts = np.zeros((len(poses), 3))
    if poses:
        shifts = scatter(distance_in(sketch), shifts, rng)
        shifts = descend(distance_in(sketch), shifts, STEP, STEPS * len(poses), rng)
        shifts = descend(distance_in(room), shifts, LAST_STEP, LAST_STEPS, rng)
    room.restore(after)
    sketch.restore(after)
    around = shifts + rng.normal(size=(others, *shifts.shape)) * AROUND * rng.choice(SPREADS, size=(others, 1, 1))
    return np.stack([_render(room, poses, shifts, size), *(_render(sketch, poses, one, size) for one in around)])


def moved_poses(room: Room, before: State, after: State) -> dict[str, np.ndarray]:
    """Poses [7] in the state `after` of the bowl and the things that lie elsewhere than in the state `before`."""
    names = [*room.slots.values(), "bowl"]
    room.restore(before)
    old = {name: room.pose(name).copy() for name in names}
    room.restore(after)
    new = {name: room.pose(name).copy() for name in names}
    limits = np.array([MOVED] * 3 + [TURNED] * 4)
    return {name: pose for name, pose in new.items() if (np.abs(pose - old[name]) > limits).any()}


def unlikeness(rendering: np.ndarray, picture: np.ndarray) -> float:
    """Sum of absolute differences of two uint8 pictures [H, W, 3], and of what is left of them when they are blurred."""
    blurred, other = (cv2.blur(one.astype(np.float32), (BLUR, BLUR)) for one in (rendering, picture))
    return float(cv2.absdiff(rendering, picture).sum() + BLUR_WEIGHT * np.abs(blurred - other).sum())


def scatter(distance: Distance, shifts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The best of random shifts [things, 3], one thing after the other."""
    best = distance(shifts)
    for thing in range(len(shifts)):
        tries = np.repeat(shifts[None], TRIES, axis=0)
        tries[:, thing] += rng.normal(size=(TRIES, 3)) * SCATTER
        distances = [distance(one) for one in tries]
        if min(distances) < best:
            best, shifts = min(distances), tries[np.argmin(distances)]
    return shifts


def descend(
    distance: Distance, shifts: np.ndarray, step: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Takes `count` random steps of one thing each, and those back that lead away; they grow and shrink with success."""
    best, scale = distance(shifts), 1.0
    for _ in range(count):
        moved = shifts.copy()
        moved[rng.integers(len(shifts))] += rng.normal(size=3) * scale * step * (rng.random(3) < 0.7)
        if (found := distance(moved)) < best:
            best, shifts, scale = found, moved, min(1.15 * scale, 3.0)
        else:
            scale *= 0.965
    return shifts


def _render(room: Room, poses: dict[str, np.ndarray], shifts: np.ndarray, size: int) -> np.ndarray:
    for (name, pose), (x, y, angle) in zip(poses.items(), shifts, strict=True):
        turn = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        room.pose(name)[:2] = pose[:2] + (x, y)
        mujoco.mju_mulQuat(room.pose(name)[3:], turn, pose[3:])
    mujoco.mj_forward(room.model, room.data)
    return room.render(size)
