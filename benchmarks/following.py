"""What `--detect-every n` costs and saves: faces followed by optical flow between detections.

    python benchmarks/following.py

Three real heads move, turn and grow on a noisy 640x480 picture at 30 frames/s. In the frames where the detector was not
asked, the followed faces are compared with what it would have found: the distance of the centres in heights of a face,
the total variation between the two answers of the network, and how often the label differs. "still" leaves the boxes
where they were found. Times are CPU time on one thread, medians.
"""

import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
import tyro
from numpy.typing import NDArray

from fer.faces import Face
from fer.recognizer import EmotionRecognizer, FacePrediction
from fer.tracking import follow

RATE, SIZE = 30, (640, 480)
HEAD = np.ascontiguousarray(skimage.data.astronaut()[20:220, 140:310])


@dataclass
class Options:
    checkpoint: str = "cnn-cp-trl"
    """a model's name or folder"""
    every: tuple[int, ...] = (2, 3, 5)
    """values of n"""
    speeds: tuple[float, ...] = (1, 3)
    """of the motion; at 1 the heads move by about one height a second"""
    frames: int = 90
    """of each run"""


def scene(at: float, speed: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    canvas = np.full((SIZE[1], SIZE[0], 3), 96, np.uint8)
    for i in range(3):
        phase = speed * at
        middle = HEAD.shape[1] / 2, HEAD.shape[0] / 2
        turn = cv2.getRotationMatrix2D(middle, 10 * np.sin(1.3 * phase + i), 1 + 0.15 * np.sin(phase + i))
        turn[0, 2] += SIZE[0] * (i + 0.5) / 3 + 60 * np.sin(1.9 * phase + i) - middle[0]
        turn[1, 2] += SIZE[1] / 2 + 60 * np.sin(2.7 * phase + 2 * i) - middle[1]
        cv2.warpAffine(HEAD, turn, SIZE, dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)
    return np.clip(canvas + rng.normal(0, 4, canvas.shape), 0, 255).astype(np.uint8)


def centre(face: Face) -> tuple[float, float]:
    return face.x + face.width / 2, face.y + face.height / 2


def variation(a: FacePrediction, b: FacePrediction) -> float:
    return sum(abs(a.probabilities[e] - b.probabilities[e]) for e in a.probabilities) / 2


def timed(call: Any, *arguments: Any) -> tuple[Any, float]:
    begin = time.process_time()
    answer = call(*arguments)
    return answer, 1000 * (time.process_time() - begin)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    recognizer = EmotionRecognizer.load(options.checkpoint, threads=1)
    print("| speed | n | method | mean distance | p95 | variation | labels that differ | detect ms | follow ms |")
    print("| --- " * 9 + "|")
    for speed in options.speeds:
        rng = np.random.default_rng(0)
        images = [scene(k / RATE, speed, rng) for k in range(options.frames)]
        greys = [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in images]
        found = [timed(recognizer.detector.detect, image) for image in images]
        truth = [recognizer.recognize(image, faces) for image, (faces, _) in zip(images, found, strict=True)]
        for every in options.every:
            for method in ("flow", "still"):
                gaps, spent, answers = [], [], []
                faces: list[Face] = []
                for k, image in enumerate(images):
                    if k % every == 0:
                        faces = found[k][0]
                        continue
                    if method == "flow":
                        followed, cost = timed(follow, faces, greys[k - 1], greys[k])
                        spent.append(cost)
                        faces = found[k][0] if followed is None else followed
                    for answer in recognizer.recognize(image, faces):
                        here = centre(answer.face)
                        nearest = min(truth[k], key=lambda other: math.dist(centre(other.face), here))
                        gaps.append(math.dist(centre(nearest.face), here) / nearest.face.height)
                        answers.append((variation(answer, nearest), answer.emotion != nearest.emotion))
                print(
                    f"| {speed:g} | {every} | {method} | {np.mean(gaps):.3f} | {np.quantile(gaps, 0.95):.3f} "
                    f"| {np.mean([v for v, _ in answers]):.4f} | {sum(d for _, d in answers)} of {len(answers)} "
                    f"| {median(cost for _, cost in found):.1f} | {median(spent) if spent else 0:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
