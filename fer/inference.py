"""Faces through a network, in batches: the one path for validation, evaluation and the recogniser."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from fer.config import Preprocessing, TestTimeAugmentation
from fer.preprocessing import prepare, views

if TYPE_CHECKING:
    from fer.checkpoint import Checkpoint

__all__ = ["predict_logits", "predict_probabilities", "softmax"]


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities, (N, K), of logits, (N, K), divided by the temperature (Guo et al. 2017)."""
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    preprocessing: Preprocessing,
    *,
    tta: TestTimeAugmentation = "none",
    batch_size: int = 64,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """Logits of faces, averaged over the views of test-time augmentation.

    Args:
        model: in evaluation mode; runs on the device where it is.
        faces: grey, (H, W) uint8 each, of any size.
        preprocessing: what the model was trained with.
        tta: see :func:`fer.preprocessing.views`.
        batch_size: faces at a time.
        progress: caption of a progress bar; none without one.

    Returns:
        (N, K) float32, in the order of the faces.
    """
    device = next(model.parameters()).device
    rows = [np.empty((0, 7), np.float32)]
    starts = range(0, len(faces), batch_size)
    hidden = None if progress else True  # None: shown in a terminal
    for start in tqdm(starts, desc=progress, disable=hidden, unit_scale=batch_size, unit="img", leave=False):
        batch = prepare(faces[start : start + batch_size], preprocessing)
        logits = [_forward(model, view, device) for view in views(batch, tta)]
        rows.append(np.mean(logits, axis=0, dtype=np.float32))
    return np.concatenate(rows)


def _forward(model: nn.Module, view: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    x = torch.from_numpy(view).to(device, memory_format=torch.channels_last)
    return np.asarray(model(x).float().cpu().numpy())


def predict_probabilities(
    checkpoint: "Checkpoint",
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    *,
    tta: TestTimeAugmentation = "none",
    batch_size: int = 64,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """Calibrated probabilities of faces, (N, 7) float32; the arguments are those of :func:`predict_logits`."""
    logits = predict_logits(
        checkpoint.model,
        faces,
        checkpoint.config.model.preprocessing,
        tta=tta,
        batch_size=batch_size,
        progress=progress,
    )
    return softmax(logits, checkpoint.temperature)
