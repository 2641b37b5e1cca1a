"""From face pixels to network input: the one way, shared by training, evaluation, live use and export.

numpy and OpenCV only, so that a machine without PyTorch prepares the very same numbers.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.config import Preprocessing, TestTimeAugmentation

__all__ = ["prepare", "resize_face", "views"]

#: Side of a crop of the ten-crop, as a share of the face's: 44 of 48 pixels, the usual choice on FER2013.
CROP = 44 / 48


def resize_face(face: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A face resized to ``size`` x ``size``: by area when it shrinks (no aliasing), linearly when it grows.

    Args:
        face: (H, W) or (H, W, 3) uint8.
        size: side of the result, pixels.
    """
    if face.shape[:2] == (size, size):
        return face
    shrinks = min(face.shape[:2]) > size
    resized = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def prepare(
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Faces as the network's input.

    Args:
        faces: grey faces, (H, W) uint8 each, of any size.
        preprocessing: size, channels and normalisation, as the checkpoint carries them.

    Returns:
        (B, channels, size, size) float32, normalised: ``(grey / 255 - mean) / std``.
    """
    size = preprocessing.size
    batch = np.empty((len(faces), 1, size, size), np.float32)
    for i, face in enumerate(faces):
        batch[i, 0] = resize_face(face, size)
    batch *= np.float32(1 / (255 * preprocessing.std))
    batch -= np.float32(preprocessing.mean / preprocessing.std)
    return np.repeat(batch, 3, axis=1) if preprocessing.channels == 3 else batch


def views(batch: NDArray[np.float32], tta: TestTimeAugmentation) -> Iterator[NDArray[np.float32]]:
    """The views of a prepared batch whose logits test-time augmentation averages.

    Args:
        batch: (B, C, S, S) float32 from :func:`prepare`.
        tta: ``none`` (the batch itself), ``flip`` (and its mirror image) or ``ten-crop`` (four corners and the centre,
            each enlarged to S again, and their mirror images).

    Yields:
        (B, C, S, S) float32, one at a time.
    """
    for crop in _crops(batch) if tta == "ten-crop" else (batch,):
        yield crop
        if tta != "none":
            yield np.ascontiguousarray(crop[..., ::-1])


def _crops(batch: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    size = batch.shape[-1]
    side = round(CROP * size)
    rest = size - side
    for top, left in ((0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)):
        crop = batch[..., top : top + side, left : left + side]
        planes = [cv2.resize(p, (size, size), interpolation=cv2.INTER_LINEAR) for p in crop.reshape(-1, side, side)]
        yield np.stack(planes).reshape(batch.shape).astype(np.float32, copy=False)
