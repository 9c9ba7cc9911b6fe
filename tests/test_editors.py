"""Best of N around real editors of diffusers with random weights."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from bwm_pipelines import BestOfNOutput, Interrupted, best_of_n
from tests.tiny_editors import build_flux_kontext, build_instruct_pix2pix

ACTION = "open the door"
ARGUMENTS = {
    "instruct_pix2pix": {"num_inference_steps": 2, "image_guidance_scale": 1.2},
    "flux_kontext": {"num_inference_steps": 2, "max_area": 32 * 32, "_auto_resize": False, "max_sequence_length": 16},
}


@pytest.fixture(scope="module")
def editors() -> dict[str, DiffusionPipeline]:
    return {"instruct_pix2pix": build_instruct_pix2pix(), "flux_kontext": build_flux_kontext()}


@pytest.fixture(params=ARGUMENTS)
def edit(request, editors, verifier, image):
    """`best_of_n` with one of the editors."""

    def edit(**arguments) -> BestOfNOutput:
        generator = arguments.pop("generator", None) or torch.Generator().manual_seed(3)
        arguments = {"generator": generator, **ARGUMENTS[request.param], **arguments}
        return best_of_n(editors[request.param], verifier, image, ACTION, **arguments)

    edit.editor, edit.arguments = editors[request.param], ARGUMENTS[request.param]
    return edit


def by_sample(output: BestOfNOutput) -> list[np.ndarray]:
    """The images in the order in which the editor made them."""
    return [np.asarray(output.images[rank], dtype=int) for rank in np.argsort(output.order)]


def test_candidates_are_ranked_as_the_verifier_ranks_them(edit, verifier, image):
    output = edit(num_candidates=4)
    assert sorted(output.order) == [0, 1, 2, 3] and len(output.images) == 4
    assert output.scores == sorted(output.scores, reverse=True) and len(set(output.scores)) == 4
    ranking = verifier(image, output.images, ACTION)
    assert ranking.order == [0, 1, 2, 3]
    assert output.scores == pytest.approx(ranking.scores, abs=1e-4)
    assert output.margins == pytest.approx([score - output.unchanged_score for score in output.scores], abs=1e-6)
    assert output.changed == (output.margins[0] > 0) and output.excluded == []


def test_a_candidate_depends_on_its_seed_alone(edit):
    two, four = by_sample(edit(num_candidates=2)), by_sample(edit(num_candidates=4))
    batched = by_sample(edit(num_candidates=4, candidate_batch_size=3))
    other = by_sample(edit(num_candidates=2, generator=torch.Generator().manual_seed(4)))
    for one, same in zip(two + four, four[:2] + batched, strict=True):
        assert abs(one - same).max() <= 1
    assert abs(two[0] - two[1]).max() > 3 and abs(two[0] - other[0]).max() > 3


def test_each_generator_of_a_list_makes_the_image_that_the_editor_alone_makes(edit, image):
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    made = by_sample(edit(num_candidates=2, generator=seeds))
    alone = edit.editor(image=image, prompt=ACTION, generator=torch.Generator().manual_seed(6), **edit.arguments)
    assert abs(made[1] - np.asarray(alone.images[0], dtype=int)).max() <= 1


def test_the_editor_may_be_told_something_else(edit):
    told = by_sample(edit(num_candidates=1, prompt="turn the lamp on"))
    assert (told[0] != by_sample(edit(num_candidates=1))[0]).any()


def test_the_editors_callback_stops_everything(edit):
    steps = []

    def stop(editor, step, timestep, tensors):
        steps.append(step)
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        edit(num_candidates=2, callback_on_step_end=stop)
    assert steps == [0]


def test_an_interrupted_editor_returns_nothing(editors, verifier, image):
    def stop(editor, step, timestep, tensors):
        editor._interrupt = True
        return tensors

    arguments = ARGUMENTS["flux_kontext"] | {"callback_on_step_end": stop}
    with pytest.raises(Interrupted):
        best_of_n(editors["flux_kontext"], verifier, image, ACTION, num_candidates=2, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_candidates": 0}, "`num_candidates` must be a whole number of at least 1, got 0"),
        ({"candidate_batch_size": 1.5}, "`candidate_batch_size` must be a whole number of at least 1, got 1.5"),
        ({"num_images_per_prompt": 4}, "`num_images_per_prompt` is set .* got 4; give `candidate_batch_size` instead"),
        ({"output_type": "np"}, "`output_type` is set for the editor here, got 'np'"),
        ({"generator": [torch.Generator()]}, "`generator` as a list must have one entry a candidate, 2, got 1"),
        ({"action": " "}, "`action` must say in words"),
        ({"image": []}, "`image` is an empty list"),
    ],
)
def test_what_cannot_work_is_said_before_the_editor_runs(editors, verifier, image, arguments, message):
    def run(editor, step, timestep, tensors):
        raise AssertionError("the editor runs")

    arguments = {"image": image, "action": ACTION, "num_candidates": 2, "callback_on_step_end": run, **arguments}
    with pytest.raises(ValueError, match=message):
        best_of_n(editors["instruct_pix2pix"], verifier, **arguments)


def test_two_images_and_a_pipeline_that_is_no_editor(pipe, editors, verifier, image):
    with pytest.raises(ValueError, match="`image` must be one image, got 2"):
        best_of_n(editors["instruct_pix2pix"], verifier, [image, image], ACTION)
    with pytest.raises(ValueError, match=r"`editor` must take .* takes no \['prompt'\]"):
        best_of_n(pipe, verifier, image, ACTION)


def test_an_editor_of_one_image_a_call(editors, verifier, image):
    class OneByOne(type(editors["instruct_pix2pix"])):
        def __call__(self, image, prompt, generator=None):
            return super().__call__(image=image, prompt=prompt, generator=generator, num_inference_steps=1)

    editor = OneByOne(**editors["instruct_pix2pix"].components, requires_safety_checker=False)
    editor.set_progress_bar_config(disable=True)
    assert len(best_of_n(editor, verifier, image, ACTION, num_candidates=2).images) == 2
    with pytest.raises(ValueError, match="`candidate_batch_size` must be 1 for OneByOne, .* got 2"):
        best_of_n(editor, verifier, image, ACTION, candidate_batch_size=2)
