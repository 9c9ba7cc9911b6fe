import multiprocessing
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from training.workers import end_with_parent

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_end_when_their_parent_is_killed(start_method, by):
    parent = subprocess.Popen([sys.executable, "-m", "tests.training.test_workers", start_method], cwd=ROOT)
    workers = wait_for_workers(psutil.Process(parent.pid), 2)
    parent.send_signal(by)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        worker.kill()
    assert not alive


def wait_for_workers(parent: psutil.Process, count: int) -> list[psutil.Process]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        workers = [child for child in parent.children() if child.num_threads() > 1]  # it watches its parent
        if len(workers) == count:
            return workers
        time.sleep(0.1)
    raise AssertionError("the workers did not start")


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(2, context, initializer=end_with_parent) as pool:
        list(pool.map(time.sleep, [600, 600]))
