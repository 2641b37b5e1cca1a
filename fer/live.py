"""Frames in, steady faces out: detect, track, crop, recognise all faces of a frame together, smooth.

    pipeline = LivePipeline(EmotionRecognizer.load("cnn-cp-trl"))
    with open_source("0") as source:
        for image, time in source:
            for face in pipeline.process(image, time).faces:
                print(face.track, face.prediction.emotion)

Where frames come from is in :mod:`fer.sources`; a browser's come one by one.
"""

import math
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.config import TrackingConfig
from fer.emotions import EMOTIONS, Emotion
from fer.faces import Face, find_faces
from fer.recognizer import EmotionRecognizer, FacePrediction
from fer.tracking import Tracker, follow

__all__ = ["FrameResult", "LivePipeline", "Smoother", "TrackedFace"]

#: Frames further apart than this, in seconds, show faces too far from where they were for optical flow to be trusted,
#: and leave the time to look for them.
FOLLOWED = 0.2


@dataclass(frozen=True)
class TrackedFace:
    """A face that is followed from frame to frame.

    Attributes:
        track: its number, the same in every frame; from 1.
        prediction: smoothed: ``probabilities`` are means over time, ``emotion`` changes only when another leads.
        raw: of this frame alone.
    """

    track: int
    prediction: FacePrediction
    raw: FacePrediction


@dataclass(frozen=True)
class FrameResult:
    """What was seen in a frame.

    Attributes:
        index: number of the frame, from 0.
        time: seconds, as the source tells it; see :data:`fer.sources.Frame`.
        faces: the most certainly found first.
    """

    index: int
    time: float
    faces: tuple[TrackedFace, ...]


class Smoother:
    """The mean of one face's probabilities over time, and a label that does not flicker."""

    def __init__(self) -> None:
        self._mean: NDArray[np.float32] | None = None
        self._time = 0.0
        self._label = EMOTIONS[0]

    def update(
        self, probabilities: NDArray[np.float32], time: float, *, smoothing: float, lead: float
    ) -> tuple[NDArray[np.float32], Emotion]:
        """Take in a frame.

        Args:
            probabilities: (7,) in 0..1.
            time: of the frame, seconds.
            smoothing: time constant of the mean, seconds: what is that old counts 1/e of what is new. 0 for none.
            lead: by how much another emotion's mean must exceed the label's before it becomes the label.

        Returns:
            The mean, (7,) in 0..1, and the label.
        """
        if self._mean is None:
            self._mean, self._label = probabilities, EMOTIONS[int(probabilities.argmax())]
        else:
            # Exact for probabilities that stay constant between frames, however irregular these are.
            kept = math.exp(-max(time - self._time, 0) / smoothing) if smoothing else 0
            self._mean = np.asarray(kept * self._mean + (1 - kept) * probabilities, np.float32)
            best = EMOTIONS[int(self._mean.argmax())]
            if self._mean[best] - self._mean[self._label] > lead:
                self._label = best
        self._time = time
        return self._mean, self._label


class LivePipeline:
    """Detector, tracker, network and smoothing for one stream of frames.

    Not safe to share between threads: one pipeline a stream. The recogniser may be shared.

    Attributes:
        smoothing: time constant of the mean over a face's probabilities, seconds. May be changed between frames.
        lead: by how much another emotion must lead before the label changes. May be changed between frames.
        timings: seconds that the last frame took in ``detect``, ``track``, ``recognise`` and ``smooth``.
    """

    def __init__(
        self, recognizer: EmotionRecognizer, *, smoothing: float = 0.15, lead: float = 0.1, detect_every: int = 1
    ) -> None:
        """Begin a stream.

        Args:
            recognizer: finds and recognises.
            smoothing: see the attribute.
            lead: see the attribute.
            detect_every: look for faces in every n-th frame only, and follow them in between.
        """
        self.recognizer = recognizer
        self.smoothing, self.lead = smoothing, lead
        self.timings = dict.fromkeys(("detect", "track", "recognise", "smooth"), 0.0)
        self._detect_every = detect_every
        self._grey: NDArray[np.uint8] | None = None
        self._time = 0.0
        self._faces: list[Face] = []
        self._tracker = Tracker()
        self._smoothers: dict[int, Smoother] = {}
        self._index = 0

    @classmethod
    def from_config(cls, recognizer: EmotionRecognizer, config: TrackingConfig) -> Self:
        """As the constructor, from the options of a command."""
        return cls(recognizer, smoothing=config.smoothing, lead=config.lead, detect_every=config.detect_every)

    def process(self, image: NDArray[np.uint8], time: float) -> FrameResult:
        """The faces of the next frame.

        Args:
            image: (H, W, 3) uint8, RGB.
            time: of the frame, seconds; not before that of the frame before.
        """
        self.timings = dict.fromkeys(self.timings, 0.0)
        faces = self._find(image, time)
        with self._timed("track"):
            tracks = self._tracker.update(faces, time)
        with self._timed("recognise"):
            raw = self.recognizer.recognize(image, faces)
        with self._timed("smooth"):
            known = self._tracker.numbers
            self._smoothers = {number: s for number, s in self._smoothers.items() if number in known}
            tracked = tuple(self._smoothed(*pair, time) for pair in zip(tracks, raw, strict=True))
        result = FrameResult(self._index, time, tracked)
        self._index += 1
        return result

    def _find(self, image: NDArray[np.uint8], time: float) -> list[Face]:
        """By the detector, or from the frame before where it is not its turn."""
        grey = None if self._detect_every == 1 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
        before, self._grey = self._grey, grey
        gap, self._time = time - self._time, time
        its_turn = self._index % self._detect_every == 0 or gap > FOLLOWED
        if not its_turn and grey is not None and before is not None and before.shape == grey.shape:
            with self._timed("track"):
                followed = follow(self._faces, before, grey)
            if followed is not None:
                self._faces = followed
                return followed
        with self._timed("detect"):
            self._faces = find_faces(image, self.recognizer.detector)
        return self._faces

    def _smoothed(self, track: int, raw: FacePrediction, time: float) -> TrackedFace:
        smoother = self._smoothers.setdefault(track, Smoother())
        row = np.fromiter(raw.probabilities.values(), np.float32)
        mean, label = smoother.update(row, time, smoothing=self.smoothing, lead=self.lead)
        values = dict(zip(EMOTIONS, mean.clip(0, 1).tolist(), strict=True))
        return TrackedFace(track, FacePrediction(raw.face, label, values[label], values), raw)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = clock.perf_counter()
        yield
        self.timings[stage] += clock.perf_counter() - start
