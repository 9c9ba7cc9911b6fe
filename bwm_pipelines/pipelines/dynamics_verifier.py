"""The verifier: ranks images, from any editor, by how probable an action is between the image before and each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import VQModel
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

from bwm_pipelines.explanation import changed_patches, gather_evidence, sum_by_word, words_of_tokens
from bwm_pipelines.families import family_class
from bwm_pipelines.families.chameleon import FORWARD_PROMPT, IMAGE_SIZE, INVERSE_PROMPT
from bwm_pipelines.images import ImageInput
from bwm_pipelines.pipelines.base import CheckpointPipeline, StepCallback, check_count
from bwm_pipelines.verification import greedy_actions, score_candidates


@dataclass
class VerifierOutput(BaseOutput):
    """
    Args:
        order: indices of the candidates, best first, without those in `excluded`.
        scores: mean log p(action token | before, candidate) in nats, in the order of the candidates.
        margins: scores minus `unchanged_score`, in the order of the candidates.
        best: index of the best candidate.
        unchanged_score: score of the image before as its own after.
        changed: whether any candidate beats `unchanged_score`; if not, the action probably happened in none of them.
        excluded: indices of candidates whose score is not finite.
    """

    order: list[int]
    scores: list[float]
    margins: list[float]
    best: int
    unchanged_score: float
    changed: bool
    excluded: list[int]


@dataclass
class NamedActionOutput(BaseOutput):
    """
    Args:
        action: what happened, in words.
        score: mean log-probability of its tokens, eos included, in nats.
    """

    action: str
    score: float


@dataclass
class ExplanationOutput(BaseOutput):
    """
    Args:
        heatmap: evidence of each patch, float32 [grid, grid] in nats, row by row from the top left: what the score
            loses when the patch and its neighbours are undone. Exactly 0 where nothing changed, negative where the
            change speaks against the action.
        words: the action's words.
        word_log_probs: log p(word | before, after, words before it) in nats, summed over the word's tokens.
        word_margins: `word_log_probs` minus those with the image before as its own after.
        tokens: the action's tokens, eos included.
        token_log_probs: log-probability of each token in nats; their mean is `score`.
        score: as `DynamicsVerifierPipeline` gives it.
        unchanged_score: score of the image before as its own after.
    """

    heatmap: Tensor
    words: list[str]
    word_log_probs: list[float]
    word_margins: list[float]
    tokens: list[str]
    token_log_probs: list[float]
    score: float
    unchanged_score: float


class DynamicsVerifierPipeline(CheckpointPipeline):
    """Verification with an inverse dynamics model (arXiv 2506.06006, section 3.3).

    Loads from the same folder as `ChameleonWorldModelPipeline`, without the world model.

    Args:
        dynamics_model: gives p(action | before, after).
        processor: tokenizer and special tokens.
        vqgan: image tokenizer, in float32.
        forward_prompt, inverse_prompt, image_size, mask_image_logits: see `ChameleonFamily`.
    """

    model_cpu_offload_seq = "vqgan->dynamics_model"
    has_compatibles = True

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        # So that loading from a world model's folder does not warn of what the verifier leaves there.
        from bwm_pipelines.pipelines.world_model import ChameleonWorldModelPipeline

        return [ChameleonWorldModelPipeline]

    def __init__(
        self,
        dynamics_model: ChameleonForConditionalGeneration,
        processor: ChameleonProcessor,
        vqgan: VQModel,
        forward_prompt: str = FORWARD_PROMPT,
        inverse_prompt: str = INVERSE_PROMPT,
        image_size: int = IMAGE_SIZE,
        mask_image_logits: bool = True,
    ):
        super().__init__()
        self.register_modules(dynamics_model=dynamics_model, processor=processor, vqgan=vqgan)
        layout = {
            "forward_prompt": forward_prompt,
            "inverse_prompt": inverse_prompt,
            "image_size": image_size,
            "mask_image_logits": mask_image_logits,
        }
        self.register_to_config(**layout)
        self.family = family_class(dynamics_model)(processor, vqgan, **layout)

    def check_inputs(self, action: str, candidate_batch_size: int | None) -> None:
        self._check_action(action)
        self._check_length(action, (self.family.inverse_length(action), self.dynamics_model))
        check_count("candidate_batch_size", candidate_batch_size, optional=True)

    @torch.no_grad()
    def __call__(
        self,
        before: ImageInput | Tensor,
        candidates: ImageInput | Tensor,
        action: str,
        *,
        candidate_batch_size: int | None = None,
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> VerifierOutput | tuple:
        """Rank candidates for the image after an action.

        Args:
            before: one image of any size, see `bwm_pipelines.images.as_pil_images`; or its VQ codes, int64 [N].
            candidates: K images of any size, or VQ codes, int64 [K, N], as the world model pipeline returns them
                with `output_type="latent"`.
            action: what is meant to have happened, in words.
            candidate_batch_size: candidates that run at once; None for as many as fit into memory.
            return_dict: whether to return a `VerifierOutput` or a tuple of its fields.
            callback_on_step_end: called as `callback(pipe, step, step, {})` after each batch of candidates, when `step`
                + 1 of K + 1 images are scored; setting `pipe._interrupt = True` in it ends the call.

        Raises:
            ValueError: an argument cannot work, or the model's scores are not finite.
            Interrupted: `_interrupt` was set.
        """
        # 1. Check inputs
        self.check_inputs(action, candidate_batch_size)
        self._interrupt = False

        # 2. Encode images
        before_codes = self._encode_one(before, "before")
        candidate_codes = self.encode_images(candidates, "candidates")

        # 3. Score: the candidates, and the image before as its own after
        at_once = self._scoring_batch_size([action], len(candidate_codes), candidate_batch_size)
        with self.progress_bar(total=len(candidate_codes) + 1) as bar, self._computing_as("dynamics_model"):
            ranking = score_candidates(
                self.family,
                self.dynamics_model,
                before_codes,
                candidate_codes,
                action,
                candidate_batch_size=at_once,
                on_chunk=self._step_reporter(callback_on_step_end, bar=bar),
            )
        self.maybe_free_model_hooks()
        output = VerifierOutput(best=ranking.order[0], **ranking._asdict())
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def name_action(
        self,
        before: ImageInput | Tensor,
        after: ImageInput | Tensor,
        *,
        max_new_tokens: int = 128,
        callback_on_step_end: StepCallback | None = None,
    ) -> NamedActionOutput:
        """Say in words what happened between two images: greedy, as in the paper's evaluation.

        Args:
            before, after: one image each of any size, or VQ codes, int64 [N].
            max_new_tokens: the longest answer.
            callback_on_step_end: called as `callback(pipe, step, step, {})` after each token.

        Raises:
            ValueError: an argument cannot work, or the model's logits are not finite.
            Interrupted: `_interrupt` was set.
        """
        (named,) = self.name_actions(
            self._encode_one(before, "before"),
            self._encode_one(after, "after"),
            max_new_tokens=max_new_tokens,
            callback_on_step_end=callback_on_step_end,
        )
        if not math.isfinite(named.score):
            raise ValueError(
                "`dynamics_model` gave logits that are not finite; its weights are damaged or its dtype overflows, "
                "load it in float32 or bfloat16."
            )
        return named

    @torch.no_grad()
    def name_actions(
        self,
        befores: ImageInput | Tensor,
        afters: ImageInput | Tensor,
        *,
        max_new_tokens: int = 128,
        callback_on_step_end: StepCallback | None = None,
    ) -> list[NamedActionOutput]:
        """Say in words what happened in each of B pairs of images, all at once.

        Args:
            befores, afters: B images each of any size, or VQ codes, int64 [B, N].
            max_new_tokens: the longest answer.
            callback_on_step_end: called as `callback(pipe, step, step, {})` after each token of all pairs.

        Returns:
            One for each pair, as `name_action` gives it; the score is NaN where the model's logits are not finite.

        Raises:
            ValueError: an argument cannot work.
            Interrupted: `_interrupt` was set.
        """
        check_count("max_new_tokens", max_new_tokens)
        self._interrupt = False
        before_codes, after_codes = self.encode_images(befores, "befores"), self.encode_images(afters, "afters")
        if len(before_codes) != len(after_codes):
            raise ValueError(f"`afters` must be as many as `befores`, {len(before_codes)}, got {len(after_codes)}.")
        pairs = zip(before_codes, after_codes, strict=True)
        prompts = torch.stack([self.family.inverse_prompt_ids(before, after) for before, after in pairs])
        with self._computing_as("dynamics_model"):
            actions = greedy_actions(
                lambda ids, cache, num_logits: self.family.text_step(self.dynamics_model, ids, cache, num_logits),
                prompts,
                eos_token_id=self.family.tokenizer.eos_token_id,
                image_token_ids=self.family.image_token_ids,
                max_new_tokens=min(
                    max_new_tokens, self.dynamics_model.config.max_position_embeddings - prompts.shape[1]
                ),
                on_token=self._step_reporter(callback_on_step_end),
            )
        self.maybe_free_model_hooks()
        return [
            NamedActionOutput(action=self.family.action_text(ids), score=log_probs.mean().item())
            for ids, log_probs in actions
        ]

    @torch.no_grad()
    def explain(
        self,
        before: ImageInput | Tensor,
        after: ImageInput | Tensor,
        action: str,
        *,
        window: int = 3,
        batch_size: int | None = 16,
        callback_on_step_end: StepCallback | None = None,
    ) -> ExplanationOutput:
        """Say on which patches of an image, and on which words of an action, a score rests.

        Every changed patch is undone in turn, together with its neighbours; the evidence is what the score loses. See
        `bwm_pipelines.explanation`.

        Args:
            before, after: one image each of any size, or VQ codes, int64 [N].
            action: what is meant to have happened, in words.
            window: side, in patches, of the square that is undone at once; odd. 1 undoes single patches, which is
                sharper but finds little where neighbours show the same.
            batch_size: images that run at once; None for all. There is one for each changed patch.
            callback_on_step_end: called as `callback(pipe, step, step, {})` after each batch, when `step` + 1 images are
                scored; setting `pipe._interrupt = True` in it ends the call.

        Raises:
            ValueError: an argument cannot work, or the model's log-probabilities are not finite.
            Interrupted: `_interrupt` was set.
        """
        self.check_inputs(action, None)
        check_count("batch_size", batch_size, optional=True)
        check_count("window", window)
        if window % 2 == 0:
            raise ValueError(f"`window` must be odd, so that it has a patch in its middle, got {window}.")
        self._interrupt = False
        before_codes, after_codes = self._encode_one(before, "before"), self._encode_one(after, "after")
        steps = len(changed_patches(before_codes, after_codes)) + 2
        with self.progress_bar(total=steps) as bar, self._computing_as("dynamics_model"):
            evidence = gather_evidence(
                self.family,
                self.dynamics_model,
                before_codes,
                after_codes,
                action,
                window=window,
                batch_size=batch_size,
                on_chunk=self._step_reporter(callback_on_step_end, bar=bar),
            )
        self.maybe_free_model_hooks()
        words, owners = words_of_tokens(self.family, action)
        gains = evidence.log_probs - evidence.unchanged_log_probs
        return ExplanationOutput(
            heatmap=evidence.heatmap,
            words=words,
            word_log_probs=sum_by_word(evidence.log_probs, owners, len(words)),
            word_margins=sum_by_word(gains, owners, len(words)),
            tokens=self.family.tokenizer.convert_ids_to_tokens(self.family.action_ids(action).tolist()),
            token_log_probs=evidence.log_probs.tolist(),
            score=evidence.log_probs.mean().item(),
            unchanged_score=evidence.unchanged_log_probs.mean().item(),
        )

    def _encode_one(self, image: ImageInput | Tensor, argument: str) -> Tensor:
        codes = self.encode_images(image, argument)
        if len(codes) != 1:
            raise ValueError(f"`{argument}` must be one image, got {len(codes)}; call once for each.")
        return codes[0]
