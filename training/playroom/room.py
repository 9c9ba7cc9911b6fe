"""The physics and the camera: one compiled MuJoCo model into which scenes are loaded and in which actions are played."""

import os
from collections.abc import Callable

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np

from training.playroom import scenes
from training.playroom.actions import Action
from training.playroom.scenes import COLOURS, SHAPES, Scene, Thing

TIMESTEP = 0.005  # s
SLOTS_PER_SHAPE = 3  # a scene has at most three things, possibly all of one shape
PUSH_X, PUSH_Y = 0.2, 0.25  # m; both are 16 of 96 pixels, because the camera looks down at 53 degrees
DOOR_ANGLE = 1.75  # rad
DRAWER_TRAVEL = 0.24  # m
DRAWER_CENTRE = (0.32, 0.145)  # m, of the open drawer's inside


def _box(size: str, pos: str, rgba: str, extra: str = "") -> str:
    return f'<geom type="box" size="{size}" pos="{pos}" rgba="{rgba}" {extra}/>'


def _bowl_geoms() -> str:
    """A round bowl from a bottom disc and twelve wall segments, which MuJoCo can collide with on the inside."""
    geoms = ['<geom type="cylinder" size="0.115 0.008" pos="0 0 0.008" rgba="0.93 0.93 0.95 1"/>']
    for angle in np.arange(12) * np.pi / 6:
        x, y = 0.132 * np.cos(angle), 0.132 * np.sin(angle)
        geoms.append(
            f'<geom type="box" size="0.010 0.038 0.040" pos="{x:.4f} {y:.4f} 0.052" '
            f'euler="0 0.35 {angle:.4f}" rgba="0.80 0.82 0.88 1"/>'
        )
    return "".join(geoms)


def _thing_bodies() -> str:
    geom = {
        "cube": f'type="box" size="{scenes.CUBE_HALF} {scenes.CUBE_HALF} {scenes.CUBE_HALF}"',
        "ball": f'type="sphere" size="{scenes.BALL_RADIUS}"',
        "cylinder": f'type="cylinder" size="{scenes.CYLINDER_RADIUS} {scenes.CYLINDER_HALF_HEIGHT}"',
    }
    return "".join(
        f'<body name="{shape}{i}" pos="{20 + 2 * i} {2 * row} {scenes.REST_HEIGHT[shape]}"><freejoint name="{shape}{i}"/>'
        f'<geom name="{shape}{i}" {geom[shape]} mass="0.2" condim="{3 if shape == "cube" else 6}" friction="0.7 0.02 0.012" '
        f'material="thing" rgba="1 0 0 1"/></body>'
        for row, shape in enumerate(SHAPES)
        for i in range(SLOTS_PER_SHAPE)
    )


def _room_xml() -> str:
    wood, dark_wood, wall = "0.62 0.42 0.24 1", "0.45 0.29 0.16 1", "0.80 0.84 0.86 1"
    return f"""
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" iterations="15" ls_iterations="10"/>
  <visual>
    <quality shadowsize="0" offsamples="4"/><global offwidth="1024" offheight="1024"/>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.28 0.28 0.28" specular="0 0 0"/>
  </visual>
  <asset>
    <material name="thing" specular="0.25" shininess="0.3"/>
    <material name="lamp" emission="0"/>
  </asset>
  <worldbody>
    <light pos="-0.6 -1.2 2.5" dir="0.25 0.45 -1" directional="true" castshadow="false" diffuse="0.45 0.45 0.45" specular="0.3 0.3 0.3"/>
    <geom type="plane" size="60 60 1" rgba="0.55 0.57 0.60 1" friction="0.7 0.02 0.012"/>
    {_box("1 0.02 0.5", "0 0.52 0.5", wall)}
    <geom type="box" size="0.02 1.2 0.1" pos="-0.66 -0.2 0.1" rgba="0 0 0 0"/>
    <geom type="box" size="0.02 1.2 0.1" pos="0.66 -0.2 0.1" rgba="0 0 0 0"/>
    <geom type="box" size="1 0.02 0.1" pos="0 -0.64 0.1" rgba="0 0 0 0"/>

    {_box("0.15 0.004 0.25", "-0.36 0.496 0.25", "0.10 0.11 0.14 1", 'contype="0" conaffinity="0"')}
    <body name="door" pos="-0.51 0.47 0.25">
      <joint name="door" type="hinge" axis="0 0 1" range="-{DOOR_ANGLE} 0" limited="true" damping="0.3" frictionloss="0.08"/>
      {_box("0.15 0.014 0.245", "0.15 0 0", "0.78 0.36 0.14 1", 'mass="1"')}
      <geom type="sphere" size="0.022" pos="0.26 -0.03 0" rgba="0.95 0.85 0.3 1" mass="0.01"/>
    </body>

    <geom name="bulb" type="sphere" size="0.075" pos="-0.05 0.38 0.36" material="lamp" rgba="0.32 0.33 0.36 1"/>
    <geom name="glow" type="cylinder" size="0.13 0.002" pos="-0.05 0.49 0.30" euler="1.5708 0 0" rgba="1 0.95 0.55 0" contype="0" conaffinity="0"/>
    <geom type="cylinder" size="0.014 0.15" pos="-0.05 0.38 0.15" rgba="0.25 0.25 0.28 1"/>
    <geom type="cylinder" size="0.06 0.012" pos="-0.05 0.38 0.012" rgba="0.25 0.25 0.28 1"/>
    <body name="button" pos="-0.05 0.25 0.02">
      <joint name="button" type="slide" axis="0 0 1" range="-0.02 0" limited="true" stiffness="60" damping="2"/>
      <geom name="button" type="cylinder" size="0.035 0.02" rgba="0.75 0.15 0.35 1" mass="0.05" contype="0" conaffinity="0"/>
    </body>

    {_box("0.17 0.11 0.012", "0.32 0.39 0.238", wood)}
    {_box("0.012 0.11 0.125", "0.162 0.39 0.125", wood)}
    {_box("0.012 0.11 0.125", "0.478 0.39 0.125", wood)}
    <body name="drawer" pos="0.32 0.39 0.115">
      <joint name="drawer" type="slide" axis="0 -1 0" range="0 {DRAWER_TRAVEL}" limited="true" damping="4" frictionloss="0.5"/>
      {_box("0.142 0.008 0.1", "0 -0.112 0", "0.72 0.53 0.33 1", 'mass="0.5"')}
      {_box("0.142 0.006 0.06", "0 0.102 -0.04", dark_wood)}
      {_box("0.006 0.105 0.06", "-0.136 0 -0.04", dark_wood)}
      {_box("0.006 0.105 0.06", "0.136 0 -0.04", dark_wood)}
      {_box("0.136 0.105 0.006", "0 0 -0.09", "0.30 0.19 0.11 1")}
      {_box("0.05 0.012 0.012", "0 -0.132 0.03", "0.2 0.2 0.22 1")}
    </body>

    <body name="bowl" pos="0 0 0"><freejoint name="bowl"/><inertial pos="0 0 0.02" mass="3" diaginertia="0.02 0.02 0.02"/>{_bowl_geoms()}</body>
    {_thing_bodies()}
    <camera name="front" pos="0 -3.26 4.38" xyaxes="1 0 0 0 0.8 0.6" fovy="13.0"/>
  </worldbody>
</mujoco>"""


class Room:
    """One MuJoCo model and GL context, reused for every scene.

    `load` puts a scene in place, `play` performs an action with physics, `render` takes a picture, `save` and `restore`
    go back to a state so that every action can be played from it.
    """

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(_room_xml())
        self.data = mujoco.MjData(self.model)
        self._home = self.data.qpos.copy()
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._all_slots = [f"{shape}{i}" for shape in SHAPES for i in range(SLOTS_PER_SHAPE)]
        self._slots: dict[str, str] = {}  # noun -> body, joint and geom name
        self.on_step: Callable[[], None] | None = None  # called after every physics step, to record video
        self.lamp_on = False

    def close(self) -> None:
        """Frees the GL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    # State

    def load(self, scene: Scene) -> None:
        """Puts the scene's things, furniture and lamp in place and lets everything come to rest."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self._home
        self._slots = {}
        for slot in self._all_slots:
            self.model.geom(slot).contype = self.model.geom(slot).conaffinity = 0  # unused ones fall, out of sight
        for thing in scene.things:
            self._place(thing)
        self._pose("bowl")[:2] = scene.bowl
        self._joint("door")[0] = -DOOR_ANGLE if scene.door_open else 0.0
        self._joint("drawer")[0] = DRAWER_TRAVEL if scene.drawer_open else 0.0
        self._set_lamp(scene.lamp_on)
        self._run(0.3)

    def _place(self, thing: Thing) -> None:
        slot = next(s for s in self._all_slots if s.startswith(thing.shape) and s not in self._slots.values())
        self._slots[thing.noun] = slot
        geom = self.model.geom(slot)
        geom.rgba, geom.contype, geom.conaffinity = (*COLOURS[thing.colour], 1.0), 1, 1
        half_yaw = thing.yaw / 2
        self._pose(slot)[:] = (
            *thing.position,
            scenes.REST_HEIGHT[thing.shape],
            np.cos(half_yaw),
            0,
            0,
            np.sin(half_yaw),
        )

    def save(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """The whole state: positions, velocities, lamp."""
        return self.data.qpos.copy(), self.data.qvel.copy(), self.lamp_on

    def restore(self, state: tuple[np.ndarray, np.ndarray, bool]) -> None:
        """Goes back to a state that `save` returned."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = state[0], state[1]
        self._set_lamp(state[2])
        mujoco.mj_forward(self.model, self.data)

    def render(self, size: int) -> np.ndarray:
        """The front view as uint8 [size, size, 3]; `size` in pixels, at most 1024."""
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(self.model, size, size)
        renderer = self._renderers[size]
        renderer.update_scene(self.data, "front")
        return renderer.render()

    # What is possible

    def possible_actions(self) -> list[Action]:
        """Every action that would change something visible from here."""
        actions = [
            Action("close door" if self._joint("door")[0] < -DOOR_ANGLE / 2 else "open door"),
            Action("close drawer" if self._drawer_is_open() else "open drawer"),
            Action("lamp off" if self.lamp_on else "lamp on"),
        ]
        for noun in self._slots:
            if self._on_floor(noun):
                actions += self._actions_on(noun)
        return actions

    def _actions_on(self, noun: str) -> list[Action]:
        x, y = self._pose(self._slots[noun])[:2]
        actions = [
            Action(f"push {direction}", noun)
            for direction, (dx, dy) in PUSHES.items()
            if self._is_free(noun, x + dx, y + dy)
        ]
        if self._joint("drawer")[0] > 0.8 * DRAWER_TRAVEL:
            actions.append(Action("put in drawer", noun))
        actions.append(Action("put in bowl", noun))
        if noun.endswith("cylinder"):
            actions.append(Action("knock over", noun))
        if not noun.endswith("ball"):
            actions += [Action("stack", noun, other) for other in self._slots if self._can_carry(other, noun)]
        return actions

    def _is_free(self, noun: str, x: float, y: float) -> bool:
        inside = abs(x) <= 0.5 and -0.5 <= y <= 0.1
        under_drawer = self._drawer_is_open() and x > 0.03 and y > -0.08
        return inside and not under_drawer

    def _can_carry(self, other: str, noun: str) -> bool:
        return other != noun and other.endswith("cube") and self._on_floor(other)

    def _on_floor(self, noun: str) -> bool:
        """Standing upright on the floor, not in or on anything."""
        pose = self._pose(self._slots[noun])
        upright = noun.endswith("ball") or self._up(noun)[2] > 0.95
        return upright and pose[2] < scenes.REST_HEIGHT[noun.split()[1]] + 0.01 and not self._in_bowl(pose)

    def _in_bowl(self, pose: np.ndarray) -> bool:
        return bool(np.linalg.norm(pose[:2] - self._pose("bowl")[:2]) < 0.1)

    def _drawer_is_open(self) -> bool:
        return bool(self._joint("drawer")[0] > DRAWER_TRAVEL / 2)

    # Actions

    def play(self, action: Action) -> None:
        """Performs the action with forces, then lets everything come to rest.

        Raises:
            ValueError: if the action names something that is not in the room.
        """
        for noun in (action.x, action.y):
            if noun is not None and noun not in self._slots:
                raise ValueError(f"`action` names {noun!r}, but the room holds {sorted(self._slots)}.")
        verb = action.verb
        if verb in ("open door", "close door"):
            self._drive("door", -DOOR_ANGLE if verb == "open door" else 0.0, stiffness=12, damping=2.5)
        elif verb in ("open drawer", "close drawer"):
            self._drive("drawer", DRAWER_TRAVEL if verb == "open drawer" else 0.0, stiffness=150, damping=25)
        elif verb in ("lamp on", "lamp off"):
            self._press_button()
        elif verb.startswith("push"):
            self._push(action.x, np.array(PUSHES[verb.removeprefix("push ")]))
        elif verb == "knock over":
            self._knock_over(action.x)
        else:
            self._carry(action.x, self._goal(action))
        self._run(0.6)

    def _goal(self, action: Action) -> np.ndarray:
        """Where a carried thing is let go (its centre, metres)."""
        rest = scenes.REST_HEIGHT[action.x.split()[1]]
        if action.verb == "put in bowl":
            return np.array([*self._pose("bowl")[:2], rest + 0.05])
        if action.verb == "put in drawer":
            return np.array([*DRAWER_CENTRE, rest + 0.06])
        return self._pose(self._slots[action.y])[:3] + [0, 0, scenes.CUBE_HALF + rest + 0.005]

    def _drive(self, joint: str, target: float, stiffness: float, damping: float) -> None:
        dof = self.model.joint(joint).dofadr[0]
        for _ in range(int(1.0 / TIMESTEP)):
            force = stiffness * (target - self._joint(joint)[0]) - damping * self.data.qvel[dof]
            self.data.qfrc_applied[dof] = force
            self._step()
        self.data.qfrc_applied[dof] = 0.0

    def _press_button(self) -> None:
        dof, depth = self.model.joint("button").dofadr[0], 0.0
        self.data.qfrc_applied[dof] = -4.0
        for _ in range(int(0.2 / TIMESTEP)):
            self._step()
            depth = min(depth, float(self._joint("button")[0]))
        self.data.qfrc_applied[dof] = 0.0
        if depth < -0.01:
            self._set_lamp(not self.lamp_on)

    def _push(self, noun: str, offset: np.ndarray) -> None:
        start = self._pose(self._slots[noun])[:3].copy()
        goal = start + [*offset, 0.0]
        self._hold(noun, start, goal, seconds=0.7, lift=False)
        self._hold(noun, goal, goal, seconds=0.25, lift=False)

    def _carry(self, noun: str, goal: np.ndarray) -> None:
        start = self._pose(self._slots[noun])[:3].copy()
        height = max(start[2], goal[2]) + 0.25
        over_start, over_goal = np.array([*start[:2], height]), np.array([*goal[:2], height])
        for a, b, seconds in ((start, over_start, 0.3), (over_start, over_goal, 0.5), (over_goal, goal, 0.4)):
            self._hold(noun, a, b, seconds, lift=True)
        self._hold(noun, goal, goal, seconds=0.15, lift=True)

    def _hold(self, noun: str, start: np.ndarray, goal: np.ndarray, seconds: float, lift: bool) -> None:
        """Draws a thing along a line with a damped spring, upright; without `lift` it stays on what it stands on."""
        body = self.model.body(self._slots[noun])
        mass, dof = body.mass[0], self.model.joint(self._slots[noun]).dofadr[0]
        steps = int(seconds / TIMESTEP)
        for step in range(steps):
            target = start + (goal - start) * (step + 1) / steps
            velocity = self.data.qvel[dof : dof + 3]
            force = mass * (900 * (target - self._pose(self._slots[noun])[:3]) - 50 * velocity)
            force[2] = force[2] + mass * 9.81 if lift else 0.0
            up = self._up(noun)
            twist = mass * (6 * np.array([up[1], -up[0], 0.0]) - 0.06 * self._spin(noun))  # up x vertical
            self.data.xfrc_applied[body.id] = (*force, *twist)
            self._step()
        self.data.xfrc_applied[body.id] = 0.0

    def _knock_over(self, noun: str) -> None:
        """Pushes at the top, towards the middle of the room, until the thing has lost its balance."""
        side = -1.0 if self._pose(self._slots[noun])[0] > 0 else 1.0
        body = self.model.body(self._slots[noun])
        for _ in range(int(0.4 / TIMESTEP)):
            up = self._up(noun)
            if side * up[0] > 0.6:
                break
            force = np.array([0.9 * side, 0.0, 0.0])
            self.data.xfrc_applied[body.id] = (*force, *np.cross(up * scenes.CYLINDER_HALF_HEIGHT, force))
            self._step()
        self.data.xfrc_applied[body.id] = 0.0
        self._run(0.6)

    # Small things

    def _run(self, seconds: float) -> None:
        for _ in range(int(seconds / TIMESTEP)):
            self._step()

    def _step(self) -> None:
        mujoco.mj_step(self.model, self.data)
        if self.on_step is not None:
            self.on_step()

    def _pose(self, name: str) -> np.ndarray:
        """View of a free body's position and quaternion [7]."""
        address = self.model.joint(name).qposadr[0]
        return self.data.qpos[address : address + 7]

    def _joint(self, name: str) -> np.ndarray:
        address = self.model.joint(name).qposadr[0]
        return self.data.qpos[address : address + 1]

    def _up(self, noun: str) -> np.ndarray:
        """The thing's own upward axis in the room's frame."""
        return self.data.xmat[self.model.body(self._slots[noun]).id].reshape(3, 3)[:, 2]

    def _spin(self, noun: str) -> np.ndarray:
        """Angular velocity in the room's frame, rad/s."""
        return self.data.cvel[self.model.body(self._slots[noun]).id][:3]

    def _set_lamp(self, on: bool) -> None:
        self.lamp_on = on
        self.model.geom("bulb").rgba = (1.0, 0.93, 0.45, 1.0) if on else (0.32, 0.33, 0.36, 1.0)
        self.model.material("lamp").emission = 1.0 if on else 0.0
        self.model.geom("glow").rgba = (1.0, 0.95, 0.55, 0.55 if on else 0.0)
        self.model.geom("button").rgba = (0.2, 0.8, 0.4, 1.0) if on else (0.75, 0.15, 0.35, 1.0)


PUSHES = {"left": (-PUSH_X, 0.0), "right": (PUSH_X, 0.0), "away": (0.0, PUSH_Y), "closer": (0.0, -PUSH_Y)}
