"""What visitors may pick for the playroom checkpoint. `scenes` holds pictures of the simulator that no training saw."""

from pathlib import Path

from bwm_pipelines import default_checkpoint

SCENES = Path(__file__).parent / "scenes"
SAMPLE = str(default_checkpoint() / "sample_scene.png")


def scene(name: str) -> str:
    return str(SCENES / f"{name}.png")


ACTIONS = [
    "open the door",
    "close the door",
    "open the drawer",
    "turn the lamp on",
    "turn the lamp off",
    "push the blue cube away",
    "push the green cylinder left",
    "put the red cube in the bowl",
    "knock the red cylinder over",
]
IMAGINE = [
    [SAMPLE, "open the door"],
    [SAMPLE, "open the drawer"],
    [scene("cylinder_and_ball"), "turn the lamp on"],
    [scene("two_balls"), "close the door"],
]
EDITS = [SAMPLE, *map(scene, ("sample_lamp_on", "sample_door_open", "sample_drawer_open"))]
VERIFY = [[SAMPLE, "open the door", EDITS], [SAMPLE, "turn the lamp on", EDITS]]
NAME = [
    [SAMPLE, scene("sample_lamp_on")],
    [scene("cylinder_and_ball"), scene("cylinder_and_ball_drawer_open")],
]
ROLL_OUT = [[SAMPLE, "open the drawer\nturn the lamp on\nopen the door"]]
