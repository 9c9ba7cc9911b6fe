"""What the pipelines share: loading with checks, images to codes, and the step between two tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from bwm_pipelines.adapters import ADAPTERS, adapter_of, has_adapter, load_adapter, save_adapter, without_adapters
from bwm_pipelines.families import ChameleonFamily
from bwm_pipelines.hub import ADAPTERS_FOLDER, OPTIONS, fetch_adapter, fetch_folders, fetch_index
from bwm_pipelines.images import ImageInput, as_pil_images, to_pixels
from bwm_pipelines.loading import check_finite, check_folder, check_index, has_weights
from bwm_pipelines.memory import Need, fitting_batch_size, image_need, verification_need, weight_bytes
from bwm_pipelines.sampling import Interrupted

StepCallback = Callable[[DiffusionPipeline, int, int, dict], dict | None]


class CheckpointPipeline(DiffusionPipeline):
    """A pipeline over the models of one checkpoint folder. Subclasses set `family`."""

    family: ChameleonFamily
    _interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cwm: str | os.PathLike[str] | None = None,
        cdm: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline as `DiffusionPipeline.from_pretrained` does, and refuse a checkpoint that cannot work.

        A single `dtype` holds for the language models; the VQ model stays in float32 unless `dtype` is a dict that
        says otherwise, because in bfloat16 one image token in ten changes. Only what the pipeline needs is downloaded.

        An adapter goes onto the weights of its own component; where the checkpoint has no dynamics model, `cdm` goes
        onto those of the world model, which are then in memory once for both.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a repository on the Hub.
            cwm: PEFT adapter of the world model: a folder, or `owner/name` or `owner/name@revision` on the Hub. None
                takes the checkpoint's `adapters/cwm`, if there is one.
            cdm: likewise of the dynamics model, `adapters/cdm`.
            kwargs: see `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: it cannot be had from the Hub, or a component, tensor or adapter is missing, damaged or not
                finite.
            ImportError: there is an adapter but no peft.
        """
        name = os.fspath(pretrained_model_name_or_path)
        for key in ("dtype", "torch_dtype"):
            if isinstance(kwargs.get(key), torch.dtype):
                kwargs[key] = {"default": kwargs[key], "vqgan": torch.float32}
        options = {key: kwargs[key] for key in OPTIONS if key in kwargs}
        folder, commit = fetch_index(name, kwargs.get("revision"), **options)
        modules = set(cls._get_signature_keys(cls)[0])
        wanted = modules - kwargs.keys()

        adapters = cls._fetch_adapters(name, folder, commit, wanted, {"cwm": cwm, "cdm": cdm}, options)
        shares_base = "dynamics_model" in adapters and not has_weights(folder, "dynamics_model")
        if shares_base:
            wanted = wanted - {"dynamics_model"} | {"world_model"} - kwargs.keys()
        required = sorted(wanted - set(cls._optional_components))
        check_index(folder, required)
        if commit is not None:
            fetch_folders(name, commit, sorted(wanted), **options)
        check_folder(folder, required, sorted(wanted & set(cls._optional_components)))
        try:
            if shares_base and "world_model" not in modules:
                (whole,) = cls._get_compatibles()
                base = super(CheckpointPipeline, whole).from_pretrained(str(folder), dynamics_model=None, **kwargs)
                pipe = cls.from_pipe(base, dynamics_model=base.world_model)
            else:
                pipe = super().from_pretrained(str(folder), **kwargs)
        except OSError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"`pretrained_model_name_or_path`: {name!r} cannot be loaded ({reason}); get the whole checkpoint."
            ) from error
        pipe.register_to_config(_name_or_path=name)
        if shares_base and "world_model" in modules:
            pipe.dynamics_model = pipe.world_model
        for component, adapter in adapters.items():
            load_adapter(getattr(pipe, component), component, adapter)
        check_finite({key: model for key, model in pipe.components.items() if isinstance(model, nn.Module)})
        return pipe

    @classmethod
    def _fetch_adapters(
        cls,
        name: str,
        folder: Path,
        commit: str | None,
        wanted: set[str],
        sources: dict[str, str | os.PathLike[str] | None],
        options: dict[str, Any],
    ) -> dict[str, Path]:
        """Folders of the adapters by component, the dynamics model's first so that the world model's is on at last."""
        adapters = {}
        for component, adapter in sorted(ADAPTERS.items()):
            source, own = sources[adapter], f"{ADAPTERS_FOLDER}/{adapter}"
            if component not in wanted:
                if source is not None:
                    raise ValueError(f"`{adapter}` was given, but this pipeline loads no `{component}` to put it on.")
            elif source is not None:
                adapters[component] = fetch_adapter(os.fspath(source), adapter, **options)
            else:
                if commit is not None:
                    fetch_folders(name, commit, [own], **options)
                if (folder / own).is_dir():
                    adapters[component] = folder / own
        return adapters

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline over the models of another, shared as they are: on their device, in their dtype.

        Args:
            pipeline: where the models and the token layout come from.
            kwargs: components or settings to use instead.

        Raises:
            ValueError: `pipeline` lacks a model that this one needs.
        """
        modules, settings = cls._get_signature_keys(cls)
        shared = {key: model for key, model in pipeline.components.items() if key in modules and model is not None}
        shared |= {key: value for key, value in pipeline.config.items() if key in settings}
        missing = sorted(set(modules) - set(cls._optional_components) - (shared | kwargs).keys())
        if missing:
            raise ValueError(f"`pipeline` has no {missing[0]}; give one that has, or the {missing[0]} beside it.")
        pipe = cls(**shared | kwargs)
        pipe.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as `DiffusionPipeline.save_pretrained` does; a shared base once, and adapters under `adapters/`.

        Args:
            save_directory: a folder.
            kwargs: see `DiffusionPipeline.save_pretrained`.
        """
        adapted = {key: self.components[key] for key in ADAPTERS if has_adapter(self.components.get(key))}
        for component, model in adapted.items():
            if has_adapter(model, component):
                save_adapter(model, component, Path(save_directory, ADAPTERS_FOLDER, ADAPTERS[component]))
        with ExitStack() as stack:
            for model in set(adapted.values()):
                stack.enter_context(without_adapters(model))
            with self._each_model_once():
                super().save_pretrained(save_directory, **kwargs)

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; a base that two adapters share moves as one model."""
        with self._each_model_once():
            super().enable_model_cpu_offload(*args, **kwargs)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; a base that two adapters share moves as one model."""
        with self._each_model_once():
            super().enable_sequential_cpu_offload(*args, **kwargs)

    @contextmanager
    def _each_model_once(self) -> Iterator[None]:
        """Within this context the pipeline has no dynamics model where that is the world model, otherwise adapted."""
        shared = self.components.get("dynamics_model")
        if shared is None or shared is not self.components.get("world_model") or not has_adapter(shared):
            yield
            return
        self.dynamics_model = None
        try:
            yield
        finally:
            self.dynamics_model = shared

    def _computing_as(self, component: str) -> AbstractContextManager[None]:
        """Within this context the model of a component has its own adapter switched on."""
        return adapter_of(component, getattr(self, component))

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
        size = self._fitting(image_need(self.vqgan, self.family.image_size), len(pixels), None, self.vqgan)
        return torch.cat([self.family.encode_image(part.to(self._execution_device)) for part in pixels.split(size)])

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

    # --- Memory ---

    def _fitting(self, need: Need, count: int, given: int | None, model: nn.Module) -> int:
        """How many of `count` images a model takes at once: `given`, or as many as fit. See `fitting_batch_size`."""
        device = self._execution_device
        return fitting_batch_size(need, count, given, device=device, weights=weight_bytes(model, missing_from=device))

    def _scoring_batch_size(self, actions: list[str], num_candidates: int, given: int | None) -> int:
        """How many candidates, the image before as its own after among them, the dynamics model takes at once."""
        action, model = max(actions, key=self.family.inverse_length), self.dynamics_model
        need = verification_need(
            model.config,
            model.dtype,
            shared_tokens=self.family.num_image_tokens,
            own_tokens=self.family.inverse_length(action) - self.family.num_image_tokens,
            action_tokens=len(self.family.action_ids(action)),
        )
        return self._fitting(need, num_candidates + 1, given, model)

    # --- Between two steps ---

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def _step_reporter(
        self, callback: StepCallback | None, tensor_inputs: Sequence[str] = (), bar: tqdm | None = None
    ) -> Callable[..., None]:
        """A function to call after each step with the step's tensors and how far the bar moves.

        The callback is told how far it has come, less one: the last time one less than the bar's total.
        """
        last = -1

        def report(advance: int = 1, **tensors: Tensor) -> None:
            nonlocal last
            last += advance
            if bar is not None:
                bar.update(advance)
            if callback is not None:
                callback(self, last, last, {name: tensors[name] for name in tensor_inputs})
            if self._interrupt:
                raise Interrupted("The pipeline was interrupted; nothing is returned.")

        return report


def check_count(name: str, value: Any, optional: bool = False) -> None:
    """Raise a ValueError unless `value` is a whole number of at least 1, or None where that is allowed."""
    if optional and value is None:
        return
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
