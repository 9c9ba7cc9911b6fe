"""Plays, trains and evaluates the whole experiment at a reduced size, and writes its report.

    python -m training.experiment --out runs/experiment --results training/results/experiment --workers 2

Every job is a command of `training` that resumes, so after an interruption the same command goes on where it was; `--list`
prints the jobs. Each runs with one CPU thread and logs to OUT/logs.
"""

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

from tqdm import tqdm

from training.experiment.plan import Job, Plan, Size
from training.experiment.report import write_report


def run(jobs: dict[str, Job], out: Path, workers: int) -> None:
    """Runs all jobs that are not done, so many at once, each after what it needs.

    Raises:
        subprocess.CalledProcessError: a job failed; its log says why. Those that were running are finished first.
    """
    for folder in ("logs", "done"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    order = TopologicalSorter({name: job.needs for name, job in jobs.items()})
    order.prepare()
    running: dict[Future, str] = {}
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(jobs), unit="job", mininterval=1) as bar:
        while order.is_active():
            running |= {pool.submit(run_job, name, jobs[name], out): name for name in order.get_ready()}
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if future.exception() is not None:
                    pool.shutdown(wait=True, cancel_futures=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiment"), help="folder for data and models")
    parser.add_argument(
        "--results", type=Path, default=Path("training/results/experiment"), help="folder for the results"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs that run at once")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    for field in fields(Size):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    args = parser.parse_args()
    size = Size(**{field.name: getattr(args, field.name) for field in fields(Size)})
    plan = Plan(size, args.seeds, args.out, args.results)
    if args.list:
        print("\n".join(f"{name}: python -m {shlex.join(job.command)}" for name, job in plan.jobs.items()))
        return
    run(plan.jobs, args.out, args.workers)
    write_report(plan)


if __name__ == "__main__":
    main()
