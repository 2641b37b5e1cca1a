"""Faces through a trained network, whatever runs it: the one path of validation, evaluation and the recogniser.

numpy and OpenCV only, so that a machine without PyTorch answers the same.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer.config import Preprocessing, TestTimeAugmentation
from fer.preprocessing import prepare, views

__all__ = ["Classifier", "average_logits", "predict_probabilities", "softmax"]


class Classifier(Protocol):
    """A trained network and what its use needs; it may be called from several threads at once.

    :class:`fer.checkpoint.Checkpoint` runs in PyTorch, :class:`fer.onnx_runtime.OnnxCheckpoint` in ONNX Runtime.
    """

    @property
    def name(self) -> str:
        """The recipe's name."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How faces become its input."""
        ...

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax."""
        ...

    @property
    def metrics(self) -> dict[str, Any]:
        """Its figures as in metrics.json; empty where it was not evaluated."""
        ...

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 7) logits of faces from :func:`fer.preprocessing.prepare`, (B, C, S, S)."""
        ...


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities, (N, K), of logits, (N, K), divided by the temperature (Guo et al. 2017)."""
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def average_logits(
    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    preprocessing: Preprocessing,
    *,
    tta: TestTimeAugmentation = "none",
    batch_size: int = 64,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """Logits of faces, averaged over the views of test-time augmentation.

    Args:
        forward: (B, C, S, S) float32 to (B, 7) logits.
        faces: grey, (H, W) uint8 each, of any size.
        preprocessing: what the network was trained with.
        tta: see :func:`fer.preprocessing.views`.
        batch_size: faces at a time.
        progress: caption of a progress bar; none without one.

    Returns:
        (N, 7) float32, in the order of the faces.
    """
    rows = [np.empty((0, 7), np.float32)]
    starts: Iterable[int] = range(0, len(faces), batch_size)
    if progress is not None:
        from tqdm import tqdm

        starts = tqdm(starts, desc=progress, disable=None, unit_scale=batch_size, unit="img", leave=False)
    for start in starts:
        batch = prepare(faces[start : start + batch_size], preprocessing)
        rows.append(np.mean([forward(view) for view in views(batch, tta)], axis=0, dtype=np.float32))
    return np.concatenate(rows)


def predict_probabilities(
    classifier: Classifier,
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    *,
    tta: TestTimeAugmentation = "none",
    batch_size: int = 64,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """Calibrated probabilities of faces, (N, 7) float32; the arguments are those of :func:`average_logits`."""
    logits = average_logits(
        classifier.logits, faces, classifier.preprocessing, tta=tta, batch_size=batch_size, progress=progress
    )
    return softmax(logits, classifier.temperature)
