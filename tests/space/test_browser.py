"""The page in a real browser: every tab, Stop, and a damaged upload. Screenshots go to `out/space`."""

import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[comfy]'")

from tests.space.browser import BROWSER, visitor

SCREENSHOTS = Path(__file__).parent.parent.parent / "out" / "space"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(serve):
    with visitor(serve(runs_per_minute=100)) as browser:
        yield browser


def test_imagine_ranks_compares_and_explains_without_the_web(browser, picture):
    browser.open("Imagine")
    browser.upload(0, picture)
    browser.type_action("turn the lamp on")
    browser.press("Imagine")
    browser.wait_for("What the change adds")
    browser.wait_for("nothing changed")
    captions = browser.captions()
    assert len(captions) == 9 and sum(caption.startswith("nothing changed") for caption in captions) == 1
    browser.wait_for_pictures(9, ".ranked")
    browser.panel.locator(".ranked .thumbnail-item img[alt^='2 ·']").click()
    browser.wait_for("Shown below: 2 ·")
    browser.screenshot(SCREENSHOTS / "imagine.png")
    assert browser.elsewhere == []


def test_stop_stops_the_sampler(browser, picture, studio):
    steps = []

    def slow(*_):
        steps.append(1)
        time.sleep(0.5)

    last_norm = studio.pipe.world_model.model.norm  # steps call it; the model's own forward only reads the prompt
    hook = last_norm.register_forward_hook(slow)
    browser.open("Imagine")
    browser.upload(0, picture)
    browser.type_action("close the drawer")
    browser.panel.get_by_label("number input for Candidates").fill("16")
    browser.press("Imagine")
    browser.wait_for("Imagining")
    browser.press("Stop")
    browser.wait_for("Stopped.")
    browser.page.wait_for_timeout(1500)
    done = len(steps)
    browser.page.wait_for_timeout(1500)
    hook.remove()
    assert done == len(steps) < studio.pipe.family.num_image_tokens
    assert browser.captions() == [] or browser.captions()[0].startswith("imagining")


def test_verify_ranks_uploads(browser, picture, tmp_path):
    edits = []
    for name in ("red", "blue"):
        edits.append(str(tmp_path / f"{name}.png"))
        Image.new("RGB", (30, 20), name).save(edits[-1])
    browser.open("Verify your own edits")
    browser.upload(0, picture)
    browser.type_action("open the door")
    browser.upload(1, *edits)
    browser.press("Verify")
    browser.wait_for("What the change adds")
    browser.screenshot(SCREENSHOTS / "verify.png")
    assert len(browser.captions()) == 3


def test_name_says_words(browser, picture, studio):
    browser.open("Name the action")
    browser.upload(0, picture)
    browser.upload(1, picture)
    browser.press("Name the action")
    browser.wait_for("Named.")
    browser.screenshot(SCREENSHOTS / "name.png")
    image = Image.open(picture)
    expected = studio.verifier.name_action(image, image, max_new_tokens=32).action
    shown = browser.panel.get_by_label("What happened").input_value()
    assert shown and "".join(shown.split()) == "".join(expected.split())


def test_roll_out_shows_a_film(browser, picture):
    browser.open("Roll out")
    browser.upload(0, picture)
    browser.panel.get_by_label("Actions, one a line").fill("open the door\nturn the lamp on")
    browser.press("Roll out")
    browser.wait_for("Each step starts from the best image of the one before.")
    browser.wait_for_pictures(3)
    browser.screenshot(SCREENSHOTS / "roll_out.png")


def test_a_damaged_upload_gets_a_message(browser, corrupt):
    browser.open("Imagine")
    browser.upload(0, corrupt)
    browser.type_action("open the door")
    browser.press("Imagine")
    toast = browser.page.get_by_test_id("toast-body")
    toast.wait_for()
    browser.screenshot(SCREENSHOTS / "damaged.png")
    assert "“broken.png” cannot be read (damaged or no image); give a PNG or JPEG file." in toast.inner_text()
    assert "Traceback" not in browser.page.content()
