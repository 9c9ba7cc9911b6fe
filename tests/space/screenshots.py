"""Draws the pictures of docs/space.md: every tab over the playroom checkpoint, in a real browser.

python -m tests.space.screenshots
"""

from pathlib import Path

from bwm_pipelines.space import serve
from tests.space.browser import Visitor, visitor

PICTURES = Path(__file__).parent.parent.parent / "docs" / "images"
TABS = {
    "imagine": ("Imagine", "Imagine", "the best image beats"),
    "verify": ("Verify your own edits", "Verify", "the best image beats"),
    "name": ("Name the action", "Name the action", "Named."),
    "roll_out": ("Roll out", "Roll out", "Each step starts from the best image of the one before."),
}


def photograph(browser: Visitor, name: str) -> None:
    """The first example of a tab after its run."""
    tab, button, done = TABS[name]
    browser.open(tab)
    browser.pick_example(0)
    browser.page.wait_for_timeout(1000)
    browser.press(button)
    browser.wait_for(done)
    browser.screenshot(PICTURES / f"space_{name}.png")


def main() -> None:
    page = serve(block=False)
    with visitor(page.local_url) as browser:
        for name in TABS:
            photograph(browser, name)
    page.close()


if __name__ == "__main__":
    main()
