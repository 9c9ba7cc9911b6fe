"""A room at work: scenes are put into one compiled MuJoCo model, photographed, saved and restored."""

import os
from collections.abc import Callable

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np

from training.playroom import scenes
from training.playroom.actions import Action
from training.playroom.model import DOOR_ANGLE, DRAWER_TRAVEL, SLOTS_PER_SHAPE, TIMESTEP, room_xml
from training.playroom.scenes import COLOURS, SHAPES, Scene, Thing

PUSH_X, PUSH_Y = 0.2, 0.25  # m; both are 16 of 96 pixels, because the camera looks down at 53 degrees
PUSHES = {"left": (-PUSH_X, 0.0), "right": (PUSH_X, 0.0), "away": (0.0, PUSH_Y), "closer": (0.0, -PUSH_Y)}

State = tuple[np.ndarray, np.ndarray, bool]  # positions, velocities, whether the lamp is on


class Room:
    """One MuJoCo model and GL context, reused for every scene.

    `load` puts a scene in place, `render` takes a picture, `save` and `restore` go back to a state, so that every action
    can be played from it (`training.playroom.physics.play`). A `rough` one has balls and cylinders of fewer corners, and
    takes pictures in a third of the time.
    """

    def __init__(self, rough: bool = False) -> None:
        self.model = mujoco.MjModel.from_xml_string(room_xml())
        if rough:
            quality = self.model.vis.quality
            quality.numslices, quality.numstacks, quality.numquads = 12, 8, 1
        self.data = mujoco.MjData(self.model)
        self._home = self.data.qpos.copy()
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._all_slots = [f"{shape}{i}" for shape in SHAPES for i in range(SLOTS_PER_SHAPE)]
        self.slots: dict[str, str] = {}  # noun -> body, joint and geom name
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
        self.slots = {}
        for slot in self._all_slots:
            self.model.geom(slot).contype = self.model.geom(slot).conaffinity = 0  # unused ones fall, out of sight
        for thing in scene.things:
            self._place(thing)
        self.pose("bowl")[:2] = scene.bowl
        self.joint("door")[0] = -DOOR_ANGLE if scene.door_open else 0.0
        self.joint("drawer")[0] = DRAWER_TRAVEL if scene.drawer_open else 0.0
        self.set_lamp(scene.lamp_on)
        self.run(0.3)

    def _place(self, thing: Thing) -> None:
        slot = next(s for s in self._all_slots if s.startswith(thing.shape) and s not in self.slots.values())
        self.slots[thing.noun] = slot
        geom = self.model.geom(slot)
        geom.rgba, geom.contype, geom.conaffinity = (*COLOURS[thing.colour], 1.0), 1, 1
        self.pose(slot)[:3] = (*thing.position, scenes.REST_HEIGHT[thing.shape])
        self.pose(slot)[3:] = (np.cos(thing.yaw / 2), 0, 0, np.sin(thing.yaw / 2))

    def save(self) -> State:
        """The whole state."""
        return self.data.qpos.copy(), self.data.qvel.copy(), self.lamp_on

    def restore(self, state: State) -> None:
        """Goes back to a state that `save` returned."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = state[0], state[1]
        self.set_lamp(state[2])
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
            Action("close door" if self.joint("door")[0] < -DOOR_ANGLE / 2 else "open door"),
            Action("close drawer" if self.drawer_is_open() else "open drawer"),
            Action("lamp off" if self.lamp_on else "lamp on"),
        ]
        for noun in self.slots:
            if self._on_floor(noun):
                actions += self._actions_on(noun)
        return actions

    def _actions_on(self, noun: str) -> list[Action]:
        x, y = self.pose(self.slots[noun])[:2]
        free = [direction for direction, (dx, dy) in PUSHES.items() if self._is_free(x + dx, y + dy)]
        actions = [Action(f"push {direction}", noun) for direction in free]
        if self.joint("drawer")[0] > 0.8 * DRAWER_TRAVEL:
            actions.append(Action("put in drawer", noun))
        actions.append(Action("put in bowl", noun))
        if noun.endswith("cylinder"):
            actions.append(Action("knock over", noun))
        if not noun.endswith("ball"):
            actions += [Action("stack", noun, other) for other in self.slots if self._can_carry(other, noun)]
        return actions

    def drawer_is_open(self) -> bool:
        return bool(self.joint("drawer")[0] > DRAWER_TRAVEL / 2)

    def _is_free(self, x: float, y: float) -> bool:
        inside = abs(x) <= 0.5 and -0.5 <= y <= 0.1
        under_drawer = self.drawer_is_open() and x > 0.03 and y > -0.08
        return inside and not under_drawer

    def _can_carry(self, other: str, noun: str) -> bool:
        return other != noun and other.endswith("cube") and self._on_floor(other)

    def _on_floor(self, noun: str) -> bool:
        """Standing upright on the floor, not in or on anything."""
        pose = self.pose(self.slots[noun])
        upright = noun.endswith("ball") or self.up(noun)[2] > 0.95
        return upright and pose[2] < scenes.REST_HEIGHT[noun.split()[1]] + 0.01 and not self._in_bowl(pose)

    def _in_bowl(self, pose: np.ndarray) -> bool:
        return bool(np.linalg.norm(pose[:2] - self.pose("bowl")[:2]) < 0.1)

    # Parts

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        for _ in range(int(seconds / TIMESTEP)):
            self.step()

    def step(self) -> None:
        mujoco.mj_step(self.model, self.data)
        if self.on_step is not None:
            self.on_step()

    def pose(self, name: str) -> np.ndarray:
        """View of a free body's position and quaternion [7]."""
        address = self.model.joint(name).qposadr[0]
        return self.data.qpos[address : address + 7]

    def joint(self, name: str) -> np.ndarray:
        """View of a hinge's angle or a slide's travel [1]."""
        address = self.model.joint(name).qposadr[0]
        return self.data.qpos[address : address + 1]

    def up(self, noun: str) -> np.ndarray:
        """The thing's own upward axis in the room's frame."""
        return self.data.xmat[self.model.body(self.slots[noun]).id].reshape(3, 3)[:, 2]

    def spin(self, noun: str) -> np.ndarray:
        """Angular velocity in the room's frame, rad/s."""
        return self.data.cvel[self.model.body(self.slots[noun]).id][:3]

    def set_lamp(self, on: bool) -> None:
        self.lamp_on = on
        self.model.geom("bulb").rgba = (1.0, 0.93, 0.45, 1.0) if on else (0.32, 0.33, 0.36, 1.0)
        self.model.material("lamp").emission = 1.0 if on else 0.0
        self.model.geom("glow").rgba = (1.0, 0.95, 0.55, 0.55 if on else 0.0)
        self.model.geom("button").rgba = (0.2, 0.8, 0.4, 1.0) if on else (0.75, 0.15, 0.35, 1.0)
