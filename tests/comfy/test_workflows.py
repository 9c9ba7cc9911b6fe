"""Every example workflow, as a user runs it."""

import pytest
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, default_checkpoint
from tests.comfy.workflows import EXAMPLES, as_prompt, nodes_of


@pytest.mark.parametrize("workflow", EXAMPLES, ids=lambda path: path.stem)
def test_workflow_runs_and_shows_pictures(server, workflow):
    prompt = as_prompt(workflow, server.get("/object_info"))
    run = server.run(prompt)
    assert run.error is None, run.error
    for node in nodes_of(prompt, "PreviewImage") + nodes_of(prompt, "MaskPreview"):
        files = run.outputs(node)["images"]
        assert files
        for file in files:
            low, high = zip(*server.image(file).getextrema(), strict=True)
            assert min(low) < max(high), "a picture of one colour"
    for node in nodes_of(prompt, "PreviewAny"):
        assert all(text.strip() for text in run.outputs(node)["text"])


def test_best_of_eight_is_the_pipelines(server):
    """The first workflow ranks as Python does with its seed, on the checkpoint that comes with the package."""
    prompt = as_prompt(EXAMPLES[0], server.get("/object_info"))
    (words,) = nodes_of(prompt, "PrimitiveStringMultiline")
    (imagine,), (verify,) = nodes_of(prompt, "BWMImagineNextImage"), nodes_of(prompt, "BWMVerifyNextImages")
    for name, output in (("scores", 4), ("order", 5)):
        prompt[name] = {"class_type": "PreviewAny", "inputs": {"source": [verify, output]}}
    run = server.run(prompt)
    scores, order = ([float(text) for text in run.outputs(name)["text"]] for name in ("scores", "order"))

    pipe = ChameleonWorldModelPipeline.from_pretrained(default_checkpoint())
    settings = prompt[imagine]["inputs"]
    expected = pipe(
        Image.open(default_checkpoint() / "sample_scene.png"),
        prompt[words]["inputs"]["value"],
        num_candidates=settings["candidates"],
        generator=torch.Generator().manual_seed(settings["seed"]),
    )
    assert len(scores) == 8 and sorted(scores, reverse=True) == pytest.approx(expected.scores, abs=1e-3)
    assert order == expected.order
