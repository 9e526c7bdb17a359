"""The page at ``/`` in a real browser, on a real server of koala-tiny."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from koala_runtime import read_recipe
from koala_tiny.scenes import words
from tests.support import bundles
from tests.support.judge import judge
from tests.support.koala_tiny import requests
from tests.support.server import serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
SCREENSHOTS = "KOALA_SCREENSHOTS"  # a folder that they are written to
KEY = "a key"
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
(WANTED,) = requests(2, 1)
LONG = "150"
DROP = """async ([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


class Watched:
    """A page, and everything that it complained of; screenshots go where the environment says."""

    def __init__(self, page: Any) -> None:
        self.page, self.complaints = page, list[str]()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))

    def settle(self) -> None:
        """Wait until nothing is drawn any more."""
        self.page.locator("#progress").wait_for(state="hidden")

    def draw(self, **settings: str) -> bytes:
        """Fill fields, draw, and return the file that is offered."""
        for name, value in settings.items():
            self.page.locator(f"#{name}").fill(value)
        self.page.keyboard.press("Control+Enter")
        self.page.locator("#cancel").wait_for()
        self.settle()
        return self.file()

    def file(self) -> bytes:
        with self.page.expect_download() as download:
            self.page.locator("#download").click()
        return Path(download.value.path()).read_bytes()

    def drop(self, name: str, kind: str, file: bytes) -> str:
        self.page.evaluate(DROP, [name, kind, [*file]])
        self.page.locator("#notice p").wait_for()
        return str(self.page.locator("#notice").inner_text())

    def value(self, name: str) -> str:
        return str(self.page.locator(f"#{name}").input_value())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "koala-tiny").symlink_to(bundles.bundle("koala-tiny", encoder=True, batch=2), target_is_directory=True)
    options = ("--queue", "4")
    with serving(folder / "koala-tiny", log=folder / "log", options=options, env={"KOALA_API_KEY": KEY}) as served:
        yield served.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def watched(browser: Any, url: str) -> Iterator[Watched]:
    """A page to which the key was told; the tests of this file go on where the one before ended."""
    context = browser.new_context(viewport=SIZES["desktop"], accept_downloads=True)
    watched = Watched(context.new_page())
    watched.page.goto(url)
    watched.page.locator("#key").fill("another")
    watched.page.keyboard.press("Enter")
    watched.page.get_by_text("The server did not take that key").wait_for()
    watched.page.locator("#key").fill(KEY)
    watched.page.keyboard.press("Enter")
    watched.page.locator("#draw:enabled").wait_for()
    watched.complaints.clear()  # the browser reports every 401
    yield watched
    context.close()


def pixels(file: bytes) -> Any:
    return np.asarray(Image.open(BytesIO(file)).convert("RGB"))


def test_a_picture_by_keyboard_alone_with_previews(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.evaluate(
        """() => { window.previews = new Set(); new MutationObserver(() => {
            if (picture.src.startsWith("data:")) previews.add(picture.src);
        }).observe(picture, { attributes: true }) }"""
    )
    page.keyboard.type(words(WANTED))
    file = watched.draw(seed="0")
    assert page.evaluate("previews.size") == 6
    assert all(judge(pixels(file), WANTED).values())
    path = tmp_path / "drawn.png"
    path.write_bytes(file)
    recipe = read_recipe(path)
    assert recipe.prompt == words(WANTED) == page.locator("#recipe dd").first.inner_text()
    assert recipe.parameters == page.locator("#parameters").text_content()
    page.locator("#keep-seed").focus()
    page.keyboard.press("Enter")
    assert watched.value("seed") == str(recipe.seed)
    assert watched.draw() == file
    page.locator("#pictures button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#pictures [aria-current]").count() == 1
    assert watched.complaints == []


def test_a_long_one_is_cancelled(watched: Watched) -> None:
    page, before = watched.page, watched.page.locator("#pictures button").count()
    page.locator("#num_inference_steps").fill(LONG)
    page.keyboard.press("Control+Enter")
    page.get_by_text("of 150").wait_for()
    page.keyboard.press("Escape")
    watched.settle()
    assert page.locator("#pictures button").count() == before and page.locator("#live").text_content() == "Cancelled."
    assert watched.complaints == []


def test_an_error_is_shown_beside_its_field_in_the_servers_words(watched: Watched) -> None:
    page = watched.page
    page.locator("#num_inference_steps").fill("151")
    page.locator("#draw").click()
    error = page.locator("[data-field=num_inference_steps] [role=alert]")
    error.wait_for()
    assert error.inner_text().startswith("num_inference_steps: expected 150 at most, found 151")
    assert page.evaluate("document.activeElement.id") == "num_inference_steps"
    assert all("400" in each for each in watched.complaints)  # the browser's own
    watched.complaints.clear()
    watched.draw(num_inference_steps="4", n="2")
    assert error.count() == 0 and "2 pictures in" in page.locator("#took").inner_text()
    assert watched.complaints == []


def test_a_link_and_a_dropped_picture_draw_the_same_bytes_again(watched: Watched, browser: Any, url: str) -> None:
    page, seed = watched.page, str(-(2**53) - 1)  # JavaScript would round it
    page.locator("#scheduler").select_option("dpmpp_2m_karras")
    file = watched.draw(prompt="a red ring, a + b & c = ü #1", guidance_scale="2.5", seed=seed, n="1")
    link = page.locator("#link").evaluate("link => link.href")
    other = Watched(page.context.new_page())
    other.page.add_init_script(f"sessionStorage.setItem('koala-key', '{KEY}')")
    other.page.goto(link)
    other.page.locator("#details").wait_for()
    other.settle()
    assert other.file() == file
    assert other.complaints == []
    other.page.close()

    other = Watched(page.context.new_page())
    other.page.add_init_script(f"sessionStorage.setItem('koala-key', '{KEY}')")
    other.page.goto(url)
    other.page.locator("#draw:enabled").wait_for()
    said = other.drop("ring.png", "image/png", file)
    assert said.startswith("The settings of ring.png are in the form.") and "not be the same" not in said
    assert other.value("seed") == seed and other.value("scheduler") == "dpmpp_2m_karras"
    assert other.draw() == file
    for damaged in (file[:100], file[:8], b"", file[:40] + b"\xff" * 200):
        other.drop("damaged.png", "image/png", damaged)
        other.page.get_by_text("Pictures start from damaged.png.").wait_for()
    assert other.complaints == [] or all("blob:" in each for each in other.complaints)
    other.page.close()


def test_a_picture_to_start_from(watched: Watched) -> None:
    page = watched.page
    stream = BytesIO()
    Image.new("RGB", (64, 64), (18, 18, 18)).save(stream, "JPEG")
    assert watched.drop("black.jpg", "image/jpeg", stream.getvalue()).startswith("Pictures start from black.jpg.")
    page.locator("#strength").fill("0.05")
    file = watched.draw(prompt="a blue square", num_inference_steps="20")
    assert pixels(file).mean() < 60
    assert page.locator("#link-help").is_visible() and not page.locator("#link").is_visible()
    page.locator("#drop-source").click()
    assert watched.complaints == []


def test_no_room_is_waited_for_and_a_lost_connection_is_made_again(watched: Watched) -> None:
    page, answers = watched.page, [0]

    def full(route: Any) -> None:
        answers[0] += 1
        if answers[0] > 1:
            route.continue_()
            return
        error = {"message": "the queue: expected room among 4 pictures, found 4 waiting", "param": None}
        route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": error})

    def lost(route: Any) -> None:
        page.unroute("**/events")
        route.abort()

    page.route("**/v1/jobs", full)
    page.route("**/events", lost)
    page.locator("#num_inference_steps").fill("4")
    page.keyboard.press("Control+Enter")
    page.get_by_text("This page tries again in 1 s").wait_for()
    page.get_by_text("The connection is lost. It is made again").wait_for()
    watched.settle()
    assert answers[0] == 2 and page.locator("#error").is_hidden()
    page.unroute("**/v1/jobs")
    watched.complaints.clear()  # the browser reports both


@pytest.mark.skipif(SCREENSHOTS not in os.environ, reason=f"${SCREENSHOTS} names no folder")
def test_screenshots(watched: Watched, browser: Any, url: str) -> None:
    folder = Path(os.environ[SCREENSHOTS])
    folder.mkdir(parents=True, exist_ok=True)
    for size, viewport in SIZES.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=viewport, color_scheme=scheme)
            other = Watched(context.new_page())
            other.page.add_init_script(f"sessionStorage.setItem('koala-key', '{KEY}')")
            other.page.goto(url)
            other.page.locator("#draw:enabled").wait_for()
            other.page.screenshot(path=folder / f"{size}-{scheme}-empty.png")
            for seed, prompt in enumerate(("a large green star on a black background", words(WANTED))):
                other.page.locator("#prompt").fill(prompt)
                other.page.locator("#seed").evaluate(f"seed => seed.value = '{seed}'")
                other.page.keyboard.press("Control+Enter")
                other.page.locator("#cancel").wait_for()
                other.settle()
            assert other.page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
            other.page.screenshot(path=folder / f"{size}-{scheme}.png")
            other.page.screenshot(path=folder / f"{size}-{scheme}-full.png", full_page=True)
            context.close()
