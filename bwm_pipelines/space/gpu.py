"""ZeroGPU, on which Spaces of the Hub borrow a GPU for one call; everywhere else nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

try:
    import spaces
except ImportError:
    spaces = None

Function = TypeVar("Function", bound=Callable)
SECONDS = 120


def on_gpu(function: Function) -> Function:
    """The function, run on a GPU that is borrowed for it where there is ZeroGPU.

    It then runs in another process: arguments and results are pickled.
    """
    return function if spaces is None else spaces.GPU(duration=SECONDS)(function)
