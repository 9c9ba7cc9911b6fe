"""Best of N for any image editor of diffusers: it edits N times, and the verifier picks.

best_of_n(editor, verifier, image, "open the door", num_candidates=8).images[0]
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput

from bwm_pipelines.images import ImageInput, as_pil_images
from bwm_pipelines.pipelines.base import check_count
from bwm_pipelines.pipelines.dynamics_verifier import DynamicsVerifierPipeline
from bwm_pipelines.sampling import Interrupted, candidate_generators

_OWN = {"num_images_per_prompt": "candidate_batch_size", "output_type": None, "return_dict": None}


@dataclass
class BestOfNOutput(BaseOutput):
    """
    Args:
        images: PIL images as the editor made them, best first, without those in `excluded`.
        scores: mean log p(action token | before, image) in nats, best first.
        margins: scores minus that of the unchanged image, best first.
        order: which of the editor's N images each one is, counted from 0.
        changed: whether any image beats the unchanged one; if not, the action probably happened in none of them.
        unchanged_score: score of the image before as its own after.
        excluded: the editor's images left out because their score is not finite.
    """

    images: list[PIL.Image.Image]
    scores: list[float]
    margins: list[float]
    order: list[int]
    changed: bool
    unchanged_score: float
    excluded: list[int]


def best_of_n(
    editor: DiffusionPipeline,
    verifier: DynamicsVerifierPipeline,
    image: ImageInput,
    action: str,
    *,
    num_candidates: int = 8,
    prompt: str | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    candidate_batch_size: int = 1,
    **editor_arguments: Any,
) -> BestOfNOutput:
    """Edit an image several times with any editor, and rank the results by whether the action happened.

    Args:
        editor: a diffusers pipeline called as `editor(image=..., prompt=..., generator=...)`.
        verifier: ranks what the editor makes.
        image: one image of any size, see `bwm_pipelines.images.as_pil_images`. The verifier looks at the largest centred
            square of it and of the results.
        action: what is meant to have happened, in words the verifier knows.
        num_candidates: N, how many images the editor makes.
        prompt: what the editor is told; None for the action itself.
        generator: one generator, from which every candidate gets its own, so that candidate i does not depend on N; or
            a list of N generators; or None.
        candidate_batch_size: candidates the editor makes at once, which takes one that has `num_images_per_prompt`.
        editor_arguments: passed to the editor, such as `num_inference_steps` and `guidance_scale`.

    Raises:
        ValueError: an argument cannot work, or the verifier's scores are not finite.
        Interrupted: the editor's `_interrupt` was set in its callback; nothing is returned.
    """
    verifier.check_inputs(action, None)
    check_count("num_candidates", num_candidates)
    check_count("candidate_batch_size", candidate_batch_size)
    _check_editor(editor, editor_arguments, candidate_batch_size)
    before = as_pil_images(image)
    if len(before) != 1:
        raise ValueError(f"`image` must be one image, got {len(before)}; call once for each.")
    generators = generator if isinstance(generator, list) else candidate_generators(generator, num_candidates)
    if len(generators) != num_candidates:
        raise ValueError(
            f"`generator` as a list must have one entry a candidate, {num_candidates}, got {len(generators)}."
        )

    edited: list[PIL.Image.Image] = []
    with verifier.progress_bar(total=num_candidates) as bar:
        for start in range(0, num_candidates, candidate_batch_size):
            batch = generators[start : start + candidate_batch_size]
            count = {"num_images_per_prompt": len(batch)} if len(batch) > 1 else {}
            arguments = {"image": before[0], "prompt": action if prompt is None else prompt, "generator": batch}
            edited += editor(**arguments, **count, **editor_arguments).images
            if getattr(editor, "_interrupt", False):  # such an editor stops early and returns what it has: noise
                raise Interrupted("The editor was interrupted; nothing is returned.")
            bar.update(len(batch))

    ranking = verifier(before, edited, action, candidate_batch_size=candidate_batch_size)
    return BestOfNOutput(
        images=[edited[i] for i in ranking.order],
        scores=[ranking.scores[i] for i in ranking.order],
        margins=[ranking.margins[i] for i in ranking.order],
        order=ranking.order,
        changed=ranking.changed,
        unchanged_score=ranking.unchanged_score,
        excluded=ranking.excluded,
    )


def _check_editor(editor: DiffusionPipeline, arguments: dict[str, Any], batch_size: int) -> None:
    for name in _OWN.keys() & arguments.keys():
        instead = f"; give `{_OWN[name]}` instead" if _OWN[name] else ""
        raise ValueError(f"`{name}` is set for the editor here, got {arguments[name]!r}{instead}.")
    parameters = inspect.signature(editor.__call__).parameters
    missing = {"image", "prompt", "generator"} - parameters.keys()
    if missing:
        raise ValueError(
            f"`editor` must take `image`, `prompt` and `generator`; {type(editor).__name__} takes no {sorted(missing)}."
        )
    if batch_size > 1 and "num_images_per_prompt" not in parameters:
        raise ValueError(
            f"`candidate_batch_size` must be 1 for {type(editor).__name__}, which makes one image a call, got {batch_size}."
        )
