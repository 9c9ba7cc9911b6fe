"""The example workflows in the real interface, in a real browser. Screenshots go to `out/comfyui`."""

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[comfy]'")

from tests.comfy.browser import BROWSER, interface
from tests.comfy.fetch_server import NEWEST, ROOT
from tests.comfy.workflows import EXAMPLES, as_prompt, nodes_of

SCREENSHOTS = ROOT / "out" / "comfyui"
RUN = "4_name_the_action"  # the quickest

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium: apt-get install chromium"),
    # The interface is a package of its own, the same one for every version of the server here.
    pytest.mark.parametrize("server", [NEWEST], indirect=True),
]


@pytest.fixture
def tab(server):
    with interface(server) as tab:
        yield tab


def test_examples_load_without_a_missing_node_and_mean_what_the_tests_post(server, tab):
    object_info = server.get("/object_info")
    for workflow in EXAMPLES:
        tab.load(workflow.read_text(encoding="utf-8"), workflow.stem)
        tab.screenshot(SCREENSHOTS / f"{workflow.stem}.png")
        assert tab.missing_nodes() == []
        prompt = {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in tab.prompt().items()}
        assert prompt == as_prompt(workflow, object_info)


def test_run_shows_pictures_and_words(server, tab):
    (workflow,) = (path for path in EXAMPLES if path.stem == RUN)
    prompt = as_prompt(workflow, server.get("/object_info"))
    tab.load(workflow.read_text(encoding="utf-8"), workflow.stem)
    tab.run()
    shown = nodes_of(prompt, "PreviewImage") + nodes_of(prompt, "PreviewAny")
    tab.wait_for_outputs(shown)
    tab.screenshot(SCREENSHOTS / f"{workflow.stem}_run.png")
    assert all(tab.pictures_of(node) > 0 for node in nodes_of(prompt, "PreviewImage"))
    assert all(tab.text_of(node).strip() for node in nodes_of(prompt, "PreviewAny"))


def test_help_page_opens_beside_the_node(tab):
    tab.load(EXAMPLES[0].read_text(encoding="utf-8"), EXAMPLES[0].stem)
    tab.open_help("BWMImagineNextImage")
    tab.page.get_by_text("Stop takes effect within one token").wait_for()
    tab.screenshot(SCREENSHOTS / "help.png")
