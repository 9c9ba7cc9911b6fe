"""The room itself, as MuJoCo reads it: walls, furniture, bowl, and slots for coloured things."""

import numpy as np

from training.playroom import scenes
from training.playroom.scenes import SHAPES

TIMESTEP = 0.005  # s
SLOTS_PER_SHAPE = 3  # a scene has at most three things, possibly all of one shape
DOOR_ANGLE = 1.75  # rad
DRAWER_TRAVEL = 0.24  # m


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


def room_xml() -> str:
    """The whole model in MJCF; lengths in metres, angles in radians."""
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
