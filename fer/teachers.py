"""What trained models make of the images that another is trained on (knowledge distillation, Hinton et al. 2015)."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer.augmentation import Views, seed_of
from fer.checkpoint import Checkpoint, load_checkpoint
from fer.classifier import predict_probabilities
from fer.config import TrainConfig
from fer.dataset import cache_folder, written_whole
from fer.shelf import CONFIG, read_json

__all__ = ["teachers_answers"]


def teachers_answers(images: NDArray[np.uint8], config: TrainConfig, device: str) -> NDArray[np.float32]:
    """Mean of the teachers' probabilities over several random views of each image.

    The student's own views are others, new in every epoch: answers to the very view, which is then one of a few that
    come again, were learned by heart (docs/experiments.md). Each teacher's answer to each view is kept in the cache:
    for another student, and for this one when it is interrupted.

    Args:
        images: (N, H, W) uint8, the training images in their order.
        config: names the teachers and says how many views are drawn, and how.
        device: where the teachers run. Autocast around the call applies to them.

    Returns:
        (N, 7), rows sum to 1.

    Raises:
        CheckpointError: a teacher is missing or damaged.
    """
    teachers = [load_checkpoint(name.strip(), device=device) for name in config.teachers.split(",")]
    make, digest = Views(config), hashlib.sha256(images.tobytes()).hexdigest()
    answers: list[NDArray[np.float32]] = []
    for view in range(config.distill_views):
        key = view, config.seed, config.precision, *make.settings
        files = [_file(teacher, digest, *key) for teacher in teachers]
        wanted = {file: teacher for file, teacher in zip(files, teachers, strict=True) if not file.is_file()}
        faces = [make(image, seed_of(config.seed, view, i)) for i, image in enumerate(images)] if wanted else []
        for file, teacher in wanted.items():
            caption = f"{teacher.name} on view {view + 1}/{config.distill_views}"
            answer = predict_probabilities(teacher, faces, progress=caption)
            with written_whole(file) as part, part.open("wb") as stream:
                np.save(stream, answer)
        answers += [np.load(file) for file in files]
    mean: NDArray[np.float32] = np.mean(answers, axis=0)
    return mean


def _file(teacher: Checkpoint, digest: str, *view: object) -> Path:
    """Where the teacher's answer to a view of the images of that digest is kept."""
    key = digest, read_json(teacher.folder / CONFIG)["sha256"], teacher.temperature, *view
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return cache_folder() / "teachers" / f"{teacher.name}-{name}.npy"
