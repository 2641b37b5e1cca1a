"""A frozen trunk's outputs, computed once and kept: a head then trains in minutes."""

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fer.augmentation import Views, seed_of
from fer.config import TestTimeAugmentation, TrainConfig
from fer.dataset import cache_folder, written_whole
from fer.models import EmotionModel
from fer.preprocessing import prepare, views

__all__ = ["augmented_features", "feature_file", "trunk_features", "tta_features"]

BATCH = 32


def feature_file(model: EmotionModel, key: str) -> Path:
    """Where the features of that trunk are kept; the name changes with anything that changes them."""
    digest = hashlib.sha256(repr((key, model.config.preprocessing, tuple(model.trunk_shape()))).encode())
    for name, tensor in model.trunk.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return cache_folder() / "features" / f"{model.config.trunk}-{digest.hexdigest()[:16]}.npy"


def trunk_features(model: EmotionModel, images: NDArray[np.uint8], key: str) -> NDArray[np.float16]:
    """The trunk's outputs for faces, read from the cache where an earlier run has left them.

    Args:
        model: its trunk is used, in evaluation mode, on the device where it is.
        images: (N, H, W) uint8.
        key: identifies the images and the arithmetic (autocast or not).

    Returns:
        (N, channels, height, width) float16, mapped from disk.
    """
    return _kept(model, key, len(images), lambda part: prepare(images[part], model.config.preprocessing))


def tta_features(
    model: EmotionModel, images: NDArray[np.uint8], key: str, tta: TestTimeAugmentation
) -> list[NDArray[np.float16]]:
    """The trunk's outputs for each view of test-time augmentation: ``[trunk_features(..)]`` where ``tta`` is none.

    Args:
        model: as for :func:`trunk_features`.
        images: (N, H, W) uint8.
        key: identifies the images and the arithmetic.
        tta: see :func:`fer.preprocessing.views`.

    Returns:
        (N, channels, height, width) float16 for each view; the mean of a head's logits over them is the prediction.
    """

    def view(number: int, part: slice) -> NDArray[np.float32]:
        return next(islice(views(prepare(images[part], model.config.preprocessing), tta), number, None))

    first = 0 if tta == "ten-crop" else 1  # view 0 of none and of flip is the face itself
    count = {"none": 1, "flip": 2, "ten-crop": 10}[tta]
    keys = [key if number < first else f"{key} {tta} {number}" for number in range(count)]
    return [_kept(model, k, len(images), partial(view, n)) for n, k in enumerate(keys)]


def augmented_features(
    model: EmotionModel, images: NDArray[np.uint8], key: str, count: int, config: TrainConfig
) -> list[NDArray[np.float16]]:
    """The trunk's outputs for random views of faces, for a head to train on.

    A trunk that was trained on these very images separates them better than it separates others, and a head that sees
    them unchanged learns from features that no new face will have. Random views are nearer to those of new faces.

    Args:
        model: as for :func:`trunk_features`.
        images: (N, H, W) uint8.
        key: identifies the images and the arithmetic.
        count: views of each image.
        config: how far a view may stray; see :class:`fer.augmentation.Views`.

    Returns:
        (N, channels, height, width) float16 for each view.
    """
    draw = Views(config)

    def prepared(number: int, part: slice) -> NDArray[np.float32]:
        drawn = [draw(image, seed_of(number, i)) for i, image in enumerate(images[part], part.start)]
        return prepare(drawn, model.config.preprocessing)

    return [
        _kept(model, f"{key} view {number} {draw.settings}", len(images), partial(prepared, number))
        for number in range(count)
    ]


@torch.inference_mode()
def _kept(
    model: EmotionModel, key: str, count: int, inputs: Callable[[slice], NDArray[np.float32]]
) -> NDArray[np.float16]:
    file = feature_file(model, key)
    if not file.is_file():
        with written_whole(file) as part:
            features = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(count, *model.trunk_shape()))
            device = next(model.trunk.parameters()).device
            for start in tqdm(range(0, count, BATCH), desc="features", unit="img", unit_scale=BATCH, disable=None):
                batch = torch.from_numpy(inputs(slice(start, start + BATCH)))
                outputs = model.trunk(batch.to(device, memory_format=torch.channels_last))
                features[start : start + BATCH] = outputs.half().cpu().numpy()
            features.flush()
            del features
    kept: NDArray[np.float16] = np.load(file, mmap_mode="r")
    return kept
