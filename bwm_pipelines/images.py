"""Images in: files, PIL images, arrays and tensors become the square RGB tensors the VQ model reads.

There is one path, through Pillow, whatever comes in and whichever libraries are installed: the same picture always
gives the same tokens.
"""

import warnings
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps

ImageInput = Image.Image | np.ndarray | torch.Tensor | list[Image.Image | np.ndarray | torch.Tensor]


def open_image(path: str | PathLike[str]) -> Image.Image:
    """Read an image file: RGB, upright, transparency over white.

    Raises:
        ValueError: the file is missing, no image, damaged, empty, or larger than Pillow's limit for safe images.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                image.load()
                image.getexif()  # some formats read it from the file
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ValueError(
                f"`image` {str(path)!r} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first."
            ) from None
        except FileNotFoundError:
            raise ValueError(f"`image` {str(path)!r} does not exist; check the path.") from None
        except Exception as error:  # noqa: BLE001 (Pillow's decoders raise errors of every kind)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged or no image"
            raise ValueError(f"`image` {str(path)!r} cannot be read ({reason}); give a PNG or JPEG file.") from None
    return to_rgb(image)


def to_rgb(image: Image.Image, argument: str = "image") -> Image.Image:
    """An upright RGB image: EXIF orientation applied, transparency over white.

    Raises:
        ValueError: `image` has no pixels, or more than 8 bits a channel.
    """
    if 0 in image.size:
        raise ValueError(f"`{argument}` has the size {image.width}x{image.height}; give an image with pixels.")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"`{argument}` has more than 8 bits a channel (mode {image.mode}); convert it to RGB first.")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def square(image: Image.Image, size: int) -> Image.Image:
    """The image as a model sees it: RGB, the largest centred square of it, `size` pixels a side."""
    image = to_rgb(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def as_pil_images(images: ImageInput, argument: str = "image") -> list[Image.Image]:
    """One image or several of any accepted kind, as a list of upright RGB images.

    Args:
        images: a PIL image; an array [H, W, 3] or [B, H, W, 3], uint8 or float in 0-1; a tensor [3, H, W] or
            [B, 3, H, W], float in 0-1; or a list of these.
        argument: the name that errors give it.

    Raises:
        ValueError: something is no image of these kinds.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError(f"`{argument}` is an empty list; give at least one image.")
        return [pil for image in images for pil in as_pil_images(image, argument)]
    if isinstance(images, Image.Image):
        try:
            return [to_rgb(images, argument)]
        except OSError as error:
            raise ValueError(f"`{argument}` cannot be read ({error}); give an undamaged image.") from None
    if isinstance(images, torch.Tensor):
        tensor = images.detach().cpu().float()
        array = tensor.movedim(-3, -1).numpy() if tensor.ndim >= 3 else tensor.numpy()
        return _array_to_pil(array, argument, images)
    if isinstance(images, np.ndarray):
        return _array_to_pil(images, argument, images)
    raise ValueError(
        f"`{argument}` must be a PIL image, an array, a tensor or a list of these, got {type(images).__name__}; "
        "open files with PIL.Image.open."
    )


def to_pixels(images: list[Image.Image], size: int) -> torch.Tensor:
    """Squares of the images: float32 [B, 3, size, size] in [-1, 1]."""
    arrays = np.stack([np.asarray(square(image, size)) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def _array_to_pil(array: np.ndarray, argument: str, given: np.ndarray | torch.Tensor) -> list[Image.Image]:
    """`array` is [H, W, 3] or [B, H, W, 3]; `given` is what the caller passed, for messages."""
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or array.size == 0:
        layout = "[3, H, W]" if isinstance(given, torch.Tensor) else "[H, W, 3]"
        raise ValueError(f"`{argument}` must have the shape {layout}, or a batch of it, got {list(given.shape)}.")
    if array.dtype != np.uint8:
        # The comparison also refuses NaN.
        if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"`{argument}` must hold floats in 0-1 (arrays also uint8), got {given.dtype} "
                f"in {array.min():g} to {array.max():g}."
            )
        array = np.rint(array * 255).astype(np.uint8)
    return [Image.fromarray(one) for one in array.reshape(-1, *array.shape[-3:])]
