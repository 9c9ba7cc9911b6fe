"""Work in a thread of its own that ends when nobody waits for it any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline

INTERVAL = 0.25  # seconds between two looks whether anybody still waits


class Progress(NamedTuple):
    """How far the work is: `done` from 0 to 1, and what is being done."""

    done: float
    text: str


class _End(NamedTuple):
    error: BaseException | None


class Run:
    """What the work talks to. It hands out events, and stops the pipeline it uses when the iterator is closed."""

    def __init__(self) -> None:
        self.events: SimpleQueue = SimpleQueue()
        self.stopped = threading.Event()
        self._next_time = 0.0

    def report(self, event: Any) -> None:
        """Hand out an event."""
        self.events.put(event)

    def stage(self, text: str, start: float, end: float, steps: int) -> Callable[..., None]:
        """A `callback_on_step_end` for a pipeline call of so many steps that makes up [start, end] of the work."""
        self.report(Progress(start, text))

        def on_step(pipe: DiffusionPipeline, step: int, timestep: int, tensors: dict) -> None:
            if self.stopped.is_set():
                pipe._interrupt = True
            elif time.monotonic() >= self._next_time:
                self.report(Progress(start + (end - start) * min(1.0, (step + 1) / steps), text))
                self._next_time = time.monotonic() + INTERVAL

        return on_step


def interruptible(work: Callable[[Run], None]) -> Iterator[Any]:
    """Run `work` in a thread and yield what it reports.

    Closing the iterator sets the pipeline's `_interrupt` at its next step and waits until the work has ended. What the
    work raises is raised here.
    """
    run = Run()

    def target() -> None:
        try:
            work(run)
        except BaseException as error:  # noqa: BLE001 (raised again below, in the thread that waits)
            run.events.put(_End(error))
        else:
            run.events.put(_End(None))

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        while not isinstance(event := run.events.get(), _End):
            yield event
    finally:
        run.stopped.set()
        thread.join()
    if event.error is not None:
        raise event.error
