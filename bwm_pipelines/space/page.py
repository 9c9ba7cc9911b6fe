"""The page: four tabs over one `Studio`. Whatever runs a model waits in one queue; one task runs at a time."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from PIL import Image

from bwm_pipelines.images import square
from bwm_pipelines.pictures import film_strip, save_gif
from bwm_pipelines.space import examples
from bwm_pipelines.space.gpu import on_gpu
from bwm_pipelines.space.interruption import Progress
from bwm_pipelines.space.limits import Limits, RateLimit, check_action, check_image, check_whole, read_upload
from bwm_pipelines.space.result_cache import ResultCache, fingerprint
from bwm_pipelines.space.studio import VIEW, Drafts, Event, Evidence, Frames, Named, Ranking, Studio

TITLE = "Imagine, then verify"
LEAD = (
    "Give an image and an action in words. A world model imagines the next image several times, and a second model, which "
    "reads actions from pairs of images, picks the one in which that action really happened."
)
PLAYROOM = (
    "This page runs the small **playroom** checkpoint: it knows one room with a door, a drawer, a lamp, a bowl and coloured "
    "things, in pictures of 96 x 96 pixels, and nothing else."
)
SCORES = (
    "**Margin**: how much better the second model can read the action from this image than from the unchanged one, in "
    "nats a word piece: the difference of their scores. Not above 0 means: it probably did not happen. Click an image to see it "
    "in large."
)
Updates = dict[Any, Any]


def build_page(studio: Studio, limits: Limits = Limits(), *, playroom: bool = True) -> gr.Blocks:  # noqa: B008
    """The page.

    Args:
        studio: runs the models.
        limits: what one visitor may ask for.
        playroom: whether to offer the examples and the explanations of the playroom checkpoint.
    """
    desk = _Desk(studio, limits)
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


class _Desk:
    """What stands between the tabs and the studio: limits, kept results, and one task at a time."""

    def __init__(self, studio: Studio, limits: Limits):
        self.limits = limits
        self.imagine, self.verify, self.explain, self.name, self.roll_out = map(
            on_gpu, (studio.imagine, studio.verify, studio.explain, studio.name, studio.roll_out)
        )
        self._rate = RateLimit(limits.runs_per_minute)
        self._results = ResultCache(64, fleeting=(Progress, Drafts))
        self._models = threading.Lock()  # a cancelled task may still need a moment when the queue starts the next

    def run(self, request: gr.Request, task: Callable[..., Iterator[Event]], *arguments: Any) -> Iterator[Event]:
        """The events of a task, from the cache if it has been done before."""
        self._rate.count(request.session_hash or "")
        key = (task.__name__, *(_hashable(argument) for argument in arguments))
        yield from self._results.replay(key, lambda: self._exclusively(task, *arguments))

    def _exclusively(self, task: Callable[..., Iterator[Event]], *arguments: Any) -> Iterator[Event]:
        with self._models:
            yield from task(*arguments)


def _hashable(argument: Any) -> Any:
    if isinstance(argument, Image.Image):
        return fingerprint(argument)
    return tuple(map(_hashable, argument)) if isinstance(argument, list) else argument


@contextmanager
def _told() -> Iterator[None]:
    """Errors of visitors become messages on the page."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), duration=12, print_exception=False) from None


# The tabs: each lays out its components, and ends with the event that runs it


def _imagine_tab(desk: _Desk, playroom: bool) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            image = _upload("The scene before", desk.limits)
            action = _action_input(playroom)
            with gr.Row():
                count = gr.Slider(1, desk.limits.candidates, 8, step=1, label="Candidates", min_width=120)
                seed = _seed_input()
            start, stop = _buttons("Imagine")
            if playroom:
                _examples(examples.IMAGINE, [image, action])
        with gr.Column(scale=7, min_width=480):
            status, results = _status(), _Results("Imagined images, best first")

    def run(
        image: Image.Image | None, action: str, count: float, seed: float, request: gr.Request
    ) -> Iterator[Updates]:
        """Imagine the image after an action several times, best first."""
        with _told():
            check_image(image, "an image of the scene before")
            action = check_action(action, desk.limits)
            count = check_whole("The number of candidates", count, 1, desk.limits.candidates)
            seed = check_whole("The seed", seed, 0, 2**63 - 1)
            yield from _shown(desk.run(request, desk.imagine, image, action, count, seed), status, results)

    inputs = [image, action, count, seed]
    running = _run_on(start, run, inputs, [*results.all, status], "imagine", status)
    picking = results.show_what_is_picked(desk, status)
    _stop_on(stop, [running, picking], status)


def _verify_tab(desk: _Desk, playroom: bool) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            before = _upload("The image before", desk.limits)
            action = _action_input(playroom, "What was meant to happen")
            edits = gr.Gallery(
                label=f"Your edits, up to {desk.limits.edits}, from any editor",
                type="filepath",
                columns=4,
                height=220,
                object_fit="contain",
                interactive=True,
                sources=["upload", "clipboard"],
            )
            start, stop = _buttons("Verify")
            if playroom:
                _examples(examples.VERIFY, [before, action, edits])
        with gr.Column(scale=7, min_width=480):
            status, results = _status(), _Results("Your edits, best first")

    def run(before: Image.Image | None, action: str, edits: list | None, request: gr.Request) -> Iterator[Updates]:
        """Rank images from any editor by whether an action happened in them."""
        with _told():
            check_image(before, "the image before")
            action = check_action(action, desk.limits)
            check_image(edits or None, "at least one edited image")
            check_whole("The number of edits", len(edits), 1, desk.limits.edits)
            images = [read_upload(path, desk.limits) for path, _ in edits]
            yield from _shown(desk.run(request, desk.verify, before, images, action), status, results)

    running = _run_on(start, run, [before, action, edits], [*results.all, status], "verify", status)
    picking = results.show_what_is_picked(desk, status)
    _stop_on(stop, [running, picking], status)


def _name_tab(desk: _Desk, playroom: bool) -> None:
    with gr.Row():
        before, after = _upload("Before", desk.limits), _upload("After", desk.limits)
        heatmap = _picture("Where it changed")
    start, stop = _buttons("Name the action")
    status = _status()
    named = gr.Textbox(label="What happened", interactive=False, elem_classes="named")
    words = gr.Markdown()
    details = _details()

    def run(before: Image.Image | None, after: Image.Image | None, request: gr.Request) -> Iterator[Updates]:
        """Say in words what happened between two images."""
        with _told():
            check_image(before, "the image before")
            check_image(after, "the image after")
            yield {heatmap: None, named: "", words: "", details: None, status: _bar(0, "Starting")}
            for event in desk.run(request, desk.name, before, after):
                match event:
                    case Named():
                        yield {named: event.action, details: event._asdict()}
                    case Evidence():
                        yield {heatmap: event.picture, words: _words(event)}
                    case Progress():
                        yield {status: _bar(*event)}
            yield {status: _done("Named.")}

    outputs = [named, details, heatmap, words, status]
    running = _run_on(start, run, [before, after], outputs, "name", status)
    if playroom:
        _examples(examples.NAME, [before, after])
    _stop_on(stop, [running], status)


def _roll_out_tab(desk: _Desk, playroom: bool) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            image = _upload("The scene at the start", desk.limits)
            actions = gr.Textbox(
                label="Actions, one a line",
                value="open the drawer\nturn the lamp on\nopen the door" if playroom else "",
                info=f"Up to {desk.limits.actions}. Each starts from the best image of the one before.",
                lines=4,
                max_length=desk.limits.actions * (desk.limits.characters + 1),
            )
            with gr.Row():
                count = gr.Slider(1, desk.limits.candidates, 4, step=1, label="Candidates a step", min_width=120)
                seed = _seed_input()
            start, stop = _buttons("Roll out")
            if playroom:
                _examples(examples.ROLL_OUT, [image, actions])
        with gr.Column(scale=7, min_width=480):
            status = _status()
            strip = _picture("Film strip", height=None)
            with gr.Row():
                film = gr.Image(label="Film", interactive=False, format="gif", height=420, buttons=["download"])
            details = _details()

    def run(
        image: Image.Image | None, actions: str, count: float, seed: float, request: gr.Request
    ) -> Iterator[Updates]:
        """Let actions, one a line, follow one another: a film strip and a GIF."""
        with _told(), tempfile.TemporaryDirectory(prefix="bwm-") as folder:
            check_image(image, "an image of the scene at the start")
            lines = [check_action(line, desk.limits) for line in (actions or "").splitlines() if line.strip()]
            check_whole("The number of actions", len(lines), 1, desk.limits.actions)
            count = check_whole("The number of candidates", count, 1, desk.limits.candidates)
            seed = check_whole("The seed", seed, 0, 2**63 - 1)
            yield {strip: None, film: None, details: None, status: _bar(0, "Starting")}
            for event in desk.run(request, desk.roll_out, image, lines, count, seed):
                match event:
                    case Frames(frames):
                        save_gif(frames, Path(folder, "rollout.gif"))
                        gif = save_file_to_cache(Path(folder, "rollout.gif"), cache_dir=film.GRADIO_CACHE)
                        steps = [dict(zip(frame._fields[1:], frame[1:], strict=True)) for frame in frames[1:]]
                        yield {strip: film_strip(frames), film: gif, details: {"steps": steps}}
                    case Progress():
                        yield {status: _bar(*event)}
            yield {status: _done("Each step starts from the best image of the one before.")}

    outputs = [details, strip, film, status]
    running = _run_on(start, run, [image, actions, count, seed], outputs, "roll_out", status)
    _stop_on(stop, [running], status)


# Results of Imagine and Verify


class _Results:
    """The components that show a ranking, and what fills them."""

    def __init__(self, label: str):
        gr.Markdown(f"### {label}")
        self.gallery = gr.Gallery(
            show_label=False,
            columns=5,
            height="auto",
            object_fit="contain",
            format="png",
            interactive=False,
            allow_preview=False,
            buttons=["download", "download_all"],
            elem_classes="ranked",
        )
        gr.Markdown(SCORES, elem_classes="hint")
        with gr.Row():
            self.slider = gr.ImageSlider(
                label="Before | after", format="png", interactive=False, height=420, buttons=["download", "fullscreen"]
            )
            self.heatmap = _picture("Where it changed", height=420)
        self.words = gr.Markdown()
        self.details = _details()
        self.ranking = gr.State()
        self.all = [self.details, self.gallery, self.slider, self.heatmap, self.words, self.ranking]

    def clear(self) -> Updates:
        return dict.fromkeys(self.all) | {self.words: ""}

    def show(self, event: Drafts | Ranking | Evidence) -> Updates:
        match event:
            case Drafts(images):
                return {self.gallery: [(image, "imagining …") for image in images]}
            case Evidence(picture):
                return {self.heatmap: picture, self.words: _words(event)}
        images = [(image, caption) for image, caption, _ in _entries(event)]
        return {
            self.gallery: images,
            self.slider: _pair(event.before, event.candidates[0].image),
            self.details: _as_json(event),
            self.ranking: event,
        }

    def show_what_is_picked(self, desk: _Desk, status: gr.HTML) -> gr.events.Dependency:
        """An image that is clicked goes into the slider at once, and its heatmap follows."""

        def compare(ranking: Ranking | None, picked: gr.SelectData) -> Updates:
            if ranking is None:
                return gr.skip()
            return {self.slider: _pair(ranking.before, _entries(ranking)[picked.index][0])}

        def explain(ranking: Ranking | None, picked: gr.SelectData, request: gr.Request) -> Iterator[Updates]:
            if ranking is None:
                return
            image, caption, is_candidate = _entries(ranking)[picked.index]
            if not is_candidate:
                yield {self.heatmap: None, self.words: ""}
                return
            with _told():
                for event in desk.run(request, desk.explain, ranking.before, image, ranking.action):
                    yield {status: _bar(*event)} if isinstance(event, Progress) else self.show(event)
                yield {status: _done(f"Shown below: {caption}.")}

        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        self.gallery.select(compare, self.ranking, self.slider, queue=False, **hidden)
        outputs = [self.heatmap, self.words, status]
        return self.gallery.select(explain, self.ranking, outputs, **hidden, **_ONE_AT_A_TIME)


def _entries(ranking: Ranking) -> list[tuple[Image.Image, str, bool]]:
    """Image, caption, and whether it is a candidate: the candidates, and "nothing changed" at its place among them."""
    places = [
        (one.margin, one.image, f"{rank} · margin {one.margin:+.2f} · score {one.score:.2f}", True)
        for rank, one in enumerate(ranking.candidates, start=1)
    ]
    unchanged = (0.0, ranking.before, f"nothing changed · score {ranking.unchanged_score:.2f}", False)
    better = sum(one.margin > 0 for one in ranking.candidates)
    return [place[1:] for place in (*places[:better], unchanged, *places[better:])]


def _as_json(ranking: Ranking) -> dict[str, Any]:
    """What the gallery says in numbers; `order` counts from 0 in the order of sampling, or of the files given."""
    return {
        "action": ranking.action,
        "order": [one.number for one in ranking.candidates],
        "scores": [one.score for one in ranking.candidates],
        "margins": [one.margin for one in ranking.candidates],
        "unchanged_score": ranking.unchanged_score,
        "changed": ranking.changed,
        "excluded": ranking.excluded,
    }


def _shown(events: Iterator[Event], status: gr.HTML, results: _Results) -> Iterator[Updates]:
    """Updates for the events of a task that ends in a ranking and the evidence for its best."""
    yield results.clear() | {status: _bar(0, "Starting")}
    verdict = ""
    for event in events:
        match event:
            case Progress():
                yield {status: _bar(*event)}
            case Ranking():
                verdict = _verdict(event)
                yield results.show(event)
            case _:
                yield results.show(event)
    yield {status: verdict}


def _verdict(ranking: Ranking) -> str:
    best = ranking.candidates[0]
    if not ranking.changed:
        return _done(
            "No image beats “nothing changed”: the action probably happened in none of them. Try more candidates, another "
            "seed or other words.",
            warning=True,
        )
    return _done(f"“{ranking.action}”: the best image beats “nothing changed” by {best.margin:.2f} nats.")


def _pair(before: Image.Image, after: Image.Image) -> tuple[Image.Image, Image.Image]:
    return square(before, VIEW), square(after, VIEW)


def _words(evidence: Evidence) -> str:
    """The words of an action with what the change adds to each."""
    cells = " ".join(f"`{word} {margin:+.2f}`" for word, margin in evidence.words)
    return f"What the change adds to each word, in nats: {cells}"


# Parts


def _upload(label: str, limits: Limits) -> gr.Image:
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
    with _told():
        if not payload.path:
            raise ValueError("Please upload the image as a file.")
        return read_upload(payload.path, limits)


def _picture(label: str, height: int | None = 300) -> gr.Image:
    return gr.Image(label=label, format="png", interactive=False, height=height, buttons=["download", "fullscreen"])


def _action_input(playroom: bool, label: str = "Action") -> gr.Dropdown:
    return gr.Dropdown(
        examples.ACTIONS if playroom else [],
        value=examples.ACTIONS[0] if playroom else None,
        label=label,
        info="Pick one or type your own." if playroom else "Say in words what happens.",
        allow_custom_value=True,
    )


def _seed_input() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)


def _buttons(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary", scale=2, min_width=120), gr.Button(
            "Stop", variant="stop", min_width=80
        )


def _details() -> gr.JSON:
    with gr.Accordion("Numbers", open=False):
        return gr.JSON(show_label=False)


def _examples(rows: list[list], inputs: list) -> None:
    gr.Examples(rows, inputs, api_visibility="private", cache_examples=False)


_ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "models"}


def _run_on(
    button: gr.Button, run: Callable, inputs: list, outputs: list, api_name: str, status: gr.HTML
) -> gr.events.Dependency:
    @wraps(run)
    def run_to_a_whole(*values: Any) -> Iterator[Updates]:
        whole: Updates = {}
        for updates in run(*values):
            whole |= updates
            yield updates
        yield whole  # what `gradio_client` returns is the last of them alone

    return button.click(run_to_a_whole, inputs, outputs, api_name=api_name, show_progress_on=status, **_ONE_AT_A_TIME)


def _stop_on(button: gr.Button, running: list[gr.events.Dependency], status: gr.HTML) -> None:
    """Stop takes effect within one token: closing the generator interrupts the pipeline."""
    button.click(
        lambda: _done("Stopped.", warning=True), None, status, cancels=running, queue=False, api_visibility="private"
    )


def _status() -> gr.HTML:
    return gr.HTML(_done("Ready."), elem_classes="status", min_height=44)


def _bar(done: float, text: str) -> str:
    return (
        f'<div class="bwm-status"><span>{escape(text)} …</span>'
        f'<div class="bwm-bar"><div style="width:{100 * done:.0f}%"></div></div></div>'
    )


def _done(text: str, warning: bool = False) -> str:
    return f'<div class="bwm-status {"bwm-warning" if warning else ""}"><span>{escape(text)}</span></div>'
