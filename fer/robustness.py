"""Faces as they should not be: corrupted as cameras and networks do it, and by an adversary who knows the weights."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from fer.config import Preprocessing
from fer.preprocessing import prepare

__all__ = ["CORRUPTIONS", "SEVERITIES", "attack", "corrupt", "subset"]

Faces = NDArray[np.uint8]

BATCH = 50


def _noise(face: Faces, deviation: float, random: np.random.Generator) -> NDArray[np.float64]:
    return face + random.normal(0, deviation, face.shape)


def _blur(face: Faces, deviation: float, _: np.random.Generator) -> Faces:
    return np.asarray(cv2.GaussianBlur(face, (0, 0), deviation * face.shape[1] / 48), np.uint8)


def _contrast(face: Faces, share: float, _: np.random.Generator) -> NDArray[np.float64]:
    mean = face.mean()
    return np.asarray(mean + share * (face - mean), np.float64)


def _jpeg(face: Faces, quality: float, _: np.random.Generator) -> Faces:
    encoded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    if decoded is None:
        raise RuntimeError("OpenCV cannot read the JPEG that it has written")
    return np.asarray(decoded, np.uint8)


def _occlusion(face: Faces, share: float, random: np.random.Generator) -> Faces:
    height, width = face.shape
    rows, columns = round(height * share**0.5), round(width * share**0.5)
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    covered = face.copy()
    covered[top : top + rows, left : left + columns] = round(float(face.mean()))
    return covered


#: Each corruption and what its three severities mean: deviation of Gaussian noise in grey levels of 255; deviation of a
#: Gaussian blur in pixels of a face of 48; share of the contrast that is left; JPEG quality; share of the face under a
#: square of its mean grey.
CORRUPTIONS: dict[str, tuple[Callable[..., NDArray[np.float64] | Faces], tuple[float, float, float]]] = {
    "noise": (_noise, (8, 16, 24)),
    "blur": (_blur, (0.7, 1.2, 1.8)),
    "contrast": (_contrast, (0.5, 0.3, 0.15)),
    "jpeg": (_jpeg, (40, 20, 10)),
    "occlusion": (_occlusion, (0.1, 0.2, 0.3)),
}
SEVERITIES = (1, 2, 3)


def corrupt(faces: Faces, corruption: str, severity: int) -> Faces:
    """Corrupted copies of faces, the same at every call.

    Args:
        faces: (N, H, W) uint8, grey.
        corruption: a name in :data:`CORRUPTIONS`.
        severity: 1, 2 or 3.

    Returns:
        (N, H, W) uint8.
    """
    change, levels = CORRUPTIONS[corruption]
    level = levels[severity - 1]
    changed = np.empty_like(faces)
    for i, face in enumerate(faces):
        values = change(face, level, np.random.default_rng((i, severity)))
        changed[i] = np.rint(values).clip(0, 255)
    return changed


def attack(
    model: nn.Module,
    faces: Faces,
    labels: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    epsilon: float,
    steps: int = 1,
    caption: str | None = None,
) -> NDArray[np.float32]:
    """Logits of faces whose pixels an adversary has changed by at most ``epsilon`` each, to raise the loss.

    One step is the fast gradient sign method (Goodfellow et al. 2015). More are projected gradient descent (Madry et
    al. 2018), which starts at a random point of the allowed cube and goes a quarter of epsilon a step, or further where
    there are fewer than four. The adversary knows the network, trunk and head, and changes the pixels
    that it sees: those of the face at the network's own size.

    Args:
        model: pixels prepared by :func:`fer.preprocessing.prepare` to logits, in evaluation mode.
        faces: (N, H, W) uint8, grey.
        labels: (N,), whose probability the adversary lowers.
        preprocessing: the model's.
        epsilon: in 0..1, the range of the pixels: 2/255 is two grey levels.
        steps: gradients taken.
        caption: of a progress bar; none without one.

    Returns:
        (N, 7) float32.
    """
    device = next(model.parameters()).device
    rows = []
    for start in tqdm(range(0, len(faces), BATCH), desc=caption, disable=None if caption else True, leave=False):
        part = slice(start, start + BATCH)
        grey = prepare(faces[part], preprocessing)[:, :1] * preprocessing.std + preprocessing.mean  # back to 0..1
        x = torch.from_numpy(grey).to(device)
        y = torch.from_numpy(labels[part]).to(device)
        rows.append(_attack(model, x, y, preprocessing, epsilon, steps))
    return np.concatenate(rows)


def _attack(
    model: nn.Module, x: Tensor, y: Tensor, preprocessing: Preprocessing, epsilon: float, steps: int
) -> NDArray[np.float32]:
    def logits(pixels: Tensor) -> Tensor:
        normalised = (pixels - preprocessing.mean) / preprocessing.std
        inputs = normalised.expand(-1, preprocessing.channels, -1, -1)
        return model(inputs.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    low, high = (x - epsilon).clamp_min(0), (x + epsilon).clamp_max(1)
    changed = x
    if steps > 1:
        random = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        changed = torch.lerp(low, high, random)
    step = epsilon * max(1 / steps, 0.25)
    for _ in range(steps):
        changed = changed.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(logits(changed), y, reduction="sum"), changed)
        changed = torch.clamp(changed.detach() + step * gradient.sign(), low, high)
    with torch.inference_mode():
        return np.asarray(logits(changed).float().cpu().numpy())


def subset(count: int, of: int) -> NDArray[np.int64]:
    """Indices of a fixed random choice of ``count`` of so many images, in order."""
    return np.sort(np.random.default_rng(0).permutation(of)[:count])
