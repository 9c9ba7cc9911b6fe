"""Lets a vision-language model judge an editor's outputs, over any endpoint that speaks OpenAI's chat completions.

    python -m training.evaluation.judge runs/aurora_bench/cwm --price-in 2.5 --price-out 10
    python -m training.evaluation.judge runs/aurora_bench/cwm --price-in 2.5 --price-out 10 --yes

The first command only says what the second would send and cost. The protocol is the paper's, of the VIEScore family: the
judge sees the picture before and the output, never the true outcome, and gives two scores from 0 to 10, for the success
of the edit and for minimal editing; a sample's score is the lower one, a task's score the mean over its samples. With
`--reference copy` or `--reference target` the picture before, or the true outcome, is judged as if it were the output.

The key is read from the environment variable OPENAI_API_KEY. Every answer is kept, under the hash of what was sent, so
that an interrupted run resumes and nothing is paid for twice. `FOLDER/judge/` takes the answers, `output/scores.jsonl` and
`output/summary.json` (or `copy/`, `target/`), and `table.md` with all that was judged by the same model.
"""

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openai
from PIL import Image
from pydantic import ValidationError
from tqdm import tqdm

from bwm_pipelines.images import open_image
from bwm_pipelines.new_files import new_files
from training.evaluation.bootstrap import bootstrap_means, interval
from training.evaluation.intervals import mean, text
from training.evaluation.judge_request import (
    MAX_ANSWER_TOKENS,
    RUBRIC,
    Judgement,
    build_request,
    picture_tokens,
)
from training.evaluation.rows import write_json
from training.evaluation.samples import Sample, read_samples

MODEL = "gpt-4o-2024-11-20"
MAX_RETRIES = 6  # of the client, with growing pauses or those the server asks for: about half a minute in all
ENDS_THE_RUN = (401, 402, 403, 404, 429)  # what is wrong then is not the sample
JUDGED = ("output", "copy", "target")
ASK_AGAIN = (
    "This was not the JSON object that was asked for. Answer with that object alone: reason, success, minimal_editing."
)


class Answer(NamedTuple):
    content: str
    tokens_in: int
    tokens_out: int


class NoCompletion(Exception):
    """The endpoint sent something that is no chat completion, without saying that it failed."""


class Endpoint:
    """Sends requests, and never the same one twice: each answer becomes a file of the folder `answers`.

    Args:
        base_url: of the API, with its version, such as "https://api.openai.com/v1".
        answers: folder, made if absent.
    """

    def __init__(self, base_url: str, answers: Path):
        self.base_url, self.answers = base_url, answers
        self._client: openai.OpenAI | None = None
        answers.mkdir(parents=True, exist_ok=True)

    def connect(self) -> None:
        """Reads OPENAI_API_KEY and makes the client, which nothing but sending needs.

        Raises:
            openai.OpenAIError: there is no key.
        """
        self._client = openai.OpenAI(base_url=self.base_url, max_retries=MAX_RETRIES)

    def file_of(self, request: dict) -> Path:
        """Where the answer to a request is, or will be."""
        sent = json.dumps([self.base_url, request], sort_keys=True)
        return self.answers / f"{hashlib.sha256(sent.encode()).hexdigest()}.json"

    def answer(self, request: dict) -> Answer:
        """What the model says to a request, now or when it was asked before.

        Raises:
            NoCompletion: the endpoint answered with something else.
            openai.OpenAIError: the request failed, after retries where these can help.
        """
        file = self.file_of(request)
        if file.exists():
            return Answer(**json.loads(file.read_bytes()))
        completion = self._client.chat.completions.create(**request)
        if not getattr(completion, "choices", None):
            raise NoCompletion(f"{self.base_url} sent no chat completion but {str(completion)[:200]!r}")
        content, usage = completion.choices[0].message.content or "", completion.usage
        answer = Answer(content, usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0)
        write_json(self.answers, file.name, answer._asdict())
        return answer


def judge(endpoint: Endpoint, request: dict) -> tuple[Judgement | None, list[Answer]]:
    """Asks once, and once more if the answer cannot be read; None if neither can be. Also the answers themselves."""
    first = endpoint.answer(request)
    try:
        return Judgement.model_validate_json(first.content), [first]
    except ValidationError:
        turns = [
            {"role": "assistant", "content": first.content or "(no answer)"},
            {"role": "user", "content": ASK_AGAIN},
        ]
    second = endpoint.answer(request | {"messages": request["messages"] + turns})
    try:
        return Judgement.model_validate_json(second.content), [first, second]
    except ValidationError:
        return None, [first, second]


def open_pictures(sample: Sample, judged: str) -> tuple[Image.Image, Image.Image]:
    """The two pictures the judge sees: the one before, and what it is to rate.

    Raises:
        ValueError: one of them cannot be opened.
    """
    rated = {"output": sample.output, "copy": sample.before, "target": sample.target}[judged]
    return open_image(sample.before), open_image(rated)


def judge_sample(endpoint: Endpoint, sample: Sample, judged: str, model: str) -> dict:
    """One row of scores.jsonl; what is wrong with this sample alone becomes its `error`.

    Raises:
        ValueError: see `check_request`.
        openai.OpenAIError: the endpoint cannot be used at all: no connection, no permission, no model, no quota.
    """
    row = {"id": sample.id, "task": sample.task, "score": None, "success": None, "minimal_editing": None}
    row |= {"reason": None, "error": None, "tokens_in": 0, "tokens_out": 0}
    try:
        pictures = open_pictures(sample, judged)
    except ValueError as error:
        return row | {"error": str(error)}
    request = build_request(model, sample, *pictures)
    try:
        judgement, answers = judge(endpoint, request)
    except (NoCompletion, openai.APITimeoutError) as error:
        return row | {"error": str(error)}
    except openai.APIStatusError as error:
        if error.status_code in ENDS_THE_RUN:
            raise
        return row | {"error": str(error)}
    row |= {name: sum(getattr(answer, name) for answer in answers) for name in ("tokens_in", "tokens_out")}
    if judgement is None:
        return row | {"error": f"no judgement in the answer {answers[-1].content[:500]!r}"}
    return row | judgement.model_dump() | {"score": min(judgement.success, judgement.minimal_editing)}


def judge_samples(
    endpoint: Endpoint, samples: list[Sample], judged: str, *, model: str = MODEL, concurrency: int = 4
) -> list[dict]:
    """The rows of scores.jsonl, in the order of the samples. If it is interrupted, no answer is lost.

    Raises:
        ValueError, openai.OpenAIError: see `judge_sample`.
    """
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(judge_sample, endpoint, sample, judged, model) for sample in samples]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="sample"):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # leaving `with` waits for the answers under way
            raise
    return [future.result() for future in futures]


# Before and after


class Estimate(NamedTuple):
    """What judging would send: requests, and their tokens at most (but for questions asked twice)."""

    requests: int
    tokens_in: int
    tokens_out: int

    def report(self, price_in: float | None, price_out: float | None) -> str:
        """In words, with the price for prices of a million tokens."""
        said = (
            f"{self.requests} requests to send, about {self.tokens_in:,} tokens in and at most {self.tokens_out:,} out"
        )
        if price_in is None or price_out is None:
            return f"{said}; for the price give --price-in and --price-out."
        return f"{said}: about {(self.tokens_in * price_in + self.tokens_out * price_out) / 1e6:.2f} at most."


def estimate(endpoint: Endpoint, samples: list[Sample], judged: str, model: str) -> Estimate:
    """What is still to be sent; a sample whose pictures cannot be opened sends nothing.

    Raises:
        ValueError: see `check_request`.
    """
    tokens = []
    for sample in tqdm(samples, desc="reading", unit="sample"):
        try:
            pictures = open_pictures(sample, judged)
        except ValueError:
            continue
        request = build_request(model, sample, *pictures)
        if not endpoint.file_of(request).exists():
            words = len(RUBRIC + sample.instruction) // 4 + 40
            tokens.append(words + sum(map(picture_tokens, pictures)))
    return Estimate(len(tokens), sum(tokens), len(tokens) * MAX_ANSWER_TOKENS)


def choose(samples: list[Sample], judged: str, limit: int | None) -> list[Sample]:
    """The first `limit` samples of each task; only those with a true outcome if that is what is judged.

    Raises:
        ValueError: there are none.
    """
    by_task = defaultdict(list)
    for sample in samples:
        if judged != "target" or sample.target:
            by_task[sample.task].append(sample)
    chosen = [sample for task in by_task.values() for sample in task[:limit]]
    if not chosen:
        raise ValueError(f"`folder` holds no sample for which the {judged} can be judged; choose another reference.")
    return chosen


def summarise(rows: list[dict], about: dict) -> dict:
    """Scores of each task and their mean over tasks, with 95 % bootstrap intervals over samples."""
    rng = np.random.default_rng(0)
    by_task = {row["task"]: [r for r in rows if r["task"] == row["task"] and r["error"] is None] for row in rows}
    names = ("score", "success", "minimal_editing")
    return {
        **about,
        "samples": len(rows),
        "errors": sum(row["error"] is not None for row in rows),
        "tokens_in": sum(row["tokens_in"] for row in rows),
        "tokens_out": sum(row["tokens_out"] for row in rows),
        "tasks": {task: {name: mean(r[name] for r in by_task[task]) for name in names} for task in by_task},
        "mean": {
            name: _mean_of_tasks(rng, [[r[name] for r in scored] for scored in by_task.values()]) for name in names
        },
    }


def _mean_of_tasks(rng: np.random.Generator, tasks: Iterable[list[int]]) -> dict:
    tasks = [scores for scores in tasks if scores]
    if not tasks:
        return {"n": 0}
    low, high = interval(np.mean([bootstrap_means(rng, scores, range(len(scores))) for scores in tasks], axis=0))
    centre = float(np.mean([np.mean(scores) for scores in tasks]))
    return {"mean": centre, "low": low, "high": high, "n": sum(map(len, tasks))}


def table(summaries: Iterable[dict]) -> str:
    """A markdown table of scores: what was judged down, tasks across."""
    summaries = list(summaries)
    tasks = list(dict.fromkeys(task for summary in summaries for task in summary["tasks"]))
    lines = [["judged", *tasks, "mean", "errors"], ["---"] * (len(tasks) + 3)]
    for summary in summaries:
        cells = [text(summary["tasks"].get(task, {"score": {"n": 0}})["score"]) for task in tasks]
        lines.append([summary["judged"], *cells, text(summary["mean"]["score"]), str(summary["errors"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_results(folder: Path, rows: list[dict], summary: dict) -> str:
    """Writes scores.jsonl, summary.json and the table of all that the same model judged; returns the table."""
    with new_files(folder / summary["judged"]) as new:
        (new / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (new / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    files = [file for judged in JUDGED if (file := folder / judged / "summary.json").exists()]
    summaries = [json.loads(file.read_text()) for file in files]
    lines = table(s for s in summaries if (s["model"], s["base_url"]) == (summary["model"], summary["base_url"]))
    with new_files(folder) as new:
        (new / "table.md").write_text(lines)
    return lines


def run(args: argparse.Namespace) -> str:
    """Judges a folder of samples; returns what to print.

    Raises:
        ValueError: the samples cannot be judged, see `read_samples`, `choose` and `check_request`.
        openai.OpenAIError: see `judge_sample`.
    """
    judged = args.reference or "output"
    samples = choose(read_samples(args.folder), judged, args.limit)
    endpoint = Endpoint(args.base_url, args.folder / "judge" / "answers")
    needed = estimate(endpoint, samples, judged, args.model)
    print(f"{len(samples)} samples; {needed.report(args.price_in, args.price_out)}", flush=True)
    if needed.requests and not args.yes:
        return "Nothing was sent. To send it, add --yes."
    if needed.requests:
        endpoint.connect()
    rows = judge_samples(endpoint, samples, judged, model=args.model, concurrency=args.concurrency)
    summary = summarise(rows, {"judged": judged, "model": args.model, "base_url": args.base_url})
    return write_results(args.folder / "judge", rows, summary)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with samples.jsonl")
    parser.add_argument(
        "--base-url", default="https://api.openai.com/v1", help="of the endpoint; default: %(default)s"
    )
    parser.add_argument("--model", default=MODEL, help="the judge; default: %(default)s")
    parser.add_argument("--reference", choices=JUDGED[1:], help="judge this in place of the output")
    parser.add_argument("--limit", type=int, help="samples of each task; default: all")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time; default: %(default)s")
    parser.add_argument("--price-in", type=float, help="price of a million tokens that are sent")
    parser.add_argument("--price-out", type=float, help="price of a million tokens that are answered")
    parser.add_argument("--yes", action="store_true", help="send, after the estimate")
    try:
        print(run(parser.parse_args()))
    except (ValueError, openai.OpenAIError) as error:
        print(f"judge: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\njudge: interrupted; the answers are kept, run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
