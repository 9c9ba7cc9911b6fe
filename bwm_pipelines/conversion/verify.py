"""What was written is read back and computed with: tokens and logits must be those of the source.

Everything runs in float32 and layer by layer, so that a 7B model needs about the memory of two of its layers.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAE

from bwm_pipelines import default_checkpoint
from bwm_pipelines.conversion.language_model import VQ_PREFIX, MetaWeights
from bwm_pipelines.conversion.weights import Weights, weights_of_folder
from bwm_pipelines.families import ChameleonFamily
from bwm_pipelines.images import open_image, to_pixels

LOGIT_TOLERANCE = 1e-3  # of the largest logit; float32 in another order of summation stays below 1e-5
CODE_AGREEMENT = 0.99  # two codebook entries may be equally near


@torch.no_grad()
def verify_tokens(folder: Path, model: str, family: ChameleonFamily) -> dict[str, float]:
    """Encode a picture with the written `VQModel` and with transformers' own encoder, and decode it again.

    Args:
        folder: the pipeline folder.
        model: the component whose `ChameleonVQVAE` is asked.
        family: tells the size of images.

    Returns:
        `code_agreement`, 0-1, and `reconstruction_psnr` in dB.

    Raises:
        ValueError: the two disagree, or the decoder gives no finite image.
    """
    pixels = to_pixels([open_image(default_checkpoint() / "sample_scene.png")], family.image_size)
    family.vqgan = VQModel.from_pretrained(folder / "vqgan")
    codes = family.encode_image(pixels)
    config = ChameleonConfig.from_pretrained(folder / model).vq_config
    with torch.device("meta"):
        encoder = ChameleonVQVAE(config)
    with weights_of_folder(folder / model).open() as read:
        state = {name: read(f"{VQ_PREFIX}{name}").float() for name in encoder.state_dict()}
    encoder.load_state_dict(state, assign=True)
    agreement = (encoder.encode(pixels).image_tokens.reshape(1, -1) == codes).float().mean().item()
    if agreement < CODE_AGREEMENT:
        raise ValueError(
            f"`source`: the converted image tokenizer gives the same tokens as transformers' in {agreement:.1%} of the "
            "patches only; `vqgan` and the model are not of one checkpoint."
        )
    error = (family.decode_image(codes) - pixels).square().mean().item()
    if not math.isfinite(error):
        raise ValueError("`vqgan`: the decoder gives values that are not finite; get an undamaged vqgan.ckpt.")
    return {"code_agreement": agreement, "reconstruction_psnr": 10 * math.log10(4 / error)}


@torch.no_grad()
def verify_logits(folder: Path, source: Weights, text: Tensor, image: Tensor) -> dict[str, float]:
    """Compare the logits of a written model with those of its source.

    Args:
        folder: of the written model.
        source: what it was made of: in Meta's layout it is computed as Meta does, with its own order of dimensions.
        text, image: tokens to compute with, int64 [S] and [T].

    Returns:
        `max_logit_difference`, and `nats_per_token`: mean -log p of `text`, which says whether the model can read.

    Raises:
        ValueError: the logits differ, or are not finite.
    """
    config, ids = ChameleonConfig.from_pretrained(folder), torch.cat([text, image])
    found = stock_logits(config, weights_of_folder(folder), ids)
    expected = (meta_logits if isinstance(source, MetaWeights) else stock_logits)(config, source, ids)
    difference, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= LOGIT_TOLERANCE * scale:  # also where one is not finite
        raise ValueError(
            f"`source`: the logits of the converted model differ from those of its source by {difference:g} "
            f"(the largest is {scale:g}); the weights are damaged or of an unknown kind."
        )
    nats = F.cross_entropy(found[: len(text) - 1], text[1:]).item()
    return {"max_logit_difference": difference, "nats_per_token": nats}


def stock_logits(config: ChameleonConfig, weights: Weights, ids: Tensor) -> Tensor:
    """Logits [S, V] of tokens [S] through transformers' layers, one at a time."""
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    rotary = type(model.model.rotary_emb)(config)
    hidden = _rows(weights, "model.embed_tokens.weight", ids)[None]
    positions = rotary(hidden, torch.arange(len(ids))[None])
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]

    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        module, values = model.get_submodule(name), _values(weights, f"{name}.")
        return functional_call(module, {key: values[key] for key in module.state_dict()}, args, kwargs)

    for number in tqdm(range(config.num_hidden_layers), desc="Reading back", disable=None):
        output = run(f"model.layers.{number}", hidden, attention_mask=mask, position_embeddings=positions)
        hidden = output[0] if isinstance(output, tuple) else output
    return run("lm_head", run("model.norm", hidden))[0]


def meta_logits(config: ChameleonConfig, weights: Weights, ids: Tensor) -> Tensor:
    """Logits [S, V] of tokens [S] as Meta's code computes them from Meta's tensors (arXiv 2405.09818, section 2)."""
    eps, turns = config.rms_norm_eps, _turns(config, len(ids))

    def block(gain: Tensor, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return x + (_rms_norm(inner(x), gain, eps) if config.swin_norm else inner(_rms_norm(x, gain, eps)))

    hidden = _rows(weights, "tok_embeddings.weight", ids)
    for number in tqdm(range(config.num_hidden_layers), desc="Reading back", disable=None):
        layer = _values(weights, f"layers.{number}.")
        hidden = block(layer["attention_norm.weight"], partial(_attention, config, layer, turns), hidden)
        hidden = block(layer["ffn_norm.weight"], partial(_feed_forward, layer), hidden)
    hidden = _rms_norm(hidden, _values(weights, "norm.")["weight"], eps)
    return hidden @ _values(weights, "output.")["weight"].T


def _values(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The tensors of one module, by their names in it, in float32; their files are let go."""
    with weights.open() as read:
        return {name.removeprefix(prefix): read(name).float() for name in weights.specs if name.startswith(prefix)}


def _rows(weights: Weights, name: str, ids: Tensor) -> Tensor:
    with weights.open() as read:
        return read(name)[ids].float()


def _attention(config: ChameleonConfig, layer: dict[str, Tensor], turns: Tensor, x: Tensor) -> Tensor:
    groups = config.num_attention_heads // config.num_key_value_heads
    size = config.hidden_size // config.num_attention_heads

    def heads(name: str) -> Tensor:
        """[S, H, d]"""
        return (x @ layer[f"attention.{name}.weight"].T).unflatten(-1, (-1, size))

    def rotated(name: str, norm: str) -> Tensor:
        found = F.layer_norm(heads(name), (size,))
        gain, bias = (layer[f"attention.{norm}.{kind}"] for kind in ("weight", "bias"))  # [ranks, d]
        each = found.shape[1] // len(gain)
        found = found * gain.repeat_interleave(each, 0) + bias.repeat_interleave(each, 0)
        pairs = torch.view_as_complex(found.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns[:, None]).flatten(-2)

    queries, keys, values = rotated("wq", "q_normalization"), rotated("wk", "k_normalization"), heads("wv")
    keys, values = (part.repeat_interleave(groups, 1) for part in (keys, values))
    seen = F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in (queries, keys, values)), is_causal=True)
    return seen.transpose(0, 1).flatten(1) @ layer["attention.wo.weight"].T


def _feed_forward(layer: dict[str, Tensor], x: Tensor) -> Tensor:
    gate, up, down = (layer[f"feed_forward.{name}.weight"].T for name in ("w1", "w3", "w2"))
    return (F.silu(x @ gate) * (x @ up)) @ down


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _turns(config: ChameleonConfig, length: int) -> Tensor:
    """How far each pair of dimensions turns at each position: complex [S, d / 2]."""
    size = config.hidden_size // config.num_attention_heads
    speeds = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(length), speeds)
    return torch.polar(torch.ones_like(angles), angles)
