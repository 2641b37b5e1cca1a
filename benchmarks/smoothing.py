"""How many flickers of the label smoothing removes, and what delay it adds.

    python benchmarks/smoothing.py --data data

The sequence: faces of FER2013's PublicTest (without the leaked ones), each held for a second and a half and then faded
into the next within 0.3 s; every frame is shifted, turned, lit, blurred and made noisy by chance, as by a poor camera.
What a face shows is taken to be what all frames of its hold say together, and only changes of that are timed.

A flicker is a label that lasts a single frame between two equal ones. The delay is counted from the middle of the fade
to the new face's label, and told beyond that of the unsmoothed frames; a change whose label never comes is missed.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray

from fer.dataset import load
from fer.faces import Face
from fer.live import Smoother
from fer.recognizer import EmotionRecognizer

HOLD, FADE = 1.5, 0.3


@dataclass
class Options:
    data: Path = Path("data")
    """FER2013"""
    checkpoint: str = "cnn-cp-trl"
    """a model's name or folder"""
    faces: int = 60
    """length of the sequence"""
    rate: float = 30
    """frames a second"""
    smoothing: tuple[float, ...] = (0, 0.1, 0.15, 0.25, 0.5)
    """time constants to try, seconds"""
    lead: tuple[float, ...] = (0, 0.1, 0.2)
    """leads to try"""


class NoDetector:
    """The faces are cut already."""

    name = "none"

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        raise NotImplementedError


def filmed(face: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A frame of a poor camera."""
    turn = cv2.getRotationMatrix2D((23.5, 23.5), rng.normal(0, 2), 1 + rng.normal(0, 0.02))
    turn[:, 2] += rng.normal(0, 0.5, 2)
    seen = cv2.warpAffine(face, turn, (48, 48), borderMode=cv2.BORDER_REPLICATE)
    seen = cv2.GaussianBlur(seen, (0, 0), rng.uniform(0.2, 0.7))
    seen = (seen - 128) * rng.normal(1, 0.05) + 128 + rng.normal(0, 5) + rng.normal(0, 5, seen.shape)
    return np.clip(seen, 0, 255).astype(np.uint8)


def main(options: Options) -> None:
    rng = np.random.default_rng(0)
    recognizer = EmotionRecognizer.load(options.checkpoint, detector=NoDetector())
    val = load(options.data).split("val")
    images = val.images[rng.permutation(np.flatnonzero(~val.leaked))[: options.faces]]
    period = HOLD + FADE
    times = np.arange(0, period * len(images) - FADE, 1 / options.rate)
    frames = []
    for time in times:
        index, rest = divmod(time, period)
        share = max(0.0, (rest - HOLD) / FADE)
        now, then = images[int(index)], images[min(int(index) + 1, len(images) - 1)]
        frames.append(filmed(((1 - share) * now + share * then).astype(np.float32), rng))
    rows = recognizer.classify(frames)
    face, held = (times // period).astype(int), times % period < HOLD
    shows = np.array([rows[held & (face == i)].mean(0).argmax() for i in range(len(images))])
    agreed = (rows.argmax(1) == shows[face])[held].mean()
    print(f"{len(images)} faces, {len(times)} frames; {agreed:.0%} of the frames have their face's label\n")
    print("| smoothing s | lead | flickers | label changes | right label | delay added ms (median, p95) | missed |")
    print("| --- " * 7 + "|")
    changes = [i for i in range(1, len(images)) if shows[i] != shows[i - 1]]
    base: NDArray[np.float64] | None = None
    for smoothing, lead in product(options.smoothing, options.lead):
        smoother = Smoother()
        labels = np.array(
            [smoother.update(r, float(t), smoothing=smoothing, lead=lead)[1] for r, t in zip(rows, times, strict=True)]
        )
        flickers = int(((labels[1:-1] != labels[:-2]) & (labels[:-2] == labels[2:])).sum())
        delays = np.array([delay(times, labels, i * period - FADE / 2, i * period + HOLD, shows[i]) for i in changes])
        base = delays if base is None else base
        added = 1000 * (delays - base)
        right = (labels == shows[face])[held].mean()
        print(
            f"| {smoothing:g} | {lead:g} | {flickers} | {(labels[1:] != labels[:-1]).sum()} "
            f"| {right:.0%} | {np.nanmedian(added):.0f}, {np.nanquantile(added, 0.95):.0f} "
            f"| {np.isnan(delays).sum()} of {len(changes)} |",
            flush=True,
        )


def delay(times: NDArray[np.float64], labels: NDArray[np.int_], begin: float, end: float, wanted: np.intp) -> float:
    """Seconds from the beginning to the first frame with that label, NaN where there is none."""
    hits = times[(times >= begin) & (times < end) & (labels == wanted)]
    return float(hits[0] - begin) if len(hits) else float("nan")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
