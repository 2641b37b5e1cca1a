"""How fast ``fer video`` is, and where its time goes: a 640 x 480 film of 25 frames a second with several faces.

    python benchmarks/video.py --checkpoint cnn-cp-trl
    python benchmarks/video.py --checkpoint vgg16-cp-trl --faces 1

The stages (but for tracking and smoothing, which take next to nothing) are timed one after the other, in CPU time; the
whole runs as the command does, where drawing and encoding overlap with the rest, and its ratio is by the clock: it
needs a machine that does nothing else.
"""

import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import tyro
from numpy.typing import NDArray

from fer.drawing import draw_predictions
from fer.recognizer import EmotionRecognizer
from fer.recording import VideoWriter
from fer.sources import VideoFile
from fer.video import annotate

WIDTH, HEIGHT, RATE = 640, 480, 25


@dataclass
class Options:
    checkpoint: str = "cnn-cp-trl"
    """a model's name or folder"""
    faces: int = 3
    """in each frame"""
    seconds: float = 10
    """length of the film"""
    threads: int = 0
    """CPU threads of the detector and of the network; 0 leaves the choice to them"""


def picture(number: int, faces: int) -> NDArray[np.uint8]:
    """A photographed face, side by side and each on its own way, before a noisy wall."""
    noise = np.random.default_rng(number).normal(0, 4, (HEIGHT, WIDTH, 1))
    frame = np.clip(100 + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)
    photo, room = skimage.data.astronaut()[20:220, 120:320], WIDTH // faces
    for face in range(faces):
        side = int(min(room, HEIGHT) * (0.75 + 0.1 * np.sin(number / 9 + face)))
        left = face * room + int((room - side) * (0.5 + 0.5 * np.sin(number / 15 + face)))
        top = int((HEIGHT - side) * (0.5 + 0.5 * np.sin(number / 20 + 2 * face)))
        frame[top : top + side, left : left + side] = cv2.resize(photo, (side, side), interpolation=cv2.INTER_AREA)
    return frame


def stages(recognizer: EmotionRecognizer, film: Path, out: Path) -> dict[str, float]:
    """CPU milliseconds a frame, of all threads together."""
    spent: dict[str, float] = defaultdict(float)
    count, last = 0, time.process_time()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.process_time()
        spent[stage] += now - last
        last = now

    with VideoFile(film) as source, VideoWriter(out, time_base=source.time_base) as writer:
        for image, moment in source:
            lap("decode")
            faces = recognizer.detector.detect(image)
            lap("detect")
            predictions = recognizer.recognize(image, faces)
            lap("recognise")
            drawn = draw_predictions(image, predictions)
            lap("draw")
            writer.write(drawn, moment)
            lap("encode")
            count += 1
    return {stage: 1000 * seconds / count for stage, seconds in spent.items()}


def main(options: Options) -> None:
    recognizer = EmotionRecognizer.load(options.checkpoint, device="cpu", threads=options.threads)
    recognizer.analyze(picture(0, options.faces))
    with tempfile.TemporaryDirectory() as folder:
        film, out = Path(folder) / "film.mp4", Path(folder) / "out.mp4"
        with VideoWriter(film, rate=Fraction(RATE)) as writer:
            for number in range(round(options.seconds * RATE)):
                writer.write(picture(number, options.faces), number / RATE)
        for stage, spent in stages(recognizer, film, out).items():
            print(f"{stage:10} {spent:6.2f} ms CPU a frame")
        cpu, clock = time.process_time(), time.perf_counter()
        with VideoFile(film) as source:
            seen = [
                len(result.faces) for _, result in annotate(recognizer, source, out=out, csv=Path(folder) / "f.csv")
            ]
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    print(f"{'whole':10} {1000 * cpu / len(seen):6.2f} ms CPU a frame, {np.mean(seen):.2f} faces in it")
    print(f"{len(seen) / RATE / clock:.2f} x real time by the clock; {len(seen) / RATE / cpu:.2f} x on one whole core")


if __name__ == "__main__":
    main(tyro.cli(Options))
