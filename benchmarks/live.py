"""How fast `fer live` answers, how late, and where the time goes.

    python benchmarks/live.py                               # both checkpoints, RetinaFace, 1, 3 and 10 faces; 2 minutes
    python benchmarks/live.py --detector-model yunet.onnx   # and YuNet; 4 minutes
    xvfb-run python benchmarks/live.py --window             # with a real window
    python benchmarks/live.py --faces 1 --checkpoints cnn-cp-trl --max-side 1280 640 --detect-every 1 2  # before, after

A video of faces in motion is played as a camera at 30 frames/s, through the very loop of `fer live`. The lag is from a
frame's capture (its decoding) to when its answer is printed or shown; what falls behind gets fewer frames, not older
ones. "CPU ms" is all of the process's work for an answer, and hardly minds what else the machine does. The time of a
stage is the mean over all frames; "output" draws and shows, or prints. Decoding goes on in the reader's thread beside
the others, encoding only while a recording is made. Run it on a machine that does nothing else.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median, quantiles

import cv2
import numpy as np
import skimage.data
import tyro
from numpy.typing import NDArray

from fer.config import DetectorName, LiveConfig
from fer.live import LivePipeline
from fer.recognizer import EmotionRecognizer
from fer.recording import VideoWriter
from fer.sources import Frame, Live, VideoFile, played
from fer.window import live_with

RATE = 30
STAGES = ("detect", "track", "recognise", "smooth")
COLUMNS = [
    *("model", "detector", "picture", "faces", "max side", "every", "answers/s", "lag ms", "p95 ms", "cores", "CPU ms"),
    *(f"{stage} ms" for stage in (*STAGES, "output")),
]


@dataclass
class Options:
    checkpoints: tuple[str, ...] = ("cnn-cp-trl", "vgg16-cp-trl")
    """models' names or folders"""
    detector_model: Path | None = None
    """YuNet's .onnx file; RetinaFace alone without it"""
    faces: tuple[int, ...] = (1, 3, 10)
    """how many are in the picture"""
    sizes: tuple[str, ...] = ("640x480", "1280x720")
    """of the picture"""
    detect_every: tuple[int, ...] = (LiveConfig.detect_every,)
    """look for faces in every n-th frame"""
    max_side: tuple[int, ...] = (LiveConfig.max_side,)
    """a longer picture is scaled down to this before faces are looked for"""
    threads: int = 0
    """of the detector and of the network; 0 leaves the choice to them"""
    seconds: float = 5
    """of each run"""
    window: bool = False
    """show the pictures"""


@dataclass(frozen=True)
class Measurement:
    """Of a run: answers a second, the lag of each and the mean time of each stage in seconds, and the cores at work."""

    rate: float
    lags: list[float]
    stages: dict[str, float]
    cores: float


class Watched(Live):
    """A camera that is played by a video file, and notes when each frame was done with."""

    def __init__(self, video: Path, pipeline: LivePipeline) -> None:
        self._camera = played(VideoFile(video))
        super().__init__(str(video), self._camera._connect, retries=0)
        self.pipeline = pipeline
        self.lags: list[float] = []
        self.work: list[dict[str, float]] = []

    def __iter__(self) -> Iterator[Frame]:
        for image, at in super().__iter__():
            begin = time.perf_counter()
            yield image, at
            spent = time.perf_counter() - begin
            self.lags.append(time.monotonic() - self.begin - at)
            stages = {stage: self.pipeline.timings[stage] for stage in STAGES}
            self.work.append(stages | {"output": spent - sum(stages.values())})


def film(path: Path, faces: int, size: tuple[int, int], seconds: float) -> Path:
    """A video of so many faces, all of one height, that move and turn a little."""
    width, height = size
    head = np.ascontiguousarray(skimage.data.astronaut()[20:220, 140:310])
    columns = min(faces, 5)
    rows = -(-faces // columns)
    scale = min(0.7 * width / columns / head.shape[1], 0.8 * height / rows / head.shape[0], height / 480)
    with VideoWriter(path) as writer:
        for k in range(round(seconds * RATE)):
            writer.write(scene(head, faces, columns, rows, size, scale, k / RATE), k / RATE)
    return path


def scene(
    head: NDArray[np.uint8], faces: int, columns: int, rows: int, size: tuple[int, int], scale: float, at: float
) -> NDArray[np.uint8]:
    canvas = np.full((size[1], size[0], 3), 96, np.uint8)
    for i in range(faces):
        x = size[0] * (i % columns + 0.5) / columns + 12 * scale * np.sin(1.9 * at + i)
        y = size[1] * (i // columns + 0.5) / rows + 8 * scale * np.sin(2.7 * at + 2 * i)
        middle = head.shape[1] / 2, head.shape[0] / 2
        turn = cv2.getRotationMatrix2D(middle, 8 * np.sin(1.3 * at + i), scale * (1 + 0.1 * np.sin(at + i)))
        turn[:, 2] += x - middle[0], y - middle[1]
        cv2.warpAffine(head, turn, size, dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)
    return canvas


def measure(pipeline: LivePipeline, video: Path, *, window: bool) -> Measurement:
    """Run `fer live` on a video that is played as a camera."""
    pipeline.process(next(iter(VideoFile(video)))[0], -1.0)  # the first answer of a model takes longer
    with Watched(video, pipeline) as source, Path(os.devnull).open("w") as nowhere:
        cpu, begin = time.process_time(), time.perf_counter()
        with contextlib.redirect_stdout(nowhere):
            live_with(pipeline, source, headless=not window)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - begin
    stages = {stage: mean(work[stage] for work in source.work) for stage in source.work[0]}
    return Measurement(len(source.lags) / wall, source.lags, stages, cpu / wall)


def codec(video: Path, folder: Path) -> tuple[float, float]:
    """Seconds to decode a frame, and to encode it as a recording does."""
    begin = time.perf_counter()
    images = [image for image, _ in VideoFile(video)]
    decode = time.perf_counter() - begin
    begin = time.perf_counter()
    with VideoWriter(folder / "copy.mp4", crash_safe=True) as writer:
        for k, image in enumerate(images):
            writer.write(image, k / RATE)
    return decode / len(images), (time.perf_counter() - begin) / len(images)


def cells(done: Measurement) -> list[str]:
    lags = [1000 * lag for lag in done.lags]
    stages = [f"{1000 * seconds:.1f}" for seconds in done.stages.values()]
    late = f"{quantiles(lags, n=20)[-1]:.0f}"
    cpu = 1000 * done.cores / done.rate
    return [f"{done.rate:.1f}", f"{median(lags):.0f}", late, f"{done.cores:.2f}", f"{cpu:.1f}", *stages]


def row(cells: Sequence[object]) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as name:
        films = {
            (size, count): film(
                Path(name) / f"{size}-{count}.mp4", count, tuple(map(int, size.split("x"))), options.seconds
            )
            for size in options.sizes
            for count in options.faces
        }
        row(["picture", "faces", "decode ms", "encode ms (recording)"])
        row(["---"] * 4)
        for (size, count), video in films.items():
            decode, encode = codec(video, Path(name))
            row([size, count, f"{1000 * decode:.1f}", f"{1000 * encode:.1f}"])
        print()
        row(COLUMNS)
        row(["---"] * len(COLUMNS))
        names: list[DetectorName] = ["retinaface", "yunet"] if options.detector_model else ["retinaface"]
        for checkpoint, detector, side in product(options.checkpoints, names, options.max_side):
            recognizer = EmotionRecognizer.load(
                checkpoint,
                detector=detector,
                detector_model=options.detector_model if detector == "yunet" else None,
                max_side=side,
                threads=options.threads,
            )
            for ((size, count), video), every in product(films.items(), options.detect_every):
                done = measure(LivePipeline(recognizer, detect_every=every), video, window=options.window)
                row([checkpoint, detector, size, count, side, every, *cells(done)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
