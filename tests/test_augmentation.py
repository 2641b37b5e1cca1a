import numpy as np
import pytest

from fer.augmentation import Views
from fer.config import TrainConfig
from fer.emotions import Emotion
from fer.synthetic import draw_face

FACE = draw_face(Emotion.HAPPY, np.random.default_rng(0))
STILL = {"flip": False, "shift": 0.0, "scale": 0.0, "rotation": 0.0, "brightness": 0.0, "erase": 0.0}


def stack(config: TrainConfig, count: int = 200) -> np.ndarray:
    views = Views(config)
    return np.stack([views(FACE, seed) for seed in range(count)])


def test_a_view_depends_on_its_seed_alone():
    """Else a resumed run, or one with another number of workers, would see other views."""
    config = TrainConfig()
    first, second = Views(config), Views(config)
    forth = [first(FACE, seed) for seed in range(20)]
    back = [second(FACE, seed) for seed in reversed(range(20))][::-1]
    assert np.array_equal(forth, back)
    assert len(np.unique(np.reshape(forth, (20, -1)), axis=0)) == 20


def test_nothing_asked_for_is_nothing_done():
    """Else a run without augmentation would have some."""
    assert (stack(TrainConfig(**STILL), 5) == FACE).all()


def test_views_keep_shape_and_kind_and_leave_the_image_alone():
    """Else the second epoch would train on the views of the first."""
    before = FACE.copy()
    images = stack(TrainConfig(erase=1.0), 5)
    assert images.shape == (5, 48, 48)
    assert images.dtype == np.uint8
    assert np.array_equal(FACE, before)


def test_half_of_the_views_are_mirrored():
    """Else the network would learn one side of a face."""
    images = stack(TrainConfig(**STILL | {"flip": True}))
    mirrored = (images == FACE[:, ::-1]).all((1, 2))
    assert ((images == FACE).all((1, 2)) | mirrored).all()
    assert 0.35 < mirrored.mean() < 0.65


def test_views_shift_no_further_than_said():
    """Else faces would leave the picture."""
    blob = np.zeros((48, 48), np.uint8)
    blob[22:26, 22:26] = 255
    views = Views(TrainConfig(**STILL | {"shift": 0.1}))
    offsets = []
    for seed in range(100):
        image = views(blob, seed).astype(float)
        offsets.append([(image * axis).sum() / image.sum() - 23.5 for axis in np.indices((48, 48))])
    assert np.abs(offsets).max() <= 4.8 + 0.5
    assert np.abs(offsets).max() > 3.5
    assert np.mean(offsets) == pytest.approx(0, abs=0.8)


def test_borders_are_continued_not_filled():
    """Else shifted faces would have black edges, which no camera makes."""
    grey = np.full((48, 48), 130, np.uint8)
    views = Views(TrainConfig(**STILL | {"shift": 0.2, "scale": 0.3, "rotation": 30.0}))
    assert all(np.abs(views(grey, seed).astype(int) - 130).max() <= 1 for seed in range(30))


def test_some_views_lose_a_rectangle():
    """Else a network would come to rest on a single part of the face."""
    changed = (stack(TrainConfig(**STILL | {"erase": 0.25}), 300) != FACE).mean((1, 2))
    assert 0.15 < (changed > 0).mean() < 0.35
    assert changed.max() < 0.25


def test_brightness_varies_both_ways():
    """Else a room darker than the training data's would mislead the network."""
    means = stack(TrainConfig(**STILL | {"brightness": 0.15})).mean((1, 2))
    assert means.min() < FACE.mean() - 10
    assert means.max() > FACE.mean() + 10
