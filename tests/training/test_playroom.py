import json
from collections import defaultdict
from itertools import pairwise

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from training.playroom import scenes, triplets, videos
from training.playroom.actions import ALL_ACTIONS, PARAPHRASES, VERBS, Action, fold
from training.playroom.contact_sheet import draw_episodes
from training.playroom.episodes import (
    choose_balanced,
    commands_held_out,
    moves_another,
    play_episode,
    visibly_different,
)
from training.playroom.model import DOOR_ANGLE, DRAWER_TRAVEL
from training.playroom.physics import play
from training.playroom.room import Room
from training.playroom.scenes import Scene, Thing, sample_scene, scene_seed

SIZE = 48
TABLE = Scene(
    things=(
        Thing("red", "cube", (-0.25, -0.3)),
        Thing("blue", "cylinder", (0.2, -0.3)),
        Thing("green", "ball", (0.0, 0.0)),
    ),
    bowl=(-0.3, 0.05),
    door_open=False,
    drawer_open=True,
    lamp_on=False,
)


@pytest.fixture(scope="module")
def room():
    room = Room()
    yield room
    room.close()


def place(room, noun):
    """Position of a thing: x, y, z in metres."""
    return room.pose(room.slots[noun])[:3].copy()


def do(room, verb, x=None, y=None):
    room.load(TABLE)
    before = {noun: place(room, noun) for noun in room.slots}
    play(room, Action(verb, x, y))
    return before


@pytest.mark.parametrize(
    ("direction", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("away", 1, 1), ("closer", 1, -1)]
)
def test_a_push_moves_the_thing_that_way_and_nothing_else(room, direction, axis, sign):
    before = do(room, f"push {direction}", "red cube" if direction in ("right", "away") else "blue cylinder")
    moved = {noun: place(room, noun) - start for noun, start in before.items()}
    pushed = "red cube" if direction in ("right", "away") else "blue cylinder"
    assert sign * moved[pushed][axis] > 0.12
    assert abs(moved[pushed][1 - axis]) < 0.06
    assert all(np.linalg.norm(moved[noun][:2]) < 0.02 for noun in moved if noun != pushed)


def test_a_push_into_another_thing_moves_that_too(room):
    room.load(
        Scene(
            (Thing("red", "cube", (-0.1, -0.3)), Thing("blue", "cube", (0.12, -0.3))), (0.4, 0.0), False, False, False
        )
    )
    start = place(room, "blue cube")
    play(room, Action("push right", "red cube"))
    assert place(room, "blue cube")[0] - start[0] > 0.05


def test_furniture_and_lamp_follow_their_actions(room):
    do(room, "open door")
    assert room.joint("door")[0] < -0.9 * DOOR_ANGLE
    play(room, Action("close door"))
    assert room.joint("door")[0] > -0.1
    do(room, "close drawer")
    assert room.joint("drawer")[0] < 0.1 * DRAWER_TRAVEL
    do(room, "lamp on")
    assert room.lamp_on
    play(room, Action("lamp off"))
    assert not room.lamp_on


def test_carried_things_end_where_they_were_told_to(room):
    do(room, "put in bowl", "green ball")
    assert np.linalg.norm(place(room, "green ball")[:2] - room.pose("bowl")[:2]) < 0.06
    do(room, "put in drawer", "green ball")
    x, y, z = place(room, "green ball")
    assert 0.18 < x < 0.46
    assert 0.0 < y < 0.3
    assert z < 0.2
    do(room, "stack", "blue cylinder", "red cube")
    on, under = place(room, "blue cylinder"), place(room, "red cube")
    assert np.linalg.norm(on[:2] - under[:2]) < 0.05
    assert on[2] > under[2] + scenes.CUBE_HALF


def test_a_knocked_over_cylinder_lies_down(room):
    do(room, "knock over", "blue cylinder")
    assert abs(room.up("blue cylinder")[2]) < 0.3


def test_an_action_on_something_that_is_not_there_is_refused(room):
    room.load(TABLE)
    with pytest.raises(ValueError, match="yellow ball"):
        play(room, Action("push left", "yellow ball"))


def test_the_same_seed_gives_the_same_episode(room):
    first, second = (play_episode(room, "validation", 3, SIZE, max_actions=3) for _ in range(2))
    assert np.array_equal(first.before, second.before)
    assert [o.action for o in first.outcomes] == [o.action for o in second.outcomes]
    assert all(np.array_equal(a.after, b.after) for a, b in zip(first.outcomes, second.outcomes, strict=True))


def test_an_episode_can_begin_after_actions_that_nobody_commands(room):
    first, later, same = (play_episode(room, "train", 3, SIZE, max_actions=3, earlier=n) for n in (0, 1, 1))
    assert first.seed == later.seed
    assert visibly_different(first.before, later.before)
    assert np.array_equal(later.before, same.before)
    assert later.outcomes and not any(commands_held_out(outcome.action) for outcome in later.outcomes)


def test_only_actions_that_move_another_thing_as_well(room):
    episode = play_episode(room, "train", 7, SIZE, colliding=True)
    everything = play_episode(room, "train", 7, SIZE)
    assert 0 < len(episode.outcomes) < len(everything.outcomes)
    assert {o.action for o in episode.outcomes} < {o.action for o in everything.outcomes}


def test_what_moves_another_thing(room):
    things = (Thing("red", "cube", (-0.3, -0.3)), Thing("blue", "cylinder", (-0.1, -0.3)))
    room.load(Scene(things, bowl=(0.3, 0.0), door_open=False, drawer_open=False, lamp_on=False))
    state = room.save()
    assert moves_another(room, state, Action("push right", "red cube"))
    assert not moves_another(room, state, Action("push left", "red cube"))
    assert not moves_another(room, state, Action("lamp on"))


def test_outcomes_of_one_state_differ_from_it_and_from_each_other(room):
    episode = play_episode(room, "validation", 1, SIZE)
    assert len(episode.outcomes) >= 8
    pictures = [episode.before, *(outcome.after for outcome in episode.outcomes)]
    for i, a in enumerate(pictures):
        assert all(visibly_different(a, b) for b in pictures[:i])


@pytest.mark.parametrize("size", [32, 200])
def test_pictures_have_the_size_that_was_asked_for(room, size):
    room.load(TABLE)
    assert room.render(size).shape == (size, size, 3)


def test_every_verb_occurs_in_scenes(room):
    seen = set()
    for index in range(40):
        room.load(sample_scene(scene_seed("train", index)))
        seen |= {action.verb for action in room.possible_actions()}
    assert seen == set(VERBS)


def test_splits_share_no_scene_and_training_commands_no_held_out_combination(room):
    ranges = [range(scene_seed(split, 0), scene_seed(split, 9_000_000)) for split in ("train", "validation", "test")]
    assert all(a.stop <= b.start for a, b in pairwise(ranges))
    with pytest.raises(ValueError, match="split"):
        scene_seed("holiday", 0)
    held_out = [a for a in ALL_ACTIONS if commands_held_out(a)]
    assert {(a.family, *a.x.split()) for a in held_out} == scenes.HELD_OUT_COMBINATIONS
    index = next(
        i for i in range(200) if {"red ball"} <= {t.noun for t in sample_scene(scene_seed("train", i)).things}
    )
    trained = play_episode(room, "train", index, SIZE)
    assert trained.outcomes
    assert not any(commands_held_out(outcome.action) for outcome in trained.outcomes)


def test_every_paraphrase_folds_to_its_action_and_to_no_other():
    by_sentence = defaultdict(set)
    for action in ALL_ACTIONS:
        for i in range(len(PARAPHRASES[action.verb])):
            by_sentence[action.phrase(i)].add(action.phrase())
            assert fold(action.phrase(i).upper() + ".") == action.phrase()
    assert all(len(meanings) == 1 for meanings in by_sentence.values())
    assert fold("paint the wall") == "paint the wall"


def test_rare_verbs_are_chosen_more_often_than_their_share():
    actions = [a for a in ALL_ACTIONS if a.verb in ("push left", "knock over")][:12] + [
        Action("knock over", "red cylinder")
    ]
    picks = [choose_balanced(np.random.default_rng(i), actions, 1)[0].verb for i in range(200)]
    assert picks.count("knock over") > 200 / len(actions)


def test_triplets_are_written_once_and_say_what_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(triplets, "SCENES_PER_SHARD", 2)
    options = {"split": "train", "scenes": 3, "actions_per_scene": 2, "size": SIZE, "out": tmp_path}
    count = triplets.write_shard(0, **options) + triplets.write_shard(1, **options)
    shards = sorted(tmp_path.iterdir())
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert [shard.name for shard in shards] == ["00000.parquet", "00001.parquet"]
    assert len(rows) == count == 6
    assert all(fold(row["action"]) == row["plain"] and not row["held_out"] for row in rows)
    written = shards[0].stat().st_mtime_ns
    assert triplets.write_shard(0, **options) == 4
    assert shards[0].stat().st_mtime_ns == written


def test_videos_are_real_mp4_with_their_actions_beside_them(tmp_path, monkeypatch):
    arguments = ["videos", "--clips", "1", "--actions", "2", "--size", "64", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    videos.main()
    videos.main()  # a second run finds the clip
    (row,) = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    with av.open(str(tmp_path / row["file"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == row["frames"]
    assert len(row["actions"]) == 2
    first = row["actions"][0]
    assert visibly_different(frames[first["begin"]], frames[first["end"]])


def test_a_contact_sheet_shows_every_outcome(room):
    episode = play_episode(room, "validation", 0, SIZE, max_actions=3)
    sheet = np.asarray(draw_episodes([episode], SIZE))
    for picture in (episode.before, *(outcome.after for outcome in episode.outcomes)):
        windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (SIZE, SIZE))
        assert (windows[21] == picture[..., 0]).all((1, 2)).any()


def test_a_shard_whose_scenes_have_no_such_action_has_no_rows_but_its_columns(tmp_path):
    options = {"split": "train", "scenes": 1, "first": 1, "actions_per_scene": 3, "size": SIZE, "out": tmp_path}
    assert triplets.write_shard(0, **options, colliding=True) == 0
    assert pq.read_schema(tmp_path / "00000.parquet").names == triplets.SCHEMA.names
