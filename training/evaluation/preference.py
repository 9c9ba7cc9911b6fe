"""A page on which people compare editors blindly: which output shows the action best, and which worst?

    python -m training.evaluation.preference cwm=runs/cwm/aurora_bench c_ft=runs/c_ft/aurora_bench --results prefs.csv
    python -m training.evaluation.preference --results prefs.csv

The first command serves the page; the second prints what was found. Each system is a folder with `samples.jsonl` and the
pictures, as `NAME=FOLDER` or a folder alone, whose own name is then the system's. All hold the same samples. A rater gives
a name, sees the picture before, the action and all outputs in an order that depends on the seed, the rater and the sample,
and chooses; the names of the systems never reach the page before the rater's last answer. Each answer is one line of the
CSV, and who comes back under the same name goes on after it. As in the paper, best counts +1 and worst -1.
"""

import argparse
import json
import random
import string
import sys
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from bwm_pipelines.images import open_image
from training.evaluation.preference_results import append_result, read_results, table
from training.evaluation.samples import Sample, read_samples

HINT = (
    "Did what was told happen, and only that? Everything else should look as before. "
    "Choose the best and the worst of the outputs, also if it is a close call."
)
STYLE = (
    ".gradio-container {max-width: 1400px !important} .picture img {object-fit: contain; width: 100%; height: 100%}"
)


class Question(NamedTuple):
    """One comparison that a rater is being asked, kept by the server."""

    id: str
    rater: str
    order: list[str]
    shown: float


class Study:
    """Which comparisons there are, who has answered which, and in what order they are shown.

    Args:
        systems: the samples of each system, by its name.
        results: the CSV, made at the first answer.
        seed: of the orders.

    Raises:
        ValueError: there are fewer than two systems or too many, they hold different samples, or `results` is of others.
    """

    def __init__(self, systems: dict[str, list[Sample]], results: Path, seed: int = 0):
        if not 2 <= len(systems) <= len(string.ascii_uppercase):
            raise ValueError(f"`systems` are {sorted(systems)}; give 2 to {len(string.ascii_uppercase)} to compare.")
        self.systems = {name: {sample.id: sample for sample in samples} for name, samples in systems.items()}
        self.results, self.seed, self._lock = results, seed, threading.Lock()
        first, *others = self.systems
        self.samples = self.systems[first]
        asked = {(sample.id, sample.instruction) for sample in self.samples.values()}
        for name in others:
            if {(sample.id, sample.instruction) for sample in self.systems[name].values()} != asked:
                raise ValueError(
                    f"`systems` {first!r} and {name!r} hold different samples; run them on the same ones."
                )
        for row in read_results(results):
            if set(row["order"]) != set(systems):
                raise ValueError(
                    f"`results` {str(results)!r} compares {sorted(row['order'])}, not {sorted(systems)}; name another file."
                )

    def answered(self, rater: str) -> set[str]:
        return {row["id"] for row in read_results(self.results) if row["rater"] == rater}

    def next_question(self, rater: str) -> Question | None:
        """The rater's next comparison, each rater's in an order of their own; None after the last."""
        answered = self.answered(rater)
        ids = self._shuffled(self.samples, rater)
        left = next((name for name in ids if name not in answered), None)
        return None if left is None else Question(left, rater, self.order(rater, left), time.monotonic())

    def order(self, rater: str, sample_id: str) -> list[str]:
        """The systems from left to right, which depends on nothing but the seed, the rater and the sample."""
        return self._shuffled(self.systems, rater, sample_id)

    def _shuffled(self, names: Iterable[str], *depends_on: str) -> list[str]:
        names = sorted(names)
        random.Random(json.dumps([self.seed, *depends_on])).shuffle(names)
        return names

    def answer(self, question: Question, best: str, worst: str) -> None:
        """Writes an answer down, unless the rater has given it before, as in another window."""
        with self._lock:
            if question.id in self.answered(question.rater):
                return
            row = {"id": question.id, "rater": question.rater, "order": question.order, "best": best, "worst": worst}
            row["seconds"] = round(time.monotonic() - question.shown, 1)
            row["time"] = datetime.now(UTC).isoformat(timespec="seconds")
            append_result(self.results, row)


def build_page(study: Study) -> gr.Blocks:
    """The page: a name, then one comparison after another, then what all raters together found."""
    letters = list(string.ascii_uppercase[: len(study.systems)])
    with gr.Blocks(title="Which picture shows the action best?", analytics_enabled=False) as page:
        question = gr.State()
        with gr.Column(visible=True) as door:
            gr.Markdown("# Which picture shows the action best?\n" + HINT)
            rater = gr.Textbox(
                label="Your name", info="Come back under the same name to go on where you stopped.", max_length=64
            )
            start = gr.Button("Start", variant="primary")
        with gr.Column(visible=False) as desk:
            with gr.Row():
                before = _picture("Before")
                with gr.Column(scale=2):
                    progress = gr.Markdown()
                    gr.Markdown(HINT)
            with gr.Row():
                outputs = [_picture(letter) for letter in letters]
            with gr.Row():
                best = gr.Radio(letters, label="Best")
                worst = gr.Radio(letters, label="Worst", visible=len(letters) > 2)
            submit = gr.Button("Next", variant="primary")
        with gr.Column(visible=False) as end:
            findings = gr.Markdown()

        def show(asked: Question | None) -> dict:
            if asked is None:
                found = "# Thank you!\nYou have rated everything.\n\n" + table(read_results(study.results))
                return {
                    door: gr.update(visible=False),
                    desk: gr.update(visible=False),
                    end: gr.update(visible=True),
                    findings: found,
                }
            sample = study.samples[asked.id]
            number = len(study.answered(asked.rater)) + 1
            pictures = [open_image(study.systems[name][asked.id].output) for name in asked.order]
            return {
                door: gr.update(visible=False),
                desk: gr.update(visible=True),
                question: asked,
                progress: f"{number} of {len(study.samples)}\n# {sample.instruction}",
                before: open_image(sample.before),
                **dict(zip(outputs, pictures, strict=True)),
                best: None,
                worst: None,
            }

        def on_start(name: str) -> dict:
            name = name.strip()
            if not name or not name.isprintable():
                gr.Warning("Please give a name.")
                return gr.skip()
            return show(study.next_question(name))

        def on_submit(asked: Question, best_letter: str | None, worst_letter: str | None) -> dict:
            if len(letters) == 2 and best_letter:
                worst_letter = next(letter for letter in letters if letter != best_letter)
            if not best_letter or not worst_letter or best_letter == worst_letter:
                gr.Warning("Please choose the best picture, and another one as the worst.")
                return gr.skip()
            study.answer(asked, *(asked.order[letters.index(letter)] for letter in (best_letter, worst_letter)))
            return show(study.next_question(asked.rater))

        shown = [door, desk, end, findings, question, progress, before, *outputs, best, worst]
        gr.on([start.click, rater.submit], on_start, rater, shown, api_name="start", show_progress="hidden")
        submit.click(on_submit, [question, best, worst], shown, api_name="answer", show_progress="hidden")
    return page


def _picture(label: str) -> gr.Image:
    return gr.Image(
        label=label, format="png", interactive=False, height=330, buttons=["fullscreen"], elem_classes="picture"
    )


def read_systems(words: list[str]) -> dict[str, list[Sample]]:
    """The samples of each system from `NAME=FOLDER`, or `FOLDER` for its own name.

    Raises:
        ValueError: two systems have one name, or see `read_samples`.
    """
    systems: dict[str, list[Sample]] = {}
    for word in words:
        name, _, folder = word.rpartition("=")
        name = name or Path(folder).resolve().name
        if name in systems:
            raise ValueError(f"`systems` has {name!r} twice; tell them apart as NAME=FOLDER.")
        systems[name] = read_samples(folder)
    return systems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "systems", nargs="*", help="NAME=FOLDER with samples.jsonl; without any, the results are printed"
    )
    parser.add_argument("--results", type=Path, required=True, help="CSV of the answers")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the pictures; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too; default: %(default)s")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    args = parser.parse_args()
    try:
        if args.systems:
            page = build_page(Study(read_systems(args.systems), args.results, args.seed))
            page.launch(server_name=args.host, server_port=args.port, css=STYLE, footer_links=[])
        elif results := read_results(args.results):
            print(table(results))
        else:
            raise ValueError(
                f"`results` {str(args.results)!r} holds no answers yet; give the systems to serve the page."
            )
    except (ValueError, OSError) as error:
        print(f"preference: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
