"""Worker processes, which do not outlive the one that started them.

A worker of a `ProcessPoolExecutor` whose parent is killed works off what it has been given and then waits for ever.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from threading import Thread

from tqdm import tqdm


def run_shards(work: Callable, shards: Sequence, workers: int) -> None:
    """Works off shards in so many new processes, which share no model and no GL context with this one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=end_with_parent) as pool:
        list(tqdm(pool.map(work, shards), total=len(shards), unit="shard"))


def end_with_parent() -> None:
    """Makes this worker process end when its parent does, however that ends; the initializer of a pool."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
