"""Pairs annotated a second, one at a time and many at a time, side by side.

    python -m tests.benchmarks.annotator runs/playroom/triplets/validation --pairs 32 --rounds 3

In each round every batch size annotates the same pairs, so that what else the machine does falls on all of them. The last line
is JSON: for each batch size the median over rounds, of wall-clock and of this process's CPU time.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from bwm_pipelines import default_checkpoint
from training.annotate import Annotator
from training.triplets import load_triplets, shards_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs_folder", type=Path, help="folder of Parquet shards with before and after")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="default: the embedded one")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    annotator = Annotator(args.checkpoint)
    rows = load_triplets(shards_of(args.pairs_folder)[:1]).with_format("arrow")[: args.pairs].to_pydict()
    count = len(rows["before"])
    annotator({name: column[:1] for name, column in rows.items()})  # warm-up
    wall, cpu = ({size: [] for size in args.batch_sizes} for _ in range(2))
    for number in range(args.rounds):
        for size in args.batch_sizes:
            annotator.batch_size = size
            start, start_cpu = time.perf_counter(), time.process_time()
            annotator(rows)
            wall[size].append(count / (time.perf_counter() - start))
            cpu[size].append(count / (time.process_time() - start_cpu))
            print(f"round {number}, batch {size}: {wall[size][-1]:.2f} pairs/s, {cpu[size][-1]:.2f} per CPU second")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    about = {"pairs": count, "rounds": args.rounds, "device": device, "threads": torch.get_num_threads()}
    medians = {
        name: {str(size): round(statistics.median(rates), 2) for size, rates in by_size.items()}
        for name, by_size in (("pairs_per_second", wall), ("pairs_per_cpu_second", cpu))
    }
    print(json.dumps(about | {"torch": torch.__version__} | medians))


if __name__ == "__main__":
    main()
