import subprocess
import sys

import cv2
import numpy as np
import pytest

from fer.config import Preprocessing
from fer.preprocessing import prepare, resize_face, views

FACES = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)


def test_pixels_are_scaled_and_normalised():
    """Else a network would see other numbers than it was trained on."""
    x = prepare(FACES, Preprocessing(mean=0.4, std=0.2))
    assert x.shape == (3, 1, 48, 48)
    assert x.dtype == np.float32
    assert x[:, 0] == pytest.approx((FACES / 255 - 0.4) / 0.2, abs=1e-5)


def test_three_channels_repeat_the_grey():
    """Else a trunk for RGB could not be fed."""
    x = prepare(FACES, Preprocessing(channels=3))
    assert x.shape == (3, 3, 48, 48)
    assert np.array_equal(x[:, 0], x[:, 1])
    assert np.array_equal(x[:, 0], x[:, 2])


def test_faces_of_any_size_are_taken_together():
    """Else faces cut from a photograph could not share a batch."""
    faces = [FACES[0], np.full((97, 31), 128, np.uint8), np.full((20, 20), 128, np.uint8)]
    x = prepare(faces, Preprocessing(size=32, mean=0.0, std=1.0))
    assert x.shape == (3, 1, 32, 32)
    assert x[1:] == pytest.approx(128 / 255, abs=1e-6)
    assert prepare([], Preprocessing()).shape == (0, 1, 48, 48)


def test_shrinking_averages_and_growing_interpolates():
    """Else large faces would arrive full of aliasing, and look like none in the training data."""
    assert np.array_equal(resize_face(FACES[0], 48), FACES[0])
    checkerboard = np.indices((96, 96)).sum(0).astype(np.uint8) % 2 * 255
    assert np.ptp(resize_face(checkerboard, 48)) <= 1
    ramp = np.tile(np.linspace(0, 255, 24, dtype=np.uint8), (24, 1))
    assert (np.diff(resize_face(ramp, 48).astype(int)) >= 0).all()
    color = np.dstack([FACES[0]] * 3)
    assert resize_face(color, 24).shape == (24, 24, 3)


def test_views_are_mirrored_and_cropped_as_said():
    """Else test-time augmentation would average something else than it says."""
    batch = prepare(FACES, Preprocessing(channels=3))
    (only,) = views(batch, "none")
    assert np.array_equal(only, batch)

    straight, mirrored = views(batch, "flip")
    assert np.array_equal(straight, batch)
    assert np.array_equal(mirrored, batch[..., ::-1])

    ten = list(views(batch, "ten-crop"))
    assert [view.shape for view in ten] == [batch.shape] * 10
    for crop, mirror in zip(ten[::2], ten[1::2], strict=True):
        assert np.array_equal(mirror, crop[..., ::-1])
    for view, (top, left) in zip(ten[::2], ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)), strict=True):
        expected = cv2.resize(batch[1, 0, top : top + 44, left : left + 44], (48, 48))
        assert view[1, 0] == pytest.approx(expected, abs=1e-6)


def test_needs_no_pytorch():
    """Else a machine with only ONNX Runtime could not prepare faces."""
    code = "import sys, fer.preprocessing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
