"""Explain Score."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor

from . import evidence
from .action import action_input, check_action
from .images import ImageOrLatent, Latent, read_one
from .progress import Progress
from .report import evidence_report
from .world_model import WorldModel, WorldModelType


class ExplainScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BWMExplainScore",
            display_name="Explain Score",
            category="world model",
            description="Shows on which parts of an image, and on which words of the action, a score rests. Makes a "
            "mask of those parts, to keep or to paint over.",
            search_aliases=["world model", "heatmap", "attention", "mask", "inpaint", "occlusion", "why"],
            inputs=[
                WorldModelType.Input("model", tooltip="From Load World Model."),
                io.MultiType.Input(
                    "before",
                    ImageOrLatent,
                    tooltip="The scene before the action: one image, or one latent of Imagine Next Image.",
                ),
                io.MultiType.Input(
                    "after",
                    ImageOrLatent,
                    tooltip="The image to explain: one image, such as the best of Verify Next Images, or one latent.",
                ),
                action_input("The action whose score to explain, in words."),
                io.Float.Input(
                    "threshold",
                    default=0.05,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The mask holds what has at least this share of the strongest evidence. Lower: larger "
                    "mask.",
                ),
                io.Int.Input(
                    "window",
                    default=3,
                    min=1,
                    max=31,
                    step=2,
                    advanced=True,
                    tooltip="Side, in patches, of the square that is undone at once to see what the score loses. Odd. "
                    "1 is sharpest, but finds little where neighbours show the same.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=8,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Images that run at once; there is one for each changed patch. 0: all. Lower it if memory "
                    "runs out.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "heatmap",
                    display_name="heatmap",
                    tooltip="The image after, orange where it speaks for the action; what did not change stays dark.",
                ),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="White where the evidence is strong, in the size of the image after: for inpainting or "
                    "Image Composite Masked.",
                ),
                io.String.Output(
                    "words", display_name="words", is_output_list=True, tooltip="The words of the action."
                ),
                io.Float.Output(
                    "log_probs",
                    display_name="log p of words",
                    is_output_list=True,
                    tooltip="Log-probability of each word, in nats; 0 is certain.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Words, their log-probabilities and what the change adds to them.",
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
        after: Tensor | Latent,
        action: str,
        threshold: float,
        window: int,
        batch_size: int,
    ) -> io.NodeOutput:
        pipe = model.verifier(action, sequences=(batch_size or model.family.num_image_tokens) + 1)
        scene, result = read_one(pipe, [before], "before"), read_one(pipe, [after], "after")
        images = int((scene.codes != result.codes).sum()) + 2  # one for each patch, the scene and the result itself
        at_once = batch_size or images
        explained = pipe.explain(
            scene.codes,
            result.codes,
            action,
            window=window,
            batch_size=at_once,
            callback_on_step_end=Progress(total=images),
        )
        if evidence.strongest(explained.heatmap) > 0:
            mask = evidence.mask(result.images[0], explained.heatmap, threshold)
        else:
            mask = ExecutionBlocker(
                f'Nothing in `after` speaks for "{action}", so there is no mask.\n'
                "Try another candidate or other words; the heatmap and the report still work."
            )
        return io.NodeOutput(
            evidence.overlay(result.images[0], explained.heatmap),
            mask,
            explained.words,
            explained.word_log_probs,
            evidence_report(action, model.name, explained),
        )
