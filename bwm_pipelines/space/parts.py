"""The parts that the tabs are made of: inputs, the line that says how far a task is, and the buttons that run and stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from bwm_pipelines.space import examples
from bwm_pipelines.space.limits import Limits, read_upload

Updates = dict[Any, Any]


@contextmanager
def told() -> Iterator[None]:
    """Errors of visitors become messages on the page."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), duration=12, print_exception=False) from None


def upload(label: str, limits: Limits) -> gr.Image:
    """An image to upload. The handler gets it as an RGB picture.

    Gradio would open the file before any of our code and answer a damaged one with a bare "Error".
    """
    component = gr.Image(
        label=label,
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        height=300,
        buttons=["fullscreen"],
        elem_classes="upload",
    )
    component.preprocess = partial(_read_payload, limits)
    return component


def _read_payload(limits: Limits, payload: Any) -> Image.Image | None:
    if payload is None:
        return None
    with told():
        if not payload.path:
            raise ValueError("Please upload the image as a file.")
        return read_upload(payload.path, limits)


def picture(label: str, height: int | None = 300) -> gr.Image:
    return gr.Image(label=label, format="png", interactive=False, height=height, buttons=["download", "fullscreen"])


def action_input(playroom: bool, label: str = "Action") -> gr.Dropdown:
    return gr.Dropdown(
        examples.ACTIONS if playroom else [],
        value=examples.ACTIONS[0] if playroom else None,
        label=label,
        info="Pick one or type your own." if playroom else "Say in words what happens.",
        allow_custom_value=True,
    )


def seed_input() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)


def buttons(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary", scale=2, min_width=120), gr.Button(
            "Stop", variant="stop", min_width=80
        )


def numbers_panel() -> gr.JSON:
    with gr.Accordion("Numbers", open=False):
        return gr.JSON(show_label=False)


def offer(rows: list[list], inputs: list) -> None:
    gr.Examples(rows, inputs, api_visibility="private", cache_examples=False)


ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "models"}


def run_on(
    button: gr.Button, run: Callable, inputs: list, outputs: list, api_name: str, status: gr.HTML
) -> gr.events.Dependency:
    @wraps(run)
    def run_to_a_whole(*values: Any) -> Iterator[Updates]:
        whole: Updates = {}
        for updates in run(*values):
            whole |= updates
            yield updates
        yield whole  # what `gradio_client` returns is the last of them alone

    return button.click(run_to_a_whole, inputs, outputs, api_name=api_name, show_progress_on=status, **ONE_AT_A_TIME)


def stop_on(button: gr.Button, running: list[gr.events.Dependency], status: gr.HTML) -> None:
    """Stop takes effect within one token: closing the generator interrupts the pipeline."""
    button.click(
        lambda: done("Stopped.", warning=True), None, status, cancels=running, queue=False, api_visibility="private"
    )


def status_line() -> gr.HTML:
    return gr.HTML(done("Ready."), elem_classes="status", min_height=44)


def bar(done: float, text: str) -> str:
    return (
        f'<div class="bwm-status"><span>{escape(text)} …</span>'
        f'<div class="bwm-bar"><div style="width:{100 * done:.0f}%"></div></div></div>'
    )


def done(text: str, warning: bool = False) -> str:
    return f'<div class="bwm-status {"bwm-warning" if warning else ""}"><span>{escape(text)}</span></div>'
