"""Opens the page in a server. Nothing is fetched from the web, shared or counted."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr

from bwm_pipelines import default_checkpoint
from bwm_pipelines.pictures import GOOD, HAIRLINE, PAPER, WARNING
from bwm_pipelines.space.examples import SCENES
from bwm_pipelines.space.limits import Limits
from bwm_pipelines.space.page import build_page
from bwm_pipelines.space.studio import Studio

FONT = ("ui-sans-serif", "system-ui", "sans-serif")
MONO_FONT = ("ui-monospace", "Consolas", "monospace")
STYLE = f"""
.gradio-container {{max-width: 1360px !important; margin: 0 auto}}
.lead p {{max-width: 62em}}
.hint p {{font-size: var(--text-sm); color: var(--body-text-color-subdued)}}
.upload img {{width: 100%; height: 100%; object-fit: contain}}
.named textarea {{font-size: var(--text-xxl); font-weight: 600}}
.bwm-status {{display: flex; flex-direction: column; gap: 8px; padding: 10px 14px; border-radius: 8px;
    border: 1px solid {HAIRLINE}; border-left: 4px solid {GOOD}; font-weight: 500}}
.bwm-status.bwm-warning {{border-left-color: {WARNING}}}
.bwm-bar {{height: 6px; border-radius: 3px; background: {HAIRLINE}; overflow: hidden}}
.bwm-bar div {{height: 100%; background: {GOOD}; transition: width 0.25s linear}}
/* Ranked images: whole, with the caption below; the best and "nothing changed" stand out. */
.ranked .grid-wrap {{height: auto; min-height: 0; max-height: none}}
.ranked .thumbnail-item {{aspect-ratio: auto; height: auto; overflow: visible; border: 0; box-shadow: none; background: none}}
.ranked .thumbnail-item img {{aspect-ratio: 1; height: auto; object-fit: contain; border-radius: 6px;
    border: 3px solid transparent}}
.ranked .thumbnail-item img[alt^="1 ·"] {{border-color: {GOOD}}}
.ranked .thumbnail-item img[alt^="nothing"] {{border: 3px dashed {WARNING}}}
.ranked .caption-label {{position: static; max-width: none; padding: 2px; border: 0; box-shadow: none; background: none;
    opacity: 1; white-space: normal; text-align: center; font-variant-numeric: tabular-nums}}
"""


def theme() -> gr.themes.Base:
    """Calm colours, and the fonts of the visitor's own system: the page fetches none."""
    soft = gr.themes.Soft(primary_hue="emerald", neutral_hue="stone", font=FONT, font_mono=MONO_FONT)
    return soft.set(
        body_background_fill=PAPER,
        block_label_background_fill="*block_background_fill",
        block_label_text_color="*body_text_color_subdued",
        block_title_background_fill="transparent",
        block_title_text_color="*body_text_color",
        block_border_width="1px",
        block_shadow="none",
        button_primary_background_fill=GOOD,
        button_primary_background_fill_hover=GOOD,
    )


def serve(
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    block: bool = True,
) -> gr.Blocks:
    """Load a checkpoint and serve its page.

    Args:
        checkpoint: a folder, or the id of a repository on the Hub; None for the playroom.
        host, port, block: see `open_page`.

    Raises:
        ValueError: the checkpoint cannot be loaded, or has no dynamics model.
        OSError: the port is taken.
    """
    checkpoint = default_checkpoint() if checkpoint is None else checkpoint
    playroom = Path(checkpoint).resolve() == default_checkpoint().resolve()
    return open_page(Studio(checkpoint), playroom=playroom, host=host, port=port, block=block)


def open_page(
    studio: Studio,
    limits: Limits = Limits(),  # noqa: B008
    *,
    playroom: bool = False,
    host: str | None = None,
    port: int | None = None,
    block: bool = True,
) -> gr.Blocks:
    """Serve the page of a studio.

    Args:
        studio, limits, playroom: see `build_page`.
        host: where to listen; None for what `GRADIO_SERVER_NAME` says, or else this machine alone.
        port: None for `GRADIO_SERVER_PORT`, or else the first free one from 7860.
        block: whether to return only when the server is stopped.

    Raises:
        OSError: the port is taken.
    """
    page = build_page(studio, limits, playroom=playroom)
    page.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css=STYLE,
        footer_links=["api"],
        max_file_size=limits.megabytes * 10**6,
        allowed_paths=[str(SCENES), str(default_checkpoint())],
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=not block,
    )
    return page
