import io
import json
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from training import key_frames
from training.key_frames import KeyFrames, measure_motion, pair_frames, select_frames
from training.triplets import load_triplets, shards_of
from training.video import decode

DROID = Path(__file__).parents[3] / "shared" / "data" / "droid"


def draw(x: int, background: str) -> Image.Image:
    """A striped box at `x` on a plain wall, 96 x 64."""
    picture = Image.new("RGB", (96, 64), background)
    for stripe in range(4):
        colour = "black" if stripe % 2 else "yellow"
        ImageDraw.Draw(picture).rectangle((x + 5 * stripe, 20, x + 5 * stripe + 4, 44), fill=colour)
    return picture


# The box moves in frames 6-9 and 21-24; after a cut at 35 it stands elsewhere and moves in frames 41-44.
FIRST_SHOT = [8] * 6 + [12, 16, 20, 24] + [24] * 11 + [28, 32, 36, 40] + [40] * 10
SECOND_SHOT = [60] * 6 + [57, 54, 51, 48] + [48] * 10
CUT = len(FIRST_SHOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    with av.open(str(folder / "whole.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shot, background in ((FIRST_SHOT, "white"), (SECOND_SHOT, "navy")):
            for x in shot:
                container.mux(stream.encode(av.VideoFrame.from_image(draw(x, background))))
        container.mux(stream.encode())
    (folder / "damaged.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def curve(folder) -> tuple[np.ndarray, list[int]]:
    return measure_motion(decode(folder / "whole.mp4"))


def test_motion_is_where_things_move_and_shots_are_cut(curve):
    motion, cuts = curve
    moving = {*range(6, 10), *range(21, 25), *range(CUT + 6, CUT + 10)}
    assert cuts == [CUT]
    assert set(np.flatnonzero(motion)) == moving
    assert motion[CUT] == 0


@pytest.mark.parametrize("enlarged", [1, 3])
def test_motion_is_the_length_of_the_flow_in_parts_of_the_shorter_side(enlarged):
    noise = np.random.default_rng(0).integers(0, 256, (10, 14), np.uint8)
    wall = Image.fromarray(noise).resize((112, 80), Image.Resampling.BICUBIC).convert("RGB")
    views = [wall.crop((x, 0, x + 96, 64)).resize((96 * enlarged, 64 * enlarged)) for x in (0, 2, 4, 5, 5)]
    motion, cuts = measure_motion(map(av.VideoFrame.from_image, views))
    assert not cuts
    assert motion == pytest.approx([0, 2 / 64, 2 / 64, 1 / 64, 0], rel=0.15)


def test_frames_of_most_motion_are_taken_with_a_gap():
    motion = np.array([0, 5, 9, 8, 1, 0, 7, 9, 0, 2])
    assert select_frames(motion, 3, 4) == [2, 7]  # 2 before 7, which is equal; nothing else is 4 away from both
    assert select_frames(motion, 3, 2) == [2, 7, 9]
    assert select_frames(motion, 1, 1) == [2]
    assert select_frames(np.zeros(5), 3, 1) == []


@given(
    st.lists(st.floats(0, 10, width=32), max_size=60).map(np.array),
    st.integers(1, 8),
    st.integers(1, 25),
)
def test_selected_frames_keep_gap_count_and_order(motion, num_frames, gap):
    frames = select_frames(motion, num_frames, gap)
    assert len(frames) <= num_frames
    assert all(b - a >= gap for a, b in pairwise(frames))
    assert all(motion[frame] > 0 for frame in frames)
    if len(frames) < num_frames:  # then no frame that moves is left that would have had room
        assert all(
            any(abs(number - frame) < gap for frame in frames) for number in np.flatnonzero(np.asarray(motion) > 0)
        )
    elif frames:  # the frame of most motion is always among them
        assert max(motion) == max(motion[frame] for frame in frames)


@given(
    st.lists(st.floats(0, 10, width=32), min_size=1, max_size=80).map(np.array),
    st.lists(st.integers(1, 79), unique=True, max_size=3),
    st.sampled_from(["peaks", "rests"]),
)
def test_no_pair_crosses_a_cut_and_pairs_are_in_order(motion, cuts, at):
    cuts = sorted(cut for cut in cuts if cut < len(motion))
    motion[[0, *cuts]] = 0
    peaks = select_frames(motion, 6, 10)
    pairs = pair_frames(motion, cuts, peaks, at)
    assert all(0 <= a < b < len(motion) for a, b in pairs)
    assert all(before[1] <= after[0] for before, after in pairwise(pairs))
    assert not any(a < cut <= b for a, b in pairs for cut in cuts)
    if at == "peaks":
        assert len(pairs) >= len(peaks) - 1 - len(cuts)


def test_rests_lie_around_each_action():
    motion = np.array([0, 3, 9, 3, 1, 0, 0, 4, 8, 4, 0])
    assert pair_frames(motion, [], [2, 8], "peaks") == [(2, 8)]
    assert pair_frames(motion, [], [2, 8], "rests") == [(0, 5), (5, 10)]
    assert pair_frames(motion, [6], [2, 8], "rests") == [(0, 5), (6, 10)]


@pytest.mark.parametrize("at", ["peaks", "rests"])
def test_pairs_are_frames_of_the_video(folder, at):
    columns = KeyFrames(folder, source="boxes", gap=10, at=at)({"video": ["whole.mp4"], "class": ["push"]})
    pairs = list(zip(columns["first_frame"], columns["second_frame"], strict=True))
    xs = FIRST_SHOT + SECOND_SHOT
    assert len(pairs) == {"peaks": 1, "rests": 3}[at]
    assert columns["action"] == columns["error"] == [None] * len(pairs)
    assert set(columns["class"]) == {"push"}
    for row, pair in enumerate(pairs):
        for name, number in zip(("before", "after"), pair, strict=True):
            stored = np.asarray(Image.open(io.BytesIO(columns[name][row]["bytes"])), np.float32)
            drawn = np.asarray(draw(xs[number], "white" if number < CUT else "navy"), np.float32)
            assert np.abs(stored - drawn).mean() < 8
            assert np.abs(stored - np.roll(drawn, 6, 1)).mean() > 8
    if at == "rests":
        assert [(xs[a], xs[b]) for a, b in pairs] == [(8, 24), (24, 40), (60, 48)]


def test_the_same_video_gives_the_same_rows(folder):
    first, second = (
        KeyFrames(folder, source="boxes", gap=5)({"video": ["whole.mp4"], "class": [""]}) for _ in range(2)
    )
    assert first == second
    assert first["id"]


def test_a_damaged_file_costs_one_row(folder):
    videos = ["damaged.mp4", "whole.mp4", "missing.mp4"]
    columns = KeyFrames(folder, source="boxes", gap=10)({"video": videos, "class": ["", "push", ""]})
    assert [error is None for error in columns["error"]] == [False, True, False]
    assert columns["video"] == videos
    assert columns["before"][0] is None
    assert "Invalid" in columns["error"][0]


@pytest.mark.parametrize("wrong", [{"num_frames": 0}, {"gap": 0}, {"size": 0}, {"at": "random"}])
def test_wrong_arguments_are_refused(folder, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        KeyFrames(folder, source="boxes", **wrong)


def test_the_command_writes_triplets_that_training_reads(folder, tmp_path, monkeypatch):
    (folder / "index.jsonl").write_text(json.dumps({"file": "whole.mp4", "class": "push"}))
    monkeypatch.setattr(
        "sys.argv", ["key_frames", str(folder), "--size", "32", "--gap", "10", "--out", str(tmp_path / "out")]
    )
    key_frames.main()
    (row,) = load_triplets(shards_of(tmp_path / "out"))
    assert row["before"].size == row["after"].size == (32, 32)
    assert row["id"] == row["scene"] == f"whole.mp4:{row['first_frame']}-{row['second_frame']}"
    assert row["source"] == folder.name


@pytest.mark.skipif(not DROID.is_dir(), reason="DROID is not beside the checkout")
def test_a_real_robot_clip_gives_pairs():
    clip = json.loads((DROID / "index.json").read_text())[0]
    columns = KeyFrames(DROID, source="droid", size=32)({"video": [clip["video"]], "class": [clip["verb"]]})
    assert columns["error"] == [None] * len(columns["id"])
    assert 1 <= len(columns["id"]) <= 5
    assert max(columns["second_frame"]) < clip["frames"]
