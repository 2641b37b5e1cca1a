import itertools

import pytest

from fer.emotions import EMOTIONS, Emotion


def test_order_is_that_of_fer2013():
    """Else every prediction would carry another expression's name."""
    assert [e.label for e in EMOTIONS] == ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    assert [int(e) for e in EMOTIONS] == list(range(7))


@pytest.mark.parametrize(
    ("name", "emotion"),
    [("angry", 0), ("Anger", 0), (" DISGUST ", 1), ("fearful", 2), ("happiness", 3), ("sadness", 4), ("Surprise", 5)],
)
def test_other_spellings_are_understood(name, emotion):
    """Else folders and votes under another dataset's spelling could not be read."""
    assert Emotion.parse(name) is Emotion(emotion)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    """Else a typing error would silently become some expression."""
    with pytest.raises(ValueError, match=r"unknown emotion 'hapy'; known are .*happy"):
        Emotion.parse("hapy")


def test_colours_can_be_told_apart():
    """Else boxes and charts of two expressions would look alike."""
    for a, b in itertools.combinations(EMOTIONS, 2):
        assert sum(abs(x - y) for x, y in zip(a.color, b.color, strict=True)) > 60
    assert all(0 <= value <= 255 for e in EMOTIONS for value in e.color)
