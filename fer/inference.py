"""Faces through a PyTorch module."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer.classifier import average_logits, predict_probabilities, softmax
from fer.config import Preprocessing, TestTimeAugmentation

__all__ = ["forward", "predict_logits", "predict_probabilities", "softmax"]


@torch.inference_mode()
def forward(model: nn.Module, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits, (B, K) float32, of prepared faces, (B, C, S, S), on the device where the model is."""
    device = next(model.parameters()).device
    x = torch.from_numpy(batch).to(device, memory_format=torch.channels_last)
    return np.asarray(model(x).float().cpu().numpy())


def predict_logits(
    model: nn.Module,
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    preprocessing: Preprocessing,
    *,
    tta: TestTimeAugmentation = "none",
    batch_size: int = 64,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """As :func:`fer.classifier.average_logits`, with a model in evaluation mode."""
    return average_logits(
        partial(forward, model), faces, preprocessing, tta=tta, batch_size=batch_size, progress=progress
    )
