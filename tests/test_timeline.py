"""A user would be told wrong times or shares, or lose the plot or their memory, if any of these failed."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from fer.emotions import EMOTIONS, Emotion
from fer.faces import Face
from fer.live import FrameResult, TrackedFace
from fer.recognizer import FacePrediction
from fer.timeline import CELLS, PERSONS, Person, Timeline, clock_time

PHOTO = skimage.data.astronaut()
FACE = Face(178, 66, 91, 119, 0.9)


def seen(track: int, emotion: Emotion, share: float = 0.94, face: Face = FACE) -> TrackedFace:
    row = np.full(7, (1 - share) / 6, np.float32)
    row[emotion] = share
    prediction = FacePrediction.of(face, row)
    return TrackedFace(track, prediction, prediction)


def gathered(frames: dict[float, list[TrackedFace]]) -> Timeline:
    timeline = Timeline()
    for index, (time, faces) in enumerate(frames.items()):
        timeline.add(FrameResult(index, time, tuple(faces)))
    return timeline


def only(timeline: Timeline) -> Person:
    (person,), left_out = timeline.longest_seen(9)
    assert not left_out
    return person


def text(timeline: Timeline, most: int = 20) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(timeline.table(most))
    return capture.get()


def test_frames_count_for_as_long_as_they_stand() -> None:
    times = [0.0, 9.0, *(9 + k / 10 for k in range(1, 10))]
    person = only(gathered({t: [seen(1, Emotion.HAPPY if t < 9 else Emotion.SAD)] for t in times}))
    assert person.seconds == pytest.approx(10)
    assert person.shares == pytest.approx({Emotion.HAPPY: 0.9, Emotion.SAD: 0.1})
    assert (person.start, person.end) == pytest.approx((0, 10))
    weights = person.cells[:, -1]
    assert weights.sum() == pytest.approx(10, rel=1e-5)
    assert (weights[:100] > 0).all()  # all ten seconds, although most frames are in the last one


def test_long_film_keeps_its_proportions_in_bounded_memory() -> None:
    hours = 3 * 3600
    timeline = Timeline()
    for index, time in enumerate(range(0, hours, 2)):
        emotion = Emotion.ANGRY if time < hours / 3 else Emotion.SURPRISE
        timeline.add(FrameResult(index, time, (seen(1, emotion), *([seen(2, Emotion.FEAR)] * (time < 60)))))
    (first, second), _ = timeline.longest_seen(9)
    assert first.cells.shape == (CELLS, 8)
    assert first.shares == pytest.approx({Emotion.SURPRISE: 2 / 3, Emotion.ANGRY: 1 / 3})
    assert first.cells[:, -1].sum() == pytest.approx(hours, rel=1e-3)
    angry = first.cells[:, Emotion.ANGRY] / np.maximum(first.cells[:, -1], 1e-9)
    used = np.flatnonzero(first.cells[:, -1])
    assert used.size > CELLS / 2
    assert np.flatnonzero(angry > 0.5).max() == pytest.approx(used.size / 3, abs=1)
    assert second.seconds == pytest.approx(60)
    assert text(timeline).splitlines()[1].split()[:6] == ["1", "0:00", "3:00:00", "10800.0", "s", "surprise"]


def test_crowd_is_bounded_and_the_rest_is_counted() -> None:
    timeline = Timeline()
    for index in range(PERSONS + 60):
        present = (
            seen(1000, Emotion.HAPPY),
            seen(index, Emotion.SAD),
            *([seen(index - 1, Emotion.SAD)] * (index == 40)),
        )
        timeline.add(FrameResult(index, index / 25, present))
    persons, left_out = timeline.longest_seen(2)
    assert [person.track for person in persons] == [1000, 39]
    assert left_out == f"{PERSONS + 60 - 1} more people, seen for a shorter time, left out"
    assert text(timeline, 2).splitlines()[-1] == left_out
    assert len(timeline.longest_seen(10**6)[0]) == PERSONS


def test_absence_is_left_open(tmp_path: Path) -> None:
    timeline = gathered({k / 10: [seen(1, Emotion.HAPPY)] if not 30 <= k < 60 else [] for k in range(100)})
    weights = only(timeline).cells[:100, -1]
    assert (weights > 0.05).sum() == pytest.approx(70, abs=1)
    assert weights[31:59].max() == 0
    timeline.plot(tmp_path / "plot.png")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).astype(int)
    row = pixels[pixels.shape[0] // 3]
    yellow = np.abs(row - np.array(Emotion.HAPPY.color)).max(axis=1) < 12
    first, last = np.flatnonzero(yellow)[[0, -1]]
    gap = ~yellow[first:last]
    assert gap.mean() == pytest.approx(0.3, abs=0.07)  # and the label


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_plots(tmp_path: Path, suffix: str, head: bytes) -> None:
    frames = {k / 10: [seen(p, EMOTIONS[(k // 10 + p) % 7]) for p in range(1, 9)] for k in range(40)}
    gathered(frames).plot(tmp_path / f"plot{suffix}")
    assert (tmp_path / f"plot{suffix}").read_bytes().startswith(head)


def test_film_without_faces(tmp_path: Path) -> None:
    timeline = gathered({0.0: [], 0.04: []})
    timeline.plot(tmp_path / "plot.png")
    drawn = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
    assert (drawn[40:-60, 400:700] < 100).any()  # the words that say so
    assert len(text(timeline).splitlines()) == 1


def test_picture_is_of_the_face_seen_best() -> None:
    timeline = Timeline()
    faces = [Face(0, 0, 60, 80, 0.7), FACE, Face(300, 300, 60, 80, 0.8)]
    for index, face in enumerate(faces):
        timeline.add(FrameResult(index, index / 25, (seen(1, Emotion.HAPPY, face=face),)), PHOTO)
    picture = only(timeline).picture
    assert picture is not None
    assert like(picture, PHOTO[67:184, 165:282]) > 0.95


def like(picture: NDArray[np.uint8], region: NDArray[np.uint8]) -> float:
    grey = Image.fromarray(region).convert("L").resize(picture.shape[::-1])
    return float(np.corrcoef(picture.ravel(), np.asarray(grey).ravel())[0, 1])


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0:00"), (2.34, "0:02.3"), (59.96, "1:00"), (62.5, "1:02.5"), (3725, "1:02:05")]
)
def test_clock_time(seconds: float, told: str) -> None:
    assert clock_time(seconds) == told
