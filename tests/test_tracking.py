"""A user would see two people's curves mixed up, or one person become several, if any of these failed."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import skimage.data

from fer.faces import Face
from fer.tracking import MEMORY, Tracker, follow


def face(x: float, y: float, height: float = 100.0) -> Face:
    """Around a centre."""
    return Face(x - 0.38 * height, y - height / 2, 0.76 * height, height, 0.9)


def times(seconds: float, rate: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Of frames, irregular where a generator is given."""
    steps = np.full(round(seconds * rate), 1 / rate)
    return np.cumsum(steps if rng is None else steps * rng.uniform(0.4, 1.6, len(steps)))


def wandering(count: int, rng: np.random.Generator) -> "tuple[np.ndarray, ...]":
    """Centres of paths, their amplitudes, frequencies and phases: up to about two face sizes a second."""
    centres = np.stack([150 + 180 * (np.arange(count) % 5), 200 + 300 * (np.arange(count) // 5)], axis=1)
    shape = (count, 2, 2)
    return centres, rng.uniform(20, 50, shape), rng.uniform(0.1, 0.25, shape), rng.uniform(0, 2 * math.pi, shape)


@pytest.mark.parametrize(("rate", "irregular"), [(30, False), (30, True), (10, True)])
@pytest.mark.parametrize("seed", range(3))
def test_ten_faces_keep_their_numbers_through_gaps(rate: int, irregular: bool, seed: int) -> None:
    """Each is out of sight for half a second again and again, the boxes shake and change their size."""
    rng = np.random.default_rng(seed)
    centres, amplitude, frequency, phase = wandering(10, rng)
    tracker, numbers, hidden_until = Tracker(), {}, np.zeros(10)
    for time in times(12, rate, rng if irregular else None):
        position = centres + (amplitude * np.sin(2 * math.pi * frequency * time + phase)).sum(2)
        size = 80 * (1 + 0.25 * np.sin(time + np.arange(10))) * np.exp(rng.normal(0, 0.03, 10))
        position += rng.normal(0, 0.03, (10, 2)) * size[:, None]
        starts = (time > hidden_until + 0.5) & (rng.random(10) < 0.5 / rate)
        hidden_until[starts] = time + 0.5
        seen = rng.permutation(np.flatnonzero(time >= hidden_until))
        found = tracker.update([face(*position[i], size[i]) for i in seen], time)
        for i, number in zip(seen, found, strict=True):
            assert numbers.setdefault(i, number) == number
    assert sorted(numbers.values()) == list(range(1, 11))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [30, 12])
def test_five_pairs_cross_each_other(rate: int, seed: int) -> None:
    """One of each pair walks behind the other and is hidden for up to half a second."""
    rng = np.random.default_rng(seed)
    speeds = np.array([130, 160, 200, 260, 330])
    tracker, numbers, longest = Tracker(), {}, 0.0
    vanished = np.full(5, np.nan)
    for time in times(4, rate):
        faces, who = [], []
        for pair, speed in enumerate(speeds):
            offset = speed * (time - 2)
            front, behind = 640 + offset, 640 - offset
            y = 90 + 140 * pair
            faces.append(face(*rng.normal((front, y), 2.5), 90 * math.exp(rng.normal(0, 0.03))))
            who.append((pair, "front"))
            if abs(front - behind) > 65:
                faces.append(face(*rng.normal((behind, y + 15), 2.5), 80 * math.exp(rng.normal(0, 0.03))))
                who.append((pair, "behind"))
                if not math.isnan(vanished[pair]):
                    longest = max(longest, time - vanished[pair])
                vanished[pair] = time
        order = rng.permutation(len(faces))
        for i, number in zip(order, tracker.update([faces[i] for i in order], time), strict=True):
            assert numbers.setdefault(who[i], number) == number
    assert sorted(numbers.values()) == list(range(1, 11))
    assert 0.4 < longest < 0.7


def test_who_comes_after_a_second_is_someone_new() -> None:
    """Else the next visitor would inherit the smoothed feelings of the last."""
    tracker = Tracker()
    assert tracker.update([face(300, 200)], 0.0) == [1]
    assert tracker.numbers == {1}
    assert tracker.update([], MEMORY / 2) == []
    assert tracker.update([face(300, 200)], 1.1 + MEMORY) == [2]
    assert tracker.numbers == {2}


def test_a_frame_that_lasts_long_is_no_absence() -> None:
    """Else in a screen recording, which has a frame only where something changes, everybody would be new each time."""
    tracker = Tracker()
    for time in (0.0, 3.0, 3.1, 8.0):
        assert tracker.update([face(300, 200)], time) == [1]


def test_who_appears_elsewhere_is_someone_new() -> None:
    """Else a label would jump from one person to another at the far side of the room."""
    tracker = Tracker()
    tracker.update([face(100, 200)], 0.0)
    assert tracker.update([face(400, 200)], 1 / 30) == [2]
    assert tracker.update([face(100, 200, 30), face(400, 200)], 2 / 30) == [3, 2]  # a face a third as large, too


def test_two_faces_never_share_a_number() -> None:
    """Else two people beside each other would be averaged into one."""
    tracker = Tracker()
    for k in range(30):
        numbers = tracker.update([face(300 + k, 200), face(320 - k, 205), face(310, 210)], k / 30)
        assert len(set(numbers)) == 3


PHOTO = skimage.data.astronaut()


@pytest.mark.parametrize("landmarks", [True, False])
def test_faces_are_followed_without_a_detector(landmarks: bool) -> None:
    """Else with --detect-every 5 a box would lag behind its moving face, and the network see half of it."""
    start = Face(178, 57, 95, 120, 0.9, ((205, 110), (247, 110), (228, 135), (207, 150), (245, 150)))
    faces = [start if landmarks else replace(start, landmarks=None)]
    before = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)
    for k in range(1, 5):  # a quarter of a face's width, 12 degrees and a tenth of its size in four frames
        move = cv2.getRotationMatrix2D((225, 117), 3 * k, 1 + 0.025 * k)
        move[:, 2] += 6 * k, -4 * k
        after = cv2.cvtColor(cv2.warpAffine(PHOTO, move, (512, 512)), cv2.COLOR_RGB2GRAY)
        faces, before = follow(faces, before, after), after
    [moved] = faces
    x, y = move @ (225.5, 117, 1)
    assert moved.x + moved.width / 2 == pytest.approx(x, abs=2)
    assert moved.y + moved.height / 2 == pytest.approx(y, abs=2)
    assert moved.height == pytest.approx(132, abs=3)
    assert (moved.landmarks is not None) == landmarks
    if moved.landmarks and start.landmarks:
        for old, new in zip(start.landmarks, moved.landmarks, strict=True):
            assert new == pytest.approx(move @ (*old, 1), abs=2)


def test_what_cannot_be_followed_is_said_to_be_lost() -> None:
    """Else a box would stay on an empty place after a film's cut, or the program end."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (480, 640), np.uint8) for _ in range(2)]
    flat = np.zeros((480, 640), np.uint8)
    faces = [face(100, 100), face(-30, 500), face(320, 240, 4)]
    for before, after in (noise, (flat, flat), (noise[0], flat)):
        assert follow(faces, before, after) is None
    assert follow([], flat, flat) == []


def test_a_clock_that_stands_still_does_no_harm() -> None:
    """Else two frames with one timestamp, as damaged videos have them, would end the program."""
    tracker = Tracker()
    for time in (0.0, 0.0, 0.0, 0.1):
        assert tracker.update([face(100, 100)], time) == [1]
