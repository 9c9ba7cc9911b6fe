"""The page as `gradio_client` calls it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import is_file_obj, traverse
from PIL import Image

ACTION = "open the door"


@pytest.fixture(scope="module")
def url(serve) -> str:
    return serve()


@pytest.fixture
def client(url) -> Client:
    return Client(url, verbose=False)


def imagine(client: Client, picture: str, count: int = 2, seed: int = 0) -> tuple:
    return client.predict(handle_file(picture), ACTION, count, seed, api_name="/imagine")


def files_of(answer: tuple) -> list[Path]:
    """The server's paths of the files that an endpoint returned."""
    found: list[Path] = []
    traverse(answer, lambda file: found.append(Path(file["path"])), is_file_obj)
    return found


def test_every_tab_has_an_endpoint_and_nothing_else_does(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/imagine", "/verify", "/name", "/roll_out"}


def test_imagine_returns_what_the_pipeline_returns(client, picture, studio):
    numbers, gallery, slider, heatmap, words, status = imagine(client, picture, count=3, seed=7)
    expected = studio.pipe(Image.open(picture), ACTION, num_candidates=3, generator=torch.Generator().manual_seed(7))
    assert numbers["order"] == expected.order
    assert numbers["margins"] == pytest.approx(expected.margins, abs=1e-4)
    captions = [entry["caption"] for entry in gallery]
    better = sum(margin > 0 for margin in numbers["margins"])
    rival = f"nothing changed · score {numbers['unchanged_score']:.2f}"
    assert captions.index(rival) == better and len(captions) == 4
    shown = [Image.open(entry["image"]).convert("RGB") for entry in gallery if entry["caption"][0].isdigit()]
    assert shown == expected.images
    assert len(slider) == 2 and Image.open(heatmap).size == (512, 512) and "`door" in words
    assert "nothing changed" in status


def test_verify_ranks_files(client, picture, studio, tmp_path):
    edits = []
    for number, colour in enumerate(("red", "green")):
        edits.append(str(tmp_path / f"{number}.jpg"))
        Image.new("RGB", (30 + number, 20), colour).save(edits[-1])
    gallery = [{"image": handle_file(edit), "caption": None} for edit in edits]
    numbers, *_ = client.predict(handle_file(picture), ACTION, gallery, api_name="/verify")
    expected = studio.verifier(Image.open(picture), [Image.open(edit) for edit in edits], ACTION)
    assert numbers["order"] == expected.order and numbers["scores"] == [expected.scores[i] for i in expected.order]


def test_name_returns_words(client, picture, studio):
    image = Image.open(picture)
    named, numbers, *_ = client.predict(handle_file(picture), handle_file(picture), api_name="/name")
    assert numbers["score"] == studio.verifier.name_action(image, image, max_new_tokens=32).score
    assert named == numbers["action"]


def test_roll_out_returns_a_film(client, picture):
    numbers, strip, film, _ = client.predict(
        handle_file(picture), f"{ACTION}\n\nturn the lamp on\n", 2, 0, api_name="/roll_out"
    )
    assert [step["action"] for step in numbers["steps"]] == [ACTION, "turn the lamp on"]
    assert Image.open(film).n_frames == 3 and Image.open(strip).width > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, ACTION, 2, 0), "Please give an image of the scene before"),
        (("picture", " ", 2, 0), "Please say in words what happens"),
        (("picture", "x" * 201, 2, 0), "The action has 201 characters; at most 200 are allowed"),
        (("picture", ACTION, 99, 0), "99"),
        (("picture", ACTION, 2, -1), "-1"),
        (("corrupt", ACTION, 2, 0), "“broken.png” cannot be read .damaged or no image.; give a PNG or JPEG file"),
    ],
)
def test_wrong_input_gets_a_message_and_no_stack_trace(client, request, arguments, message):
    image, *others = arguments
    image = image and handle_file(request.getfixturevalue(image))
    with pytest.raises(AppError, match=message) as caught:
        client.predict(image, *others, api_name="/imagine")
    assert "Traceback" not in str(caught.value)


def test_a_corrupt_edit_gets_a_message(client, picture, corrupt):
    edits = [{"image": handle_file(path), "caption": None} for path in (picture, corrupt)]
    with pytest.raises(AppError, match="“broken.png” cannot be read"):
        client.predict(handle_file(picture), ACTION, edits, api_name="/verify")


def test_an_upload_beyond_the_limit_is_refused(serve, picture, tmp_path):
    small = Client(serve(megabytes=1), verbose=False)
    (tmp_path / "large.png").write_bytes(bytes(2_000_000))
    with pytest.raises(Exception, match="413|too large|exceed"):
        imagine(small, str(tmp_path / "large.png"))


def test_a_session_has_so_many_runs_a_minute_and_others_have_theirs(serve, picture):
    url = serve(runs_per_minute=2)
    busy = Client(url, verbose=False)
    for seed in range(2):
        imagine(busy, picture, seed=seed)
    with pytest.raises(AppError, match="please wait"):
        imagine(busy, picture, seed=3)
    imagine(Client(url, verbose=False), picture, seed=3)


def test_ten_users_at_once_are_all_answered_one_after_another(url, picture, studio):
    running, most, lock = 0, 0, threading.Lock()

    def enter(*_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def leave(*_):
        nonlocal running
        with lock:
            running -= 1

    hooks = [
        studio.pipe.world_model.register_forward_pre_hook(enter),
        studio.pipe.world_model.register_forward_hook(leave),
    ]
    users = [Client(url, verbose=False) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: imagine(users[i], picture, seed=100 + i)[0], range(10)))
    for hook in hooks:
        hook.remove()
    assert most == 1
    for seed, answer in enumerate(answers, start=100):
        expected = studio.pipe(
            Image.open(picture), ACTION, num_candidates=2, generator=torch.Generator().manual_seed(seed)
        )
        assert answer["scores"] == pytest.approx(expected.scores, abs=1e-4)


def test_the_same_request_is_answered_from_the_cache(client, picture, studio):
    first = imagine(client, picture, seed=55)[0]
    hook = studio.pipe.world_model.register_forward_hook(lambda *_: pytest.fail("the model runs again"))
    assert imagine(client, picture, seed=55)[0] == first
    hook.remove()


@pytest.mark.parametrize("api_name", ["/imagine", "/verify", "/roll_out"])
def test_no_file_that_a_visitor_may_be_loading_is_written_again(url, picture, api_name):
    image = handle_file(picture)
    arguments = {
        "/imagine": (image, ACTION, 2, 56),
        "/verify": (image, ACTION, [{"image": image, "caption": None}]),
        "/roll_out": (image, ACTION, 2, 56),
    }
    client = Client(url, verbose=False, download_files=False)
    files = files_of(client.predict(*arguments[api_name], api_name=api_name))
    contents = [file.read_bytes() for file in files]
    try:
        for file in files:
            file.write_bytes(b"marked")
        assert files_of(client.predict(*arguments[api_name], api_name=api_name)) == files
        assert {file.read_bytes() for file in files} == {b"marked"}
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)


def test_cancelling_stops_the_sampler_and_nobody_else(url, client, picture, studio):
    started, release, steps = threading.Event(), threading.Event(), []

    def slow(*_):
        steps.append(1)
        started.set()
        release.wait(0.2)

    hook = studio.pipe.world_model.register_forward_hook(slow)
    job = client.submit(handle_file(picture), ACTION, 16, 77, api_name="/imagine")
    other = Client(url, verbose=False).submit(handle_file(picture), ACTION, 1, 78, api_name="/imagine")
    assert started.wait(30)
    job.cancel()
    answer = other.result(60)[0]
    release.set()
    hook.remove()
    assert len(answer["scores"]) == 1
    assert len(steps) < 2 * studio.pipe.family.num_image_tokens + 16  # 16 candidates would take two rounds alone
