"""Plays, trains and evaluates the whole experiment at a reduced size, and writes its report.

    python -m training.experiment --out runs/experiment --results training/results/experiment --workers 2

Every job is a command of `training` that resumes, so after an interruption the same command goes on where it was; `--list`
prints the jobs, and `--report` writes the report of those that are done. Each runs with one CPU thread and logs to OUT/logs.
"""

import argparse
import os
import shlex
from dataclasses import fields
from pathlib import Path

from training.experiment.jobs import run
from training.experiment.plan import Plan, Size
from training.experiment.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiment"), help="folder for data and models")
    parser.add_argument(
        "--results", type=Path, default=Path("training/results/experiment"), help="folder for the results"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs that run at once")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--report", action="store_true", help="report what is done so far and stop")
    for field in fields(Size):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    args = parser.parse_args()
    size = Size(**{field.name: getattr(args, field.name) for field in fields(Size)})
    plan = Plan(size, args.seeds, args.out, args.results)
    if args.list:
        print("\n".join(f"{name}: python -m {shlex.join(job.command)}" for name, job in plan.jobs.items()))
        return
    if not args.report:
        run(plan.jobs, args.out, args.workers)
    write_report(plan)


if __name__ == "__main__":
    main()
