"""FER2013's file of synthetic faces, for tests that read it as a user's."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer.dataset import Dataset


def write_csv(folder: Path, rows: Iterable[tuple[NDArray[np.uint8], int, str]]) -> Path:
    """``fer2013.csv`` in a folder, which is returned; rows are image, label and usage."""
    with (folder / "fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        writer.writerows([label, " ".join(map(str, image.ravel())), usage] for image, label, usage in rows)
    return folder


def write_faces(folder: Path, faces: Dataset, *, train: int = 0, val: int = 0) -> Path:
    """As :func:`write_csv`, with the first faces of two splits and without a test split."""
    parts = [(faces.split("train"), train, "Training"), (faces.split("val"), val, "PublicTest")]
    return write_csv(folder, ((s.images[i], s.labels[i], usage) for s, count, usage in parts for i in range(count)))
