"""Rollouts: actions that follow one another, each imagined from the best image of the one before."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image

from bwm_pipelines.images import square
from bwm_pipelines.pictures import Frame
from bwm_pipelines.pipelines.base import StepCallback
from bwm_pipelines.pipelines.world_model import ChameleonWorldModelPipeline


def roll_out(
    pipe: ChameleonWorldModelPipeline,
    image: Image.Image,
    actions: Sequence[str],
    *,
    num_candidates: int,
    generator: torch.Generator,
    before_step: Callable[[int, str], StepCallback | None],
) -> Iterator[Frame]:
    """The scene at the start, then the best image after each action; scores are None without a dynamics model.

    Args:
        pipe: imagines, and ranks if it can.
        image: the scene at the start.
        actions: in words.
        num_candidates: how many are imagined at each step.
        generator: of all steps together.
        before_step: called before each step with its number, from 0, and its action; what it returns is the pipeline's
            `callback_on_step_end`.

    Raises:
        ValueError: see `ChameleonWorldModelPipeline.__call__`.
    """
    scene, shown = image, square(image, pipe.family.image_size)
    yield Frame(shown)
    for step, action in enumerate(actions):
        output = pipe(
            scene,
            action,
            num_candidates=num_candidates,
            generator=generator,
            reference_image=shown,
            callback_on_step_end=before_step(step, action),
        )
        verified = (output.scores[0], output.margins[0], output.changed[0]) if output.scores else ()
        shown = output.images[0]
        yield Frame(shown, action, *verified)
        scene = output.codes[:1]  # the tokens themselves: decoding and encoding again would change some
