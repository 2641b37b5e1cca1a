"""A user would see flickering labels, swapped people or answers that depend on the computer's speed if any failed."""

import math

import cv2
import numpy as np
import pytest
import skimage.data

from fer import EmotionRecognizer
from fer.config import TrackingConfig
from fer.emotions import EMOTIONS, Emotion
from fer.faces import Face, RetinaFace
from fer.live import FrameResult, LivePipeline, Smoother

PHOTO = skimage.data.astronaut()
HEAD = np.ascontiguousarray(PHOTO[20:220, 140:310])
RATE = 15


class Counted:
    """A real detector that remembers how often it was asked."""

    name = "counted"

    def __init__(self) -> None:
        self.detector, self.calls = RetinaFace(threads=1), 0

    def detect(self, image: np.ndarray) -> list[Face]:
        self.calls += 1
        return self.detector.detect(image)


@pytest.fixture(scope="module")
def detector() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def recognizer(detector: Counted) -> EmotionRecognizer:
    return EmotionRecognizer.load("guide-cnn", device="cpu", detector=detector)


def scene(*places: tuple[float, float], size: tuple[int, int] = (640, 480)) -> np.ndarray:
    """The astronaut's head at each place (its centre), later ones before earlier ones."""
    canvas = np.full((size[1], size[0], 3), 96, np.uint8)
    for number, (x, y) in enumerate(places):
        head = HEAD if number % 2 else np.ascontiguousarray(HEAD[:, ::-1])
        move = np.float32([[0.75, 0, x - 0.375 * head.shape[1]], [0, 0.75, y - 0.375 * head.shape[0]]])
        cv2.warpAffine(head, move, size, dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)
    return canvas


def nearest(result: FrameResult, x: float, y: float) -> tuple[int, float]:
    """Track of the face nearest to a place, and its distance."""

    def distance(face: Face) -> float:
        return math.hypot(face.x + face.width / 2 - x, face.y + face.height / 2 - y)

    best = min(result.faces, key=lambda face: distance(face.prediction.face))
    return best.track, distance(best.prediction.face)


def test_the_first_frame_says_what_the_recogniser_says(recognizer: EmotionRecognizer) -> None:
    """Else the live view and a photograph of the same moment would disagree."""
    pair = np.hstack([PHOTO, PHOTO[:, ::-1] // 2])
    result = LivePipeline(recognizer).process(pair, 3.5)
    assert (result.index, result.time) == (0, 3.5)
    assert [face.prediction for face in result.faces] == recognizer.analyze(pair)
    assert [face.raw for face in result.faces] == recognizer.analyze(pair)
    assert [face.track for face in result.faces] == [1, 2]


def test_nobody_in_sight(recognizer: EmotionRecognizer) -> None:
    pipeline = LivePipeline(recognizer)
    assert pipeline.process(np.zeros((480, 640, 3), np.uint8), 0.0).faces == ()
    assert pipeline.process(np.zeros((480, 640, 3), np.uint8), 0.1).index == 1
    assert set(pipeline.timings) == {"detect", "track", "recognise", "smooth"}


def test_all_faces_go_through_the_network_together(recognizer: EmotionRecognizer) -> None:
    """Else a group would take as long as its people one by one."""
    batches = []
    model = recognizer.checkpoint.model
    hook = model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        LivePipeline(recognizer).process(scene((100, 240), (320, 240), (540, 240)), 0.0)
    finally:
        hook.remove()
    assert batches == [3]


def test_people_keep_their_numbers_as_they_walk_past_each_other(recognizer: EmotionRecognizer) -> None:
    """Real faces, a real detector; one passes behind the other and is hidden for a while, a third goes up and down."""
    pipeline = LivePipeline(recognizer)
    seen: list[set[int]] = [set(), set(), set()]
    hidden = 0
    for k in range(3 * RATE):
        time = k / RATE
        places = [(560 - 170 * time, 150), (80 + 170 * time, 140), (320, 360 + 20 * math.sin(2 * time))]
        result = pipeline.process(scene(*places), time)
        if math.dist(*places[:2]) < 60:  # one is in front of the other
            hidden += len(result.faces) < 3
            continue
        for number, place in enumerate(places):
            track, distance = nearest(result, *place)
            assert distance < 25
            seen[number].add(track)
    assert [len(tracks) for tracks in seen] == [1, 1, 1]
    assert len(set.union(*seen)) == 3
    assert hidden >= 2


def test_faces_are_looked_for_in_every_nth_frame_and_followed_in_between(
    recognizer: EmotionRecognizer, detector: Counted
) -> None:
    """Else --detect-every would save nothing, or leave the boxes behind."""
    pipeline, detector.calls = LivePipeline(recognizer, detect_every=3), 0
    gaps = []
    for k in range(30):
        x = 120 + 8 * k  # 240 pixels a second at 30 frames/s, two face widths
        result = pipeline.process(scene((x, 240)), k / 30)
        assert [face.track for face in result.faces] == [1]
        gaps.append(nearest(result, x, 240)[1] if k else 0)
    assert detector.calls == 10
    assert max(gaps[15:]) < 15  # of a face of 90 pixels

    for k in range(6):  # on a slow machine, where flow over so long a gap would guess
        pipeline.process(scene((350, 240)), 1 + k / 2)
    assert detector.calls == 16

    pipeline.process(scene((120, 240)), 4.0)  # a cut is noticed at once
    result = pipeline.process(scene((480, 200)), 4.033)
    assert nearest(result, 480, 200)[1] < 15


def test_smoothing_is_in_seconds_whatever_the_frame_rate() -> None:
    """Else the same face would be answered differently on a slow computer."""
    before, after = np.eye(7, dtype=np.float32)[[6, 3]]
    answers = []
    for times in (np.arange(0, 0.251, 0.01), np.array([0.0, 0.25]), np.array([0.0, 0.01, 0.02, 0.2, 0.25])):
        smoother = Smoother()
        smoother.update(before, 0.0, smoothing=0.25, lead=0.1)
        for time in times[1:]:
            mean, label = smoother.update(after, float(time), smoothing=0.25, lead=0.1)
        answers.append(mean[3])
        assert label is Emotion.HAPPY
        assert mean.sum() == pytest.approx(1, abs=1e-5)
    assert answers == pytest.approx([1 - 1 / math.e] * 3, abs=1e-3)


def test_the_label_changes_only_for_a_real_lead() -> None:
    """Else it would flicker between two emotions that are equally probable."""
    rng = np.random.default_rng(0)
    smoother, labels = Smoother(), []
    for k in range(90):
        row = np.full(7, 0.02, np.float32)
        happy = 0.45 + rng.normal(0, 0.1) if k < 60 else 0.8
        row[3], row[6] = happy, 0.9 - happy
        labels.append(smoother.update(row, k / 30, smoothing=0.25, lead=0.1)[1])
    assert len(set(labels[:60])) == 1
    assert labels[-1] is Emotion.HAPPY


def test_without_smoothing_and_lead_each_frame_speaks_for_itself() -> None:
    smoother = Smoother()
    for k, emotion in enumerate([0, 3, 0, 6]):
        row = np.eye(7, dtype=np.float32)[emotion]
        mean, label = smoother.update(row, k / 30, smoothing=0, lead=0)
        assert (mean == row).all()
        assert label is EMOTIONS[emotion]


def test_two_people_are_smoothed_apart_and_settings_may_change(recognizer: EmotionRecognizer) -> None:
    """Else one's smile would colour the other's answer, or the page's slider do nothing."""
    dark, bright = scene((160, 240), (480, 240)), scene((160, 240), (480, 240))
    dark[:, :320] //= 4
    pipeline = LivePipeline(recognizer, smoothing=5.0, lead=0.0)
    pipeline.process(bright, 0.0)
    held = pipeline.process(dark, 0.1)
    left, right = sorted(held.faces, key=lambda face: face.prediction.face.x)
    for face in (left, right):
        gap = np.subtract(*(list(p.probabilities.values()) for p in (face.prediction, face.raw)))
        assert (np.abs(gap).max() > 0.01) == (face is left)
        assert face.prediction.confidence == face.prediction.probabilities[face.prediction.emotion]
    pipeline.smoothing = 0.0
    free = pipeline.process(dark, 0.2)
    assert all(face.prediction.probabilities == pytest.approx(face.raw.probabilities) for face in free.faces)


def test_options_of_the_command_reach_the_pipeline(recognizer: EmotionRecognizer, detector: Counted) -> None:
    pipeline = LivePipeline.from_config(recognizer, TrackingConfig(smoothing=0.7, lead=0.3, detect_every=2))
    assert (pipeline.smoothing, pipeline.lead) == (0.7, 0.3)
    detector.calls = 0
    for k in range(4):
        pipeline.process(PHOTO, k / 30)
    assert detector.calls == 2
