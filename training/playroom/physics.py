"""Playing an action in a room with forces only: things collide, fall and roll on the way."""

import numpy as np

from training.playroom import scenes
from training.playroom.actions import Action
from training.playroom.model import DOOR_ANGLE, DRAWER_TRAVEL, TIMESTEP
from training.playroom.room import PUSHES, Room

DRAWER_CENTRE = (0.32, 0.145)  # m, of the open drawer's inside


def play(room: Room, action: Action) -> None:
    """Performs the action with forces, then lets everything come to rest.

    Raises:
        ValueError: if the action names something that is not in the room.
    """
    for noun in (action.x, action.y):
        if noun is not None and noun not in room.slots:
            raise ValueError(f"`action` names {noun!r}, but the room holds {sorted(room.slots)}.")
    verb = action.verb
    if verb in ("open door", "close door"):
        _drive(room, "door", -DOOR_ANGLE if verb == "open door" else 0.0, stiffness=12, damping=2.5)
    elif verb in ("open drawer", "close drawer"):
        _drive(room, "drawer", DRAWER_TRAVEL if verb == "open drawer" else 0.0, stiffness=150, damping=25)
    elif verb in ("lamp on", "lamp off"):
        _press_button(room)
    elif verb.startswith("push"):
        _push(room, action.x, np.array(PUSHES[verb.removeprefix("push ")]))
    elif verb == "knock over":
        _knock_over(room, action.x)
    else:
        _carry(room, action.x, _goal(room, action))
    room.run(0.6)


def _goal(room: Room, action: Action) -> np.ndarray:
    """Where a carried thing is let go (its centre, metres)."""
    rest = scenes.REST_HEIGHT[action.x.split()[1]]
    if action.verb == "put in bowl":
        return np.array([*room.pose("bowl")[:2], rest + 0.05])
    if action.verb == "put in drawer":
        return np.array([*DRAWER_CENTRE, rest + 0.06])
    return room.pose(room.slots[action.y])[:3] + [0, 0, scenes.CUBE_HALF + rest + 0.005]


def _drive(room: Room, joint: str, target: float, stiffness: float, damping: float) -> None:
    dof = room.model.joint(joint).dofadr[0]
    for _ in range(int(1.0 / TIMESTEP)):
        force = stiffness * (target - room.joint(joint)[0]) - damping * room.data.qvel[dof]
        room.data.qfrc_applied[dof] = force
        room.step()
    room.data.qfrc_applied[dof] = 0.0


def _press_button(room: Room) -> None:
    dof, depth = room.model.joint("button").dofadr[0], 0.0
    room.data.qfrc_applied[dof] = -4.0
    for _ in range(int(0.2 / TIMESTEP)):
        room.step()
        depth = min(depth, float(room.joint("button")[0]))
    room.data.qfrc_applied[dof] = 0.0
    if depth < -0.01:
        room.set_lamp(not room.lamp_on)


def _push(room: Room, noun: str, offset: np.ndarray) -> None:
    start = room.pose(room.slots[noun])[:3].copy()
    goal = start + [*offset, 0.0]
    _hold(room, noun, start, goal, seconds=0.7, lift=False)
    _hold(room, noun, goal, goal, seconds=0.25, lift=False)


def _carry(room: Room, noun: str, goal: np.ndarray) -> None:
    start = room.pose(room.slots[noun])[:3].copy()
    height = max(start[2], goal[2]) + 0.25
    over_start, over_goal = np.array([*start[:2], height]), np.array([*goal[:2], height])
    for a, b, seconds in ((start, over_start, 0.3), (over_start, over_goal, 0.5), (over_goal, goal, 0.4)):
        _hold(room, noun, a, b, seconds, lift=True)
    _hold(room, noun, goal, goal, seconds=0.15, lift=True)


def _hold(room: Room, noun: str, start: np.ndarray, goal: np.ndarray, seconds: float, lift: bool) -> None:
    """Draws a thing along a line with a damped spring, upright; without `lift` it stays on what it stands on."""
    body = room.model.body(room.slots[noun])
    mass, dof = body.mass[0], room.model.joint(room.slots[noun]).dofadr[0]
    steps = int(seconds / TIMESTEP)
    for step in range(steps):
        target = start + (goal - start) * (step + 1) / steps
        velocity = room.data.qvel[dof : dof + 3]
        force = mass * (900 * (target - room.pose(room.slots[noun])[:3]) - 50 * velocity)
        force[2] = force[2] + mass * 9.81 if lift else 0.0
        up = room.up(noun)
        twist = mass * (6 * np.array([up[1], -up[0], 0.0]) - 0.06 * room.spin(noun))  # up x vertical
        room.data.xfrc_applied[body.id] = (*force, *twist)
        room.step()
    room.data.xfrc_applied[body.id] = 0.0


def _knock_over(room: Room, noun: str) -> None:
    """Pushes at the top, towards the middle of the room, until the thing has lost its balance."""
    side = -1.0 if room.pose(room.slots[noun])[0] > 0 else 1.0
    body = room.model.body(room.slots[noun])
    for _ in range(int(0.4 / TIMESTEP)):
        up = room.up(noun)
        if side * up[0] > 0.6:
            break
        force = np.array([0.9 * side, 0.0, 0.0])
        room.data.xfrc_applied[body.id] = (*force, *np.cross(up * scenes.CYLINDER_HALF_HEIGHT, force))
        room.step()
    room.data.xfrc_applied[body.id] = 0.0
    room.run(0.6)
