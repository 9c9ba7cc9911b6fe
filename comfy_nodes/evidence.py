"""From the evidence of patches, [grid, grid] in nats, to what artists use: a coloured picture and a mask.

The models see the largest centred square of an image, so that is where the grid lies; around it there is no evidence.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

EVIDENCE_COLOUR = (1.0, 0.45, 0.05)


def strongest(heatmap: Tensor) -> float:
    """The largest evidence for the action; not positive if nothing speaks for it."""
    return heatmap.max().item()


def overlay(image: Tensor, heatmap: Tensor) -> Tensor:
    """The image darkened, with what speaks for the action in its own colours under an orange glow.

    Args:
        image: float [1, H, W, 3] in 0-1.
        heatmap: float [grid, grid].
    """
    relative = (heatmap / max(strongest(heatmap), 1e-6)).clamp(0, 1)
    glow = _on_square(relative, image, mode="bilinear")[..., None].to(image)
    darkened = 0.5 * image.mean(-1, keepdim=True).expand_as(image)
    lit = 0.55 * image + 0.45 * image.new_tensor(EVIDENCE_COLOUR)
    return torch.lerp(darkened, lit, glow.sqrt())


def mask(image: Tensor, heatmap: Tensor, threshold: float) -> Tensor:
    """1 where the evidence is at least `threshold` times the strongest, else 0: float [1, H, W]."""
    strong = heatmap >= max(threshold * strongest(heatmap), torch.finfo(heatmap.dtype).tiny)
    return _on_square(strong.float(), image, mode="nearest-exact").to(image)


def _on_square(grid: Tensor, image: Tensor, mode: str) -> Tensor:
    """A grid stretched over the centred square of an image, 0 around it: float [1, H, W]."""
    _, height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    stretched = torch.zeros(1, height, width)
    stretched[:, top : top + side, left : left + side] = interpolate(grid[None, None], (side, side), mode=mode)[0]
    return stretched
