"""What trained models make of the views that another is trained on (knowledge distillation, Hinton et al. 2015)."""

import hashlib
import os

import numpy as np
from numpy.typing import NDArray

from fer.augmentation import Views, seed_of
from fer.checkpoint import Checkpoint, load_checkpoint
from fer.classifier import predict_probabilities
from fer.config import TrainConfig
from fer.dataset import cache_folder
from fer.shelf import CONFIG, read_json

__all__ = ["teachers_answers"]

#: Settings that decide what a view shows and what a teacher computes of it.
_SETTINGS = ("seed", "precision", "flip", "shift", "scale", "rotation", "brightness", "erase")


def teachers_answers(images: NDArray[np.uint8], config: TrainConfig, device: str) -> NDArray[np.float32]:
    """Mean of the teachers' probabilities for each of the views that are trained on.

    Each teacher's answer to each view is kept in the cache: for another student, and for this one when it is
    interrupted.

    Args:
        images: (N, H, W) uint8, the training images in their order.
        config: names the teachers and says how views are drawn; view v of image i is the one of epoch v.
        device: where the teachers run. Autocast around the call applies to them.

    Returns:
        (config.distill_views, N, 7), rows sum to 1.

    Raises:
        CheckpointError: a teacher is missing or damaged.
    """
    teachers = [load_checkpoint(name.strip(), device=device) for name in config.teachers.split(",")]
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    means = (
        np.mean([_answers(teacher, images, digest, config, view) for teacher in teachers], axis=0)
        for view in range(config.distill_views)
    )
    return np.stack(list(means))


def _answers(
    teacher: Checkpoint, images: NDArray[np.uint8], digest: str, config: TrainConfig, view: int
) -> NDArray[np.float32]:
    weights = read_json(teacher.folder / CONFIG)["sha256"]
    key = digest, weights, teacher.temperature, view, *(getattr(config, name) for name in _SETTINGS)
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    file = cache_folder() / "teachers" / f"{teacher.name}-{name}.npy"
    if not file.is_file():
        make = Views(config)
        faces = [make(image, seed_of(config.seed, view, i)) for i, image in enumerate(images)]
        caption = f"{teacher.name} on view {view + 1}/{config.distill_views}"
        answers = predict_probabilities(teacher, faces, progress=caption)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as stream:
            np.save(stream, answers)
        part.replace(file)
    kept: NDArray[np.float32] = np.load(file)
    return kept
