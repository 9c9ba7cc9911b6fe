import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from bwm_pipelines.images import square
from training import readers
from training.index import choose, list_videos, read_index
from training.triplets import load_triplets, shards_of

DATA = Path(__file__).parents[3] / "shared" / "data"
COLOURS = ("red", "green", "blue")


@pytest.fixture
def read(monkeypatch, capsys, tmp_path):
    """Runs the command line into a folder; gives its triplets and what it said on stderr."""

    def run(*arguments, out=tmp_path / "out"):
        monkeypatch.setattr("sys.argv", ["readers", *map(str, arguments), "--out", str(out)])
        readers.main()
        return list(load_triplets(shards_of(out))), capsys.readouterr().err

    return run


@pytest.fixture
def aurora(tmp_path) -> Path:
    """AURORA's layout: four rows, the first and the last with one before image, one with a damaged picture."""
    folder = tmp_path / "data" / "ag" / "images"
    folder.mkdir(parents=True)
    for colour in COLOURS:
        Image.new("RGB", (24, 16), colour).save(folder / f"{colour}.png")
    (folder / "damaged.png").write_bytes((folder / "red.png").read_bytes()[:60])
    rows = [("red", "green"), ("green", "damaged"), ("blue", "red"), ("red", "blue")]
    index = [
        {"instruction": f"make it {b}", "input": f"data/ag/images/{a}.png", "output": f"data/ag/images/{b}.png"}
        for a, b in rows
    ]
    path = tmp_path / "data" / "ag" / "train.json"
    path.write_text(json.dumps(index))
    return path


def write_video(path: Path, colours: tuple[str, ...]) -> None:
    """One second of each colour at 8 frames a second, 64 x 48."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for colour in colours:
            for _ in range(8):
                container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour))))
        container.mux(stream.encode())


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_video(folder / "a.mp4", ("red", "blue"))
    write_video(folder / "b.mp4", ("green", "red"))
    (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes()[:700])
    index = [
        {"video": f"{name}.mp4", "instruction": f"do {name}", "verb": "Do", "lab": lab, "frames": 16}
        for name, lab in (("a", "x"), ("b", "y"), ("c", "x"))
    ]
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def mean_colour(picture: Image.Image) -> list[int]:
    return np.asarray(picture).mean((0, 1)).round().astype(int).tolist()


def test_aurora_s_rows_become_triplets_and_a_damaged_picture_costs_one(aurora, tmp_path, read):
    rows, said = read("aurora", aurora, "--root", tmp_path)
    assert [row["id"] for row in rows] == ["ag/2", "ag/0", "ag/3"]  # those of one before image together
    assert [row["action"] for row in rows] == ["make it red", "make it green", "make it blue"]
    assert rows[1]["scene"] == rows[2]["scene"] != rows[0]["scene"]
    assert {(row["source"], row["class"]) for row in rows} == {("aurora/ag", "ag")}
    assert np.array_equal(rows[0]["before"], Image.new("RGB", (24, 16), "blue"))
    assert np.array_equal(rows[0]["after"], Image.new("RGB", (24, 16), "red"))
    assert "skipped ag/1: `image`" in said
    assert "1 of 4 rows skipped" in said


def test_a_size_stores_the_library_s_square(aurora, tmp_path, read):
    rows, _ = read("aurora", aurora, "--root", tmp_path, "--size", "8")
    with Image.open(tmp_path / "data/ag/images/red.png") as picture:
        assert np.array_equal(rows[1]["before"], square(picture, 8))


def test_a_second_run_leaves_what_is_there_alone(aurora, tmp_path, read):
    read("aurora", aurora, "--root", tmp_path)
    (shard,) = shards_of(tmp_path / "out")
    written = shard.stat().st_mtime_ns
    for picture in (tmp_path / "data/ag/images").iterdir():
        picture.unlink()
    rows, _ = read("aurora", aurora, "--root", tmp_path)
    assert len(rows) == 3
    assert shard.stat().st_mtime_ns == written


def test_a_wrong_root_ends_with_advice(aurora, tmp_path, read):
    with pytest.raises(SystemExit, match="--root"):
        read("aurora", aurora, "--root", tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[1]"])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "test.json").write_text(text)
    with pytest.raises(ValueError, match="`source`"):
        read_index(tmp_path / "test.json")


def test_benchmark_rows_without_a_target_are_skipped_and_counted(aurora, tmp_path, read):
    index = json.loads(aurora.read_text())
    rows = [row | {"task": "ag"} for row in index[:1]] + [{**index[2], "task": "emu", "output": None}]
    rows.append({key: value for key, value in index[3].items() if key != "output"} | {"task": "clevr"})
    (tmp_path / "test.json").write_text(json.dumps(rows))
    triplets, said = read("aurora-bench", tmp_path)
    assert [(row["id"], row["source"], row["class"]) for row in triplets] == [("ag/0", "aurora-bench/ag", "ag")]
    assert "skipped emu/1: the index names no picture after the action" in said
    assert "2 of 3 rows skipped" in said


def test_a_clip_s_first_and_last_frame_are_before_and_after(clips, read):
    rows, said = read("videos", clips)
    assert [(row["id"], row["action"], row["class"], row["lab"]) for row in rows] == [
        ("a.mp4", "do a", "Do", "x"),
        ("b.mp4", "do b", "Do", "y"),
    ]
    assert {row["source"] for row in rows} == {"clips"}
    before, after = mean_colour(rows[0]["before"]), mean_colour(rows[0]["after"])
    assert before[0] > 200
    assert before[2] < 50
    assert after[0] < 50
    assert after[2] > 200
    assert "skipped c.mp4" in said


def test_a_condition_splits_the_clips_in_two(clips, read, tmp_path):
    held_out, _ = read("videos", clips, "--where", "lab=y", out=tmp_path / "held_out")
    trained, _ = read("videos", clips, "--where", "lab!=y", out=tmp_path / "train")
    assert [row["id"] for row in held_out] == ["b.mp4"]
    assert [row["id"] for row in trained] == ["a.mp4"]


@pytest.mark.parametrize("condition", ["lab", "colour=red", "lab=z"])
def test_a_condition_that_cannot_hold_is_refused(clips, condition):
    with pytest.raises(ValueError, match="`where`"):
        choose(list_videos(clips), [condition])


def test_videos_without_an_index_have_their_folder_as_class(clips, tmp_path):
    (clips / "index.json").unlink()
    (clips / "jumping").mkdir()
    (clips / "a.mp4").rename(clips / "jumping" / "a.mp4")
    assert [(row["video"], row["class"]) for row in list_videos(clips)] == [
        ("b.mp4", ""),
        ("c.mp4", ""),
        ("jumping/a.mp4", "jumping"),
    ]
    with pytest.raises(ValueError, match="`source`"):
        list_videos(tmp_path / "nowhere")


def test_an_index_line_a_clip_and_a_set_of_actions_are_understood(tmp_path):
    rows = [{"file": "a.mp4"}, {"video": "b.mp4", "atomic_actions": ["place", None, "pick", "place"]}]
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [(row["video"], row["class"]) for row in list_videos(tmp_path)] == [("a.mp4", ""), ("b.mp4", "pick place")]


@pytest.mark.skipif(not (DATA / "droid").is_dir(), reason="DROID is not beside the checkout")
def test_a_real_robot_clip_is_read():
    index = list(readers.labelled_videos(list_videos(DATA / "droid")[:1], "droid"))
    columns = readers.OpenVideos(DATA / "droid", size=32)({name: [row[name] for row in index] for name in index[0]})
    pictures = [Image.open(io.BytesIO(columns[name][0]["bytes"])) for name in ("before", "after")]
    assert columns["action"] == ["Move the white garment on the left side of the sofa to the right"]
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    assert not np.array_equal(*map(np.asarray, pictures))


@pytest.mark.skipif(not (DATA / "aurora_bench").is_dir(), reason="AURORA-Bench is not beside the checkout")
def test_of_the_real_benchmark_a_row_without_a_target_is_skipped(capsys):
    rows = [row for row in read_index(DATA / "aurora_bench" / "test.json") if row.get("id") in ("36", "213316")]
    listed = list(readers.aurora_bench(rows))
    columns = readers.OpenPictures(DATA / "aurora_bench", size=32)(
        {name: [r[name] for r in listed] for name in listed[0]}
    )
    assert columns["action"] == ["Make remote fall down"]
    assert columns["class"] == ["something"]
    assert "213316/last.jpg' does not exist" in capsys.readouterr().err
