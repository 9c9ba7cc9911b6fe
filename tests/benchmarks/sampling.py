"""How fast K images are sampled from one prompt, beside what transformers offers and beside a plain loop.

    python -m tests.benchmarks.sampling                                # the embedded checkpoint
    python -m tests.benchmarks.sampling --vocabulary 65536             # its layers, a larger vocabulary
    python -m tests.benchmarks.sampling --preset 7b --profile out/7b   # Chameleon-7B's shape, needs a GPU

Prints a Markdown table and ends with one line of JSON. In each round every method runs once for each prompt, so that what
else the machine does falls on all of them; the table has medians. The draft is the image before; where weights are random
it is nearly always wrong, which shows what a step of several tokens costs. GB/s are the bytes that a step must read at
least (weights of the layers, the codes' rows of the head, the prompt's cache once, the candidates' own caches) over the
time it took; the last column but one is their share of what copying a large tensor moves on the same machine.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from bwm_pipelines.new_files import new_files
from bwm_pipelines.sampling import candidate_generators, candidate_uniforms, sample_codes
from tests.benchmarks.models import PRESETS, Subject, build_subject, copy_bandwidth, device_name, wait_for
from tests.benchmarks.plain_loop import plain_codes
from tests.peak_memory import PeakMemory

COLUMNS = ("method", "K", "seconds", "steps", "ms/step", "tokens/s", "GB/s", "of copy", "peak MiB")


def generate(subject: Subject, prompt_ids: Tensor, num_candidates: int) -> Tensor:
    """Stock `generate`, with the mask on image tokens lifted so that it can give any."""
    prompt = prompt_ids[None]
    with subject.family.image_logits(subject.model):
        return subject.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=subject.temperature,
            top_k=0,
            min_new_tokens=subject.num_tokens,
            max_new_tokens=subject.num_tokens,
            num_return_sequences=num_candidates,
            pad_token_id=1,
            use_cache=True,
        )


def uniforms(subject: Subject, num_candidates: int) -> Tensor:
    generators = candidate_generators(torch.Generator().manual_seed(0), num_candidates)
    return candidate_uniforms(generators, subject.num_tokens)


def plain(subject: Subject, prompt_ids: Tensor, num_candidates: int) -> Tensor:
    return plain_codes(
        subject.family, subject.model, prompt_ids, uniforms(subject, num_candidates), subject.temperature
    )


def ours(subject: Subject, prompt_ids: Tensor, num_candidates: int, **options: Any) -> Tensor:
    return ours_without_draft(subject, prompt_ids, num_candidates, draft=subject.draft, **options)


def ours_without_draft(subject: Subject, prompt_ids: Tensor, num_candidates: int, **options: Any) -> Tensor:
    return sample_codes(
        subject.family,
        subject.model,
        prompt_ids,
        uniforms=uniforms(subject, num_candidates),
        temperature=subject.temperature,
        unconditional_ids=prompt_ids[:-1],
        **options,
    ).codes


class Method(NamedTuple):
    """A way to K candidates of each prompt: `run(subject, prompt_ids, at_once)` gives so many, and is called until there
    are K; it may report steps.
    """

    name: str
    candidates: int
    at_once: int
    run: Callable[..., object]
    reports: bool = False

    def all(self, subject: Subject) -> None:
        """K candidates of every prompt."""
        for prompt_ids in subject.prompts:
            for _ in range(self.candidates // self.at_once):
                self.run(subject, prompt_ids, self.at_once)


def methods(num_candidates: int, with_stock: bool) -> list[Method]:
    """What is compared."""
    k = num_candidates
    stock = [
        Method(f"generate, {k} calls", k, 1, generate),
        Method(f"generate(num_return_sequences={k})", k, k, generate),
        Method("plain loop", k, k, plain),
    ]
    own = [
        Method("sample_codes", k, k, ours, True),
        Method("sample_codes, no draft", k, k, ours_without_draft, True),
        Method("sample_codes, one candidate", 1, 1, ours, True),
        Method("sample_codes, guided", k, k, partial(ours, guidance_scale=2.0), True),
    ]
    return (stock if with_stock else []) + own


class Taken(NamedTuple):
    """What a method took: the median of its `seconds`, its `steps`, and the `peak` of bytes in tensors that it made."""

    seconds: float
    steps: int
    peak: int


@torch.no_grad()
def measure(subject: Subject, compared: list[Method], rounds: int) -> dict[str, Taken]:
    """What every method took; they run in turn."""
    device = subject.device
    # These also warm up.
    steps = [count_steps(subject, method) for method in compared]
    peaks = [
        peak_bytes(partial(method.run, subject, subject.prompts[0], method.at_once), device) for method in compared
    ]
    seconds = [[] for _ in compared]
    for _ in tqdm(range(rounds), desc=subject.name, leave=False):
        for method, times in zip(compared, seconds, strict=True):
            start = time.perf_counter()
            method.all(subject)
            wait_for(device)
            times.append(time.perf_counter() - start)
    return {
        method.name: Taken(statistics.median(times), *counted)
        for method, times, *counted in zip(compared, seconds, steps, peaks, strict=True)
    }


def count_steps(subject: Subject, method: Method) -> int:
    """How often a method runs the model for all prompts, their own passes included."""
    if not method.reports:
        return len(subject.prompts) * subject.num_tokens * method.candidates // method.at_once
    reports = []
    for prompt_ids in subject.prompts:
        method.run(subject, prompt_ids, method.at_once, on_step=lambda *report: reports.append(report))
    return len(reports)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a call holds at once in tensors, beside those that were there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with PeakMemory() as memory:
        run()
    return memory.peak


def table_row(subject: Subject, method: Method, taken: Taken, bandwidth: float) -> dict:
    """One line of the table; `bandwidth` in bytes a second."""
    rate = subject.step_bytes(method.at_once) * taken.steps / taken.seconds
    return {
        "method": method.name,
        "K": method.candidates,
        "seconds": round(taken.seconds, 3),
        "steps": taken.steps,
        "ms/step": round(taken.seconds / taken.steps * 1e3, 3),
        "tokens/s": round(len(subject.prompts) * method.candidates * subject.num_tokens / taken.seconds, 1),
        "GB/s": round(rate / 1e9, 2),
        "of copy": f"{rate / bandwidth:.1%}",
        "peak MiB": round(taken.peak / 2**20, 1),
    }


def markdown(rows: list[dict]) -> str:
    """Rows of one table in Markdown."""
    lines = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *([line[c] for c in COLUMNS] for line in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write_profile(subject: Subject, num_candidates: int, folder: Path) -> None:
    """Write torch's profile of one call: a trace for chrome://tracing, and a table of the operations."""
    with torch.no_grad(), torch.profiler.profile() as profile:
        ours(subject, subject.prompts[0], num_candidates)
        wait_for(subject.device)
    key = "self_cuda_time_total" if subject.draft.is_cuda else "self_cpu_time_total"
    with new_files(folder) as temporary:
        profile.export_chrome_trace(str(temporary / "trace.json.gz"))
        (temporary / "operations.txt").write_text(profile.key_averages().table(sort_by=key, row_limit=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="playroom")
    parser.add_argument("-k", "--candidates", type=int, default=8)
    parser.add_argument("--image-tokens", type=int, help="default: the preset's")
    parser.add_argument("--prefix", type=int, help="tokens of the prompt; default: the preset's")
    parser.add_argument("--vocabulary", type=int, help="with random weights; default: the preset's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--without-stock", action="store_true", help="leave out generate and the plain loop")
    parser.add_argument("--profile", type=Path, help="also write a profile of one call into this folder")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    args = parser.parse_args()

    device = torch.device(args.device)
    subject = build_subject(
        args.preset, prefix=args.prefix, image_tokens=args.image_tokens, vocabulary=args.vocabulary, device=device
    )
    compared = methods(args.candidates, not args.without_stock)
    bandwidth = copy_bandwidth(device)
    taken = measure(subject, compared, args.rounds)
    rows = [table_row(subject, method, taken[method.name], bandwidth) for method in compared]
    if args.profile:
        write_profile(subject, args.candidates, args.profile)

    rates = {line["method"]: line["tokens/s"] for line in rows}
    own = rates["sample_codes"]
    report = {
        "device": device_name(device),
        "copy_gb_per_s": round(bandwidth / 1e9, 2),
        "model": subject.name,
        "prompts": len(subject.prompts),
        "temperature": subject.temperature,
        "prefix": subject.prefix,
        "image_tokens": subject.num_tokens,
        "rounds": args.rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "times_faster_than": {name: round(own / rate, 2) for name, rate in rates.items() if "sample" not in name},
        "time_of_k_over_one": round(taken["sample_codes"].seconds / taken["sample_codes, one candidate"].seconds, 2),
        "rows": rows,
    }
    print(
        f"{report['device']}, copies {report['copy_gb_per_s']} GB/s; {subject.name}; {report['prompts']} prompts "
        f"of at most {report['prefix']} tokens, images of {report['image_tokens']}; medians of {args.rounds} rounds\n"
    )
    print(markdown(rows))
    print(f"\nK = {args.candidates} takes {report['time_of_k_over_one']} times as long as K = 1.")
    for name, times in report["times_faster_than"].items():
        print(f"sample_codes gives {times} times the tokens/s of {name}.")
    if args.out:
        with new_files(args.out.parent) as folder:
            (folder / args.out.name).write_text(json.dumps(report) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
