"""How much of an accuracy on FER2013 is photographs that Training holds too, cropped or scaled differently.

    python benchmarks/near_copies.py vgg16-cp-trl cnn-cp-trl
    python benchmarks/near_copies.py vgg16-cp-trl --split test --picture pairs.png

Pixel-identical copies are what `fer evaluate` leaves out of its leak-free figures. Beyond them, crops of 46, 42 and 38
pixels of each image, and of its mirror image, are compared with the middle 40 pixels of each image of Training, all
made 16x16, by Pearson's correlation. From 0.95 on, two are the same photograph; look at --picture.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from fer import dataset
from fer.checkpoint import load_checkpoint
from fer.config import TestTimeAugmentation
from fer.inference import predict_logits

MIDDLE, CROPS, SIDE = 40, (46, 42, 38), 16


@dataclasses.dataclass(frozen=True)
class Options:
    checkpoints: tyro.conf.Positional[tuple[str, ...]] = ()
    """whose accuracy to split up"""
    data: str = "data"
    """FER2013, or 'synthetic'"""
    split: Literal["val", "test"] = "val"
    """whose images to look for in Training"""
    correlation: float = 0.95
    """from which on two images are the same photograph, 0..1"""
    tta: TestTimeAugmentation = "ten-crop"
    """views whose logits are averaged"""
    picture: Path | None = None
    """a PNG of pairs, the least alike first"""


def descriptors(images: NDArray[np.uint8], side: int, x: int, y: int) -> torch.Tensor:
    """The crops of ``side`` pixels at (x, y) of images (N, 48, 48), as N unit vectors of mean 0, (N, 256) float32."""
    small = [cv2.resize(i[y : y + side, x : x + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA) for i in images]
    vectors = torch.from_numpy(np.stack(small)).flatten(1).float()
    return torch.nn.functional.normalize(vectors - vectors.mean(1, keepdim=True), dim=1)


def crops(images: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    for side in CROPS:
        rest = images.shape[1] - side
        for x in (0, rest // 2, rest):
            for y in (0, rest // 2, rest):
                yield descriptors(images, side, x, y)
                yield descriptors(images[:, :, ::-1], side, x, y)


def nearest(images: NDArray[np.uint8], among: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The highest correlation of each image with one of ``among``, and which one that is."""
    edge = (among.shape[1] - MIDDLE) // 2
    known = descriptors(among, MIDDLE, edge, edge).T.contiguous()
    best, which = torch.full((len(images),), -1.0), torch.zeros(len(images), dtype=torch.long)
    for vectors in tqdm(crops(images), total=len(CROPS) * 9 * 2, leave=False):
        found = [(rows @ known).max(1) for rows in vectors.split(256)]
        values, indices = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
        better = values > best
        best[better], which[better] = values[better], indices[better]
    return best.numpy(), which.numpy()


def draw(images: NDArray[np.uint8], twins: NDArray[np.uint8], file: Path) -> None:
    side_by_side = np.concatenate([images, twins], axis=2)
    pairs = [cv2.copyMakeBorder(pair, 2, 2, 2, 2, cv2.BORDER_CONSTANT) for pair in side_by_side]
    pairs += [np.zeros_like(pairs[0])] * (-len(pairs) % 8)
    file.write_bytes(cv2.imencode(".png", np.vstack([np.hstack(pairs[i : i + 8]) for i in range(0, len(pairs), 8)]))[1])


def main(options: Options) -> None:
    data = dataset.load(options.data)
    faces, train = data.split(options.split), data.split("train")
    correlation, twin = nearest(faces.images, train.images)
    near = (correlation >= options.correlation) & ~faces.leaked
    groups = {
        "all": np.ones(len(faces), bool),
        "identical pixels": faces.leaked,
        "same photograph": near,
        "neither": ~near & ~faces.leaked,
    }
    agree = train.labels[twin] == faces.labels
    table = Table(box=box.MARKDOWN)
    for column in (f"{options.split}, in Training", "images", "same label there", *options.checkpoints):
        table.add_column(column, justify="left" if column.endswith("Training") else "right")
    rights = []
    for name in options.checkpoints:
        found = load_checkpoint(name)
        logits = predict_logits(found.model, faces.images, found.preprocessing, tta=options.tta, progress=name)
        rights.append(logits.argmax(1) == faces.labels)
    for name, chosen in groups.items():
        shares = [agree if name not in ("all", "neither") else None, *rights]
        cells = ["" if s is None or not chosen.any() else f"{100 * s[chosen].mean():.1f}" for s in shares]
        table.add_row(name, f"{chosen.sum():,}", *cells)
    Console(width=1000).print(table)
    if options.picture:
        shown = np.flatnonzero(near)[np.argsort(correlation[near])][:96]
        if len(shown):
            draw(faces.images[shown], train.images[twin[shown]], options.picture)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
