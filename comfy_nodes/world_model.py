"""A loaded checkpoint as ComfyUI holds it: pipelines over networks whose memory ComfyUI manages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import torch
from comfy_api.latest import io
from torch import nn

if TYPE_CHECKING:
    from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline

WorldModelType = io.Custom("WORLD_MODEL")
RankingType = io.Custom("WORLD_MODEL_RANKING")
DTYPES = {"as saved": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class WorldModelNetwork(nn.Module):
    """`ModelPatcher` sets attributes, such as `device`, that the networks' own classes do not let it set."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


class WorldModel:
    """The pipelines of one checkpoint folder, loaded on the offload device.

    The networks are moved one by one, so that the world model and the dynamics model need not fit into memory together.

    Args:
        name: what the user calls the checkpoint.
        folder: a pipeline folder; without a world model it can only verify, without a dynamics model only imagine.
        dtype: of the language models; None for that of the saved weights.

    Raises:
        ValueError: the folder is incomplete or damaged.
    """

    def __init__(self, name: str, folder: Path, dtype: torch.dtype | None):
        from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline

        self.name = name
        dtype = dtype or _saved_dtype(folder)
        self._imaginer: ChameleonWorldModelPipeline | None = None
        self._verifier: DynamicsVerifierPipeline | None = None
        if (folder / "world_model").is_dir() or not (folder / "dynamics_model").is_dir():
            self._imaginer = ChameleonWorldModelPipeline.from_pretrained(folder, dtype=dtype)
            if self._imaginer.dynamics_model is not None:
                self._verifier = DynamicsVerifierPipeline.from_pipe(self._imaginer)
                self._imaginer.register_modules(dynamics_model=None)  # verifying has a node of its own
        else:
            self._verifier = DynamicsVerifierPipeline.from_pretrained(folder, dtype=dtype)
        pipelines = [pipe for pipe in (self._imaginer, self._verifier) if pipe is not None]
        for pipe in pipelines:
            pipe.set_progress_bar_config(disable=True)  # ComfyUI shows its own
        self.family = pipelines[0].family
        self._patchers = {
            name: comfy.model_patcher.ModelPatcher(
                WorldModelNetwork(part),
                load_device=comfy.model_management.get_torch_device(),
                offload_device=comfy.model_management.unet_offload_device(),
            )
            for pipe in pipelines
            for name, part in pipe.components.items()
            if isinstance(part, nn.Module)
        }

    def imaginer(self, action: str, sequences: int) -> ChameleonWorldModelPipeline:
        """The pipeline that imagines, its networks loaded, with memory for so many sequences at once.

        Raises:
            ValueError: the checkpoint has no world model.
        """
        if self._imaginer is None:
            raise ValueError(
                f"`model` {self.name!r} has only a dynamics model: it verifies, explains and names actions.\n"
                "Choose a checkpoint with a world model to imagine images."
            )
        self._load("world_model", self.family.forward_length(action), sequences)
        return self._imaginer

    def verifier(self, action: str, sequences: int) -> DynamicsVerifierPipeline:
        """The pipeline that verifies, explains and names, its networks loaded, with memory for so many images at once.

        Raises:
            ValueError: the checkpoint has no dynamics model.
        """
        if self._verifier is None:
            raise ValueError(
                f"`model` {self.name!r} has only a world model: it cannot verify, explain or name actions.\n"
                "Choose a checkpoint with a dynamics model; it can verify what this one imagined, as images."
            )
        self._load("dynamics_model", self.family.inverse_length(action), sequences)
        return self._verifier

    def _load(self, name: str, length: int, sequences: int) -> None:
        network = self._patchers[name].model.network
        config = network.config
        head_size = config.hidden_size // config.num_attention_heads
        numbers_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
        others = [self._patchers[part] for part in ("vqgan", "refiner") if part in self._patchers]
        comfy.model_management.load_models_gpu(
            [self._patchers[name], *others],
            memory_required=numbers_per_token * network.dtype.itemsize * length * sequences,
            force_full_load=True,  # plain linear layers cannot run half loaded
        )


def _saved_dtype(folder: Path) -> torch.dtype:
    """Floating point type of the saved language models; float32 where their config does not say."""
    for name in ("world_model", "dynamics_model"):
        config = folder / name / "config.json"
        if config.is_file():
            saved = json.loads(config.read_text(encoding="utf-8"))
            return getattr(torch, saved.get("dtype") or saved.get("torch_dtype") or "float32")
    return torch.float32
