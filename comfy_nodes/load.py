"""Load World Model."""

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from PIL import Image

from . import checkpoints
from .world_model import DTYPES, WorldModel, WorldModelType


class LoadWorldModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BWMLoadWorldModel",
            display_name="Load World Model",
            category="world model",
            description="Loads a world model and its verifier. The playroom checkpoint comes with these nodes.",
            search_aliases=["world model", "cwm", "cdm", "checkpoint", "playroom", "loader"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(checkpoints.installed()),
                    tooltip="A folder in models/world_models. The playroom is built in: a small simulated room with a "
                    "door, a drawer, a lamp, a bowl and coloured things. It understands nothing else.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="as saved",
                    advanced=True,
                    tooltip="Number format of the language models. bfloat16 halves the memory of a float32 checkpoint. "
                    "The image tokenizer is always float32.",
                ),
            ],
            outputs=[
                WorldModelType.Output("model", display_name="model", tooltip="For all other world model nodes."),
                io.Image.Output(
                    "sample_scene",
                    display_name="sample scene",
                    tooltip="A picture this checkpoint understands, to try it with. Replace it by Load Image.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str) -> bool | str:
        try:
            return bool(checkpoints.find(checkpoint))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, dtype: str) -> str:
        return checkpoints.fingerprint(checkpoints.find(checkpoint))

    @classmethod
    def execute(cls, checkpoint: str, dtype: str) -> io.NodeOutput:
        folder = checkpoints.find(checkpoint)
        try:
            model = WorldModel(checkpoint, folder, DTYPES[dtype])
        except ImportError as error:
            raise RuntimeError(
                f"A library is missing or too old ({error}).\n"
                "In ComfyUI's Python, run: pip install -r requirements.txt\n"
                "with the requirements.txt of this node pack, then restart ComfyUI."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"`checkpoint` {checkpoint!r} cannot be loaded.\n{error}\n"
                "Copy the whole folder again, or choose another checkpoint."
            ) from error
        sample = folder / "sample_scene.png"
        if not sample.is_file():
            return io.NodeOutput(
                model, ExecutionBlocker(f"{checkpoint!r} brings no sample scene. Connect Load Image instead.")
            )
        pixels = np.asarray(Image.open(sample).convert("RGB"), dtype=np.float32) / 255
        return io.NodeOutput(model, torch.from_numpy(pixels)[None].to(comfy.model_management.intermediate_device()))
