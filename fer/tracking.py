"""Which face is whose from frame to frame.

Sixty lines of our own: each track moves on at constant velocity, and SciPy's Hungarian method gives the faces of a
frame to the tracks so that the sum of distances, in units of a face's size, is least. The trackers on PyPI (norfair,
motpy, supervision's ByteTrack) do the same from boxes alone, but count in frames where a live camera needs seconds, and
each brings a Kalman filter's package or a whole toolbox along.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fer.faces import Face

__all__ = ["Tracker", "follow"]

#: Seconds for which a face that is out of sight keeps its identity.
MEMORY = 1.0
#: Seconds over which position and velocity are averaged.
STEADINESS = 0.08
#: How far a face may be from where its track is expected, in face sizes; and how much farther for each second unseen.
REACH, REACH_GROWTH = 0.7, 2.0
#: Most by which the size of a face may change between two sights of it, as a factor.
GROWTH = 2.5
#: How far from where it began a point may end that is followed to the next frame and back, in face heights.
STRAY = 0.05


@dataclass
class _Track:
    number: int
    face: Face  # as last seen
    time: float
    x: float  # filtered centre, pixels
    y: float
    vx: float = 0.0  # pixels a second
    vy: float = 0.0

    def at(self, time: float) -> tuple[float, float]:
        return self.x + self.vx * (time - self.time), self.y + self.vy * (time - self.time)

    def see(self, face: Face, time: float) -> None:
        step = max(time - self.time, 1e-3)
        # The critically damped g-h filter (Brookner 1998, section 1.3), its gains from the time that has really passed.
        theta = math.exp(-step / STEADINESS)
        (x, y), (seen_x, seen_y) = self.at(time), _centre(face)
        self.x, self.y = x + (1 - theta**2) * (seen_x - x), y + (1 - theta**2) * (seen_y - y)
        self.vx += (1 - theta) ** 2 / step * (seen_x - x)
        self.vy += (1 - theta) ** 2 / step * (seen_y - y)
        self.face, self.time = face, time


class Tracker:
    """Identities of faces over time, through crossings and occlusions of up to a second.

    Not safe to share between threads: one tracker a stream.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._count = 0
        self._time = 0.0

    @property
    def numbers(self) -> set[int]:
        """Of the tracks that may still be taken up again; all others are gone for good."""
        return {track.number for track in self._tracks}

    def update(self, faces: Sequence[Face], time: float) -> list[int]:
        """Number the faces of a frame.

        Args:
            faces: in pixels; all frames of a stream have one size.
            time: of the frame, seconds; not before that of the last call.

        Returns:
            The track of each face, in order; tracks count from 1 and a number is never used again.
        """
        # Who was in the last frame is not out of sight, however long ago that was (screen recordings).
        self._tracks = [t for t in self._tracks if time - t.time <= MEMORY or t.time == self._time]
        self._time = time
        found: dict[int, _Track] = {}
        if self._tracks and faces:
            cost = np.array([[_cost(track, face, time) for track in self._tracks] for face in faces])
            # A forbidden pair must cost more than any number of allowed ones.
            pairs = linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e6))
            found = {f: self._tracks[t] for f, t in zip(*pairs, strict=True) if np.isfinite(cost[f, t])}
        for i, face in enumerate(faces):
            if i in found:
                found[i].see(face, time)
            else:
                self._count += 1
                found[i] = _Track(self._count, face, time, *_centre(face))
                self._tracks.append(found[i])
        return [found[i].number for i in range(len(faces))]


def follow(faces: Sequence[Face], before: NDArray[np.uint8], after: NDArray[np.uint8]) -> list[Face] | None:
    """Faces of a frame as they lie in the next one, without a detector: in a tenth of its time.

    Their landmarks are followed by optical flow (Lucas and Kanade 1981, on pyramids), which over a few frames stays
    within a hundredth of a face's height of where the detector finds them (benchmarks/following.py).

    Args:
        faces: in the first frame, in pixels.
        before: the first frame, (H, W) uint8, grey.
        after: the next, of the same size.

    Returns:
        Each face moved, scaled and with its landmarks; None where one was lost, as at a cut: look for them anew.
    """
    if not faces:
        return []
    points = np.array([_points(face) for face in faces], np.float32)  # (F, 5, 2)
    flown, there = _flow(before, after, points)
    returned, back = _flow(after, before, flown)
    strayed = np.hypot(*np.moveaxis(returned - points, -1, 0)) / [[face.height] for face in faces]  # (F, 5)
    good = there & back & (strayed < STRAY)
    moved = [
        _moved(face, old[kept], new[kept]) for face, old, new, kept in zip(faces, points, flown, good, strict=True)
    ]
    return None if None in moved else [face for face in moved if face]


def _flow(
    before: NDArray[np.uint8], after: NDArray[np.uint8], points: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where points, (F, 5, 2), of one frame are in another, and which were found there, (F, 5)."""
    flown, good, _ = cv2.calcOpticalFlowPyrLK(  # type: ignore[call-overload]  # its stubs know no None
        before, after, points.reshape(-1, 1, 2), None, winSize=(21, 21), maxLevel=2
    )
    return flown.reshape(points.shape), good.reshape(points.shape[:2]).astype(bool)


def _points(face: Face) -> tuple[tuple[float, float], ...]:
    if face.landmarks is not None:
        return face.landmarks
    (x, y), dx, dy = _centre(face), face.width / 4, face.height / 4
    return (x, y), (x - dx, y - dy), (x + dx, y - dy), (x - dx, y + dy), (x + dx, y + dy)


def _moved(face: Face, before: NDArray[np.float32], after: NDArray[np.float32]) -> Face | None:
    """The face under the shift, turn and scale that lead from points (N, 2) to others; None where none do."""
    matrix = cv2.estimateAffinePartial2D(before, after)[0] if len(before) >= 3 else None
    if matrix is None or not (1 / GROWTH < (scale := float(np.hypot(matrix[0, 0], matrix[1, 0]))) < GROWTH):
        return None
    (x, y), *landmarks = np.array((_centre(face), *(face.landmarks or ()))) @ matrix[:, :2].T + matrix[:, 2]
    width, height = face.width * scale, face.height * scale
    points = tuple((float(px), float(py)) for px, py in landmarks) or None
    return replace(face, x=x - width / 2, y=y - height / 2, width=width, height=height, landmarks=points)


def _centre(face: Face) -> tuple[float, float]:
    return face.x + face.width / 2, face.y + face.height / 2


def _cost(track: _Track, face: Face, time: float) -> float:
    """Distance in face sizes; infinite where it cannot be the same face."""
    before, now = (math.sqrt(f.width * f.height) for f in (track.face, face))
    distance = math.dist(track.at(time), _centre(face)) / ((before + now) / 2)
    growth = abs(math.log(now / before))
    unseen = time - track.time
    if distance > REACH + REACH_GROWTH * unseen or growth > math.log(GROWTH):
        return math.inf
    return distance + growth + unseen  # between a face just seen and one long unseen, the former is likelier
