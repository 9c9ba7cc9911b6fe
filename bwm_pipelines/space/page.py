"""The page: four tabs over one `Studio`. Each lays out its components, and ends with the event that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gradio as gr
from PIL import Image

from bwm_pipelines.pictures import film_strip, save_gif
from bwm_pipelines.space import examples
from bwm_pipelines.space.cached_files import cached_file, cached_picture
from bwm_pipelines.space.desk import Desk
from bwm_pipelines.space.interruption import Progress
from bwm_pipelines.space.limits import Limits, check_action, check_image, check_whole, read_upload
from bwm_pipelines.space.parts import (
    Updates,
    action_input,
    bar,
    buttons,
    done,
    numbers_panel,
    offer,
    picture,
    run_on,
    seed_input,
    status_line,
    stop_on,
    told,
    upload,
)
from bwm_pipelines.space.ranked import Results, shown, words_of
from bwm_pipelines.space.studio import Evidence, Frames, Named, Studio

TITLE = "Imagine, then verify"
LEAD = (
    "Give an image and an action in words. A world model imagines the next image several times, and a second model, which "
    "reads actions from pairs of images, picks the one in which that action really happened."
)
PLAYROOM = (
    "This page runs the small **playroom** checkpoint: it knows one room with a door, a drawer, a lamp, a bowl and coloured "
    "things, in pictures of 96 x 96 pixels, and nothing else."
)


def build_page(studio: Studio, limits: Limits = Limits(), *, playroom: bool = True) -> gr.Blocks:  # noqa: B008
    """The page.

    Args:
        studio: runs the models.
        limits: what one visitor may ask for.
        playroom: whether to offer the examples and the explanations of the playroom checkpoint.
    """
    desk = Desk(studio, limits)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n{LEAD}" + (f"\n\n{PLAYROOM}" if playroom else ""), elem_classes="lead")
        with gr.Tab("Imagine", id="imagine"):
            _imagine_tab(desk, playroom)
        with gr.Tab("Verify your own edits", id="verify"):
            _verify_tab(desk, playroom)
        with gr.Tab("Name the action", id="name"):
            _name_tab(desk, playroom)
        with gr.Tab("Roll out", id="roll_out"):
            _roll_out_tab(desk, playroom)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1, status_update_rate=1)
    return page


def _imagine_tab(desk: Desk, playroom: bool) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            image = upload("The scene before", desk.limits)
            action = action_input(playroom)
            with gr.Row():
                count = gr.Slider(1, desk.limits.candidates, 8, step=1, label="Candidates", min_width=120)
                seed = seed_input()
            start, stop = buttons("Imagine")
            if playroom:
                offer(examples.IMAGINE, [image, action])
        with gr.Column(scale=7, min_width=480):
            status, results = status_line(), Results("Imagined images, best first")

    def run(
        image: Image.Image | None, action: str, count: float, seed: float, request: gr.Request
    ) -> Iterator[Updates]:
        """Imagine the image after an action several times, best first."""
        with told():
            check_image(image, "an image of the scene before")
            action = check_action(action, desk.limits)
            count = check_whole("The number of candidates", count, 1, desk.limits.candidates)
            seed = check_whole("The seed", seed, 0, 2**63 - 1)
            yield from shown(desk.run(request, desk.imagine, image, action, count, seed), status, results)

    inputs = [image, action, count, seed]
    running = run_on(start, run, inputs, [*results.all, status], "imagine", status)
    picking = results.show_what_is_picked(desk, status)
    stop_on(stop, [running, picking], status)


def _verify_tab(desk: Desk, playroom: bool) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            before = upload("The image before", desk.limits)
            action = action_input(playroom, "What was meant to happen")
            edits = gr.Gallery(
                label=f"Your edits, up to {desk.limits.edits}, from any editor",
                type="filepath",
                columns=4,
                height=220,
                object_fit="contain",
                interactive=True,
                sources=["upload", "clipboard"],
            )
            start, stop = buttons("Verify")
            if playroom:
                offer(examples.VERIFY, [before, action, edits])
        with gr.Column(scale=7, min_width=480):
            status, results = status_line(), Results("Your edits, best first")

    def run(before: Image.Image | None, action: str, edits: list | None, request: gr.Request) -> Iterator[Updates]:
        """Rank images from any editor by whether an action happened in them."""
        with told():
            check_image(before, "the image before")
            action = check_action(action, desk.limits)
            check_image(edits or None, "at least one edited image")
            check_whole("The number of edits", len(edits), 1, desk.limits.edits)
            images = [read_upload(path, desk.limits) for path, _ in edits]
            yield from shown(desk.run(request, desk.verify, before, images, action), status, results)

    running = run_on(start, run, [before, action, edits], [*results.all, status], "verify", status)
    picking = results.show_what_is_picked(desk, status)
    stop_on(stop, [running, picking], status)


def _name_tab(desk: Desk, playroom: bool) -> None:
    with gr.Row():
        before, after = upload("Before", desk.limits), upload("After", desk.limits)
        heatmap = picture("Where it changed")
    start, stop = buttons("Name the action")
    status = status_line()
    named = gr.Textbox(label="What happened", interactive=False, elem_classes="named")
    words = gr.Markdown()
    details = numbers_panel()

    def run(before: Image.Image | None, after: Image.Image | None, request: gr.Request) -> Iterator[Updates]:
        """Say in words what happened between two images."""
        with told():
            check_image(before, "the image before")
            check_image(after, "the image after")
            yield {heatmap: None, named: "", words: "", details: None, status: bar(0, "Starting")}
            for event in desk.run(request, desk.name, before, after):
                match event:
                    case Named():
                        yield {named: event.action, details: event._asdict()}
                    case Evidence():
                        yield {heatmap: cached_picture(event.picture), words: words_of(event)}
                    case Progress():
                        yield {status: bar(*event)}
            yield {status: done("Named.")}

    outputs = [named, details, heatmap, words, status]
    running = run_on(start, run, [before, after], outputs, "name", status)
    if playroom:
        offer(examples.NAME, [before, after])
    stop_on(stop, [running], status)


def _roll_out_tab(desk: Desk, playroom: bool) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            image = upload("The scene at the start", desk.limits)
            actions = gr.Textbox(
                label="Actions, one a line",
                value="open the drawer\nturn the lamp on\nopen the door" if playroom else "",
                info=f"Up to {desk.limits.actions}. Each starts from the best image of the one before.",
                lines=4,
                max_length=desk.limits.actions * (desk.limits.characters + 1),
            )
            with gr.Row():
                count = gr.Slider(1, desk.limits.candidates, 4, step=1, label="Candidates a step", min_width=120)
                seed = seed_input()
            start, stop = buttons("Roll out")
            if playroom:
                offer(examples.ROLL_OUT, [image, actions])
        with gr.Column(scale=7, min_width=480):
            status = status_line()
            strip = picture("Film strip", height=None)
            with gr.Row():
                film = gr.Image(label="Film", interactive=False, format="gif", height=420, buttons=["download"])
            details = numbers_panel()

    def run(
        image: Image.Image | None, actions: str, count: float, seed: float, request: gr.Request
    ) -> Iterator[Updates]:
        """Let actions, one a line, follow one another: a film strip and a GIF."""
        with told():
            check_image(image, "an image of the scene at the start")
            lines = [check_action(line, desk.limits) for line in (actions or "").splitlines() if line.strip()]
            check_whole("The number of actions", len(lines), 1, desk.limits.actions)
            count = check_whole("The number of candidates", count, 1, desk.limits.candidates)
            seed = check_whole("The seed", seed, 0, 2**63 - 1)
            yield {strip: None, film: None, details: None, status: bar(0, "Starting")}
            for event in desk.run(request, desk.roll_out, image, lines, count, seed):
                match event:
                    case Frames(frames):
                        steps = [dict(zip(frame._fields[1:], frame[1:], strict=True)) for frame in frames[1:]]
                        yield {
                            strip: cached_picture(film_strip(frames)),
                            film: cached_file("rollout.gif", partial(save_gif, frames)),
                            details: {"steps": steps},
                        }
                    case Progress():
                        yield {status: bar(*event)}
            yield {status: done("Each step starts from the best image of the one before.")}

    outputs = [details, strip, film, status]
    running = run_on(start, run, [image, actions, count, seed], outputs, "roll_out", status)
    stop_on(stop, [running], status)
