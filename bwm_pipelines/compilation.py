"""A step that runs a thousand times, made quick on a GPU: compiled, then recorded as CUDA graphs and replayed.

Both can fail (no compiler, an operation that cannot be recorded). Then the step runs as it is written, with the same
result, and a warning says so.
"""

from collections.abc import Callable

import torch
from diffusers.utils import logging
from torch import Tensor

logger = logging.get_logger(__name__)


class Compiled:
    """A function compiled when it is first called, and again for other shapes; if that fails, the function itself.

    A call that fails is made again uncompiled, so what it writes must be the same when written twice.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self._compiled: Callable[..., Tensor] | None = None
        self._failed = False

    def __call__(self, *args: object) -> Tensor:
        if self._failed:
            return self._function(*args)
        if self._compiled is None:
            logger.warning("Compiling the sampling step; this first call takes a minute or so longer.")
            self._compiled = torch.compile(self._function)
        try:
            return self._compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._failed = True
            logger.warning(f"Compiling the sampling step failed, it runs uncompiled ({_in_one_line(error)}).")
            return self._function(*args)


class Recorded:
    """A step recorded as a CUDA graph for each window, then replayed: launching its kernels one by one takes longer.

    Args:
        step: takes a window; reads and writes tensors that stay where they are, without waiting for the GPU. Made again
            with `state` taken back, it must give the same.
        state: tensor on the GPU that the step changes.
    """

    def __init__(self, step: Callable[[int], None], state: Tensor):
        self._step, self._state = step, state
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._failed = False

    def __call__(self, window: int) -> None:
        if not self._failed and window not in self._graphs:
            try:
                self._graphs[window] = self._record(window)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._failed = True
                logger.warning(f"Recording the sampling step failed, it runs unrecorded ({_in_one_line(error)}).")
        if self._failed:
            self._step(window)
        else:
            self._graphs[window].replay()

    def _record(self, window: int) -> torch.cuda.CUDAGraph:
        # Libraries initialise and compilation happens in a run before, which is taken back.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            before = self._state.clone()
            self._step(window)
            self._state.copy_(before)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(window)
        return graph


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
