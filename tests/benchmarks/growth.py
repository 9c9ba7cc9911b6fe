"""How the time of sampling grows with candidates, tokens of an image, length of the prompt, and tokens in a step.

    python -m tests.benchmarks.growth tests/benchmarks/growth.png

Draws one panel for each, with transformers' `generate(num_return_sequences=K)` beside the sampler, and ends with one line
of JSON. What is not varied has the preset's size and K = 8. Medians over rounds in which everything runs in turn. Prompts and
images of other lengths than the preset's mean nothing to a model, so how much a draft saves there says little. The last panel
is for all prompts of the preset.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import matplotlib
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from tqdm import tqdm

from bwm_pipelines.new_files import new_files
from tests.benchmarks.models import PRESETS, Subject, build_subject, device_name, of_length, wait_for
from tests.benchmarks.sampling import generate, ours, ours_without_draft

METHODS: dict[str, Callable[[Subject, Tensor, int], Tensor]] = {
    "generate": generate,
    "sample_codes": ours,
    "sample_codes, no draft": ours_without_draft,
}
LABELS = {
    "candidates": "candidates",
    "image_tokens": "image tokens",
    "prefix": "tokens of the prompt",
    "block": "tokens of a candidate in a step",
}


@torch.no_grad()
def seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def measure(
    subject: Subject, sizes: dict[str, list[int]], rounds: int, methods: list[str]
) -> dict[str, dict[str, list[float]]]:
    """Median seconds: for what is varied, for each method, one for each size."""
    device = subject.device
    points = [
        (name, size, method)
        for name, of_name in sizes.items()
        for size in of_name
        for method in methods
        if name != "block" or method == "sample_codes"
    ]
    times = {point: [] for point in points}
    for _, _, method in points[: len(methods)]:
        seconds(partial(METHODS[method], subject, subject.prompts[0], 1), device)  # warm-up
    with tqdm(total=rounds * len(points), desc=subject.name) as bar:
        for _ in range(rounds):
            for point in points:
                name, size, method = point
                candidates = size if name == "candidates" else 8
                run = partial(of_all_prompts, METHODS[method], resized(subject, name, size), candidates)
                with patch("bwm_pipelines.sampling.BLOCK", size) if name == "block" else nullcontext():
                    times[point].append(seconds(run, device))
                bar.update()
    medians = {point: round(statistics.median(of_point), 4) for point, of_point in times.items()}
    return {
        name: {
            method: [medians[name, size, method] for size in of_name]
            for method in methods
            if (name, of_name[0], method) in medians
        }
        for name, of_name in sizes.items()
    }


def of_all_prompts(method: Callable[[Subject, Tensor, int], Tensor], subject: Subject, num_candidates: int) -> None:
    for prompt_ids in subject.prompts:
        method(subject, prompt_ids, num_candidates)


def resized(subject: Subject, name: str, size: int) -> Subject:
    """The subject with one prompt, which or whose images may have another length; for blocks, with all its prompts."""
    if name == "block":
        return subject
    prompt, draft = subject.prompts[0], subject.draft
    if name == "prefix":
        prompt = of_length(prompt, size)
    if name == "image_tokens":
        draft = of_length(draft, size)
    return Subject(subject.name, subject.family, subject.model, [prompt], draft, subject.temperature)


def draw(sizes: dict[str, list[int]], results: dict[str, dict[str, list[float]]], title: str) -> plt.Figure:
    """One panel for each thing varied."""
    figure, panels = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3.4), layout="constrained")
    for panel, (name, of_name) in zip(panels, sizes.items(), strict=True):
        for method, times in results[name].items():
            panel.plot(of_name, times, marker="o", label=method)
        panel.set(xlabel=LABELS[name], ylabel="seconds", xscale="log", ylim=(0, None))
        panel.set_xticks(of_name, of_name)
        panel.minorticks_off()
    panels[0].legend()
    figure.suptitle(title, fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="where the plot goes")
    parser.add_argument("--preset", choices=PRESETS, default="playroom")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[64, 144, 256, 512, 1024])
    parser.add_argument("--prefix", type=int, nargs="+", default=[64, 152, 256, 512, 1024])
    parser.add_argument("--block", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16, 24, 32])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--without-stock", action="store_true", help="leave out generate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    matplotlib.use("Agg")
    subject = build_subject(args.preset, device=torch.device(args.device))
    sizes = {name: getattr(args, name) for name in LABELS}
    methods = [name for name in METHODS if name != "generate" or not args.without_stock]
    results = measure(subject, sizes, args.rounds, methods)
    device = device_name(subject.device)
    figure = draw(sizes, results, f"{subject.name}; {device}")
    with new_files(args.picture.parent) as folder:
        figure.savefig(folder / args.picture.name, dpi=120)
    print(json.dumps({"device": device, "model": subject.name, "rounds": args.rounds, "sizes": sizes} | results))


if __name__ == "__main__":
    main()
