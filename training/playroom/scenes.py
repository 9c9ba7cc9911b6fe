"""What stands in the room: nouns, random arrangements, and which of them training may see."""

from dataclasses import dataclass
from itertools import product

import numpy as np

COLOURS = {
    "red": (0.86, 0.09, 0.09),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.97, 0.82, 0.06),
}
SHAPES = ("cube", "ball", "cylinder")

# Half sizes in metres. The camera shows 1.2 m across, so a cube covers about a seventh of the picture's width.
CUBE_HALF = 0.083
BALL_RADIUS = 0.095
CYLINDER_RADIUS = 0.075
CYLINDER_HALF_HEIGHT = 0.15
REST_HEIGHT = {"cube": CUBE_HALF, "ball": BALL_RADIUS, "cylinder": CYLINDER_HALF_HEIGHT}

# Where loose things may stand (metres): in front of the furniture, inside the picture.
FLOOR_X = (-0.48, 0.48)
FLOOR_Y = (-0.48, 0.06)
CLEARANCE = 0.24

# Combinations of verb, colour and shape that no training episode commands (each noun and each verb alone is seen).
HELD_OUT_COMBINATIONS = frozenset(
    {
        ("push", "red", "ball"),
        ("push", "yellow", "cylinder"),
        ("put in bowl", "green", "cube"),
        ("put in bowl", "blue", "ball"),
        ("knock over", "green", "cylinder"),
        ("stack", "yellow", "cube"),
    }
)

# Scene seeds of each split are drawn from disjoint ranges, so a held-out scene never occurs in training.
SPLIT_SEEDS = {"train": 0, "validation": 10_000_000, "test": 20_000_000}


@dataclass(frozen=True)
class Thing:
    """One coloured object. `position` is (x, y) on the floor in metres, `yaw` in radians."""

    colour: str
    shape: str
    position: tuple[float, float]
    yaw: float = 0.0

    @property
    def noun(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A room at rest before any action."""

    things: tuple[Thing, ...]
    bowl: tuple[float, float]
    door_open: bool
    drawer_open: bool
    lamp_on: bool


def scene_seed(split: str, index: int) -> int:
    """Seed of scene `index` of a split ("train", "validation" or "test")."""
    if split not in SPLIT_SEEDS:
        raise ValueError(f"`split` must be one of {sorted(SPLIT_SEEDS)}, got {split!r}.")
    return SPLIT_SEEDS[split] + index


def is_held_out(verb: str, colour: str, shape: str) -> bool:
    """True if no training episode commands this combination of verb, colour and shape."""
    return (verb, colour, shape) in HELD_OUT_COMBINATIONS


def sample_scene(seed: int) -> Scene:
    """A random arrangement: two or three things of different kinds, the bowl, and the states of door, drawer and lamp."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 4))
    kinds = list(product(COLOURS, SHAPES))
    chosen = [kinds[i] for i in rng.choice(len(kinds), size=count, replace=False)]
    door_open, drawer_open, lamp_on = (bool(rng.integers(2)) for _ in range(3))
    spots = _spread_out(rng, count + 1, drawer_open)
    things = tuple(
        Thing(colour, shape, spot, float(rng.uniform(-0.25, 0.25)))
        for (colour, shape), spot in zip(chosen, spots[1:], strict=True)
    )
    return Scene(things, spots[0], door_open, drawer_open, lamp_on)


def _spread_out(rng: np.random.Generator, count: int, drawer_open: bool) -> list[tuple[float, float]]:
    """`count` spots on the floor at least CLEARANCE apart and clear of an open drawer."""
    while True:
        spots: list[tuple[float, float]] = []
        for _ in range(40):
            x, y = rng.uniform(*FLOOR_X), rng.uniform(*FLOOR_Y)
            under_drawer = drawer_open and x > 0.05 and y > -0.06
            if not under_drawer and all(np.hypot(x - a, y - b) >= CLEARANCE for a, b in spots):
                spots.append((float(x), float(y)))
            if len(spots) == count:
                return spots
