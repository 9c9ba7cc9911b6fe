"""Pictures of results, drawn with Pillow alone: the overview of an edit, and the film strip and the GIF of a rollout.

Every picture is put together from blocks, which are images themselves: a line of text, a tile (a picture and its
caption), a row of blocks, a stack of blocks. Scores and margins are in nats, as the dynamics verifier returns them.
"""

from collections.abc import Sequence
from functools import cache
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, ImageOps

PAPER, INK, MUTED, HAIRLINE = "#fbfaf7", "#1d1d1f", "#6c6c70", "#d9d7d0"
GOOD, WARNING = "#157f5b", "#b4540a"
EVIDENCE = "#ff730d"

COLUMNS, TILE, LARGE_TILE = 4, 192, 384  # 192 and 384 are whole multiples of the playroom's 96 px
FRAME, GAP, MARGIN = 6, 12, 40
WIDTH = COLUMNS * (TILE + 2 * FRAME) + (COLUMNS - 1) * GAP


class Frame(NamedTuple):
    """One picture of a rollout: the scene after `action`, or the scene at the start if `action` is None.

    `score` and `margin` are the chosen candidate's, in nats, and `changed` says whether any candidate beat "nothing
    changed"; all three are None where nothing was verified.
    """

    image: Image.Image
    action: str | None = None
    score: float | None = None
    margin: float | None = None
    changed: bool | None = None


def overview(
    before: Image.Image,
    candidates: Sequence[Image.Image],
    action: str,
    scores: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
    changed: bool | None = None,
) -> Image.Image:
    """Draw an edit: the image before, the chosen candidate, and every candidate with its score and margin.

    Args:
        before: the scene before the action.
        candidates: the imagined scenes, best first, or in sampling order if `scores` is None.
        action: the action in words.
        scores: mean log p(action | before, candidate) per candidate, in nats; None if nothing was verified.
        margins: each score minus that of the unchanged scene, in nats; None if nothing was verified.
        changed: whether any candidate beats the unchanged scene; None if nothing was verified.
    """
    count = f"{len(candidates)} candidate{'s' * (len(candidates) > 1)}"
    if scores is None or margins is None:
        chosen, colour, captions = "First sample", WARNING, [[] for _ in candidates]
        verdict = "Not verified: without a dynamics model the candidates stay in sampling order."
        legend = f"{count}, in sampling order"
    else:
        chosen, colour, captions = "Chosen", GOOD, list(map(_score_lines, scores, margins))
        verdict = "Chosen: the image in which the dynamics model reads this action most clearly."
        legend = (
            f"{count}, best first. Score: mean log p(action | before, after) in nats. Margin: over “nothing changed”."
        )
    if changed is False:
        chosen, colour = "Best, but no better than “nothing changed”", WARNING
        verdict = "No candidate beats “nothing changed”: the action probably happened in none of them."

    pair = [
        _tile(before, LARGE_TILE, [("Before", INK)], size=19),
        _arrow(),
        _tile(candidates[0], LARGE_TILE, [(chosen, colour), *captions[0]], size=19, frame=colour),
    ]
    tiles = [
        _tile(candidate, TILE, [(str(rank), INK), *caption], frame=colour if rank == 1 else None)
        for rank, (candidate, caption) in enumerate(zip(candidates, captions, strict=True), start=1)
    ]
    title = _stack([_heading(f"“{action}”", 34), _heading(verdict, 19, colour)], gap=4)
    return _page([title, _row(pair, gap=0), _heading(legend, 16, MUTED), _grid(tiles)])


def film_strip(frames: Sequence[Frame]) -> Image.Image:
    """Draw the frames of a rollout side by side in reading order, each with the action that led to it."""
    tiles = [_tile(f.image, TILE, _frame_lines(number, f), frame=_frame_colour(f)) for number, f in enumerate(frames)]
    steps = f"{len(frames) - 1} step{'s' * (len(frames) > 2)}"
    return _page([_heading(f"{steps}, each from the image chosen in the one before", 22), _grid(tiles)])


def save_gif(frames: Sequence[Frame], file: str | PathLike[str], milliseconds: int = 1200) -> None:
    """Write the frames of a rollout as an endlessly repeated GIF; each stays `milliseconds`, the last twice as long."""
    tiles = [_tile(f.image, LARGE_TILE, _frame_lines(number, f), size=19) for number, f in enumerate(frames)]
    size = (max(tile.width for tile in tiles), max(tile.height for tile in tiles))
    pages = [ImageOps.expand(ImageOps.pad(tile, size, color=PAPER, centering=(0, 0)), GAP, PAPER) for tile in tiles]
    durations = [milliseconds] * (len(pages) - 1) + [2 * milliseconds]
    pages[0].save(file, format="GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)


def evidence_overlay(image: Image.Image, heatmap: ArrayLike) -> Image.Image:
    """The image darkened and grey, but in its own colours under an orange glow where the evidence for an action lies.

    Args:
        image: the image after, as the verifier sees it: square.
        heatmap: float [grid, grid] in nats, as `DynamicsVerifierPipeline.explain` returns it.
    """
    image = image.convert("RGB")
    evidence = np.asarray(heatmap, dtype=float)
    relative = np.sqrt(np.clip(evidence / max(evidence.max(), 1e-6), 0, 1))
    glow = Image.fromarray(np.rint(relative * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    darkened = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size), 0.5)
    return Image.composite(Image.blend(image, Image.new("RGB", image.size, EVIDENCE), 0.4), darkened, glow)


def _score_lines(score: float, margin: float) -> list[tuple[str, str]]:
    return [(f"score {score:.3f}", MUTED), (f"margin {margin:+.3f}", GOOD if margin > 0 else WARNING)]


def _frame_lines(number: int, frame: Frame) -> list[tuple[str, str]]:
    if frame.action is None:
        return [("Start", INK)]
    scores = _score_lines(frame.score, frame.margin) if frame.score is not None and frame.margin is not None else []
    warning = [("no candidate beats “nothing changed”", WARNING)] if frame.changed is False else []
    return [(f"{number}. {frame.action}", INK), *scores, *warning]


def _frame_colour(frame: Frame) -> str | None:
    if frame.changed is None:
        return None
    return GOOD if frame.changed else WARNING


# Blocks


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _text(text: str, size: int, colour: str, width: int) -> Image.Image:
    lines, leading = _wrap(text, _font(size), width), round(size * 1.3)
    block = Image.new("RGB", (width, leading * len(lines)), PAPER)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, (number + 0.5) * leading), line, colour, _font(size), anchor="lm")
    return block


def _heading(text: str, size: int, colour: str = INK) -> Image.Image:
    return ImageOps.expand(_text(text, size, colour, WIDTH - 2 * FRAME), (FRAME, 0), PAPER)


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Scale to at most `side` pixels: up by a whole factor with hard edges, down smoothly."""
    image = image.convert("RGB")
    longest = max(image.size)
    if longest > side:
        return ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
    factor = side // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _tile(
    image: Image.Image, side: int, lines: Sequence[tuple[str, str]], size: int = 16, frame: str | None = None
) -> Image.Image:
    """A picture of `side` pixels with its caption below it: lines of (text, colour)."""
    picture = Image.new("RGB", (side + 2 * FRAME, side + 2 * FRAME), PAPER)
    fitted = _fit(image, side)
    corner = ((picture.width - fitted.width) // 2, (picture.height - fitted.height) // 2)
    box = (corner[0] - FRAME, corner[1] - FRAME, corner[0] + fitted.width + FRAME, corner[1] + fitted.height + FRAME)
    if frame:
        ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=frame, width=4)
    picture.paste(fitted, corner)
    caption = _stack([_text(text, size, colour, side) for text, colour in lines], gap=0)
    return _stack([picture, ImageOps.expand(caption, (FRAME, 2, FRAME, 0), PAPER)], gap=0)


def _arrow() -> Image.Image:
    width, height, scale = WIDTH - 2 * (LARGE_TILE + 2 * FRAME), LARGE_TILE + 2 * FRAME, 4
    block = Image.new("RGB", (width * scale, height * scale), PAPER)
    draw = ImageDraw.Draw(block)
    middle, tip = height * scale // 2, (width - 6) * scale
    draw.line((6 * scale, middle, tip - 8 * scale, middle), MUTED, 3 * scale)
    draw.polygon(
        [(tip, middle), (tip - 13 * scale, middle - 8 * scale), (tip - 13 * scale, middle + 8 * scale)], MUTED
    )
    return block.resize((width, height), Image.Resampling.LANCZOS)


def _row(blocks: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    row = Image.new(
        "RGB", (sum(b.width for b in blocks) + gap * (len(blocks) - 1), max(b.height for b in blocks)), PAPER
    )
    left = 0
    for block in blocks:
        row.paste(block, (left, 0))
        left += block.width + gap
    return row


def _stack(blocks: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    column = Image.new(
        "RGB", (max(b.width for b in blocks), sum(b.height for b in blocks) + gap * (len(blocks) - 1)), PAPER
    )
    top = 0
    for block in blocks:
        column.paste(block, (0, top))
        top += block.height + gap
    return column


def _grid(tiles: Sequence[Image.Image]) -> Image.Image:
    return _stack([_row(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)])


def _page(blocks: Sequence[Image.Image]) -> Image.Image:
    return ImageOps.expand(_stack(blocks, gap=2 * GAP), MARGIN, PAPER)
