"""A frozen trunk's outputs, computed once and kept: a head then trains in minutes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fer.dataset import cache_folder
from fer.models import EmotionModel
from fer.preprocessing import prepare

__all__ = ["feature_file", "trunk_features"]

BATCH = 32


def feature_file(model: EmotionModel, key: str) -> Path:
    """Where the features of that trunk are kept; the name changes with anything that changes them."""
    digest = hashlib.sha256(repr((key, model.config.preprocessing)).encode())
    for name, tensor in model.trunk.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return cache_folder() / "features" / f"{model.config.trunk}-{digest.hexdigest()[:16]}.npy"


@torch.inference_mode()
def trunk_features(model: EmotionModel, images: NDArray[np.uint8], key: str) -> NDArray[np.float16]:
    """The trunk's outputs for faces, read from the cache where an earlier run has left them.

    Args:
        model: its trunk is used, in evaluation mode, on the device where it is.
        images: (N, H, W) uint8.
        key: identifies the images and the arithmetic (autocast or not).

    Returns:
        (N, channels, height, width) float16, mapped from disk.
    """
    file = feature_file(model, key)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        shape = (len(images), *model.trunk_shape())
        features = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        device = next(model.trunk.parameters()).device
        starts = range(0, len(images), BATCH)
        for start in tqdm(starts, desc="features", unit="img", unit_scale=BATCH, disable=None):
            batch = torch.from_numpy(prepare(images[start : start + BATCH], model.config.preprocessing))
            outputs = model.trunk(batch.to(device, memory_format=torch.channels_last))
            features[start : start + BATCH] = outputs.half().cpu().numpy()
        features.flush()
        del features
        part.replace(file)
    kept: NDArray[np.float16] = np.load(file, mmap_mode="r")
    return kept
