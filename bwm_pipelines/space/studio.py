"""What the page does with the pipelines, without the page: every task is a generator of events."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from bwm_pipelines.images import square
from bwm_pipelines.pictures import Frame, evidence_overlay
from bwm_pipelines.pipelines.base import StepCallback
from bwm_pipelines.rollout import roll_out
from bwm_pipelines.sampling import candidate_generators
from bwm_pipelines.space.interruption import Progress, Run, interruptible

AT_ONCE = 8  # candidates that are sampled together: on one device eight take little longer than one
VIEW = 512  # side in pixels at which images are shown beside each other


class Drafts(NamedTuple):
    """Candidates while they are sampled: what has no token yet looks as before."""

    images: list[Image.Image]


class Candidate(NamedTuple):
    """One image with what the verifier says of it, in nats. `number` counts in the order of sampling or giving, from 0."""

    image: Image.Image
    score: float
    margin: float
    number: int


class Ranking(NamedTuple):
    """Candidates best first. `excluded` are the numbers of those whose score is not finite."""

    before: Image.Image
    action: str
    candidates: list[Candidate]
    unchanged_score: float
    excluded: list[int]

    @property
    def changed(self) -> bool:
        return self.candidates[0].margin > 0


class Evidence(NamedTuple):
    """Where a score lies: a picture, and each word with its margin over "nothing changed" in nats."""

    picture: Image.Image
    words: list[tuple[str, float]]


class Named(NamedTuple):
    """What happened between two images, in words, with its score in nats."""

    action: str
    score: float


class Frames(NamedTuple):
    """A rollout so far, the scene at the start included."""

    frames: list[Frame]


Event = Progress | Drafts | Ranking | Evidence | Named | Frames


class Studio:
    """The pipelines of one checkpoint on one device. One task at a time: the models are shared.

    Args:
        checkpoint: a folder, or the id of a repository on the Hub.

    Raises:
        ValueError: the checkpoint cannot be loaded, or has no dynamics model.
    """

    def __init__(self, checkpoint: str | os.PathLike[str]):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = {"dtype": torch.bfloat16} if device == "cuda" else {}
        self.pipe = ChameleonWorldModelPipeline.from_pretrained(checkpoint, **dtype)
        if self.pipe.dynamics_model is None:
            raise ValueError(
                f"`checkpoint` {os.fspath(checkpoint)!r} has no dynamics model, and the page verifies what it shows; "
                "name a checkpoint with both models."
            )
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.to(device)
        self.verifier = DynamicsVerifierPipeline.from_pipe(self.pipe)
        self.verifier.set_progress_bar_config(disable=True)

    def imagine(self, image: Image.Image, action: str, num_candidates: int, seed: int) -> Iterator[Event]:
        """Imagine the image after an action: drafts, then rankings that grow, then the evidence for the best.

        The candidates are those of `pipe(image, action, num_candidates=..., generator=...)` with this seed.
        """

        def work(run: Run) -> None:
            generators = candidate_generators(torch.Generator().manual_seed(seed), num_candidates)
            candidates, excluded = [], []
            for start in range(0, num_candidates, AT_ONCE):
                some = generators[start : start + AT_ONCE]
                part = [0.85 * count / num_candidates for count in (start, start + len(some))]
                text = "Imagining" if num_candidates <= AT_ONCE else f"Imagining {start + 1} to {start + len(some)}"
                report = run.stage(text, *part, steps=self.pipe.family.num_image_tokens)
                draft = self._drafter(run, image, [candidate.image for candidate in candidates], len(some))

                def on_step(pipe, step, timestep, tensors, report=report, draft=draft) -> None:
                    report(pipe, step, timestep, tensors)
                    draft(tensors["codes"])

                output = self.pipe(
                    image, action, num_candidates=len(some), generator=some, callback_on_step_end=on_step
                )
                values = zip(output.images, output.scores, output.margins, output.order, strict=True)
                candidates += [Candidate(one, score, margin, start + i) for one, score, margin, i in values]
                excluded += [start + i for i in output.excluded[0]]
                candidates.sort(key=lambda candidate: -candidate.score)
                unchanged_score = output.scores[0] - output.margins[0]
                run.report(Ranking(image, action, list(candidates), unchanged_score, list(excluded)))
            self._explain(run, image, candidates[0].image, action)

        yield from interruptible(work)

    def verify(self, before: Image.Image, edits: Sequence[Image.Image], action: str) -> Iterator[Event]:
        """Rank images from anywhere: the ranking, then the evidence for the best."""

        def work(run: Run) -> None:
            output = self.verifier(
                before,
                list(edits),
                action,
                candidate_batch_size=AT_ONCE,
                callback_on_step_end=run.stage("Verifying", 0, 0.5, steps=1 + len(edits)),
            )
            ranked = [Candidate(edits[i], output.scores[i], output.margins[i], i) for i in output.order]
            run.report(Ranking(before, action, ranked, output.unchanged_score, output.excluded))
            self._explain(run, before, ranked[0].image, action, start=0.5)

        yield from interruptible(work)

    def explain(self, before: Image.Image, after: Image.Image, action: str) -> Iterator[Event]:
        """Where in an image the evidence for an action lies."""
        yield from interruptible(lambda run: self._explain(run, before, after, action, start=0))

    def name(self, before: Image.Image, after: Image.Image) -> Iterator[Event]:
        """What happened between two images in words, then the evidence for it."""

        def work(run: Run) -> None:
            on_token = run.stage("Naming", 0, 0.4, steps=8)
            named = self.verifier.name_action(before, after, max_new_tokens=32, callback_on_step_end=on_token)
            run.report(Named(named.action, named.score))
            context = self.verifier.dynamics_model.config.max_position_embeddings
            if named.action.strip() and self.verifier.family.inverse_length(named.action) <= context:
                self._explain(run, before, after, named.action, start=0.4)

        yield from interruptible(work)

    def roll_out(self, image: Image.Image, actions: Sequence[str], num_candidates: int, seed: int) -> Iterator[Event]:
        """Let actions follow one another, each from the best image of the one before: the frames so far."""

        def work(run: Run) -> None:
            def before_step(step: int, action: str) -> StepCallback:
                part = [count / len(actions) for count in (step, step + 1)]
                text = f"Step {step + 1} of {len(actions)}: {action}"
                return run.stage(text, *part, steps=self.pipe.family.num_image_tokens)

            generator, frames = torch.Generator().manual_seed(seed), []
            for frame in roll_out(
                self.pipe,
                image,
                actions,
                num_candidates=num_candidates,
                generator=generator,
                before_step=before_step,
            ):
                frames.append(frame)
                if len(frames) > 1:
                    run.report(Frames(list(frames)))

        yield from interruptible(work)

    def _explain(self, run: Run, before: Image.Image, after: Image.Image, action: str, start: float = 0.85) -> None:
        patches = self.pipe.family.num_image_tokens
        explained = self.verifier.explain(
            before,
            after,
            action,
            callback_on_step_end=run.stage("Finding where it changed", start, 1, steps=patches),
        )
        words = list(zip(explained.words, explained.word_margins, strict=True))
        run.report(Evidence(evidence_overlay(square(after, VIEW), explained.heatmap), words))

    def _drafter(self, run: Run, image: Image.Image, finished: list[Image.Image], count: int):
        """A function that reports drafts from codes so far, int64 [k, t]; it takes at most a tenth of the time."""
        with torch.no_grad():
            before = self.pipe.encode_images(image)
        next_time = time.monotonic() + 1

        @torch.no_grad()
        def draft(codes: torch.Tensor) -> None:
            nonlocal next_time
            start = time.monotonic()
            if start < next_time:
                return
            rest = before[:, codes.shape[1] :].expand(count, -1)
            pixels = self.pipe.family.decode_image(torch.cat([codes, rest], dim=1))
            run.report(Drafts(finished + self.pipe.image_processor.postprocess(pixels, output_type="pil")))
            next_time = time.monotonic() + max(1.0, 10 * (time.monotonic() - start))

        return draft
