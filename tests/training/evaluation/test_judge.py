"""The judge against a real local server that speaks chat completions and can be told to fail."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation import judge, judge_request
from training.evaluation.samples import read_samples

ROOT = Path(__file__).parents[3]
GOOD = {"reason": "The cube moved.", "success": 7, "minimal_editing": 4}


class Server:
    """Chat completions on a local port. `reply` gets the number of the request, from 0, and its body, and returns an HTTP
    status and what the model says, or the error."""

    def __init__(self):
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.reply: Callable[[int, dict], tuple[int, str]] = lambda number, body: (200, json.dumps(GOOD))
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                assert handler.path == "/v1/chat/completions"
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    number = len(self.bodies)
                    self.bodies.append(body)
                    self.keys.add(handler.headers["Authorization"])
                status, said = self.reply(number, body)
                payload = json.dumps(completion(said) if status == 200 else {"error": {"message": said}}).encode()
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(payload)))
                handler.send_header("Retry-After-Ms", "1")
                handler.end_headers()
                handler.wfile.write(payload)

            def log_message(handler, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def completion(said: str) -> dict:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def write_samples(folder: Path, rows: list[dict]) -> None:
    lines = [{"target": None, **row} for row in rows]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four samples of two tasks, every picture another one; the last has no true outcome."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        names = {kind: f"{number}_{kind}.png" for kind in ("before", "output", "target")}
        for name in names.values():
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(tmp_path / name)
        names["target"] = names["target"] if number < 3 else None
        instruction = f"push cube {number} to the left"
        rows.append({"id": f"s{number}", "task": ["push", "stack"][number // 2], "instruction": instruction, **names})
    write_samples(tmp_path, rows)
    return tmp_path


def run(folder: Path, server: Server, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["judge", str(folder), "--base-url", server.url, *words])
    return judge.main()


def results(folder: Path, judged: str = "output") -> tuple[list[dict], dict]:
    results = folder / "judge" / judged
    rows = [json.loads(line) for line in (results / "scores.jsonl").read_text().splitlines()]
    return rows, json.loads((results / "summary.json").read_text())


def sent_pictures(body: dict) -> list[np.ndarray]:
    urls = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    files = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls]
    return [np.asarray(Image.open(file)) for file in files]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def instruction_of(body: dict) -> str:
    return body["messages"][1]["content"][0]["text"].removeprefix("The action: ")


@pytest.mark.parametrize("judged", ["output", "copy", "target"])
def test_the_judge_gets_the_instruction_and_exactly_two_pictures(folder, server, monkeypatch, judged):
    reference = [] if judged == "output" else ["--reference", judged]
    assert run(folder, server, "--yes", *reference, monkeypatch=monkeypatch) == 0
    samples = [sample for sample in read_samples(folder) if judged != "target" or sample.target]
    assert len(server.bodies) == len(samples) == (3 if judged == "target" else 4)
    by_instruction = {instruction_of(body): body for body in server.bodies}
    for sample in samples:
        before, rated = sent_pictures(by_instruction[sample.instruction])
        np.testing.assert_array_equal(before, pixels(sample.before))
        np.testing.assert_array_equal(rated, pixels(sample.before if judged == "copy" else getattr(sample, judged)))
    assert server.keys == {"Bearer a key"}
    assert {body["model"] for body in server.bodies} == {"gpt-4o-2024-11-20"}


def test_scores_are_minima_and_means_are_over_samples_then_tasks(folder, server, monkeypatch):
    scores = {"0": (9, 3), "1": (2, 10), "2": (10, 9), "3": (0, 10)}

    def reply(number, body):
        success, minimal = scores[instruction_of(body).split()[2]]
        return 200, json.dumps({"reason": "", "success": success, "minimal_editing": minimal})

    server.reply = reply
    assert run(folder, server, "--yes", monkeypatch=monkeypatch) == 0
    rows, summary = results(folder)
    assert [(row["id"], row["score"]) for row in rows] == [("s0", 3), ("s1", 2), ("s2", 9), ("s3", 0)]
    push, stack = (summary["tasks"][task]["score"] for task in ("push", "stack"))
    assert (push["mean"], push["n"], stack["mean"]) == (2.5, 2, 4.5)
    assert (stack["low"], stack["high"]) == (0, 9)
    assert summary["tasks"]["push"]["success"]["mean"] == 5.5
    total = summary["mean"]["score"]
    assert (total["mean"], total["low"], total["high"]) == (3.5, 1, 6)  # within tasks, never across
    assert (summary["tokens_in"], summary["tokens_out"], summary["errors"]) == (4000, 200, 0)


def test_a_second_run_sends_nothing_and_a_changed_picture_is_sent(folder, server, monkeypatch, capsys):
    run(folder, server, "--yes", monkeypatch=monkeypatch)
    first = results(folder)
    assert run(folder, server, monkeypatch=monkeypatch) == 0  # nothing to send: nothing to confirm
    assert "0 requests to send" in capsys.readouterr().out
    assert len(server.bodies) == 4 and results(folder) == first
    Image.new("RGB", (16, 12)).save(folder / "2_output.png")
    run(folder, server, "--yes", monkeypatch=monkeypatch)
    assert len(server.bodies) == 5
    run(folder, server, "--yes", "--model", "another", monkeypatch=monkeypatch)
    assert len(server.bodies) == 9


def test_failures_of_the_server_are_retried(folder, server, monkeypatch):
    server.reply = lambda number, body: [(429, "slow down"), (500, "oh"), (503, "oh"), (200, json.dumps(GOOD))][
        number % 4
    ]
    assert run(folder, server, "--yes", "--concurrency", "1", monkeypatch=monkeypatch) == 0
    rows, summary = results(folder)
    assert len(server.bodies) == 16 and summary["errors"] == 0 and {row["score"] for row in rows} == {4}


@pytest.mark.parametrize(
    "said",
    [
        "The edit is great, 9 out of 10.",
        "",
        json.dumps(GOOD | {"success": 11}),
        json.dumps(GOOD | {"success": "7"}),
        json.dumps(GOOD | {"success": 6.5}),
        json.dumps({"reason": "", "success": 7}),
        json.dumps(GOOD | {"overall": 7}),
        f"```json\n{json.dumps(GOOD)}\n```",
    ],
)
def test_an_unreadable_answer_is_asked_for_once_more_and_then_an_error(folder, server, monkeypatch, said):
    hopeless = "push cube 1 to the left"

    def reply(number, body):
        asked_again = len(body["messages"]) > 2
        return 200, json.dumps(GOOD) if asked_again and instruction_of(body) != hopeless else said

    server.reply = reply
    assert run(folder, server, "--yes", monkeypatch=monkeypatch) == 0
    rows, summary = results(folder)
    assert len(server.bodies) == 8 and summary["errors"] == 1
    assert rows[0]["score"] == 4 and rows[0]["error"] is None
    assert rows[1]["score"] is None and repr(said) in rows[1]["error"]
    assert summary["tasks"]["push"]["score"]["n"] == 1
    run(folder, server, "--yes", monkeypatch=monkeypatch)
    assert len(server.bodies) == 8 and results(folder) == (rows, summary)


def test_what_is_wrong_with_one_sample_is_an_error_row_and_tried_again(folder, server, monkeypatch):
    (folder / "0_output.png").write_bytes(b"no picture")
    refused = "push cube 1 to the left"
    server.reply = lambda number, body: (400, "unsafe") if instruction_of(body) == refused else (200, json.dumps(GOOD))
    assert run(folder, server, "--yes", monkeypatch=monkeypatch) == 0
    rows, summary = results(folder)
    assert "0_output.png" in rows[0]["error"] and "unsafe" in rows[1]["error"]
    assert [row["score"] for row in rows] == [None, None, 4, 4]
    assert (
        summary["errors"] == 2 and summary["tasks"]["push"]["score"] == {"n": 0} and summary["mean"]["score"]["n"] == 2
    )
    server.reply = lambda number, body: (200, json.dumps(GOOD))
    run(folder, server, "--yes", monkeypatch=monkeypatch)
    assert len(server.bodies) == 4 and results(folder)[0][1]["score"] == 4


@pytest.mark.parametrize("status", [401, 404, 429])
def test_an_endpoint_that_cannot_be_used_ends_the_run(folder, server, monkeypatch, capsys, status):
    server.reply = lambda number, body: (200, json.dumps(GOOD)) if number == 0 else (status, "no such luck")
    assert run(folder, server, "--yes", "--concurrency", "1", monkeypatch=monkeypatch) == 2
    assert "no such luck" in capsys.readouterr().err
    assert not (folder / "judge" / "output").exists()
    sent = len(server.bodies)
    server.reply = lambda number, body: (200, json.dumps(GOOD))
    assert run(folder, server, "--yes", monkeypatch=monkeypatch) == 0
    assert len(server.bodies) == sent + 3  # the first answer was kept


@pytest.mark.parametrize("instruction", ["", "  ", None])
def test_an_empty_instruction_is_refused_before_anything_is_sent(folder, server, monkeypatch, capsys, instruction):
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    rows[3]["instruction"] = instruction
    write_samples(folder, rows)
    assert run(folder, server, "--yes", monkeypatch=monkeypatch) == 2
    assert "`instruction` of sample 's3'" in capsys.readouterr().err
    assert server.bodies == []


def test_a_request_that_lost_the_instruction_is_refused(folder):
    sample = read_samples(folder)[0]
    picture = Image.new("RGB", (8, 8))
    request = judge_request.build_request("judge", sample, picture, picture)
    parts = request["messages"][1]["content"]
    parts[0]["text"] = "The action: "
    with pytest.raises(ValueError, match="`instruction` of sample 's0'"):
        judge_request.check_request(request, sample)
    parts[0]["text"] = f"The action: {sample.instruction}"
    parts.append(parts[-1])
    with pytest.raises(ValueError, match="holds 3 pictures"):
        judge_request.check_request(request, sample)


def test_the_cost_is_said_first_and_nothing_is_sent_without_yes(folder, server, monkeypatch, capsys):
    assert (
        run(folder, server, "--price-in", "1000000", "--price-out", "0", "--limit", "1", monkeypatch=monkeypatch) == 0
    )
    said = capsys.readouterr().out
    assert "2 samples; 2 requests to send" in said and "Nothing was sent" in said
    assert server.bodies == []
    price = float(said.partition(": about ")[2].split()[0])
    assert 2 * 2 * 255 < price < 2 * 2 * 255 + 2 * 700  # two pictures of one tile each, and the words


def test_picture_tokens_follow_the_published_examples():
    tokens = {
        size: judge_request.picture_tokens(Image.new("L", size)) for size in [(512, 512), (1024, 1024), (2048, 4096)]
    }
    assert tokens == {(512, 512): 255, (1024, 1024): 765, (2048, 4096): 1105}


def test_an_interrupted_run_loses_no_answer(folder, server):
    # A shell that runs the tests in the background lets its processes ignore Ctrl-C.
    listen = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{listen}; from training.evaluation.judge import main; sys.exit(main())"
    command = [sys.executable, "-c", start, str(folder), "--base-url", server.url, "--yes"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def interrupt_at_the_third(number, body):
        if number == 2:
            os.kill(process.pid, signal.SIGINT)
        return 200, json.dumps(GOOD)

    server.reply = interrupt_at_the_third
    process = subprocess.Popen([*command, "--concurrency", "1"], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130 and b"interrupted" in said
    assert not (folder / "judge" / "output").exists()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600, capture_output=True)
    assert sorted(map(instruction_of, server.bodies)) == sorted(sample.instruction for sample in read_samples(folder))
    assert results(folder)[1]["errors"] == 0


def test_the_table_puts_the_reference_lines_of_the_same_judge_beside_the_output(folder, server, monkeypatch):
    for words in ([], ["--reference", "copy"], ["--reference", "target"]):
        run(folder, server, "--yes", *words, monkeypatch=monkeypatch)
    lines = (folder / "judge" / "table.md").read_text().splitlines()
    assert lines[0] == "| judged | push | stack | mean | errors |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["output", "copy", "target"]
    run(folder, server, "--yes", "--model", "another", monkeypatch=monkeypatch)
    assert len((folder / "judge" / "table.md").read_text().splitlines()) == 3
