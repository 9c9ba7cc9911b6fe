"""The preference page as a browser talks to it, and what the answers come to."""

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation import preference
from training.evaluation.preference import Study, build_page, read_systems
from training.evaluation.preference_results import COLUMNS, append_result, read_results, summarise, table

SYSTEMS = ("zebra", "yak", "xerus")
IDS = ("s0", "s1", "s2")


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Three systems' outputs of three samples, each of one colour of its own; as words of the command line."""
    for number, system in enumerate(SYSTEMS):
        folder = tmp_path / system
        folder.mkdir()
        lines = []
        for index, name in enumerate(IDS):
            Image.new("RGB", (16, 12), (0, 0, 40 * index)).save(folder / f"{name}_before.png")
            Image.new("RGB", (16, 12), (100 + 50 * number, 0, 40 * index)).save(folder / f"{name}.png")
            paths = {"before": f"{name}_before.png", "output": f"{name}.png", "target": None}
            lines.append(json.dumps({"id": name, "task": "push", "instruction": f"push cube {index}", **paths}))
        (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return [str(tmp_path / system) for system in SYSTEMS]


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "results" / "preferences.csv"


class Browser:
    """One session with the page. `received` is all that has come over the wire."""

    def __init__(self, url: str, session: str):
        self.url, self.session = url.rstrip("/"), session
        self.received = self.get("/") + self.get("/config")
        self.config = json.loads(self.get("/config"))

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path) as response:
            return response.read()

    def call(self, name: str, *data) -> list:
        """What an event of the page puts into its components, in their order."""
        event = next(event for event in self.config["dependencies"] if event["api_name"] == name)
        body = json.dumps({"data": data, "fn_index": event["id"], "session_hash": self.session}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/gradio_api/queue/join", body, headers)).close()
        with urllib.request.urlopen(f"{self.url}/gradio_api/queue/data?session_hash={self.session}") as stream:
            for line in stream:
                self.received += line
                message = json.loads(line.removeprefix(b"data:")) if line.strip() else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return message["output"]["data"]
        raise AssertionError("the page said nothing")

    def colours(self, data: list) -> list[int]:
        """The red of the outputs on the page, from left to right; the pictures are fetched as a browser does."""
        files = [value["path"] for value in data if isinstance(value, dict) and value.get("path")]
        pictures = [Image.open(urllib.request.urlopen(f"{self.url}/gradio_api/file={file}")) for file in files[1:]]
        return [picture.convert("RGB").getpixel((0, 0))[0] for picture in pictures]


@pytest.fixture
def serve(folders, csv) -> Iterator:
    pages = []

    def serve(session: str) -> Browser:
        if not pages:
            pages.append(build_page(Study(read_systems(folders), csv)))
            pages[0].launch(prevent_thread_lock=True, quiet=True, share=False)
        return Browser(pages[0].local_url, session)

    yield serve
    for page in pages:
        page.close()


def test_a_rater_rates_three_samples_blindly_and_resumes(serve, csv):
    browser = serve("first")
    data = browser.call("start", ' Ann, of the "Lab" ')
    seen = []
    for number in range(3):
        if number == 2:  # the window is closed, and another one is opened under the same name
            browser, before = serve("second"), browser.received
            assert not any(name.encode() in before for name in SYSTEMS)
            data = browser.call("start", 'Ann, of the "Lab"')
        assert f"{number + 1} of 3" in json.dumps(data)
        assert not any(name.encode() in browser.received for name in SYSTEMS)
        order = browser.colours(data)
        assert sorted(order) == [100, 150, 200]
        seen.append([SYSTEMS[(red - 100) // 50] for red in order])
        data = browser.call("answer", None, "B", "A")
    assert "Thank you" in json.dumps(data) and all(name in json.dumps(data) for name in SYSTEMS)
    results = read_results(csv)
    assert sorted(row["id"] for row in results) == list(IDS)
    assert [row["order"] for row in results] == seen
    assert [(row["best"], row["worst"]) for row in results] == [(order[1], order[0]) for order in seen]
    assert {row["rater"] for row in results} == {'Ann, of the "Lab"'}
    assert "Thank you" in json.dumps(serve("third").call("start", 'Ann, of the "Lab"'))


@pytest.mark.parametrize("choice", [(None, None), ("A", None), (None, "A"), ("A", "A")])
def test_an_incomplete_choice_is_not_taken(serve, csv, choice):
    browser = serve("session")
    browser.call("start", "Ann")
    data = browser.call("answer", None, *choice)
    assert b"Please choose" in browser.received
    assert not browser.colours(data) and not csv.exists()


def test_a_rater_needs_a_name_which_is_never_a_path(serve, csv, tmp_path):
    browser = serve("session")
    for name in ("", "  ", "a\nb"):
        assert not browser.colours(browser.call("start", name))
    browser.call("start", "../../=x")
    browser.call("answer", None, "A", "C")
    assert read_results(csv)[0]["rater"] == "../../=x"
    assert sorted(path.name for path in csv.parent.iterdir()) == [csv.name]


def test_nobody_is_asked_twice_even_in_two_windows(folders, csv):
    study = Study(read_systems(folders), csv)
    one, other = study.next_question("Ann"), study.next_question("Ann")
    assert one.id == other.id and one.order == other.order
    study.answer(one, "zebra", "yak")
    study.answer(other, "yak", "zebra")
    assert [row["best"] for row in read_results(csv)] == ["zebra"]
    assert study.next_question("Ann").id != one.id
    assert study.next_question("NA") is not None  # a name that spreadsheets take for nothing


def test_orders_repeat_for_a_seed_and_differ_over_raters_and_samples(folders, csv):
    study, again = (Study(read_systems(folders), csv, seed=3) for _ in range(2))
    pairs = [(f"rater {number}", name) for number in range(40) for name in IDS]
    orders = [tuple(study.order(*pair)) for pair in pairs]
    assert orders == [tuple(again.order(*pair)) for pair in pairs]
    first = [sum(order[0] == system for order in orders) for system in SYSTEMS]
    assert len(set(orders)) == 6 and min(first) > 20
    assert orders != [tuple(Study(read_systems(folders), csv, seed=4).order(*pair)) for pair in pairs]


def test_systems_with_other_samples_and_results_of_other_systems_are_refused(folders, csv, tmp_path):
    study = Study(read_systems(folders), csv)
    study.answer(study.next_question("Ann"), "zebra", "yak")
    with pytest.raises(ValueError, match="`results` .* compares"):
        Study(read_systems(folders[:2]), csv)
    with pytest.raises(ValueError, match="2 to 26"):
        Study(read_systems(folders[:1]), csv)
    with pytest.raises(ValueError, match="'zebra' twice"):
        read_systems([folders[0], f"zebra={folders[1]}"])
    lines = (Path(folders[1]) / "samples.jsonl").read_text().splitlines()
    (Path(folders[1]) / "samples.jsonl").write_text("\n".join(lines[:2]))
    with pytest.raises(ValueError, match="'zebra' and 'yak' hold different samples"):
        Study(read_systems(folders), csv.with_name("other.csv"))


def answers(count: int, raters: int) -> list[dict]:
    """Each rater rates `count` samples: a is best in all, b worst in three of four and c in one."""
    return [
        {"id": f"s{i}", "rater": f"r{r}", "order": ["b", "a", "c"], "best": "a", "worst": "c" if i % 4 == 0 else "b"}
        | {"seconds": "1.5", "time": "2026-11-21T12:00:00+00:00"}
        for r in range(raters)
        for i in range(count)
    ]


def test_the_summary_gives_shares_and_scores_with_intervals():
    summary = summarise(answers(40, raters=2))
    assert summary["a"]["score"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 80}
    assert (summary["b"]["best"]["percent"], summary["b"]["worst"]["percent"]) == (0, 75)
    score = summary["b"]["score"]
    assert score["mean"] == -0.75
    assert -0.9 < score["low"] < -0.85 and -0.65 < score["high"] < -0.57  # 40 samples rated twice are not 80 samples


def test_intervals_widen_when_raters_disagree():
    alike = answers(30, raters=4)
    split = [row | {"best": "a" if row["rater"] < "r2" else "c", "worst": "b"} for row in alike]
    mixed = [row | {"best": "a" if (i + i // 30) % 2 else "c", "worst": "b"} for i, row in enumerate(alike)]
    widths = [np.ptp([s["a"]["score"][end] for end in ("low", "high")]) for s in map(summarise, (split, mixed))]
    assert [summarise(rows)["a"]["best"]["percent"] for rows in (split, mixed)] == [50, 50]
    assert widths[0] > 2 * widths[1]


def test_the_csv_survives_any_text_and_the_command_prints_the_table(csv, monkeypatch, capsys):
    odd = {
        "id": 'a,"b"',
        "rater": "Žofie\u2028=1+1",
        "order": ["ä", "b"],
        "best": "ä",
        "worst": "b",
        "seconds": 2,
        "time": "t",
    }
    append_result(csv, odd)
    append_result(csv, odd | {"rater": "NA"})
    assert read_results(csv) == [odd | {"seconds": "2"}, odd | {"seconds": "2", "rater": "NA"}]
    assert csv.read_text().splitlines()[0] == ",".join(COLUMNS)
    monkeypatch.setattr(sys, "argv", ["preference", "--results", str(csv)])
    assert preference.main() == 0
    assert capsys.readouterr().out == table(read_results(csv)) + "\n"
    csv.write_text("a,b\n1,2\n")
    assert preference.main() == 2
    assert "has the columns" in capsys.readouterr().err
