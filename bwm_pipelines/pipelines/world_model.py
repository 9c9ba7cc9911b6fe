"""The world model pipeline: imagines the image after an action, K times, and ranks what it imagined."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers import UNet2DModel, VQModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

from bwm_pipelines.families import family_class
from bwm_pipelines.families.chameleon import FORWARD_PROMPT, IMAGE_SIZE, INVERSE_PROMPT
from bwm_pipelines.images import ImageInput, as_pil_images, to_pixels
from bwm_pipelines.memory import image_need, sampling_need
from bwm_pipelines.pipelines.base import CheckpointPipeline, StepCallback, check_count
from bwm_pipelines.refinement import refine
from bwm_pipelines.sampling import BLOCK, candidate_generators, candidate_uniforms, sample_codes
from bwm_pipelines.verification import score_candidates

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class WorldModelOutput(BaseOutput):
    """
    Every list has one entry an image, best first; the candidates of a batch's inputs follow one another. Without a
    dynamics model nothing is verified: the images are in sampling order, and `scores`, `margins`, `changed` and
    `excluded` are None.

    Args:
        images: PIL images, array [M, H, W, 3] or tensor [M, 3, H, W] in 0-1, or the codes.
        scores: mean log p(action token | before, image) in nats.
        margins: scores minus that of the unchanged image.
        order: which sample of its input each image is, counted from 0.
        codes: VQ codes, int64 [M, N].
        changed: an entry an input: whether any candidate beats the unchanged image; if not, the action probably
            happened in none of them.
        excluded: an entry an input: the samples left out because their score is not finite.
        features: what the images show if the checkpoint has `expected_features`, float [M, N, D]; else None.
    """

    images: list[PIL.Image.Image] | np.ndarray | Tensor
    scores: list[float] | None
    margins: list[float] | None
    order: list[int]
    codes: Tensor
    changed: list[bool] | None
    excluded: list[list[int]] | None
    features: Tensor | None


class ChameleonWorldModelPipeline(CheckpointPipeline):
    """Imagine the next image for an action in words, and verify it (arXiv 2506.06006, section 3.3).

    Args:
        world_model: gives p(image after | image before, action).
        processor: tokenizer and special tokens.
        vqgan: image tokenizer, in float32.
        dynamics_model: gives p(action | before, after) and ranks the candidates; None to leave them unranked.
        refiner: draws what the image tokenizer shows once more, beside the image before, see
            `bwm_pipelines.refinement`; None to return what the image tokenizer shows.
        forward_prompt, inverse_prompt, image_size, mask_image_logits: see `ChameleonFamily`.
        temperature, top_k, top_p, guidance_scale: what a call takes where it is given None.
        expected_features: whether an image shows, in place of each code, the mean entry of the distribution that the
            code was drawn from. Edges are straighter where several codes are likely that hardly differ; where these
            differ, and the temperature is high, the image is blurred.
    """

    model_cpu_offload_seq = "vqgan->world_model->dynamics_model->refiner"
    _optional_components: ClassVar[list[str]] = ["dynamics_model", "refiner"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["codes"]

    def __init__(
        self,
        world_model: ChameleonForConditionalGeneration,
        processor: ChameleonProcessor,
        vqgan: VQModel,
        dynamics_model: ChameleonForConditionalGeneration | None = None,
        refiner: UNet2DModel | None = None,
        forward_prompt: str = FORWARD_PROMPT,
        inverse_prompt: str = INVERSE_PROMPT,
        image_size: int = IMAGE_SIZE,
        mask_image_logits: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        expected_features: bool = False,
    ):
        super().__init__()
        self.register_modules(
            world_model=world_model, processor=processor, vqgan=vqgan, dynamics_model=dynamics_model, refiner=refiner
        )
        layout = {
            "forward_prompt": forward_prompt,
            "inverse_prompt": inverse_prompt,
            "image_size": image_size,
            "mask_image_logits": mask_image_logits,
        }
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance_scale": guidance_scale}
        self.register_to_config(**layout, **sampling, expected_features=expected_features)
        self.family = family_class(world_model)(processor, vqgan, **layout)
        self.image_processor = VaeImageProcessor()

    @property
    def num_timesteps(self) -> int:
        """Steps of the current call: tokens times batches of candidates times inputs."""
        return self._num_timesteps

    def check_inputs(
        self,
        actions: list[str],
        num_candidates: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        guidance_scale: float,
        candidate_batch_size: int | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        if not actions:
            raise ValueError("`action` is an empty list; give at least one action.")
        for action in actions:
            self._check_action(action)
            sequences = [(self.family.forward_length(action), self.world_model)]
            if self.dynamics_model is not None:
                sequences.append((self.family.inverse_length(action), self.dynamics_model))
            self._check_length(action, *sequences)
        check_count("num_candidates", num_candidates)
        check_count("top_k", top_k, optional=True)
        check_count("candidate_batch_size", candidate_batch_size, optional=True)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"`temperature` must be at least 0 (0 takes the likeliest token), got {temperature!r}.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {top_p!r}.")
        if not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number (1 is no guidance), got {guidance_scale!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has to be in {self._callback_tensor_inputs}, got {unknown}."
            )

    def prepare_inputs(self, before_codes: Tensor, actions: list[str]) -> tuple[Tensor, list[str]]:
        """Pair images with actions: codes [B, N] and B actions, where one of either serves for all of the other."""
        batch_size = max(len(before_codes), len(actions))
        if {len(before_codes), len(actions)} - {1, batch_size}:
            raise ValueError(
                f"`image` and `action` must be equally many, or one of them single, got {len(before_codes)} and "
                f"{len(actions)}."
            )
        before_codes = before_codes.expand(batch_size, -1)
        return before_codes, actions * batch_size if len(actions) == 1 else actions

    def prepare_references(self, images: ImageInput | Tensor, batch_size: int) -> Tensor:
        """Pixels of the images before, of as many as there are inputs, float [B, 3, H, W] in [-1, 1]; or of their codes."""
        if isinstance(images, Tensor) and images.dtype == torch.int64:
            pixels = self.family.decode_image(self.encode_images(images))
        else:
            images = as_pil_images(images, "reference_image")
            pixels = to_pixels(images, self.family.image_size).to(self._execution_device)
        if len(pixels) not in (1, batch_size):
            raise ValueError(f"`reference_image` must be one image or {batch_size}, one an input, got {len(pixels)}.")
        return pixels.expand(batch_size, -1, -1, -1)

    def prepare_uniforms(
        self,
        generator: torch.Generator | list[torch.Generator] | None,
        batch_size: int,
        num_candidates: int,
    ) -> Tensor:
        """Uniform numbers of every candidate's tokens, float64 [B, K, N]."""
        if isinstance(generator, list):
            if len(generator) != batch_size * num_candidates:
                raise ValueError(
                    f"`generator` as a list must have one entry an output image, {batch_size * num_candidates}, "
                    f"got {len(generator)}."
                )
            generators = generator
        else:
            generators = [g for _ in range(batch_size) for g in candidate_generators(generator, num_candidates)]
        uniforms = candidate_uniforms(generators, self.family.num_image_tokens)
        return uniforms.reshape(batch_size, num_candidates, -1)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Tensor,
        action: str | list[str],
        *,
        num_candidates: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidate_batch_size: int | None = None,
        reference_image: ImageInput | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["codes"],  # noqa: B006
    ) -> WorldModelOutput | tuple:
        """Imagine images after an action, best first.

        Args:
            image: one image or a batch, of any size, see `bwm_pipelines.images.as_pil_images`; the largest centred
                square is used. Or VQ codes, int64 [N] or [B, N], as `output_type="latent"` returns them.
            action: what happens, in words; one for all images, or one each.
            num_candidates: K, how many images to imagine for each input.
            generator: one generator, from which every candidate gets its own, so that candidate i does not depend on
                K (in float32 on one device); or a list with one generator an output image; or None.
            temperature: divides the logits; 0 takes the likeliest token. Low ones tend to copy the image before.
            top_k: sample from that many likeliest tokens; the codebook's size is no limit.
            top_p: sample from the likeliest tokens that reach that probability; 1 is no limit.
            guidance_scale: how far to go from "any action" towards `action`; 1 is no guidance, other values cost a
                second forward pass a token.
            candidate_batch_size: candidates that run at once; None for as many as fit into memory. In
                bfloat16 the images depend on it a little.
            reference_image: what the refiner takes unchanged things from, one image or one each; None for `image`, or
                where that is codes, what the image tokenizer shows of them. Without a refiner it has no effect.
            output_type: "pil", "np", "pt", or "latent" for VQ codes.
            return_dict: whether to return a `WorldModelOutput` or a tuple of its fields.
            callback_on_step_end: called as `callback(pipe, step, step, callback_kwargs)` after each step of each batch
                of candidates, when `step` + 1 of `pipe.num_timesteps` are done: a step decides one token or several.
                What it returns is ignored. Setting `pipe._interrupt = True` in it ends the call.
            callback_on_step_end_tensor_inputs: what `callback_kwargs` holds: "codes", the tokens so far of the batch
                of candidates being sampled, int64 [k, t].

        For `temperature`, `top_k`, `top_p` and `guidance_scale`, None takes the checkpoint's default.

        Raises:
            ValueError: an argument cannot work, or a model's logits are not finite.
            Interrupted: `_interrupt` was set; nothing is returned.
        """
        # 1. Check inputs
        config = self.config
        temperature = config.temperature if temperature is None else temperature
        top_k = config.top_k if top_k is None else top_k
        top_p = config.top_p if top_p is None else top_p
        guidance_scale = config.guidance_scale if guidance_scale is None else guidance_scale
        actions = list(action) if isinstance(action, list | tuple) else [action]
        self.check_inputs(
            actions,
            num_candidates,
            temperature,
            top_k,
            top_p,
            guidance_scale,
            candidate_batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._interrupt = False

        # 2. Encode images and pair them with the actions
        before_codes, actions = self.prepare_inputs(self.encode_images(image), actions)
        if self.refiner is not None and output_type != "latent":
            references = self.prepare_references(image if reference_image is None else reference_image, len(actions))
        else:
            references = None
        uniforms = self.prepare_uniforms(generator, len(actions), num_candidates)

        # 3. Sample candidates, if all that follows fits into memory
        sampled_at_once, scored_at_once, decoded_at_once = self._batch_sizes(
            actions, num_candidates, guidance_scale, candidate_batch_size
        )
        chunks = math.ceil(num_candidates / sampled_at_once)
        self._num_timesteps = len(actions) * chunks * self.family.num_image_tokens
        entries = self.vqgan.quantize.embedding.weight
        codebook = entries.to(before_codes.device) if config.expected_features else None
        with self.progress_bar(total=self._num_timesteps) as bar, self._computing_as("world_model"):
            report = self._step_reporter(callback_on_step_end, callback_on_step_end_tensor_inputs, bar)
            sampled = [
                sample_codes(
                    self.family,
                    self.world_model,
                    self.family.forward_prompt_ids(before, action),
                    uniforms=one_uniforms,
                    draft=before,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    guidance_scale=guidance_scale,
                    unconditional_ids=self.family.forward_prompt_ids(before, ""),
                    codebook=codebook,
                    candidate_batch_size=sampled_at_once,
                    on_step=lambda codes, decided: report(decided, codes=codes),
                )
                for before, action, one_uniforms in zip(before_codes, actions, uniforms, strict=True)
            ]

        sampled_codes, sampled_features = zip(*sampled, strict=True)

        # 4. Verify
        rankings = None
        if self.dynamics_model is not None:
            report = self._step_reporter(None)
            with self._computing_as("dynamics_model"):
                rankings = [
                    score_candidates(
                        self.family,
                        self.dynamics_model,
                        before,
                        codes,
                        action,
                        candidate_batch_size=scored_at_once,
                        on_chunk=report,
                    )
                    for before, codes, action in zip(before_codes, sampled_codes, actions, strict=True)
                ]

        # 5. Order and decode
        orders = [ranking.order for ranking in rankings] if rankings else [list(range(num_candidates))] * len(actions)
        codes = torch.cat([one[order] for one, order in zip(sampled_codes, orders, strict=True)])
        features = None
        if config.expected_features:
            features = torch.cat([one[order] for one, order in zip(sampled_features, orders, strict=True)])
        if output_type == "latent":
            images = codes
        else:
            if references is not None:
                counts = torch.tensor([len(order) for order in orders], device=references.device)
                references = references.repeat_interleave(counts, dim=0)
            drawn = codes if features is None else features
            pixels = self.decode_images(drawn, references, decoded_at_once)
            images = self.image_processor.postprocess(pixels, output_type=output_type)

        self.maybe_free_model_hooks()
        output = WorldModelOutput(
            images=images,
            scores=rankings and [r.scores[i] for r in rankings for i in r.order],
            margins=rankings and [r.margins[i] for r in rankings for i in r.order],
            order=[i for order in orders for i in order],
            codes=codes,
            changed=rankings and [r.changed for r in rankings],
            excluded=rankings and [r.excluded for r in rankings],
            features=features,
        )
        return output if return_dict else tuple(getattr(output, field.name) for field in fields(output))

    def _batch_sizes(
        self, actions: list[str], num_candidates: int, guidance_scale: float, given: int | None
    ) -> tuple[int, int, int]:
        """How many candidates to sample, to score and to decode at once, see `fitting_batch_size`."""
        family, model = self.family, self.world_model
        sampling = sampling_need(
            model.config,
            model.dtype,
            prefix_tokens=max(map(family.forward_length, actions)) - family.num_image_tokens,
            new_tokens=family.num_image_tokens,
            num_codes=len(family.image_token_ids),
            guided=guidance_scale != 1,
            block=BLOCK,
        )
        decoding = image_need(self.vqgan, family.image_size)
        verified = self.dynamics_model is not None
        return (
            self._fitting(sampling, num_candidates, given, model),
            self._scoring_batch_size(actions, num_candidates, given) if verified else num_candidates,
            self._fitting(decoding, given or num_candidates * len(actions), None, self.vqgan),
        )

    @torch.no_grad()
    def decode_images(self, drawn: Tensor, references: Tensor | None = None, batch_size: int = 1) -> Tensor:
        """Images of VQ codes, refined beside the images before the action where these are given and there is a refiner.

        Args:
            drawn: codes, int64 [M, N], or features, float [M, N, D].
            references: pixels of the images before, float [M, 3, H, W] in [-1, 1].
            batch_size: how many are decoded at once; they are refined one after another, which takes little memory.

        Returns:
            float [M, 3, H, W] in [-1, 1].
        """
        decode = self.family.decode_features if drawn.is_floating_point() else self.family.decode_image
        pixels = torch.cat([decode(chunk) for chunk in drawn.split(batch_size)])
        if self.refiner is None or references is None:
            return pixels
        pairs = zip(pixels.split(1), references.split(1), strict=True)
        return torch.cat([refine(self.refiner, *pair) for pair in pairs]).clamp(-1, 1)
