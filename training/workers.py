"""Worker processes that do not outlive the one that started them.

A worker of a `ProcessPoolExecutor` whose parent is killed works off what it has been given and then waits for ever.
"""

import multiprocessing
import os
from threading import Thread


def end_with_parent() -> None:
    """Makes this worker process end when its parent does, however that ends; the initializer of a pool."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
