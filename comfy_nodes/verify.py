"""Verify Next Images."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from .action import action_input, check_action
from .images import ImageOrLatent, Latent, count, group, read, read_one
from .progress import Progress
from .report import ranking_report
from .world_model import RankingType, WorldModel, WorldModelType


class VerifyNextImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BWMVerifyNextImages",
            display_name="Verify Next Images",
            category="world model",
            description="Ranks images, from any editor, by how clearly an action happened since the image before. "
            '"Nothing changed" always competes.',
            search_aliases=["world model", "score", "rank", "best of", "judge", "inverse dynamics", "cdm", "verifier"],
            is_input_list=True,
            inputs=[
                WorldModelType.Input("model", tooltip="From Load World Model."),
                io.MultiType.Input(
                    "before",
                    ImageOrLatent,
                    tooltip="The scene before the action: one image, or one latent of Imagine Next Image.",
                ),
                io.MultiType.Input(
                    "candidates",
                    ImageOrLatent,
                    tooltip="The images to rank: a batch or a list from any node, of any size and mixed sizes; or the "
                    "latents of Imagine Next Image, which are scored without loss. Each is cut to its centred square.",
                ),
                action_input("What was meant to happen, in words."),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=0,
                    max=256,
                    advanced=True,
                    tooltip="Images that run at once. 0: all. Lower it if memory runs out.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "ranked",
                    display_name="ranked",
                    is_output_list=True,
                    tooltip="The candidates, best first: one batch, or a list where their sizes differ.",
                ),
                io.Image.Output("best", display_name="best", tooltip="The candidate with the highest score."),
                io.Image.Output(
                    "overview",
                    display_name="overview",
                    tooltip="One picture to look at: before, best, and all candidates with scores and margins.",
                ),
                RankingType.Output(
                    "ranking",
                    display_name="ranking",
                    tooltip="Order, scores and margins together, for Select Top Candidates.",
                ),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Mean log-probability of the action's tokens, in nats, in the order the candidates came "
                    "in. 0 is certain. Compare scores only within one action and one model.",
                ),
                io.Int.Output(
                    "order",
                    display_name="order",
                    is_output_list=True,
                    tooltip="Indices of the candidates, counted from 0, best first.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip='Rank, score, margin over "nothing changed" and over the runner-up, in words.',
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, action: Sequence[str | None]) -> bool | str:
        return check_action(action[0])

    @classmethod
    def execute(
        cls,
        model: list[WorldModel],
        before: list[Tensor | Latent],
        candidates: list[Tensor | Latent],
        action: list[str],
        batch_size: list[int],
    ) -> io.NodeOutput:
        if len(set(action)) != 1:
            raise ValueError(f"`action` must be one text, got {len(action)}; verify once for each.")
        words = action[0]
        images = count(candidates) + 1  # and the image before as its own after
        at_once = batch_size[0] or images
        pipe = model[0].verifier(words, sequences=at_once + 1)
        scene, pictures = read_one(pipe, before, "before"), read(pipe, candidates, "candidates")
        output = pipe(
            scene.codes,
            pictures.codes,
            words,
            candidate_batch_size=at_once,
            callback_on_step_end=Progress(total=images),
        )
        ranked = [pictures.images[i] for i in output.order]
        ranking = {"action": words, "model": model[0].name, **output}
        return io.NodeOutput(
            group(ranked),
            ranked[0],
            _overview(scene.images[0], ranked, ranking),
            ranking,
            output.scores,
            output.order,
            ranking_report(ranking),
        )


def _overview(before: Tensor, ranked: list[Tensor], ranking: dict) -> Tensor:
    from bwm_pipelines.pictures import overview

    picture = overview(
        _to_pil(before),
        [_to_pil(image) for image in ranked],
        ranking["action"],
        [ranking["scores"][i] for i in ranking["order"]],
        [ranking["margins"][i] for i in ranking["order"]],
        ranking["changed"],
    )
    pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)
    return pixels[None].to(comfy.model_management.intermediate_device())


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(np.rint(image[0].cpu().numpy() * 255).astype(np.uint8))
