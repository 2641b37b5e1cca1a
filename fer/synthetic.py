"""Schematic faces of the seven expressions, for a first run, for tests, and for whoever has no FER2013 yet."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.emotions import Emotion

__all__ = ["draw_face", "draw_faces"]

SIDE = 48
CANVAS = 4 * SIDE  # drawn large and shrunk, so that lines are smooth
BOX = (CANVAS, CANVAS)
SHIFT = 4  # binary places of OpenCV's fixed-point coordinates

Point = tuple[float, float]


@dataclass(frozen=True)
class _Expression:
    """What moves in a face, by the action units of Ekman and Friesen's FACS (1978); 0 is the face at rest."""

    inner_brow: float = 0.0  # up is positive: AU1 raises, AU4 lowers and draws together
    outer_brow: float = 0.0  # AU2 raises
    eyes: float = 0.0  # AU5 opens wide, AU7 narrows
    corners: float = 0.0  # of the mouth: AU12 raises, AU15 lowers
    jaw: float = 0.0  # AU26, AU27 open the mouth
    width: float = 0.0  # of the mouth: AU20 stretches, AU23 tightens
    nose: float = 0.0  # AU9 wrinkles the nose and AU10 raises the upper lip


REST = _Expression()
EXPRESSIONS: dict[Emotion, _Expression] = {
    Emotion.ANGRY: _Expression(inner_brow=-1.0, outer_brow=0.3, eyes=-0.3, corners=-0.3, width=-0.3),
    Emotion.DISGUST: _Expression(inner_brow=-0.6, outer_brow=-0.3, eyes=-0.6, corners=-0.5, jaw=0.1, nose=1.0),
    Emotion.FEAR: _Expression(inner_brow=1.0, outer_brow=0.2, eyes=0.7, corners=-0.4, jaw=0.35, width=0.4),
    Emotion.HAPPY: _Expression(outer_brow=0.2, eyes=-0.3, corners=1.0, jaw=0.3, width=0.4),
    Emotion.SAD: _Expression(inner_brow=0.9, outer_brow=-0.6, eyes=-0.4, corners=-0.9, width=-0.2),
    Emotion.SURPRISE: _Expression(inner_brow=0.9, outer_brow=1.0, eyes=0.9, jaw=1.0, width=-0.5),
    Emotion.NEUTRAL: REST,
}


def draw_faces(labels: Sequence[int] | NDArray[np.int64], seed: int | Sequence[int]) -> NDArray[np.uint8]:
    """One face for each label, the same ones for the same seed.

    Args:
        labels: (N,) values of :class:`fer.emotions.Emotion`.
        seed: of NumPy's generator.

    Returns:
        (N, 48, 48) uint8, grey.
    """
    rng = np.random.default_rng(seed)
    return np.stack([draw_face(Emotion(label), rng) for label in labels])


def draw_face(emotion: Emotion, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A face whose person, strength of expression, pose, light and noise are drawn from ``rng``.

    Returns:
        (48, 48) uint8, grey.
    """
    # The expression is more or less strong and never quite regular, so that weak ones overlap, as in life.
    strength = rng.uniform(0.25, 1.1)
    face = _Expression(*(strength * np.array(astuple(EXPRESSIONS[emotion])) + rng.normal(0, 0.15, 7)))
    background, skin = rng.uniform(20, 235), rng.uniform(110, 220)
    upright = _draw(face, rng, background, skin)  # (192, 192)

    turn_and_scale = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), rng.normal(0, 8), rng.uniform(0.85, 1.15))
    shift = np.array([[0, 0, rng.uniform(-10, 10)], [0, 0, rng.uniform(-10, 10)]])
    posed = cv2.warpAffine(upright, turn_and_scale + shift, BOX, flags=cv2.INTER_LINEAR, borderValue=background)
    small = cv2.resize(posed, (SIDE, SIDE), interpolation=cv2.INTER_AREA)  # (192, 192) -> (48, 48)

    (down, right), ramp = rng.normal(0, 0.25, 2), np.linspace(-1, 1, SIDE)  # light from one side
    lit = small * (1 + down * ramp[:, None] + right * ramp)
    seen = 128 + rng.uniform(0.5, 1.1) * (lit - 128) + rng.uniform(-30, 30)
    noise = rng.normal(0, rng.uniform(1, 12), seen.shape)
    return np.asarray((seen + noise).clip(0, 255), np.uint8)


def _draw(face: _Expression, rng: np.random.Generator, background: float, skin: float) -> NDArray[np.uint8]:
    """The face upright on the canvas. Points are (to the right of the middle, down from the top), in pixels of it."""
    image = np.full(BOX, background, np.uint8)
    ink, line = rng.uniform(10, 70), int(rng.integers(3, 8))
    width, apart = rng.uniform(58, 72), rng.uniform(25, 32)
    brow, eye, mouth = rng.uniform(62, 70), rng.uniform(80, 86), rng.uniform(134, 142)

    _ellipse(image, (0, 96), (width * 1.06, 88), rng.uniform(10, 200))  # hair
    _ellipse(image, (0, 104), (width, 80), skin)

    opening = max(1.5, 8 + 6 * face.eyes)
    near = apart - 15 + 5 * min(face.inner_brow, 0)  # lowered brows also draw together
    inner, outer = brow - 11 * face.inner_brow, brow - 9 * face.outer_brow
    for side in (-1, 1):
        _ellipse(image, (side * apart, eye), (14, opening), min(255, skin + 50))
        _ellipse(image, (side * apart, eye), (min(6, opening), min(6, opening)), ink)
        lid = [(apart - 15, eye), (apart, eye - 2 * opening), (apart + 15, eye)]
        _curve(image, lid, ink, 2, side)
        _curve(image, [(near, inner), (apart, (inner + outer) / 2 - 6), (apart + 18, outer)], ink, line, side)
        if face.nose > 0.25:  # wrinkles beside it, folds from it to the mouth
            _curve(image, [(4, 96), (12, 102), (13, 108)], ink, 2, side)
            _curve(image, [(14, 114), (26, 118), (34, 134)], ink, 2, side)

    tip = 114 - 4 * max(face.nose, 0)
    _curve(image, [(-9, tip), (0, tip + 7), (9, tip)], ink, 3)

    half, corner = 25 + 9 * face.width, mouth - 13 * face.corners
    upper = mouth + 4 * face.corners - 10 * max(face.nose, 0) - 8 * max(face.jaw, 0)
    lower = mouth + 4 * face.corners + 34 * max(face.jaw, 0)
    lips = [_bezier([(-half, corner), (0, 2 * y - corner), (half, corner)]) for y in (upper, lower)]
    outline = np.concatenate([lips[0], lips[1][::-1]])
    cv2.fillPoly(image, [outline], ink + 10, cv2.LINE_AA, SHIFT)
    cv2.polylines(image, [outline], True, ink, line, cv2.LINE_AA, SHIFT)
    return image


def _ellipse(image: NDArray[np.uint8], centre: Point, radii: Point, grey: float) -> None:
    x, y, a, b = (round(v * 2**SHIFT) for v in (centre[0] + CANVAS / 2, centre[1], *radii))
    cv2.ellipse(image, (x, y), (a, b), 0, 0, 360, grey, cv2.FILLED, cv2.LINE_AA, SHIFT)


def _curve(image: NDArray[np.uint8], points: Sequence[Point], grey: float, thickness: int, side: int = 1) -> None:
    cv2.polylines(image, [_bezier(points, side)], False, grey, thickness, cv2.LINE_AA, SHIFT)


def _bezier(points: Sequence[Point], side: int = 1) -> NDArray[np.int32]:
    """A quadratic Bezier curve as (17, 2) points of the canvas in fixed point; side -1 mirrors it."""
    t = np.linspace(0, 1, 17)[:, None]
    start, control, end = np.array(points) * (side, 1) + (CANVAS / 2, 0)
    return np.asarray(2**SHIFT * ((1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end), np.int32)
