"""The page in a real browser, and what a visitor does on it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
PATIENCE = 240_000  # milliseconds


class Visitor:
    """One browser tab with the page. `elsewhere` are the addresses it fetched that are not the server's."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.elsewhere: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self._note(request.url))

    def _note(self, address: str) -> None:
        if not address.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(address)

    def open(self, tab: str) -> None:
        """Load the page afresh and go to one of its tabs."""
        self.page.goto(self.url)
        self.page.get_by_role("tab", name=tab).click()
        self.panel.get_by_role("button", name="Stop").wait_for()

    @property
    def panel(self) -> Locator:
        """The tab that is shown."""
        return self.page.get_by_role("tabpanel").locator("visible=true").first

    def upload(self, index: int, *files: str) -> None:
        """Give files to the tab's upload of that index and wait until they are there."""
        field = self.panel.locator("input[type=file]").nth(index)
        with self.page.expect_response(lambda response: "/upload" in response.url):
            field.set_input_files(files)
        self.page.wait_for_timeout(500)

    def pick_example(self, index: int) -> None:
        self.panel.locator("table tbody tr").nth(index).click()
        self.panel.locator(".upload img").first.wait_for()

    def type_action(self, action: str) -> None:
        self.panel.get_by_role("combobox").fill(action)
        self.page.keyboard.press("Enter")

    def press(self, button: str) -> None:
        self.panel.get_by_role("button", name=button, exact=True).click()

    def wait_for(self, text: str) -> None:
        self.panel.get_by_text(text).first.wait_for()

    def captions(self) -> list[str]:
        """Under the ranked images, from the best on."""
        return self.panel.locator(".ranked .caption-label").all_inner_texts()

    def wait_for_pictures(self, count: int, where: str = "") -> None:
        """Until that many pictures of the tab are loaded there."""
        script = """([panel, where, count]) => [...panel.querySelectorAll(where + " img")]
            .filter(image => image.complete && image.naturalWidth > 0).length == count"""
        self.page.wait_for_function(script, arg=[self.panel.element_handle(), where, count])

    def screenshot(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(1000)
        self.page.screenshot(path=file, full_page=True)


@contextmanager
def visitor(url: str) -> Iterator[Visitor]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield Visitor(browser.new_page(viewport={"width": 1360, "height": 900}), url)
        browser.close()
