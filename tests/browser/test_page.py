"""The page in a real browser with a fake camera: what a user sees, and what their browser asks for.

Screenshots are left in runs/screenshots/.
"""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from fer import create_model
from fer.checkpoint import save_checkpoint
from fer.config import Config, ModelConfig, TrainConfig

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "runs" / "screenshots"
PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face
LANDSCAPE = skimage.data.rocket()
ANSWER = "The image with a box and a label around each face"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, pictures, and what the camera sees."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    config = Config("tiny", ModelConfig(trunk="cnn", rank=4), TrainConfig())
    save_checkpoint(folder / "tiny", create_model(config.model), config, temperature=0.002)
    Image.fromarray(np.hstack([PHOTO, PHOTO[:, ::-1]])).save(folder / "pair.jpg")
    Image.fromarray(LANDSCAPE).save(folder / "rocket.jpg")
    (folder / "a <b>broken file.jpg").write_text("no pixels")
    with (folder / "camera.mjpeg").open("wb") as stream:
        for shift in (*range(0, 128, 8), *range(128, 0, -8)):
            frame = np.full((480, 640, 3), 90, np.uint8)
            frame[:, shift : shift + 512] = PHOTO[:480]
            stream.write(cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes())
    return folder


@pytest.fixture(scope="module")
def url(files: Path) -> Iterator[str]:
    """Where app.py serves; it must end well on Ctrl+C."""
    command = [sys.executable, ROOT / "app.py", "--checkpoint", files / "tiny", "--port", "0", "--device", "cpu"]

    def hear_interrupts() -> None:  # a job in the background, as CI may be, inherits that they are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts) as app:
        try:
            assert app.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", app.stdout.readline())
            if found:
                yield found[0]
            app.send_signal(signal.SIGINT)
            assert app.wait(20) == 0
        finally:
            app.kill()


@pytest.fixture(scope="module")
def browser(files: Path) -> Iterator["playwright.Browser"]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    arguments += [f"--use-file-for-fake-video-capture={files / 'camera.mjpeg'}"]
    with playwright.sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: "playwright.Browser", url: str) -> Iterator["playwright.Page"]:
    """The page, opened; afterwards it must have reported no error and asked no other host."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900})
    context.grant_permissions(["camera"])
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else wrong.append(asked.url))
    page.goto(url)
    yield page
    context.close()
    assert not wrong


def shoot(page: "playwright.Page", name: str) -> None:
    scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png", full_page=True)


def test_picture(page: "playwright.Page", files: Path) -> None:
    choose = page.locator("input[type=file]").first
    choose.set_input_files(files / "pair.jpg")
    playwright.expect(page.locator(".fer-face")).to_have_count(2)
    shares = page.locator(".fer-face").first.locator("td:last-child").all_text_contents()
    values = [float(share.rstrip("%")) for share in shares]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(100, abs=0.5)
    playwright.expect(page.get_by_alt_text(ANSWER)).to_have_js_property("naturalWidth", 1024)
    shoot(page, "picture")

    page.get_by_label("Remove Image").click()
    playwright.expect(page.locator(".fer-face")).to_have_count(0)
    choose.set_input_files(files / "rocket.jpg")
    playwright.expect(page.get_by_text("No face found")).to_be_visible()


def test_unreadable_picture(page: "playwright.Page", files: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(files / "a <b>broken file.jpg")
    message = page.get_by_role("alert").filter(has_text="cannot read")
    playwright.expect(message).to_contain_text("it is not an image of a known format")
    assert message.locator("b").count() == 0
    shoot(page, "unreadable")


def test_live(page: "playwright.Page") -> None:
    page.get_by_role("tab", name="Live").click()
    page.get_by_text("Click to Access Webcam").and_(page.locator(":visible")).click()
    page.locator("button:visible", has_text="Record").click()
    playwright.expect(page.locator(".fer-face:visible")).to_have_count(1)
    seen = page.get_by_alt_text(ANSWER).and_(page.locator(":visible"))
    first = seen.get_attribute("src")
    playwright.expect(seen).not_to_have_attribute("src", first)  # the picture moves
    shoot(page, "live")
    page.locator("button:visible", has_text="Stop").click()
