"""Imagine Next Image."""

from __future__ import annotations

from functools import partial

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from .action import action_input, check_action
from .images import ImageOrLatent, Latent, decode, read_one, to_latent
from .progress import CandidatePreview, Progress
from .world_model import WorldModel, WorldModelType


class ImagineNextImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BWMImagineNextImage",
            display_name="Imagine Next Image",
            category="world model",
            description="Imagines what a scene looks like after an action, several times. Rank the candidates with "
            "Verify Next Images.",
            search_aliases=["world model", "edit", "action", "predict", "next frame", "forward dynamics", "cwm"],
            inputs=[
                WorldModelType.Input("model", tooltip="From Load World Model."),
                io.MultiType.Input(
                    "before",
                    ImageOrLatent,
                    tooltip="The scene before the action: one image of any size, of which the largest centred square "
                    "is used; or one latent of this node, to go on from it without loss.",
                ),
                action_input('What happens, in words: "open the door", "push the red cube left".'),
                io.Int.Input(
                    "candidates",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="How many images to imagine. More give the verifier more to choose from, and take longer.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same images. Candidate 3 is the same whether 4 or 8 are imagined.",
                ),
                io.Float.Input(
                    "temperature",
                    default=-1.0,
                    min=-1.0,
                    max=5.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How daring the images are. Low ones tend to copy the scene; 0 always takes the likeliest "
                    "token, so that all candidates are alike. -1: as the checkpoint says.",
                ),
                io.Float.Input(
                    "top_p",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Leaves out the least likely tokens: only the likeliest that together reach this "
                    "probability are used. 1: no limit. -1: as the checkpoint says.",
                ),
                io.Float.Input(
                    "guidance",
                    default=-1.0,
                    min=-1.0,
                    max=20.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How strongly to insist on the action. 1: not at all, and fastest. -1: as the checkpoint "
                    "says.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=256,
                    advanced=True,
                    tooltip="Candidates that run at once. 0: all. Lower it if memory runs out; the images stay the "
                    "same.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "candidates_out",
                    display_name="candidates",
                    tooltip="The imagined images as a batch, unranked: Verify Next Images finds the best.",
                ),
                io.Latent.Output(
                    "latents",
                    display_name="latents",
                    tooltip="The same candidates as the model's own tokens. Connect these to Verify Next Images for "
                    "exact scores, or one of them to another Imagine Next Image. Not for VAE Decode or KSampler.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, action: str | None) -> bool | str:
        return check_action(action)

    @classmethod
    def execute(
        cls,
        model: WorldModel,
        before: Tensor | Latent,
        action: str,
        candidates: int,
        seed: int,
        temperature: float,
        top_p: float,
        guidance: float,
        batch_size: int,
    ) -> io.NodeOutput:
        at_once = min(batch_size or candidates, candidates)
        pipe = model.imaginer(action, sequences=(at_once + 1) * (1 if guidance in (-1, 1) else 2))
        scene = read_one(pipe, [before], "before")
        preview = CandidatePreview(partial(decode, pipe), scene.codes[0], candidates)
        output = pipe(
            scene.codes,
            action,
            num_candidates=candidates,
            generator=torch.Generator().manual_seed(seed),
            temperature=_own_if_minus_one(temperature),
            top_p=_own_if_minus_one(top_p),
            guidance_scale=_own_if_minus_one(guidance),
            candidate_batch_size=at_once,
            reference_image=scene.images[0][0].movedim(-1, 0),
            output_type="pt",
            callback_on_step_end=Progress(preview=preview),
        )
        images = output.images.movedim(1, -1).to(comfy.model_management.intermediate_device())
        return io.NodeOutput(images, to_latent(output.codes, images, pipe.family.grid_size))


def _own_if_minus_one(value: float) -> float | None:
    """None, with which the pipeline takes the checkpoint's own value, for -1."""
    return None if value == -1 else value
