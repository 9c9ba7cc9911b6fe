"""Name the Action."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .images import ImageOrLatent, Latent, read_one
from .progress import Progress
from .world_model import WorldModel, WorldModelType

MAX_TOKENS = 128


class NameTheAction(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BWMNameTheAction",
            display_name="Name the Action",
            category="world model",
            description="Says in words what happened between two images.",
            search_aliases=["world model", "annotate", "caption", "describe", "inverse dynamics", "what happened"],
            inputs=[
                WorldModelType.Input("model", tooltip="From Load World Model."),
                io.MultiType.Input(
                    "before",
                    ImageOrLatent,
                    tooltip="The scene before: one image, or one latent of Imagine Next Image.",
                ),
                io.MultiType.Input(
                    "after", ImageOrLatent, tooltip="The scene after: one image of any size, or one latent."
                ),
            ],
            outputs=[
                io.String.Output(
                    "action",
                    display_name="action",
                    tooltip="What happened, in the words the model was trained with. It always says something, even "
                    "where nothing changed: check the score, or verify it.",
                ),
                io.Float.Output(
                    "score",
                    display_name="score",
                    tooltip="Mean log-probability of the words' tokens, in nats; 0 is certain.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: WorldModel, before: Tensor | Latent, after: Tensor | Latent) -> io.NodeOutput:
        pipe = model.verifier("", sequences=1)
        scenes = [read_one(pipe, [value], name).codes for value, name in ((before, "before"), (after, "after"))]
        named = pipe.name_action(*scenes, max_new_tokens=MAX_TOKENS, callback_on_step_end=Progress(total=MAX_TOKENS))
        if not named.action:
            raise ValueError(
                "The dynamics model found no words for what happened between `before` and `after`.\n"
                "Check that both show the same scene, of the kind this checkpoint was trained on."
            )
        return io.NodeOutput(named.action, named.score)
