"""The Live tab in a real browser: answers a second, how far they lag behind the camera, and where the time goes.

    python benchmarks/live_page.py
    python benchmarks/live_page.py --checkpoints cnn-cp-trl vgg16-cp-trl --faces 1 3 10 --sizes 640x480 1280x720

Starts the app, and headless Chromium with a fake camera that plays moving faces at 30 frames a second. Lag is from the
frame's capture, by the browser's clock, to the moment at which its boxes are painted. The stages are means: ``encode``
is the browser's JPEG, ``wait`` for other visitors, ``way`` what is left of the round trip (HTTP, JSON, base64). The
last columns are shares of one core's time, of the server and of the browser with its fake camera.
"""

import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import skimage.data
import tyro
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
FACE = skimage.data.astronaut()[20:230, 120:330]  # public domain; one face and little around it
STAGES = ("encode", "way", "wait", "decode", "detect", "track", "recognise", "smooth")
#: Frames of the film, in which each face goes once round.
FRAMES = 120


@dataclass
class Options:
    checkpoints: tuple[str, ...] = ("cnn-cp-trl",)
    detectors: tuple[str, ...] = ("retinaface",)
    """retinaface or, where it was downloaded, yunet"""
    faces: tuple[int, ...] = (1,)
    sizes: tuple[str, ...] = ("640x480",)
    """640x480 or 1280x720"""
    seconds: float = 20
    """for each row, after five that do not count"""
    threads: int = 0
    """of the server; 0 leaves the choice to it"""


def main(options: Options) -> None:
    columns = ["checkpoint", "detector", "faces", "size", "answers/s", "lag", "p95", *STAGES, "server", "browser"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    with tempfile.TemporaryDirectory() as folder, served(options) as (server, url), sync_playwright() as playing:
        for size in options.sizes:
            for faces in options.faces:
                film = write_film(Path(folder) / "film.mjpeg", faces, size)
                arguments = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream"]
                arguments += [f"--use-file-for-fake-video-capture={film}"]
                browser = playing.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
                for checkpoint in options.checkpoints:
                    for detector in options.detectors:
                        cells = measure(browser, url, server, options.seconds, size, checkpoint, detector)
                        print(f"| {checkpoint} | {detector} | {faces} | {size} | {' | '.join(cells)} |", flush=True)
                browser.close()


def measure(
    browser: Browser, url: str, server: psutil.Process, seconds: float, size: str, checkpoint: str, detector: str
) -> list[str]:
    page = browser.new_context(permissions=["camera"]).new_page()
    page.goto(url)
    page.get_by_label("Picture").select_option(size)
    page.get_by_label("Model").select_option(checkpoint)
    page.get_by_label("Face detector").select_option(detector)
    page.get_by_role("button", name="Start the camera").click()
    page.locator(".fer-who", has_text="Person").wait_for()
    page.wait_for_timeout(5000)
    page.evaluate("() => document.addEventListener('fer-answer', (e) => (window.kept ??= []).push(e.detail.ms))")
    chromium = [process for process in psutil.Process().children(recursive=True) if "chrom" in process.name()]
    before = [processor_time(processes) for processes in ([server], chromium)]
    page.wait_for_timeout(1000 * seconds)
    used = [processor_time(p) - start for p, start in zip(([server], chromium), before, strict=True)]
    kept = answers(page)
    page.context.close()
    lags = np.percentile([ms["lag"] for ms in kept], [50, 95])
    means = [np.mean([ms[stage] for ms in kept]) for stage in STAGES]
    return [
        f"{len(kept) / seconds:.1f}",
        *(f"{lag:.0f} ms" for lag in lags),
        *(f"{mean:.1f}" for mean in means),
        *(f"{time / seconds:.0%}" for time in used),
    ]


def answers(page: Page) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = page.evaluate("window.kept")
    for ms in kept:
        ms["way"] = ms["trip"] - sum(ms[stage] for stage in STAGES if stage in ms and stage != "encode")
    return kept


def write_film(file: Path, faces: int, size: str) -> Path:
    width, height = map(int, size.split("x"))
    columns = math.ceil(math.sqrt(faces * width / height))
    rows = math.ceil(faces / columns)
    cell_width, cell_height = width // columns, height // rows
    side = round(0.8 * min(cell_width, cell_height))
    face = cv2.resize(FACE, (side, side), interpolation=cv2.INTER_AREA)
    with file.open("wb") as stream:
        for number in range(FRAMES):
            frame = np.full((height, width, 3), 110, np.uint8)
            turn = 2 * math.pi * number / FRAMES
            for place in range(faces):
                row, column = divmod(place, columns)
                left = column * cell_width + round((cell_width - side) * (0.5 + 0.5 * math.cos(turn + place)))
                top = row * cell_height + round((cell_height - side) * (0.5 + 0.5 * math.sin(turn + place)))
                frame[top : top + side, left : left + side] = face
            stream.write(encoded(frame))
    return file


def encoded(frame: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


@contextmanager
def served(options: Options) -> Iterator[tuple[psutil.Process, str]]:
    """The app and its address."""
    command = [sys.executable, ROOT / "app.py", "--checkpoint", options.checkpoints[0], "--port", "0"]
    command += ["--device", "cpu", "--threads", str(options.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as app:
        try:
            ready = app.stdout.readline() if app.stdout else ""
            yield psutil.Process(app.pid), re.findall(r"http://\S+", ready)[0]
        finally:
            app.send_signal(signal.SIGTERM)


def processor_time(processes: Iterable[psutil.Process]) -> float:
    """Seconds that they have used, one core's."""
    return sum(time.user + time.system for time in (process.cpu_times() for process in processes))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
