"""Draws the pictures of docs/comfyui.md and of the template browser: each workflow after a run of the playroom checkpoint.

python -m tests.comfy.screenshots
"""

import tempfile
from io import BytesIO
from pathlib import Path

from diffusers.utils import make_image_grid
from PIL import Image

from tests.comfy.browser import Interface, interface
from tests.comfy.fetch_server import NEWEST, ROOT, fetch
from tests.comfy.server import Server
from tests.comfy.workflows import EXAMPLES, as_prompt, nodes_of

PICTURES = ROOT / "docs" / "images" / "comfyui"
THUMBNAIL = 640  # longest side of a template's picture, in pixels


def photograph(tab: Interface, server: Server, workflow: Path) -> None:
    """A workflow after its run, and beside its file what its picture node shows."""
    prompt = as_prompt(workflow, server.get("/object_info"))
    (pictures,) = nodes_of(prompt, "PreviewImage")
    tab.load(workflow.read_text(encoding="utf-8"), workflow.stem)
    tab.run()
    tab.wait_for_outputs([pictures, *nodes_of(prompt, "PreviewAny")])
    tab.fit()
    tab.screenshot_graph(PICTURES / f"{workflow.stem}.jpg")
    shown = [Image.open(BytesIO(server.download("/view", **image))) for image in tab.output_of(pictures)["images"]]
    thumbnail = make_image_grid(shown, rows=1, cols=len(shown)).convert("RGB")
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    thumbnail.save(workflow.with_suffix(".jpg"), quality=90)


def photograph_help(tab: Interface) -> None:
    tab.load(EXAMPLES[0].read_text(encoding="utf-8"), EXAMPLES[0].stem)
    tab.open_help("BWMImagineNextImage")
    tab.page.get_by_text("Stop takes effect within one token").wait_for()
    tab.screenshot(PICTURES / "help.jpg")


def main() -> None:
    fetch()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(NEWEST, Path(folder))
        try:
            with interface(server) as tab:
                photograph_help(tab)
            with interface(server) as tab:
                for workflow in EXAMPLES:
                    photograph(tab, server, workflow)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
