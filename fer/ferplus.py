"""What FER2013 would call a face, from the votes of FER+'s ten annotators (Barsoum et al. 2016)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

__all__ = ["expected_labels"]

_RIDGE = 1e-5


def expected_labels(votes: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Probabilities of a face's label given its votes.

    FER+'s annotators call much neutral that FER2013 calls sad, angry or afraid, so their votes themselves teach another
    convention than the one a model is examined by. Multinomial logistic regression from the votes to the labels keeps
    what the votes know of a face and gives each emotion as often as FER2013 does.

    Args:
        votes: (N, V) uint8, how many annotators chose each of V answers.
        labels: (N,) int64, 0..classes - 1, of the same faces, which it is fitted to.
        classes: number of labels.

    Returns:
        (N, classes) float32, rows sum to 1. Their mean is the frequency of each label.
    """
    totals = votes.sum(axis=1, keepdims=True, dtype=np.int64)
    shares = np.sqrt(votes / np.maximum(totals, 1))
    inputs = np.hstack([shares, np.ones_like(totals)])  # (N, V + 1), the last for the intercepts
    onehot = np.eye(classes)[labels]
    weights = np.zeros((inputs.shape[1], classes))

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = flat.reshape(weights.shape)
        log_p = log_softmax(inputs @ w, axis=1)
        loss = -(onehot * log_p).sum() / len(labels) + _RIDGE * (w[:-1] ** 2).sum()
        gradient = inputs.T @ (np.exp(log_p) - onehot) / len(labels)
        gradient[:-1] += 2 * _RIDGE * w[:-1]
        return float(loss), gradient.ravel()

    fitted = minimize(loss_and_gradient, weights.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    log_p = log_softmax(inputs @ fitted.x.reshape(weights.shape), axis=1)
    return np.asarray(np.exp(log_p), np.float32)
