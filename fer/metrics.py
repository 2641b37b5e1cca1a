"""What predictions are worth: accuracy, macro-F1, calibration. Pure functions over probabilities, by torchmetrics."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional import classification as tm

from fer.emotions import EMOTIONS

__all__ = ["fit_temperature", "reliability", "summarize"]

CLASSES = len(EMOTIONS)
#: Bins of confidence for the calibration error and the reliability diagram (Guo et al. 2017 use 15).
BINS = 15


def summarize(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], leaked: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """All figures of an evaluation.

    Args:
        probabilities: (N, 7), rows sum to 1.
        labels: (N,), 0..6.
        leaked: (N,) marks of the images that have a copy in Training; None where Training is not at hand.

    Returns:
        ``n``, ``accuracy``, ``leak_free_accuracy`` (if ``leaked`` is given), ``macro_f1``, ``nll`` (nats), ``ece`` (15
        bins, L1), ``per_class`` (precision, recall, f1 and support by name) and ``confusion`` (rows are the labels,
        columns the predictions, both in the order of :class:`fer.Emotion`). Shares are in 0..1.
    """
    p, y = torch.from_numpy(probabilities), torch.from_numpy(labels)
    right = probabilities.argmax(1) == labels
    report: dict[str, Any] = {"n": len(labels), "accuracy": float(right.mean())}
    if leaked is not None:
        report["leak_free_accuracy"] = float(right[~leaked].mean())
    report["macro_f1"] = tm.multiclass_f1_score(p, y, CLASSES, average="macro").item()
    report["nll"] = -p.clamp_min(1e-12).log()[torch.arange(len(y)), y].mean().item()
    report["ece"] = tm.multiclass_calibration_error(p, y, CLASSES, n_bins=BINS).item()
    scores = {
        "precision": tm.multiclass_precision(p, y, CLASSES, average="none"),
        "recall": tm.multiclass_recall(p, y, CLASSES, average="none"),
        "f1": tm.multiclass_f1_score(p, y, CLASSES, average="none"),
    }
    support = np.bincount(labels, minlength=CLASSES)
    report["per_class"] = {
        e.label: {name: values[e].item() for name, values in scores.items()} | {"support": int(support[e])}
        for e in EMOTIONS
    }
    report["confusion"] = tm.multiclass_confusion_matrix(p, y, CLASSES).tolist()
    return report


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature that minimises the negative log-likelihood of softmax(logits / T) (Guo et al. 2017, eq. 9).

    Args:
        logits: (N, K).
        labels: (N,).
    """
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x / log_t.exp(), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp())


def reliability(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Points of a reliability diagram.

    Args:
        probabilities: (N, K).
        labels: (N,).

    Returns:
        For each of the 15 bins of confidence, each (15,): mean confidence, accuracy (both NaN where the bin is empty)
        and number of predictions.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=values, minlength=BINS) / count for values in (confidence, right)]
    return means[0], means[1], count
