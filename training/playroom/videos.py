"""Unlabelled video: mp4 clips in which several actions follow one another.

    python -m training.playroom.videos --split train --clips 200 --out runs/playroom/videos

`index.jsonl` holds one line a clip: file, scene, frames, frames per second, and the actions with the frames at which they
begin and end. The actions are for evaluation only; whoever trains on the clips as unlabelled video does not read them.
Existing clips are kept, so an interrupted run resumes.
"""

import argparse
import json
import os
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from training.playroom.actions import Action
from training.playroom.episodes import choose_balanced, commands_held_out
from training.playroom.model import TIMESTEP
from training.playroom.physics import play
from training.playroom.room import Room
from training.playroom.scenes import sample_scene, scene_seed

FRAMES_PER_SECOND = 20


class Camera:
    """Takes a frame of a room every 1 / FRAMES_PER_SECOND s of its time."""

    def __init__(self, room: Room, size: int) -> None:
        self.room, self.size = room, size
        self.frames: list[np.ndarray] = []
        self._steps = 0
        room.on_step = self._after_step

    def _after_step(self) -> None:
        self._steps += 1
        if self._steps % round(1 / (FRAMES_PER_SECOND * TIMESTEP)) == 0:
            self.frames.append(self.room.render(self.size))


def film_clip(room: Room, seed: int, actions: int, size: int, held_out: bool) -> tuple[list[np.ndarray], list[dict]]:
    """Plays up to `actions` random actions in a row: frames uint8 [size, size, 3], and what was done when."""
    rng = np.random.default_rng([seed, 3])
    room.on_step = None
    room.load(sample_scene(seed))
    camera, script = Camera(room, size), []
    for _ in range(actions):
        possible = [a for a in room.possible_actions() if held_out or not commands_held_out(a)]
        (action,) = choose_balanced(rng, possible, 1)
        script.append(_play_filmed(room, camera, action))
    room.on_step = None
    return camera.frames, script


def _play_filmed(room: Room, camera: Camera, action: Action) -> dict:
    begin = len(camera.frames)
    play(room, action)
    return {"action": action.phrase(), "begin": begin, "end": len(camera.frames) - 1}


def write_mp4(frames: list[np.ndarray], path: Path) -> None:
    """Encodes frames with H.264 under a temporary name, then renames."""
    temporary = path.with_suffix(".tmp.mp4")
    with av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("train", "validation", "test"), default="train")
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument(
        "--first", type=int, default=500_000, help="index of the first scene; far from those of triplets"
    )
    parser.add_argument("--actions", type=int, default=4, help="actions a clip")
    parser.add_argument("--size", type=int, default=192, help="picture side in pixels, even")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    room = Room()
    index = args.out / "index.jsonl"
    known = {json.loads(line)["file"] for line in index.read_text().splitlines()} if index.exists() else set()
    with index.open("a") as lines:
        for i in tqdm(range(args.first, args.first + args.clips), unit="clip"):
            file = f"{i}.mp4"
            if file in known:
                continue
            seed = scene_seed(args.split, i)
            frames, script = film_clip(room, seed, args.actions, args.size, held_out=args.split != "train")
            write_mp4(frames, args.out / file)
            row = {"file": file, "scene": seed, "frames": len(frames), "fps": FRAMES_PER_SECOND, "actions": script}
            lines.write(json.dumps(row) + "\n")
            lines.flush()


if __name__ == "__main__":
    main()
