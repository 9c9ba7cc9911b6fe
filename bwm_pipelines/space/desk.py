"""What stands between the tabs and the studio: limits, kept results, and one task at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from bwm_pipelines.space.gpu import on_gpu
from bwm_pipelines.space.interruption import Progress
from bwm_pipelines.space.limits import Limits, RateLimit
from bwm_pipelines.space.result_cache import ResultCache, fingerprint
from bwm_pipelines.space.studio import Drafts, Event, Studio


class Desk:
    """Runs the tasks of a studio for visitors."""

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
