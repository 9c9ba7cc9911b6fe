"""Unlabelled pairs from video: frames of much motion, and every two that follow each other (paper, unlabelled video).

    python -m training.key_frames robocoin --size 256 --out runs/robocoin/pairs

The folder is one that `training.index` lists: with an index.json or index.jsonl, or just videos. One row a pair, with
the columns of a triplet (`action` is None) and `video`, `first_frame`, `second_frame` (counted from 0) and `motion`,
the mean over the frames between them. A video that cannot be decoded costs one row, with the reason in `error` and no
pictures.

The paper takes the K_f = 6 frames of most optical-flow motion that lie at least I_f = 20 frames apart, and leaves the
rest open. Here the flow is OpenCV's DIS, between neighbouring frames whose shorter side was brought to 128 pixels, and
the motion of a frame is the mean length of its flow, in parts of that side, so it does not depend on the resolution. A
first screen spares still frames the flow: where no cell of a 64 x 64 grey picture changes by more than 4 levels, the
motion is zero, and such a frame is never taken. Shots are cut by PySceneDetect's ContentDetector; there is no motion
across a cut, and no pair.

The frames of most motion lie in the middle of actions, so where a clip shows several, such a pair holds the end of one
and the beginning of the next. `--at rests` pairs the stillest frames before, between and after them instead.
"""

import argparse
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import av
import cv2
import numpy as np
from datasets import Dataset, Features, Image, Value
from scenedetect import ContentDetector, FrameTimecode

from bwm_pipelines.pipelines.base import check_count
from training.index import choose, list_videos
from training.stages import run
from training.video import decode, to_png

FLOW_SIDE = 128
SCREEN_SIDE, SCREEN_LEVELS = 64, 4


class KeyFrames:
    """Stage: `video` and `class` to rows of consecutive key frames.

    Args:
        root: folder of the paths in `video`.
        source: name of the data set, for the column `source`.
        num_frames: frames to keep in a video, K_f in the paper.
        gap: least distance between two of them in frames, I_f in the paper.
        at: "peaks" pairs those frames, as the paper does; "rests" the stillest ones before, between and after them.
        size: side of the centre square to store; None stores frames as they are.
    """

    features: ClassVar = {
        **{name: Value("string") for name in ("id", "scene", "action", "source", "class", "video", "error")},
        **{name: Image() for name in ("before", "after")},
        **{name: Value("int32") for name in ("first_frame", "second_frame")},
        "motion": Value("float32"),
    }

    def __init__(
        self,
        root: Path,
        *,
        source: str,
        num_frames: int = 6,
        gap: int = 20,
        at: Literal["peaks", "rests"] = "peaks",
        size: int | None = None,
    ):
        check_count("num_frames", num_frames)
        check_count("gap", gap)
        check_count("size", size, optional=True)
        if at not in ("peaks", "rests"):
            raise ValueError(f"`at` must be 'peaks' or 'rests', got {at!r}.")
        self.root, self.source, self.size = Path(root), source, size
        self.num_frames, self.gap, self.at = num_frames, gap, at
        # DIS divides a picture by the number of threads, so its result would depend on the machine.
        cv2.setNumThreads(1)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = []
        for video, name in zip(batch["video"], batch["class"], strict=True):
            common = {"video": video, "class": name, "source": self.source}
            try:
                rows += [common | pair for pair in self._pairs(video)]
            except Exception as error:  # noqa: BLE001 (decoders raise errors of every kind)
                rows.append(common | {"id": video, "scene": video, "error": f"{type(error).__name__}: {error}"})
        return {name: [row.get(name) for row in rows] for name in self.features}

    def _pairs(self, video: str) -> list[dict]:
        motion, cuts = measure_motion(decode(self.root / video))
        pairs = pair_frames(motion, cuts, select_frames(motion, self.num_frames, self.gap), self.at)
        pictures = self._pictures(video, {number for pair in pairs for number in pair})
        return [
            {
                "id": f"{video}:{first}-{second}",
                "scene": f"{video}:{first}-{second}",
                "before": pictures[first],
                "after": pictures[second],
                "first_frame": first,
                "second_frame": second,
                "motion": float(motion[first + 1 : second + 1].mean()),
            }
            for first, second in pairs
        ]

    def _pictures(self, video: str, numbers: set[int]) -> dict[int, dict]:
        """Those frames, decoded a second time so that no others are kept in memory."""
        if not numbers:
            return {}
        frames = zip(range(max(numbers) + 1), decode(self.root / video), strict=False)
        return {number: to_png(frame.to_image(), self.size) for number, frame in frames if number in numbers}


def measure_motion(frames: Iterable[av.VideoFrame]) -> tuple[np.ndarray, list[int]]:
    """The motion of each frame since the one before, and the frames at which a new shot begins.

    Returns:
        float32 [T], mean length of the optical flow in parts of the shorter side; 0 for the first frame of a shot.
        Frame numbers, ascending.
    """
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    detector = ContentDetector(min_scene_len=0)
    motion, cuts = [], []
    last_grey = last_screen = None
    for number, frame in enumerate(frames):
        picture = _small(frame)
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        screen = cv2.resize(grey, (SCREEN_SIDE, SCREEN_SIDE), interpolation=cv2.INTER_AREA)
        cut = bool(detector.process_frame(FrameTimecode(number, fps=1.0), picture))
        still = number == 0 or cv2.absdiff(screen, last_screen).max() <= SCREEN_LEVELS
        moved = 0.0 if cut or still else np.linalg.norm(flow.calc(last_grey, grey, None), axis=-1).mean() / FLOW_SIDE
        motion.append(moved)
        cuts += [number] if cut else []
        last_grey, last_screen = grey, screen
    return np.array(motion, np.float32), cuts


def _small(frame: av.VideoFrame) -> np.ndarray:
    """uint8 [h, w, 3], blue first, the shorter side FLOW_SIDE pixels."""
    scale = FLOW_SIDE / min(frame.width, frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    # One thread: several only wait for one another on so small a picture.
    return frame.reformat(width, height, "bgr24", interpolation="AREA", threads=1).to_ndarray()


def select_frames(motion: np.ndarray, num_frames: int, gap: int) -> list[int]:
    """The frames of most motion, none of them nearer to another than `gap` frames.

    Greedy, as in non-maximum suppression: the frame of most motion first, the earlier one of two that are equal.

    Args:
        motion: [T], at least 0; frames of motion 0 are never taken.
        num_frames: how many to take at most.
        gap: least difference between two frame numbers.

    Returns:
        Frame numbers, ascending; fewer than `num_frames` if there is no room for more.
    """
    taken: list[int] = []
    for number in np.argsort(-motion, kind="stable").tolist():
        if len(taken) == num_frames or motion[number] <= 0:
            break
        if all(abs(number - other) >= gap for other in taken):
            taken.append(number)
    return sorted(taken)


def pair_frames(
    motion: np.ndarray, cuts: list[int], peaks: list[int], at: Literal["peaks", "rests"] = "peaks"
) -> list[tuple[int, int]]:
    """Every two frames that follow each other within one shot: peaks, or the stillest frames around these.

    Args:
        motion: [T], 0 at the first frame of each shot, as `measure_motion` gives it.
        cuts: frames at which a new shot begins, ascending.
        peaks: frame numbers, ascending.
        at: see `KeyFrames`.
    """
    pairs = []
    for begin, end in pairwise([0, *cuts, len(motion)]):
        frames = [number for number in peaks if begin <= number < end]
        if at == "rests" and frames:
            frames = [a + int(motion[a:b].argmin()) for a, b in pairwise([begin, *frames, end])]
        pairs += pairwise(frames)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of videos")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="or KEY!=VALUE; several: all of them"
    )
    parser.add_argument("--num-frames", type=int, default=6, help="frames to keep in a video")
    parser.add_argument("--gap", type=int, default=20, help="least distance between two of them in frames")
    parser.add_argument("--at", choices=("peaks", "rests"), default="peaks", help="which frames to pair, see above")
    parser.add_argument("--size", type=int, help="side of the centre square to store; default: frames as they are")
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet shards")
    parser.add_argument("--engine", choices=("datasets", "ray"), default="datasets")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args()
    listed = choose(list_videos(args.videos), args.where)
    columns = {name: [row[name] for row in listed] for name in ("video", "class")}
    rows = Dataset.from_dict(columns, features=Features({name: Value("string") for name in columns}))
    arguments = {
        "root": args.videos.resolve(),
        "source": args.videos.resolve().name,
        "num_frames": args.num_frames,
        "gap": args.gap,
        "at": args.at,
        "size": args.size,
    }
    run(KeyFrames, arguments, rows, args.out, engine=args.engine, workers=args.workers)


if __name__ == "__main__":
    main()
