"""Real photographs and robot video, of every size and format, through the embedded checkpoint.

The data is not part of the project; where it is absent these tests skip. They check that real input works, not that a
checkpoint which has only seen its playroom understands it.
"""

import json
import math
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline, default_checkpoint
from bwm_pipelines.images import open_image

DATA = Path(__file__).parents[2] / "shared" / "data"
AURORA, DROID = DATA / "aurora_bench", DATA / "droid"


@pytest.fixture(scope="module")
def world():
    pipe = ChameleonWorldModelPipeline.from_pretrained(default_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def verifier(world):
    verifier = DynamicsVerifierPipeline.from_pipe(world)
    verifier.set_progress_bar_config(disable=True)
    return verifier


@pytest.mark.skipif(not AURORA.is_dir(), reason="AURORA-Bench is not beside the checkout")
@pytest.mark.parametrize("task", ["something", "kubric", "whatsup"])
def test_aurora_bench_pairs_are_scored_and_named(verifier, task):
    rows = [row for row in json.loads((AURORA / "test.json").read_text()) if row["task"] == task and "output" in row]
    for row in rows[:2]:
        before, after = open_image(AURORA / row["input"]), open_image(AURORA / row["output"])
        result = verifier(before, [after, before], row["instruction"])
        assert all(math.isfinite(score) for score in result.scores)
        assert result.margins[1] == 0  # the image before as a candidate is "nothing changed" itself
        assert math.isfinite(verifier.name_action(before, after).score)


@pytest.mark.skipif(not DROID.is_dir(), reason="DROID is not beside the checkout")
def test_a_robot_video_s_first_frame_is_edited_and_verified(world):
    clip = json.loads((DROID / "index.json").read_text())[0]
    with av.open(str(DROID / clip["video"])) as container:
        first = next(container.decode(video=0)).to_image()
    output = world(first, clip["instruction"], num_candidates=2, generator=torch.Generator().manual_seed(0))
    assert [image.size for image in output.images] == [(96, 96)] * 2
    assert output.scores == sorted(output.scores, reverse=True)
    assert all(image.tobytes() != Image.new("RGB", image.size).tobytes() for image in output.images)
