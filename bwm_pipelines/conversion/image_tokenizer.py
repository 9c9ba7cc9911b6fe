"""Chameleon's image tokenizer: from taming-transformers' names to those of `diffusers.VQModel`.

The two are one architecture, tensor for tensor. Only names differ, the decoder's levels, counted from the other end, and
the attention's 1x1 convolutions, which are linear layers in diffusers.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from bwm_pipelines.conversion.language_model import VQ_PREFIX
from bwm_pipelines.conversion.plan import Origin, Plan, check_used
from bwm_pipelines.conversion.weights import Weights

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")
TRAINING = ("loss.", "model_ema.")  # the discriminator, and averages that Meta's own code does not use either
RENAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def read_yaml(path: Path) -> ChameleonVQVAEConfig:
    """The configuration beside a `vqgan.ckpt`.

    Raises:
        ValueError: it is missing, no configuration of a VQ-GAN, or one of an architecture that Chameleon's is not.
    """
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        sizes: dict[str, Any] = params["ddconfig"]
        config = ChameleonVQVAEConfig(
            embed_dim=params["embed_dim"],
            num_embeddings=params["n_embed"],
            latent_channels=sizes["z_channels"],
            resolution=sizes["resolution"],
            in_channels=sizes["in_channels"],
            base_channels=sizes["ch"],
            channel_multiplier=list(sizes["ch_mult"]),
            num_res_blocks=sizes["num_res_blocks"],
            attn_resolutions=list(sizes["attn_resolutions"]),
            dropout=sizes.get("dropout", 0.0),
            double_latent=sizes["double_z"],
            attn_type=sizes.get("attn_type", "vanilla"),
        )
    except FileNotFoundError:
        raise ValueError(
            f"`vqgan`: {path} is missing; it belongs beside vqgan.ckpt, get it from the same place."
        ) from None
    except KeyError as error:
        raise ValueError(f"`vqgan`: {path} has no {error.args[0]}; get the yaml that came with vqgan.ckpt.") from None
    except (yaml.YAMLError, TypeError, ValueError, UnicodeDecodeError):
        raise ValueError(f"`vqgan`: {path} is no configuration of a VQ-GAN; get the yaml of vqgan.ckpt.") from None
    return config


def vq_model_config(config: ChameleonVQVAEConfig) -> dict[str, Any]:
    """The arguments of the `VQModel` of a Chameleon's image tokenizer.

    Raises:
        ValueError: an architecture that Chameleon's is not.
    """
    known = {"double_latent": False, "attn_type": "vanilla", "attn_resolutions": [], "in_channels": 3}
    for name, value in known.items():
        if (getattr(config, name) or value) != value:
            raise ValueError(
                f"`vqgan`: its configuration has {name} = {getattr(config, name)}; Chameleon's has {value}."
            )
    levels = len(config.channel_multiplier)
    return {
        "block_out_channels": [config.base_channels * factor for factor in config.channel_multiplier],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.latent_channels,
        "vq_embed_dim": config.embed_dim,
        "num_vq_embeddings": config.num_embeddings,
        "sample_size": config.resolution,
        "lookup_from_codebook": True,
    }


def vq_model_plan(weights: Weights, config: ChameleonVQVAEConfig, prefix: str = "") -> Plan:
    """The plan for a `VQModel`, in float32 whatever the source is: in bfloat16 one code in ten changes.

    Args:
        prefix: what stands before taming's names.
    """
    plan: Plan = {}
    for name in weights.specs:
        part = name.removeprefix(prefix)
        if name.startswith(prefix) and part.startswith(PARTS):
            linear = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight", part) is not None
            target = _diffusers_name(part, len(config.channel_multiplier))
            plan[target] = Origin(weights, name, partial(_float32, linear=linear))
    return plan


def taming_plan(weights: Weights) -> Plan:
    """The plan for the encoder that sits in transformers' Chameleon, from a `vqgan.ckpt`.

    Raises:
        ValueError: a tensor that no VQ-GAN has.
    """
    used = [name for name in weights.specs if name.startswith(PARTS)]
    check_used(weights, used, lambda name: name.startswith(TRAINING), str(weights.files[0]))
    return {f"{VQ_PREFIX}{name}": Origin(weights, name) for name in used if not name.startswith("decoder.")}


def _diffusers_name(name: str, levels: int) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"(?<=\.up_blocks\.)\d+", lambda level: str(levels - 1 - int(level[0])), name)


def _float32(tensor: Tensor, linear: bool) -> Tensor:
    return (tensor.flatten(1) if linear and tensor.ndim == 4 else tensor).float()
