"""Predictions on an image: boxes, labels and bars of probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.emotions import EMOTIONS

if TYPE_CHECKING:
    from fer.recognizer import FacePrediction

__all__ = ["draw_predictions", "draw_status"]

FONT = cv2.FONT_HERSHEY_SIMPLEX
Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

#: Height of a row of the bars, and width of their panel, for text of scale 1; the panel's share of black.
ROW, PANEL, SHADE = 34, 360, 0.6


def draw_predictions(
    image: NDArray[np.uint8], predictions: Sequence["FacePrediction"], *, bars: bool = True, names: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """A copy of an image with a box and a label around each face.

    Args:
        image: (H, W, 3) uint8, RGB.
        predictions: in pixels of that image.
        bars: also draw all seven probabilities beside each face that is tall enough, where they cover nothing else.
        names: what to call each face, at the head of its label.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    canvas = image.copy()
    scale = _scale(image)
    line = max(2, round(3 * scale))
    taken = [prediction.box for prediction in predictions]
    for prediction in predictions:
        x, y, width, height = prediction.box
        cv2.rectangle(canvas, (x, y), (x + width - 1, y + height - 1), prediction.emotion.color, line)
        if bars and (panel := _panel(prediction.box, taken, canvas.shape, scale)):
            taken.append(panel)
            _draw_bars(canvas, panel, prediction, scale)
    for prediction, name in zip(predictions, names or [""] * len(predictions), strict=True):  # above neighbours' boxes
        text = f"{name} {prediction.emotion.label} {prediction.confidence:.0%}".lstrip()
        _draw_text(canvas, text, prediction.box[:2], prediction.emotion.color, scale)
    return canvas


def draw_status(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A copy of an image with a line of text in its lower left corner.

    Args:
        image: (H, W, 3) uint8, RGB.
        text: short, and of ASCII characters, as OpenCV knows no others.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    canvas = image.copy()
    _draw_text(canvas, text, (0, canvas.shape[0]), (0, 0, 0), _scale(image))
    return canvas


def _scale(image: NDArray[np.uint8]) -> float:
    """Of the text: it grows with the image, and its capitals are never less than ten pixels high."""
    return max(0.5, sum(image.shape[:2]) / 2800)


def _draw_text(canvas: NDArray[np.uint8], text: str, corner: tuple[int, int], paper: Color, scale: float) -> None:
    """Text on paper whose lower left corner is there, or as near as the image's borders allow."""
    weight = max(1, round(2 * scale))
    (width, height), below = cv2.getTextSize(text, FONT, scale, weight)
    pad = round(6 * scale)
    width, height = width + 2 * pad, height + below + 2 * pad
    left = min(max(corner[0], 0), max(0, canvas.shape[1] - width))
    top = min(max(corner[1] - height, 0), max(0, canvas.shape[0] - height))
    cv2.rectangle(canvas, (left, top), (left + width - 1, top + height - 1), paper, cv2.FILLED)
    origin = (left + pad, top + height - pad - below)
    cv2.putText(canvas, text, origin, FONT, scale, _ink(paper), weight, cv2.LINE_AA)


def _draw_bars(canvas: NDArray[np.uint8], panel: Box, prediction: "FacePrediction", scale: float) -> None:
    left, top, width, height = panel
    region = canvas[top : top + height, left : left + width]
    region[:] = region * (1 - SHADE)
    row, pad = height // len(EMOTIONS), round(8 * scale)
    start, end = left + width * 2 // 5, left + width - pad
    for i, emotion in enumerate(EMOTIONS):
        middle = top + row * i + row // 2
        origin = (left + pad, middle + round(8 * scale))
        cv2.putText(
            canvas, emotion.label, origin, FONT, 0.8 * scale, (255, 255, 255), max(1, round(scale)), cv2.LINE_AA
        )
        length = round((end - start) * prediction.probabilities[emotion])
        if length:
            corners = (start, middle - row // 4), (start + length, middle + row // 4)
            cv2.rectangle(canvas, *corners, emotion.color, cv2.FILLED)


def _panel(box: Box, taken: Sequence[Box], shape: tuple[int, ...], scale: float) -> Box | None:
    """Where the bars of a face go: right or left of its box, or nowhere."""
    x, y, width, height = box
    size = round(PANEL * scale), round(ROW * scale) * len(EMOTIONS)
    if height < size[1] / 2:
        return None
    gap = round(6 * scale)
    top = min(max(y, 0), shape[0] - size[1])
    for left in (x + width + gap, x - gap - size[0]):
        panel = (left, top, *size)
        inside = left >= 0 and top >= 0 and left + size[0] <= shape[1]
        if inside and not any(_overlap(panel, other) for other in taken):
            return panel
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _ink(paper: Color) -> Color:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = paper
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)
