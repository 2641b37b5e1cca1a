"""Training-time views of a face, by albumentations."""

import os
import random

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version at import

import albumentations as A  # noqa: N812
import cv2
import numpy as np
from numpy.typing import NDArray

from fer.config import TrainConfig

__all__ = ["Views", "seed_of"]


class Views:
    """Random views of faces, the same for the same seed whoever asks and in whatever order.

    Args:
        config: how far a view may stray from the original.

    Attributes:
        settings: those of the configuration that decide, with the seed, what a view shows.
    """

    def __init__(self, config: TrainConfig) -> None:
        steps: list[A.BasicTransform] = []
        if config.flip:
            steps.append(A.HorizontalFlip(p=0.5))
        if config.shift or config.scale or config.rotation:
            steps.append(
                A.Affine(
                    scale=(1 - config.scale, 1 + config.scale),
                    translate_percent=(-config.shift, config.shift),
                    rotate=(-config.rotation, config.rotation),
                    border_mode=cv2.BORDER_REPLICATE,
                    p=1.0,
                )
            )
        if config.brightness:
            limits = (-config.brightness, config.brightness)
            steps.append(A.RandomBrightnessContrast(brightness_limit=limits, contrast_limit=limits, p=0.8))
        if config.erase:
            steps.append(A.Erasing(scale=(0.02, 0.2), ratio=(0.3, 3.3), p=config.erase))
        self._compose = A.Compose(steps)
        self.settings = [
            getattr(config, name) for name in ("flip", "shift", "scale", "rotation", "brightness", "erase")
        ]

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """A view of a grey face, (S, S) uint8, of the same shape."""
        # As the composition's set_random_seed, which makes a generator for each step and takes half as long again.
        state = np.random.default_rng(seed), random.Random(seed)  # noqa: S311 - no secret
        self._compose.set_random_state(*state)
        for step in self._compose.transforms:
            step.set_random_state(*state)
        view: NDArray[np.uint8] = self._compose(image=image)["image"]
        return view


def seed_of(*numbers: int) -> int:
    """A seed that belongs to these numbers, such as (seed, epoch, image), and to no others."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
