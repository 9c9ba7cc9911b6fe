"""Select Top Candidates."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor

from .images import Latent, group, group_latents, split_images, split_latents
from .world_model import RankingType


class SelectTopCandidates(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BWMSelectTopCandidates",
            display_name="Select Top Candidates",
            category="world model",
            description="Keeps the best candidates and whatever belongs to them: latents, masks, prompts. Stops the "
            "workflow with a message where none is good enough.",
            search_aliases=["world model", "filter", "best", "top k", "pick", "choose", "ranking"],
            is_input_list=True,
            inputs=[
                RankingType.Input("ranking", tooltip="From Verify Next Images."),
                io.Image.Input(
                    "candidates",
                    optional=True,
                    tooltip="The same images that were verified, in the order in which they were verified.",
                ),
                io.Latent.Input("latents", optional=True, tooltip="One latent a candidate, in the same order."),
                io.Mask.Input("masks", optional=True, tooltip="One mask a candidate, in the same order."),
                io.String.Input(
                    "prompts",
                    optional=True,
                    force_input=True,
                    tooltip="One text a candidate, in the same order; a single one goes with all.",
                ),
                io.Int.Input("top_k", default=1, min=1, max=4096, tooltip="How many to keep at most, best first."),
                io.Boolean.Input(
                    "must_change",
                    default=True,
                    tooltip='Keep only candidates that beat "nothing changed". Off: take the best even if the action '
                    "happened in none.",
                ),
                io.Float.Input(
                    "min_score",
                    default=-1000.0,
                    min=-1000.0,
                    max=0.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Keep only candidates with at least this score, in nats. Scores compare only within one "
                    "action and one model. -1000: no limit.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="candidates",
                    is_output_list=True,
                    tooltip="The kept images, best first: one batch, or a list where their sizes differ.",
                ),
                io.Latent.Output(
                    "latents_out",
                    display_name="latents",
                    is_output_list=True,
                    tooltip="The latents of the kept candidates.",
                ),
                io.Mask.Output(
                    "masks_out", display_name="masks", is_output_list=True, tooltip="The masks of the kept candidates."
                ),
                io.String.Output(
                    "prompts_out",
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="The texts of the kept candidates.",
                ),
                io.Float.Output(
                    "scores", display_name="scores", is_output_list=True, tooltip="Their scores, in nats."
                ),
                io.Int.Output(
                    "indices",
                    display_name="indices",
                    is_output_list=True,
                    tooltip="Which candidates they are, counted from 0.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        ranking: list[dict[str, Any]],
        top_k: list[int],
        must_change: list[bool],
        min_score: list[float],
        candidates: list[Tensor] | None = None,
        latents: list[Latent] | None = None,
        masks: list[Tensor] | None = None,
        prompts: list[str] | None = None,
    ) -> io.NodeOutput:
        (ranked,) = ranking
        kept = _keep(ranked, must_change[0], min_score[0])[: top_k[0]]
        count = len(ranked["scores"])

        def follow(name: str, entries: list | None) -> list:
            if entries is None:
                return [ExecutionBlocker(f"Connect the input `{name}` of Select Top Candidates to use this output.")]
            if len(entries) != count:
                raise ValueError(
                    f"`{name}` has {len(entries)} entries, but {count} candidates were ranked.\n"
                    f"Connect the {name} of the candidates that Verify Next Images got, in the same order."
                )
            return [entries[i] for i in kept]

        return io.NodeOutput(
            group(follow("candidates", candidates and split_images(candidates))),
            group_latents(follow("latents", latents and split_latents(latents))),
            group(follow("masks", masks and [mask for batch in masks for mask in batch.split(1)])),
            follow("prompts", prompts * count if prompts and len(prompts) == 1 else prompts),
            [ranked["scores"][i] for i in kept],
            kept,
        )


def _keep(ranking: dict[str, Any], must_change: bool, min_score: float) -> list[int]:
    """Indices of the candidates that are good enough, best first.

    Raises:
        ValueError: there is none.
    """
    scores, margins = ranking["scores"], ranking["margins"]
    best = ranking["order"][0]
    changed = [i for i in ranking["order"] if margins[i] > 0 or not must_change]
    if not changed:
        raise ValueError(
            f'No candidate beats "nothing changed" (the best has a margin of {margins[best]:.3f}): '
            f'"{ranking["action"]}" probably happened in none.\n'
            "Imagine more candidates, or try another seed or other words;\n"
            "or turn `must_change` off to get the best one all the same."
        )
    kept = [i for i in changed if scores[i] >= min_score]
    if not kept:
        raise ValueError(
            f"No candidate reaches `min_score` {min_score:g}; the best has {scores[best]:.3f}.\n"
            "Lower `min_score`, imagine more candidates, or try another seed."
        )
    return kept
