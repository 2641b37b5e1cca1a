"""A user would see a label cut off, a face covered or the wrong colour if any of these failed."""

import numpy as np
import pytest
import skimage.data

from fer.drawing import draw_predictions, draw_status
from fer.emotions import Emotion
from fer.faces import Face
from fer.recognizer import FacePrediction

PHOTO = skimage.data.astronaut()


def prediction(x: float, y: float, width: float, height: float, emotion: Emotion = Emotion.SAD) -> FacePrediction:
    probabilities = np.full(7, 0.05, np.float32)
    probabilities[emotion] = 0.7
    return FacePrediction.of(Face(x, y, width, height, 0.9), probabilities)


def count(image: np.ndarray, emotion: Emotion) -> int:
    return int((image == emotion.color).all(axis=2).sum())


def test_box_and_label_in_the_colour_of_the_emotion() -> None:
    drawn = draw_predictions(PHOTO, [prediction(178, 57, 95, 120)], bars=False)
    assert drawn.shape == PHOTO.shape
    assert drawn.dtype == np.uint8
    for x, y in ((178, 100), (272, 100), (220, 57), (220, 176)):
        assert tuple(drawn[y, x]) == Emotion.SAD.color
    inside = slice(70, 165), slice(190, 260)
    assert (drawn[inside] == PHOTO[inside]).all()
    assert (drawn != PHOTO)[:57].any()  # the label, above the box


def test_image_is_left_alone() -> None:
    before = PHOTO.copy()
    assert (draw_predictions(PHOTO, []) == before).all()
    draw_predictions(PHOTO, [prediction(178, 57, 95, 120)])
    assert (before == PHOTO).all()


def test_bars_show_every_probability_beside_the_face() -> None:
    drawn = draw_predictions(PHOTO, [prediction(178, 57, 95, 120)])
    beside = drawn[:, 280:]
    assert (drawn[60:175, 182:268] == PHOTO[60:175, 182:268]).all()
    areas = {emotion: count(beside, emotion) for emotion in Emotion}
    assert min(areas.values()) > 0
    assert max(areas, key=lambda emotion: areas[emotion]) is Emotion.SAD


def test_bars_cover_no_other_face() -> None:
    first, second = prediction(100, 60, 95, 120), prediction(210, 60, 95, 120, Emotion.HAPPY)
    drawn = draw_predictions(PHOTO, [first, second])
    assert (drawn[70:170, 220:290] == PHOTO[70:170, 220:290]).all()
    assert (drawn[70:170, 110:180] == PHOTO[70:170, 110:180]).all()


@pytest.mark.parametrize("box", [(-40, -40, 90, 110), (450, 450, 90, 110), (-600, 900, 50, 50), (0, 0, 512, 512)])
def test_labels_stay_inside_the_image(box: tuple[float, float, float, float]) -> None:
    drawn = draw_predictions(PHOTO, [prediction(*box)], bars=False)
    assert count(drawn, Emotion.SAD) > 300  # a label's paper


@pytest.mark.parametrize("shape", [(1, 1, 3), (20, 30, 3), (48, 48, 3), (5, 900, 3), (1500, 40, 3)])
@pytest.mark.parametrize("emotion", [Emotion.HAPPY, Emotion.SURPRISE])
def test_images_too_small_for_a_label_do_not_fail(shape: tuple[int, ...], emotion: Emotion) -> None:
    image = np.zeros(shape, np.uint8)
    assert draw_predictions(image, [prediction(0, 0, shape[1], shape[0], emotion)]).shape == shape
    assert draw_predictions(np.asfortranarray(image), [prediction(0, 0, 9, 9, emotion)]).shape == shape


def test_names_stand_before_the_emotion() -> None:
    """Else the lines of a chart could not be told to people."""
    plain, named = (
        draw_predictions(PHOTO, [prediction(178, 57, 95, 120)], bars=False, names=names) for names in ([], ["12"])
    )
    widths = [np.ptp(np.flatnonzero((image[50] == Emotion.SAD.color).all(axis=1))) for image in (plain, named)]
    assert widths[1] > widths[0] + 15


@pytest.mark.parametrize("shape", [(480, 640, 3), (2000, 3000, 3)])
def test_text_is_large_enough_to_read(shape: tuple[int, ...]) -> None:
    """On the picture of an ordinary webcam, and on a photograph that is shown scaled down to a screen."""
    drawn = draw_predictions(np.full(shape, 90, np.uint8), [prediction(300, 300, 90, 120)], bars=False)
    paper = (drawn == Emotion.SAD.color).all(axis=2)
    rows = np.flatnonzero(paper[:300].any(axis=1))
    ink = (drawn[rows[0] : rows[-1]] > 240).all(axis=2).any(axis=1)
    assert np.flatnonzero(ink).size >= max(10, shape[0] / 100)  # height of the letters


def test_status_is_in_the_corner_and_leaves_the_image_alone() -> None:
    before = PHOTO.copy()
    drawn = draw_status(PHOTO, "29 fps, 41 ms")
    assert (before == PHOTO).all()
    changed = np.argwhere((drawn != PHOTO).any(axis=2))
    assert changed[:, 0].min() > 470
    assert changed[:, 1].max() < 160
    assert (drawn[480:, :140] > 240).all(axis=2).sum() > 50  # white ink


def test_names_stand_before_the_label() -> None:
    faces = [prediction(20, 60, 95, 120), prediction(300, 60, 95, 120)]
    plain, named = (draw_predictions(PHOTO, faces, bars=False, names=names) for names in ((), ("#1", "#2")))
    changed = np.flatnonzero((plain != named).any(axis=(0, 2)))
    assert changed.min() < 115 < 300 <= changed.max()  # both labels
    assert (plain[60:] == named[60:]).all()
