"""Between ComfyUI's images and latents and the library's: IMAGE is float [B, H, W, C] in 0-1.

A LATENT of this pack holds VQ codes as `samples` [B, 1, grid, grid]: the model's own tokens, which survive every step,
where decoding and encoding again would change some. Beside them it holds the `pictures` [B, H, W, 3] that the node showed for
these `codes` [B, N], since what a refiner makes of codes depends on the image before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

if TYPE_CHECKING:
    from bwm_pipelines.pipelines.base import CheckpointPipeline

LATENT_TYPE = "world_model_codes"
ImageOrLatent = [io.Image, io.Latent]
Latent = dict[str, Any]


class Pictures(NamedTuple):
    """K images: `codes` int64 [K, N] as the models read them, and `images`, K times float [1, H, W, 3]."""

    codes: Tensor
    images: list[Tensor]


def count(values: Sequence[Tensor | Latent]) -> int:
    """How many images some batches or latents hold together."""
    return sum(len(value["samples"] if isinstance(value, dict) else value) for value in values)


def read(pipe: CheckpointPipeline, values: Sequence[Tensor | Latent], argument: str) -> Pictures:
    """Images or latents of any number and size, one after another.

    Raises:
        ValueError: there is no image, or it has another layout or NaN, or a latent is not of this checkpoint.
    """
    codes, images = [], []
    for value in values:
        if isinstance(value, dict):
            codes.append(codes_of_latent(pipe, value, argument))
            images += pictures_of_latent(pipe, value, codes[-1])
        else:
            for image in split_images([value]):
                comfy.model_management.throw_exception_if_processing_interrupted()
                codes.append(pipe.encode_images(image[0].movedim(-1, 0), argument))
                images.append(image)
    if not codes:
        raise ValueError(f"`{argument}` is an empty batch; connect a node that gives at least one image.")
    return Pictures(torch.cat(codes), images)


def read_one(pipe: CheckpointPipeline, values: Sequence[Tensor | Latent], argument: str) -> Pictures:
    """As `read`, for exactly one image."""
    pictures = read(pipe, values, argument)
    if len(pictures.images) != 1:
        raise ValueError(
            f"`{argument}` must be one image, got {len(pictures.images)}.\n"
            "Pick one with Select Top Candidates (top_k 1), Get Image from Batch or Get Latent from Batch."
        )
    return pictures


def split_images(values: Sequence[Tensor]) -> list[Tensor]:
    """Every image of some batches: float [1, H, W, 3] in 0-1; transparency over white, what overshoots 0-1 cut off."""
    images = [image for batch in values for image in batch.clamp(0, 1).split(1)]
    return [image if image.shape[-1] != 4 else _over_white(image) for image in images]


def split_latents(values: Sequence[Latent]) -> list[Latent]:
    """Every entry of some latents, from any model: what belongs to the batch is taken apart with it."""
    return [
        {key: entry[i : i + 1] if _is_batch(entry, latent) else entry for key, entry in latent.items()}
        for latent in values
        for i in range(len(latent["samples"]))
    ]


def group(tensors: list[Any]) -> list[Any]:
    """One batch where all are tensors of the same size, else the list as it is."""
    if all(isinstance(tensor, Tensor) for tensor in tensors) and len({tensor.shape[1:] for tensor in tensors}) == 1:
        return [torch.cat([tensor.to(tensors[0]) for tensor in tensors])]
    return tensors


def group_latents(latents: list[Any]) -> list[Any]:
    """One batch where all are latents with the same keys and sizes, else the list as it is."""
    if not all(isinstance(latent, dict) for latent in latents):
        return latents
    parts = [{key: entry for key, entry in latent.items() if _is_batch(entry, latent)} for latent in latents]
    layouts = {tuple((key, getattr(entry, "shape", ())[1:]) for key, entry in part.items()) for part in parts}
    if len(layouts) != 1:
        return latents
    return [latents[0] | {key: _join([part[key] for part in parts]) for key in parts[0]}]


def decode(pipe: CheckpointPipeline, codes: Tensor) -> Tensor:
    """Images [B, H, W, 3] in 0-1 of codes int64 [B, N]; one after another, which takes little memory."""
    pixels = torch.cat([pipe.family.decode_image(one) for one in codes.split(1)])
    images = pixels.float().add(1).div(2).clamp(0, 1).movedim(1, -1)
    return images.to(comfy.model_management.intermediate_device())


def to_latent(codes: Tensor, pictures: Tensor, grid_size: int) -> Latent:
    """Codes int64 [B, N] and what is shown for them, float [B, H, W, 3] in 0-1, as a LATENT."""
    device = comfy.model_management.intermediate_device()
    samples = codes.reshape(-1, 1, grid_size, grid_size).float().to(device)
    return {"samples": samples, "type": LATENT_TYPE, "codes": codes.to(device), "pictures": pictures.to(device)}


def pictures_of_latent(pipe: CheckpointPipeline, latent: Latent, codes: Tensor) -> list[Tensor]:
    """What was shown for each of the codes, int64 [B, N], of a LATENT: float [1, H, W, 3].

    Nodes that pick or join latents know only their `samples`, so each picture is found by its codes; one that is not
    there is what the image tokenizer shows.
    """
    pictures = []
    for one in codes.split(1):
        known = (
            (latent["codes"] == one.to(latent["codes"].device)).all(1).nonzero().flatten() if "codes" in latent else ()
        )
        pictures.append(latent["pictures"][known[0], None] if len(known) else decode(pipe, one))
    return pictures


def codes_of_latent(pipe: CheckpointPipeline, latent: Latent, argument: str) -> Tensor:
    """Codes int64 [B, N] of a LATENT, on the pipeline's device.

    Raises:
        ValueError: it is another model's.
    """
    if latent.get("type") != LATENT_TYPE:
        raise ValueError(
            f"`{argument}` is a latent of another model, which a world model cannot read.\n"
            "Decode it with VAE Decode and connect the images."
        )
    return pipe.encode_images(latent["samples"].flatten(1).long(), argument)


def _is_batch(entry: Any, latent: Latent) -> bool:
    """Whether an entry of a latent, such as its `noise_mask` or `batch_index`, has one part for each sample."""
    return isinstance(entry, Tensor | list) and len(entry) == len(latent["samples"])


def _join(entries: list[Any]) -> Any:
    return torch.cat(entries) if isinstance(entries[0], Tensor) else list(chain.from_iterable(entries))


def _over_white(image: Tensor) -> Tensor:
    colour, alpha = image[..., :3], image[..., 3:]
    return colour * alpha + (1 - alpha)
