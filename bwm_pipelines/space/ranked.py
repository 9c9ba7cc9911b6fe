"""A ranking on the page: the gallery, the comparison of one image with the one before, and where the evidence lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from bwm_pipelines.images import square
from bwm_pipelines.space.cached_files import cached_picture
from bwm_pipelines.space.desk import Desk
from bwm_pipelines.space.interruption import Progress
from bwm_pipelines.space.parts import ONE_AT_A_TIME, Updates, bar, done, numbers_panel, picture, told
from bwm_pipelines.space.studio import VIEW, Drafts, Event, Evidence, Ranking

SCORES = (
    "**Margin**: how much better the second model can read the action from this image than from the unchanged one, in "
    "nats a word piece: the difference of their scores. Not above 0 means: it probably did not happen. Above 0, another action "
    "may have happened: look. Click an image to see it in large."
)


class Results:
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
            self.heatmap = picture("Where it changed", height=420)
        self.words = gr.Markdown()
        self.details = numbers_panel()
        self.ranking = gr.State()
        self.all = [self.details, self.gallery, self.slider, self.heatmap, self.words, self.ranking]

    def clear(self) -> Updates:
        return dict.fromkeys(self.all) | {self.words: ""}

    def show(self, event: Drafts | Ranking | Evidence) -> Updates:
        match event:
            case Drafts(images):
                return {self.gallery: [(cached_picture(image), "imagining …") for image in images]}
            case Evidence(picture):
                return {self.heatmap: cached_picture(picture), self.words: words_of(event)}
        images = [(cached_picture(image), caption) for image, caption, _ in _entries(event)]
        return {
            self.gallery: images,
            self.slider: _pair(event.before, event.candidates[0].image),
            self.details: _as_json(event),
            self.ranking: event,
        }

    def show_what_is_picked(self, desk: Desk, status: gr.HTML) -> gr.events.Dependency:
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
            with told():
                for event in desk.run(request, desk.explain, ranking.before, image, ranking.action):
                    yield {status: bar(*event)} if isinstance(event, Progress) else self.show(event)
                yield {status: done(f"Shown below: {caption}.")}

        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        self.gallery.select(compare, self.ranking, self.slider, queue=False, **hidden)
        outputs = [self.heatmap, self.words, status]
        return self.gallery.select(explain, self.ranking, outputs, **hidden, **ONE_AT_A_TIME)


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


def shown(events: Iterator[Event], status: gr.HTML, results: Results) -> Iterator[Updates]:
    """Updates for the events of a task that ends in a ranking and the evidence for its best."""
    yield results.clear() | {status: bar(0, "Starting")}
    verdict = ""
    for event in events:
        match event:
            case Progress():
                yield {status: bar(*event)}
            case Ranking():
                verdict = _verdict(event)
                yield results.show(event)
            case _:
                yield results.show(event)
    yield {status: verdict}


def _verdict(ranking: Ranking) -> str:
    best = ranking.candidates[0]
    if not ranking.changed:
        return done(
            "No image beats “nothing changed”: the action probably happened in none of them. Try more candidates, another "
            "seed or other words.",
            warning=True,
        )
    return done(f"“{ranking.action}”: the best image beats “nothing changed” by {best.margin:.2f} nats.")


def _pair(before: Image.Image, after: Image.Image) -> tuple[str, str]:
    return cached_picture(square(before, VIEW)), cached_picture(square(after, VIEW))


def words_of(evidence: Evidence) -> str:
    """The words of an action with what the change adds to each."""
    cells = " ".join(f"`{word} {margin:+.2f}`" for word, margin in evidence.words)
    return f"What the change adds to each word, in nats: {cells}"
