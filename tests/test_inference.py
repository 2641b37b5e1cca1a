from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fer.checkpoint import Checkpoint
from fer.config import Config, ModelConfig, Preprocessing, TrainConfig
from fer.inference import predict_logits, predict_probabilities, softmax
from fer.models import create_model
from fer.preprocessing import prepare, views

CONFIG = ModelConfig(trunk="guide-cnn", rank=5, preprocessing=Preprocessing(size=32))
FACES = np.random.default_rng(0).integers(0, 256, (10, 48, 48), np.uint8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model(CONFIG).eval()


def by_hand(model: nn.Module, tta: str) -> np.ndarray:
    with torch.no_grad():
        batch = prepare(FACES, CONFIG.preprocessing)
        return np.mean([model(torch.from_numpy(view)).numpy() for view in views(batch, tta)], axis=0)


@pytest.mark.parametrize("tta", ["none", "flip", "ten-crop"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_logits_are_averaged_over_views_and_do_not_depend_on_the_batch(model, tta, batch_size):
    """Else a face's answer would depend on the faces beside it."""
    logits = predict_logits(model, FACES, CONFIG.preprocessing, tta=tta, batch_size=batch_size)
    assert logits.shape == (10, 7)
    assert logits.dtype == np.float32
    assert logits == pytest.approx(by_hand(model, tta), abs=1e-5)


def test_no_face_gives_no_row(model):
    """Else a photograph without a face would end in a traceback."""
    assert predict_logits(model, [], CONFIG.preprocessing).shape == (0, 7)
    assert predict_logits(model, [], CONFIG.preprocessing, progress="none").shape == (0, 7)


def test_a_model_can_go_on_learning_after_it_was_used():
    """Else validation between two epochs would spoil the training (inference tensors cannot be trained)."""
    model = create_model(CONFIG).eval()
    first = predict_logits(model, FACES, CONFIG.preprocessing)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = model(torch.from_numpy(prepare(FACES, CONFIG.preprocessing))).logsumexp(1).sum()
    loss.backward()
    optimizer.step()
    second = predict_logits(model.eval(), FACES, CONFIG.preprocessing)
    assert np.abs(first - second).max() > 1e-3
    assert second == pytest.approx(by_hand(model, "none"), abs=1e-5)


def test_softmax_divides_by_the_temperature_and_stands_large_logits():
    """Else probabilities would be uncalibrated, or not numbers."""
    logits = np.array([[1.0, 2, 3], [1000, 0, -1000]], np.float32)
    expected = np.exp([0.5, 1, 1.5]) / np.exp([0.5, 1, 1.5]).sum()
    probabilities = softmax(logits, temperature=2.0)
    assert probabilities.dtype == np.float32
    assert probabilities[0] == pytest.approx(expected, abs=1e-6)
    assert probabilities[1] == pytest.approx([1, 0, 0], abs=1e-6)


def test_a_checkpoints_temperature_is_used(model):
    """Else what the web page shows would be less sure than it says."""
    config = Config("tiny", CONFIG, TrainConfig())
    logits = predict_logits(model, FACES, CONFIG.preprocessing, tta="flip")
    for temperature in (1.0, 0.01):
        checkpoint = Checkpoint("tiny", config, model, temperature, Path())
        probabilities = predict_probabilities(checkpoint, FACES, tta="flip")
        assert probabilities == pytest.approx(softmax(logits, temperature), abs=1e-5)
        assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)
