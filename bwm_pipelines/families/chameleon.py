"""The Chameleon family: how words and images become one token sequence, and which logits are image tokens.

A prompt is what the stock `ChameleonProcessor` makes of the checkpoint's template, with its `<image>` placeholders
replaced by the tokens of the images:

    forward   bos <template with before image and action> sep | boi I_1 ... I_N eoi           (world model)
    inverse   bos <template with before and after image>  sep | action tokens eos             (dynamics model)

Forward dynamics and inverse dynamics are those of arXiv 2506.06006, section 3.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch
from diffusers import VQModel
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear
from transformers import Cache, ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.models.chameleon.modeling_chameleon import ChameleonAttention, ChameleonDecoderLayer

from bwm_pipelines.compilation import Compiled
from bwm_pipelines.shared_prefix import LayerStates, SharedPrefixCache, attend

# The legacy prompt of AURORA and the one of SWIRL (arXiv 2602.06130); 2506.06006 prints none.
FORWARD_PROMPT = "<image>\nEditing the given image according to the following prompt: {action}"
INVERSE_PROMPT = (
    "<image><image>Given two consecutive images, identify and briefly describe the action that most likely caused the "
    "change from the first to the second. Use clear, concise natural language to explain the state transition."
)
IMAGE_SIZE = 512
NORM_EPS = 1e-5  # of queries and keys, which the stock code fixes

_DIGITS_TO_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


def image_token_name(code: int) -> str:
    """Name of the vocabulary entry of a VQ code, as in Chameleon's own vocabulary: 0 is `IMGIMGAZ`, 17 `IMGIMGBHZ`."""
    return f"IMGIMG{str(code).translate(_DIGITS_TO_LETTERS)}Z"


class ChameleonFamily:
    """Token layout of a Chameleon checkpoint. Holds no weights of its own.

    Args:
        processor: tokenizer and special tokens; `processor.image_seq_length` must be the N codes of one image.
        vqgan: image tokenizer with `lookup_from_codebook=True`, kept in fp32 (in bf16 one code in ten changes).
        forward_prompt: template of the world model with one `<image>` and one `{action}`.
        inverse_prompt: template of the dynamics model with two `<image>`: before, then after.
        image_size: side of the square images in pixels.
        mask_image_logits: whether the dynamics model was trained with text probabilities normalised over the text
            tokens only, as the stock forward does (True), or over the whole vocabulary (False).

    Raises:
        ValueError: a template without its placeholders, or parts that disagree about the number of image tokens.
    """

    def __init__(
        self,
        processor: ChameleonProcessor,
        vqgan: VQModel,
        *,
        forward_prompt: str,
        inverse_prompt: str,
        image_size: int,
        mask_image_logits: bool,
    ):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.vqgan = vqgan
        self.forward_prompt = forward_prompt
        self.inverse_prompt = inverse_prompt
        self.image_size = image_size
        self.mask_image_logits = mask_image_logits

        self.grid_size = image_size // 2 ** (len(vqgan.config.block_out_channels) - 1)
        self.num_image_tokens = self.grid_size**2
        self.image_token_ids = self._find_image_tokens(vqgan.config.num_vq_embeddings)
        self._check()

    def _find_image_tokens(self, num_codes: int) -> torch.Tensor:
        """Token id of every code, int64 [codebook]. A table, because nothing promises that ids follow the codes."""
        vocabulary = self.tokenizer.get_vocab()
        missing = [name for name in map(image_token_name, range(num_codes)) if name not in vocabulary]
        if missing:
            raise ValueError(
                f"`processor` has no token {missing[0]!r} although `vqgan` has {num_codes} codes; "
                "use the processor and the VQ model of one checkpoint."
            )
        return torch.tensor([vocabulary[image_token_name(code)] for code in range(num_codes)])

    def _check(self) -> None:
        if self.processor.image_seq_length != self.num_image_tokens:
            raise ValueError(
                f"`processor.image_seq_length` is {self.processor.image_seq_length} but an image of "
                f"{self.image_size} px has {self.num_image_tokens} codes; save the processor with that length."
            )
        image_token = self.processor.image_token
        if self.forward_prompt.count(image_token) != 1 or self.forward_prompt.count("{action}") != 1:
            raise ValueError(
                f"`forward_prompt` must hold one {image_token} and one {{action}}, got {self.forward_prompt!r}."
            )
        if self.inverse_prompt.count(image_token) != 2:
            raise ValueError(f"`inverse_prompt` must hold {image_token} twice, got {self.inverse_prompt!r}.")

    # --- Images ---

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """VQ codes of images.

        Args:
            pixels: float [B, 3, H, W] in [-1, 1], H = W = `image_size`, on the device where `vqgan` runs.

        Returns:
            int64 [B, N], row by row from the top left.
        """
        latents = self.vqgan.encode(pixels.to(self.vqgan.dtype)).latents
        _, _, (_, _, codes) = self.vqgan.quantize(latents)
        return codes.reshape(pixels.shape[0], -1)

    @torch.no_grad()
    def decode_image(self, codes: torch.Tensor) -> torch.Tensor:
        """Images of VQ codes: int64 [B, N] -> float [B, 3, H, W] in [-1, 1]."""
        shape = (codes.shape[0], self.grid_size, self.grid_size, self.vqgan.quantize.vq_embed_dim)
        return self.vqgan.decode(codes, force_not_quantize=True, shape=shape).sample.clamp(-1, 1)

    @torch.no_grad()
    def decode_features(self, features: torch.Tensor) -> torch.Tensor:
        """Images of means of the codebook's entries: float [B, N, D] -> float [B, 3, H, W] in [-1, 1]."""
        return _decode(self.vqgan, features.mT.unflatten(-1, (self.grid_size, self.grid_size))).clamp(-1, 1)

    # --- Words ---

    def forward_prompt_ids(self, before_codes: torch.Tensor, action: str) -> torch.Tensor:
        """Prompt of the world model, up to and with the boi token: what follows is the first image token.

        Args:
            before_codes: int64 [N].
            action: plain words; "" gives the unconditional branch of guidance.

        Returns:
            int64 [S] on the device of `before_codes`.

        Raises:
            ValueError: `action` contains a special token.
        """
        self._check_words(action)
        prompt = self._prompt_ids(self.forward_prompt.replace("{action}", action), before_codes)
        return torch.cat([prompt, prompt.new_tensor([self.processor.image_start_token_id])])

    def inverse_prompt_ids(self, before_codes: torch.Tensor, after_codes: torch.Tensor) -> torch.Tensor:
        """Prompt of the dynamics model, up to the action's first token.

        Args:
            before_codes: int64 [N].
            after_codes: int64 [N] or, for many prompts at once, [K, N].

        Returns:
            int64 [S] or [K, S] on the device of `before_codes`.
        """
        codes = torch.cat([before_codes.expand_as(after_codes), after_codes], dim=-1)
        return self._prompt_ids(self.inverse_prompt, codes)

    def action_ids(self, action: str) -> torch.Tensor:
        """Tokens of an action, ending with eos: int64 [A], on the CPU.

        Raises:
            ValueError: `action` contains a special token.
        """
        self._check_words(action)
        ids = self.tokenizer(action, add_special_tokens=False).input_ids
        return torch.tensor([*ids, self.tokenizer.eos_token_id])

    def forward_length(self, action: str) -> int:
        """Tokens of prompt and image together, which the world model's context must hold."""
        return len(self.forward_prompt_ids(self._no_codes(), action)) + self.num_image_tokens

    def inverse_length(self, action: str) -> int:
        """Tokens of prompt and action together, which the dynamics model's context must hold."""
        return len(self.inverse_prompt_ids(self._no_codes(), self._no_codes())) + len(self.action_ids(action))

    def _no_codes(self) -> torch.Tensor:
        return torch.zeros(self.num_image_tokens, dtype=torch.int64)

    def action_text(self, ids: torch.Tensor) -> str:
        """The words of action tokens, int64 [A]; special tokens such as eos are dropped."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _check_words(self, action: str) -> None:
        ids = self.tokenizer(action, add_special_tokens=False).input_ids
        reserved = {*self.tokenizer.added_tokens_decoder, *self.image_token_ids.tolist()}
        found = [self.tokenizer.convert_ids_to_tokens(i) for i in ids if i in reserved]
        if found:
            raise ValueError(f"`action` must be plain words, got {action!r}; remove {found[0]!r}.")

    def _prompt_ids(self, text: str, codes: torch.Tensor) -> torch.Tensor:
        processor = self.processor
        placeholders = processor.image_token * self.num_image_tokens
        image = f"{processor.image_start_token}{placeholders}{processor.image_end_token}"
        text = text.replace(processor.image_token, image) + self.tokenizer.sep_token
        ids = torch.tensor(self.tokenizer(text).input_ids)
        is_image = (ids == processor.image_token_id).to(codes.device)
        ids = ids.to(codes.device).repeat(*codes.shape[:-1], 1)
        ids[..., is_image] = self.image_token_ids.to(codes.device)[codes]
        return ids

    # --- Models ---

    @staticmethod
    @contextmanager
    def image_logits(model: ChameleonForConditionalGeneration) -> Iterator[None]:
        """Within this context the stock forward leaves the logits of image tokens as they are.

        The stock forward sets them to the minimum, always, so that a model can neither sample nor be trained on
        image tokens. Not for two threads that share one model.
        """
        vocabulary = model.model.vocabulary_mapping
        masked = vocabulary.image_tokens
        # Both are derived from `image_tokens` when first read: read them before it is emptied.
        _ = vocabulary.bpe2img, vocabulary.img2bpe_mapping_tensor
        vocabulary.image_tokens = []
        try:
            yield
        finally:
            vocabulary.image_tokens = masked

    def prefill(self, model: ChameleonForConditionalGeneration, prompt_ids: Tensor) -> tuple[Tensor, Cache]:
        """Read the prompt of the world model.

        Args:
            model: the world model; called as a module, so that offloading hooks run.
            prompt_ids: int64 [S].

        Returns:
            Logits over the codes of the first image token, float [1, codebook], and the cache of the prompt.
        """
        with self.image_logits(model):
            outputs = model(input_ids=prompt_ids[None], use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1, self.image_token_ids.to(prompt_ids.device)], outputs.past_key_values

    def continue_prompts(
        self,
        model: ChameleonForConditionalGeneration,
        prefilled: Sequence[Cache],
        num_candidates: int,
        num_tokens: int,
        *,
        block: int = 1,
        compiled: bool = False,
    ) -> "ImageSteps | StockImageSteps":
        """The steps after `prefill`: called with codes of K candidates, the logits of the image tokens after them.

        Args:
            model: the world model, which a `prefill` brought to its device.
            prefilled: for each prompt that the candidates continue, its cache; left as it is.
            num_candidates: K.
            num_tokens: how many tokens of a candidate there are to go on from.
            block: how many of them a step takes; where a step can only take one, its `block` says so.
            compiled: see `sample_codes`.
        """
        if _is_plain(model):
            return ImageSteps(model, self.image_token_ids, prefilled, num_candidates, num_tokens, block, compiled)
        return StockImageSteps(model, self, prefilled, num_candidates)

    def text_step(
        self, model: ChameleonForConditionalGeneration, ids: torch.Tensor, cache: Cache | None, num_logits: int
    ) -> tuple[torch.Tensor, Cache]:
        """Logits over the vocabulary at the last positions, in the convention the dynamics model was trained with.

        Args:
            model: the dynamics model; called as a module, so that offloading hooks run.
            ids: int64 [B, S], the tokens that `cache` does not hold yet.
            cache: keys and values of the tokens before, updated in place; None if there are none.
            num_logits: L, how many positions from the end; the head is not computed for the others.

        Returns:
            float [B, L, vocabulary] and the cache.
        """
        with nullcontext() if self.mask_image_logits else self.image_logits(model):
            outputs = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=num_logits)
        return outputs.logits, outputs.past_key_values


# --- The step from one image token to the next ---


class ImageSteps:
    """Steps by the submodules of the stock model, without what its forward does beside them.

    The prompts are shared by all candidates, see `bwm_pipelines.shared_prefix`, and only the codebook's rows of the head
    are computed. Submodules are called as modules, so that adapters and quantized weights work.

    Args:
        model, prefilled, num_candidates, num_tokens, block, compiled: see `ChameleonFamily.continue_prompts`.
        image_token_ids: token id of every code, int64 [codebook].
    """

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        image_token_ids: Tensor,
        prefilled: Sequence[Cache],
        num_candidates: int,
        num_tokens: int,
        block: int,
        compiled: bool,
    ):
        self.block, self.fixed_windows = block, compiled
        self._layer = _compiled_layer() if compiled else _layer
        self._decoder = model.model
        # More than are attended to: guesses may lie behind the last token, and a window over all of a buffer would have
        # to be compiled apart from the others.
        self._room = num_tokens + block
        self._cache = SharedPrefixCache(prefilled, num_candidates, self._room)
        device = self._cache.layers[0].prefix_keys.device
        rows = torch.arange(len(prefilled) * num_candidates, device=device)
        self._first_slots = rows.view(len(prefilled), num_candidates, 1) * self._room
        self._image_token_ids = image_token_ids.to(device)
        self._head = _image_head(model.lm_head, self._image_token_ids)
        self._norms = [_query_key_norm(layer.self_attn) for layer in self._decoder.layers]
        self._cos, self._sin = self._rotations()

    def _rotations(self) -> tuple[Tensor, Tensor]:
        """Rotary embedding of every position, [G, N, D] each; the sine has the sign of `rotate_half`."""
        like = self._cache.layers[0].prefix_keys
        starts = torch.tensor(self._cache.prefix_lengths, device=like.device)
        cos, sin = self._decoder.rotary_emb(like, starts[:, None] + torch.arange(self._room, device=like.device))
        sin[..., : sin.shape[-1] // 2].neg_()
        return cos, sin

    def __call__(self, codes: Tensor, places: Tensor, window: int) -> Tensor:
        """Logits of the next image tokens.

        Args:
            codes: int64 [K, T], where T is the block.
            places: int64 [K, T], where they stand among their candidate's codes, one after another; those before them
                were given earlier. What was given for these places before is forgotten.
            window: how many of its codes a candidate's tokens can attend to: more than any place that counts, and if
                `fixed_windows` best the same for many steps.

        Returns:
            float [G, K, T, codebook].
        """
        num_prompts = len(self._first_slots)
        hidden = self._decoder.embed_tokens(self._image_token_ids[codes.flatten()].repeat(num_prompts))
        rotation = [table.index_select(1, places.flatten()).flatten(0, 1) for table in (self._cos, self._sin)]
        slots = (self._first_slots + places).flatten()
        bias = self._cache.bias(places.flatten(), window)
        for layer, norm, states in zip(self._decoder.layers, self._norms, self._cache.layers, strict=True):
            hidden = self._layer(layer, hidden, norm, rotation, states, slots, window, bias)
        return self._head(self._decoder.norm(hidden)).unflatten(0, (num_prompts, *codes.shape))


class StockImageSteps:
    """The same steps by the stock forward, for a model whose parts must not be called on their own.

    Args:
        model, prefilled, num_candidates: see `ChameleonFamily.continue_prompts`.
    """

    block, fixed_windows = 1, False

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        family: ChameleonFamily,
        prefilled: Sequence[Cache],
        num_candidates: int,
    ):
        self._model, self._family = model, family
        self._caches = [deepcopy(cache) for cache in prefilled]
        for cache in self._caches:
            cache.batch_repeat_interleave(num_candidates)

    def __call__(self, codes: Tensor, places: Tensor, window: int) -> Tensor:
        """Logits of the next image tokens: as `ImageSteps`, for codes [K, 1] at one place after another."""
        tokens = self._family.image_token_ids.to(codes.device)
        ids = tokens[codes]
        with self._family.image_logits(self._model):
            logits = [self._model(input_ids=ids, past_key_values=cache).logits[:, -1:] for cache in self._caches]
        return torch.stack(logits)[..., tokens]


@apply_forward_hook
def _decode(vqgan: VQModel, grid: Tensor) -> Tensor:
    """`VQModel.decode`, which takes codes only where the codebook is looked up, of features [B, D, h, w]."""
    return vqgan.decoder(vqgan.post_quant_conv(grid))


def _is_plain(model: ChameleonForConditionalGeneration) -> bool:
    """Whether the decoder's parts may be called on their own.

    They may not where hooks bring weights to the device one by one. The 34B model orders its layers differently.
    """
    decoder = model.model
    hooked = any(hasattr(part, hook) for part in decoder.modules() for hook in ("_hf_hook", "_diffusers_hook"))
    usual = decoder.rotary_emb.rope_type == "default"
    return usual and not hooked and all(type(layer) is ChameleonDecoderLayer for layer in decoder.layers)


def _layer(
    layer: ChameleonDecoderLayer,
    hidden: Tensor,
    norm: tuple[Tensor, Tensor],
    rotation: Sequence[Tensor],
    states: LayerStates,
    slots: Tensor,
    window: int,
    bias: Tensor,
) -> Tensor:
    """One layer for T tokens of each row: [R * T, hidden] -> [R * T, hidden]. See `attend` for the shapes.

    Queries and keys are normalised and rotated together, which takes a fifth of the stock modules' time on a CPU.
    """
    attention, rows, size = layer.self_attn, len(hidden), layer.self_attn.head_dim
    normed = layer.input_layernorm(hidden)
    queries_keys = torch.cat([attention.q_proj(normed), attention.k_proj(normed)], dim=-1)
    queries_keys = layer_norm(queries_keys.view(rows, -1, size).transpose(0, 1), (size,), eps=NORM_EPS)
    queries_keys = torch.addcmul(norm[1], queries_keys, norm[0])
    cos, sin = rotation
    queries_keys = torch.addcmul(queries_keys * cos, queries_keys.roll(size // 2, -1), sin)
    query, key = queries_keys.split((attention.num_heads, attention.num_key_value_heads))
    value = attention.v_proj(normed).view(rows, -1, size).transpose(0, 1)
    hidden = hidden + attention.o_proj(attend(query, key, value, states, slots, window, bias))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@functools.cache
def _compiled_layer() -> Compiled:
    """`_layer` compiled, once a process: the layers are alike."""
    return Compiled(_layer)


def _query_key_norm(attention: ChameleonAttention) -> tuple[Tensor, Tensor]:
    """Weight and bias [H + F, 1, D] of the norms of queries and keys; attention's scaling of queries is in them."""
    queries, keys = attention.q_norm, attention.k_norm
    weight = torch.cat([queries.weight * attention.scaling, keys.weight])
    bias = torch.cat([queries.bias * attention.scaling, keys.bias])
    return weight[:, None], bias[:, None]


def _image_head(head: nn.Module, image_token_ids: Tensor) -> Callable[[Tensor], Tensor]:
    """The head's rows of the codes; of a head that is no plain linear layer, all rows are computed."""
    if type(head) is nn.Linear and type(head.weight) is nn.Parameter:
        rows = head.weight[image_token_ids]
        return lambda hidden: linear(hidden, rows)
    return lambda hidden: head(hidden)[:, image_token_ids]
