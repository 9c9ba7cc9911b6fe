from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from training import hardest
from training.sequences import load_codes
from training.triplets import shards_of

RECIPE = Path(hardest.__file__).parent / "recipes" / "playroom_cwm.yaml"


def test_the_highest_losses_are_kept_in_the_order_of_the_scenes():
    scenes = [{"scene": name, **{key: [f"{name}{i}" for i in range(2)] for key in hardest.LISTS}} for name in "abc"]
    losses = [torch.tensor(pair) for pair in ([1.0, 5.0], [2.0, 3.0], [6.0, 0.0])]
    assert [row["id"] for row in hardest.hardest(scenes, losses, 0.5)] == [["a1"], ["b1"], ["c0"]]
    assert [row["id"] for row in hardest.hardest(scenes, losses, 0.01)] == [["c0"]]
    assert len(list(hardest.hardest(scenes, losses, 1.0))) == 6


def test_command_writes_single_triplets_that_fit_reads(checkpoint_folder, codes_folder, tmp_path, monkeypatch):
    arguments = ["x", RECIPE, "--codes", codes_folder, "--checkpoint", checkpoint_folder, "--share", 0.25]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in [*arguments, "--workers", 1, "--out", tmp_path]])
    hardest.main()
    rows, scenes = load_codes(tmp_path), load_codes(codes_folder)
    assert len(rows) == 3  # of 12
    triplets = {id: (scene, i) for scene in scenes for i, id in enumerate(scene["id"])}
    for row in rows:
        scene, i = triplets[row["id"][0]]
        assert row == hardest.single(scene, i)
    written = [shard.stat().st_mtime_ns for shard in shards_of(tmp_path)]
    hardest.main()  # nothing is left to do
    assert written == [shard.stat().st_mtime_ns for shard in shards_of(tmp_path)]
    assert pq.read_schema(shards_of(tmp_path)[0]) == pq.read_schema(shards_of(codes_folder)[0])


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_share_out_of_range(share, monkeypatch, capsys):
    arguments = ["x", RECIPE, "--codes", "a", "--checkpoint", "b", "--out", "c", "--share", share]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit):
        hardest.main()
    assert "above 0 and at most 1" in capsys.readouterr().err
