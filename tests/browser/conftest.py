"""The page as a visitor has it: ``python app.py`` in a process of its own, and Debian's Chromium with a fake camera.

Screenshots are left in runs/screenshots/.
"""

import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from patience import PATIENCE

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "runs" / "screenshots"
PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face
FACE = (224, 120)  # its middle
#: The camera's film: frames, at 30 a second, in which the face goes once round, and pixels by which it moves each way.
FRAMES, REACH = 240, (80, 40)

Visit = Callable[..., Any]


def film(number: int) -> NDArray[np.uint8]:
    """A frame of what the camera sees: the photograph moved, scaled, tilted and lit. (480, 640, 3), RGB."""
    turn = 2 * math.pi * number / FRAMES
    matrix = cv2.getRotationMatrix2D(FACE, 10 * math.sin(turn), 1.3 + 0.15 * math.sin(2 * turn))
    x, y = 320 + REACH[0] * math.cos(turn), 230 + REACH[1] * math.sin(2 * turn)
    matrix[:, 2] += np.array([x, y]) - FACE
    frame = cv2.warpAffine(PHOTO, matrix, (640, 480), borderMode=cv2.BORDER_REPLICATE)
    return cv2.convertScaleAbs(frame, alpha=0.9 + 0.2 * math.sin(turn)).astype(np.uint8)


@pytest.fixture(scope="session")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The film as Chromium's fake camera plays it, again and again."""
    file = tmp_path_factory.mktemp("camera") / "film.mjpeg"
    with file.open("wb") as stream:
        for number in range(FRAMES):
            frame = cv2.cvtColor(film(number), cv2.COLOR_RGB2BGR)
            stream.write(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return file


@contextmanager
def _served(*options: str) -> Iterator[str]:
    command = [sys.executable, ROOT / "app.py", "--checkpoint", "cnn-cp-trl", "--device", "cpu", "--port", "0"]

    def hear_interrupts() -> None:  # a job in the background, as CI may be, inherits that they are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts, cwd=ROOT
    ) as app:
        try:
            assert app.stdout is not None
            found = re.search(r"https?://127\.0\.0\.1:\d+/", app.stdout.readline())
            assert found, "app.py did not start"
            yield found[0]
            app.send_signal(signal.SIGINT)
            assert app.wait(PATIENCE) == 0
        finally:
            app.kill()


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    """Runs ``app.py`` with further options; gives its address. It must end well on Ctrl+C."""
    return _served


@pytest.fixture(scope="session")
def url(serve: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Any]]:
    """What starts Chromium with further arguments; its event loop must be gone before other tests want one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    plain = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    wait = 1000 * PATIENCE
    playwright.expect.set_options(timeout=wait)
    with playwright.sync_playwright() as playing:
        yield lambda *more: playing.chromium.launch(executable_path=chromium, args=[*plain, *more], timeout=wait)


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Any], camera: Path) -> Iterator[Any]:
    """Chromium with the film for a camera; a context must be granted it. ``face.test`` is this machine too."""
    browser = launch(
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
        "--host-resolver-rules=MAP face.test 127.0.0.1",
    )
    yield browser
    browser.close()


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    """Opens the page; afterwards it must have reported no error and asked no other host."""
    contexts, wrong = [], []

    def opened(*, scheme: str = "light", width: int = 1280, camera: bool = True, at: str = url) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        if camera:
            context.grant_permissions(["camera"])
        page = patient_page(context)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(ours(at)) else None)
        page.goto(at)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def patient_page(context: Any) -> Any:
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    return page


def tries(page: Any) -> Iterator[None]:
    """Again and again while the page goes on, until whoever iterates is content; fails if that never happens."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        page.wait_for_timeout(100)
    pytest.fail("it has not happened")


def ours(url: str) -> tuple[str, ...]:
    return url, "data:", "blob:"


def shoot(page: Any, name: str) -> None:
    """Keep a screenshot of a page under a name, its colour scheme and its size."""
    scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    size = "-phone" if page.viewport_size["width"] < 600 else ""
    page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}{size}.png", full_page=True)
