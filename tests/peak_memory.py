"""The most bytes that tensors hold at once while a block runs, counted by their storages; torch has it only for GPUs."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Within this context `peak` follows what is made in it, in bytes; what a kernel uses inside itself is not seen.

    It also counts tensors of a `FakeTensorMode`, so that models larger than the machine can be measured.
    """

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outside = [leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        output = func(*args, **kwargs or {})
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), outside)
        self.peak = max(self.peak, self.held)
        return output

    def _count(self, storage: Any, outside: list) -> None:
        if storage in self._known or any(storage is other for other in outside):
            return
        self._known.add(storage)
        self.held += storage.nbytes()
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.held -= size
