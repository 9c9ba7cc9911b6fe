"""The real user interface in a real browser, and what a user does in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.comfy.server import PATIENCE, Server

BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
MILLISECONDS = 1000
MARGIN = 10  # pixels around a workflow in its screenshot


class Interface:
    """ComfyUI in a browser tab."""

    def __init__(self, page: Page):
        self.page = page
        page.set_default_timeout(PATIENCE * MILLISECONDS)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_function(
            "window.app?.extensionManager && window.app?.graph && !document.querySelector('#splash-loader')"
        )
        self.page.get_by_test_id("queue-button").first.wait_for()

    def load(self, workflow: str, name: str) -> None:
        """Open a workflow, given as JSON, as dropping its file onto the canvas does, and show all of it."""
        self.page.evaluate("([text, name]) => app.loadGraphData(JSON.parse(text), true, true, name)", [workflow, name])
        self.fit()

    def fit(self) -> None:
        self.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(2 * MILLISECONDS)

    def missing_nodes(self) -> list[str]:
        """Types in the open workflow that the interface does not know."""
        return self.page.evaluate("app.graph.nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])")

    def prompt(self) -> dict:
        """The prompt that Run would post."""
        return self.page.evaluate("app.graphToPrompt().then(p => p.output)")

    def run(self) -> None:
        """Press Run."""
        self.page.get_by_test_id("queue-button").first.click()

    def wait_for_outputs(self, nodes: list[str]) -> None:
        """Wait until these nodes have something to show."""
        self.page.wait_for_function("ids => ids.every(id => app.nodeOutputs[id])", arg=nodes)
        self.page.wait_for_timeout(5 * MILLISECONDS)

    def output_of(self, node: str) -> dict:
        """What the server said of a node that has run."""
        return self.page.evaluate("id => app.nodeOutputs[id]", node)

    def pictures_of(self, node: str) -> int:
        """How many pictures a node shows."""
        return self.page.evaluate("id => app.graph.getNodeById(id).imgs?.filter(i => i.naturalWidth > 0).length", node)

    def text_of(self, node: str) -> str:
        """The text in a node's first widget that has one."""
        return self.page.evaluate(
            "id => app.graph.getNodeById(id).widgets.map(w => w.value).find(v => typeof v === 'string' && v) ?? ''",
            node,
        )

    def open_help(self, class_type: str) -> None:
        """Select a node and press the info button above it."""
        self.page.evaluate("type => app.canvas.selectNode(app.graph.nodes.find(n => n.type === type))", class_type)
        self.page.get_by_test_id("info-button").first.click()

    def screenshot(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=file)

    def screenshot_graph(self, file: Path) -> None:
        """The open workflow without the interface around it."""
        left, top, right, bottom = self.page.evaluate(
            """() => {
                const {ds, canvas} = app.canvas, {left, top} = canvas.getBoundingClientRect();
                const boxes = app.graph.nodes.map(node => node.boundingRect);
                const x = value => left + (value + ds.offset[0]) * ds.scale;
                const y = value => top + (value + ds.offset[1]) * ds.scale;
                return [
                    x(Math.min(...boxes.map(b => b[0]))), y(Math.min(...boxes.map(b => b[1]))),
                    x(Math.max(...boxes.map(b => b[0] + b[2]))), y(Math.max(...boxes.map(b => b[1] + b[3]))),
                ];
            }"""
        )
        clip = {"x": left - MARGIN, "y": top - MARGIN}
        clip |= {"width": right - left + 2 * MARGIN, "height": bottom - top + 2 * MARGIN}
        self.page.screenshot(path=file, clip=clip)


@contextmanager
def interface(server: Server) -> Iterator[Interface]:
    """A browser tab with the interface of a server, past its greeting."""
    server.post(
        "/settings",
        {
            "Comfy.TutorialCompleted": True,
            "LiteGraph.Canvas.MinFontSizeForLOD": 0,
            "Comfy.Minimap.Visible": False,
            "Comfy.RightSidePanel.IsOpen": False,
        },
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 2000, "height": 1100})
        tab = Interface(page)
        tab.open(server.url)
        yield tab
        browser.close()
