"""What the pipelines share: loading with checks, images to codes, and the step between two tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import count
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from bwm_pipelines.families import ChameleonFamily
from bwm_pipelines.images import ImageInput, as_pil_images, to_pixels
from bwm_pipelines.loading import check_finite, check_folder
from bwm_pipelines.sampling import Interrupted

StepCallback = Callable[[DiffusionPipeline, int, int, dict], dict | None]


class CheckpointPipeline(DiffusionPipeline):
    """A pipeline over the models of one checkpoint folder. Subclasses set `family`."""

    family: ChameleonFamily
    _interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a pipeline as `DiffusionPipeline.from_pretrained` does, and refuse a checkpoint that cannot work.

        A single `dtype` holds for the language models; the VQ model stays in float32 unless `dtype` is a dict that
        says otherwise, because in bfloat16 one image token in ten changes.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a repository on the Hub.
            kwargs: see `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: nothing is found there, or a component or tensor is missing, damaged or not finite.
        """
        name = os.fspath(pretrained_model_name_or_path)
        for key in ("dtype", "torch_dtype"):
            if isinstance(kwargs.get(key), torch.dtype):
                kwargs[key] = {"default": kwargs[key], "vqgan": torch.float32}
        modules = set(cls._get_signature_keys(cls)[0])
        passed = modules & kwargs.keys()
        required = sorted(modules - passed - set(cls._optional_components))
        folder = Path(name if os.path.isdir(name) else cls._download(name, **kwargs))
        check_folder(folder, required, sorted(set(cls._optional_components) - passed))
        try:
            pipe = super().from_pretrained(str(folder), **kwargs)
        except OSError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"`pretrained_model_name_or_path`: {name!r} cannot be loaded ({reason}); get the whole checkpoint."
            ) from error
        check_finite({key: model for key, model in pipe.components.items() if isinstance(model, nn.Module)})
        return pipe

    @classmethod
    def _download(cls, name: str, **kwargs: Any) -> str:
        try:
            return cls.download(name, **kwargs)
        except (OSError, HFValidationError) as error:
            raise ValueError(
                f"`pretrained_model_name_or_path`: {name!r} is no folder here, and no repository on the Hub that can "
                "be reached; check the name and the connection."
            ) from error

    def encode_images(self, images: ImageInput, argument: str = "image") -> Tensor:
        """VQ codes of images, int64 [B, N] on the execution device.

        Args:
            images: see `bwm_pipelines.images.as_pil_images`; or VQ codes already, int64 [N] or [B, N], as
                `output_type="latent"` returns them.
            argument: the name that errors give it.

        Raises:
            ValueError: no image, or codes that this checkpoint does not have.
        """
        if isinstance(images, Tensor) and images.dtype == torch.int64:
            return self._check_codes(images, argument).to(self._execution_device)
        pixels = to_pixels(as_pil_images(images, argument), self.family.image_size)
        return self.family.encode_image(pixels.to(self._execution_device))

    def _check_codes(self, codes: Tensor, argument: str) -> Tensor:
        length, size = self.family.num_image_tokens, len(self.family.image_token_ids)
        if codes.ndim not in (1, 2) or codes.shape[-1] != length or codes.numel() == 0:
            raise ValueError(
                f"`{argument}` as codes must have the shape [{length}] or [B, {length}], got {codes.shape}."
            )
        if codes.min() < 0 or codes.max() >= size:
            raise ValueError(f"`{argument}` as codes must lie in 0 to {size - 1}, got {codes.min()} to {codes.max()}.")
        return codes.reshape(-1, length)

    def _check_action(self, action: Any) -> None:
        if not isinstance(action, str) or not action.strip():
            raise ValueError(f"`action` must say in words what happens, got {action!r}.")

    def _check_length(self, action: str, *sequences: tuple[int, PreTrainedModel]) -> None:
        """Raise unless every sequence, given by its whole length in tokens, fits into its model's context."""
        excess = max(length - model.config.max_position_embeddings for length, model in sequences)
        if excess > 0:
            words = len(self.family.action_ids(action)) - 1
            raise ValueError(
                f"`action` has {words} tokens but {max(0, words - excess)} fit beside the images into the model's "
                "context; shorten it."
            )

    # --- Between two steps ---

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def _step_reporter(
        self, callback: StepCallback | None, tensor_inputs: Sequence[str] = (), bar: tqdm | None = None
    ) -> Callable[..., None]:
        """A function to call after each step with the step's tensors and how far the bar moves."""
        steps = count()

        def report(advance: int = 1, **tensors: Tensor) -> None:
            if bar is not None:
                bar.update(advance)
            if callback is not None:
                step = next(steps)
                callback(self, step, step, {name: tensors[name] for name in tensor_inputs})
            if self._interrupt:
                raise Interrupted("The pipeline was interrupted; nothing is returned.")

        return report


def check_count(name: str, value: Any, optional: bool = False) -> None:
    """Raise a ValueError unless `value` is a whole number of at least 1, or None where that is allowed."""
    if optional and value is None:
        return
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
