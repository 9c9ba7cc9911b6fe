"""Jobs that need each other: each a command of `training`, run when what it needs is done, never twice."""

import os
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class Job:
    """A command, `python -m` left out, and the names of the jobs that must be done before."""

    command: list[str]
    needs: tuple[str, ...] = ()


def run(jobs: dict[str, Job], out: Path, workers: int) -> None:
    """Runs all jobs that are not done, so many at once: of those whose needs are met, the first in order.

    Raises:
        subprocess.CalledProcessError: a job failed; its log says why. Those that were running are finished first.
    """
    for folder in ("logs", "done"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    order, place = TopologicalSorter({name: job.needs for name, job in jobs.items()}), list(jobs).index
    order.prepare()
    ready: list[str] = []
    running: dict[Future, str] = {}
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(jobs), unit="job", mininterval=1) as bar:
        while order.is_active():
            ready = sorted([*ready, *order.get_ready()], key=place)
            while ready and len(running) < workers:
                name = ready.pop(0)
                running[pool.submit(run_job, name, jobs[name], out)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                future.result()
                order.done(name)
                bar.set_postfix_str(name)
                bar.update()


def run_job(name: str, job: Job, out: Path) -> None:
    done = out / "done" / name
    if done.exists():
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (out / "logs" / f"{name}.log").open("a") as log:
        subprocess.run([sys.executable, "-m", *job.command], check=True, env=environment, stdout=log, stderr=log)
    done.touch()
