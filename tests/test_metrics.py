import numpy as np
import pytest

from fer.inference import softmax
from fer.metrics import fit_temperature, reliability, summarize


def draw(count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, (N, 7), and labels drawn from their own softmax: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (count, 7)).astype(np.float32)
    labels = (softmax(logits).cumsum(1) > rng.random((count, 1))).argmax(1)
    return logits, labels


def ece_by_hand(probabilities: np.ndarray, labels: np.ndarray) -> float:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def test_every_figure_agrees_with_its_definition():
    """Else what the model cards state would be something else than they say."""
    logits, labels = draw(500, 1.5)
    probabilities = softmax(logits * 1.7)
    leaked = np.arange(500) % 10 == 0
    report = summarize(probabilities, labels, leaked)
    predicted = probabilities.argmax(1)

    assert report["n"] == 500
    assert report["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert report["leak_free_accuracy"] == pytest.approx(np.mean(predicted[~leaked] == labels[~leaked]))
    assert report["nll"] == pytest.approx(-np.log(probabilities[np.arange(500), labels]).mean(), rel=1e-5)
    assert report["ece"] == pytest.approx(ece_by_hand(probabilities, labels), abs=1e-5)
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (labels, predicted), 1)  # a row for each label
    assert report["confusion"] == confusion.tolist()
    f1 = []
    for i, (name, row) in enumerate(report["per_class"].items()):
        hit = confusion[i, i]
        precision, recall = hit / confusion[:, i].sum(), hit / confusion[i].sum()
        f1.append(2 * precision * recall / (precision + recall))
        assert row["precision"] == pytest.approx(precision), name
        assert row["recall"] == pytest.approx(recall), name
        assert row["f1"] == pytest.approx(f1[-1]), name
        assert row["support"] == confusion[i].sum()
    assert list(report["per_class"])[3] == "happy"
    assert report["macro_f1"] == pytest.approx(np.mean(f1))


def test_without_training_images_there_is_no_leak_free_figure():
    """Else a figure would be called leak-free that nobody could check."""
    logits, labels = draw(50, 1.0)
    assert "leak_free_accuracy" not in summarize(softmax(logits), labels)


def test_a_class_that_nobody_names_counts_as_zero():
    """Else one never-predicted class would make the report fail, or not a number."""
    labels = np.arange(7).repeat(3)
    probabilities = np.full((21, 7), 0.05, np.float32)
    probabilities[:, 6] = 0.7
    report = summarize(probabilities, labels)
    assert report["per_class"]["disgust"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 3}
    assert report["macro_f1"] == pytest.approx((2 * (1 / 7) / (1 + 1 / 7)) / 7, rel=1e-5)


def test_a_sure_and_wrong_answer_costs_much_but_not_infinitely():
    """Else metrics.json would hold Infinity, which is no JSON."""
    report = summarize(np.eye(7, dtype=np.float32), (np.arange(7) + 1) % 7)
    assert 20 < report["nll"] < 100
    assert report["accuracy"] == 0.0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_again(temperature):
    """Else confidences would stay too high or too low after calibration."""
    logits, labels = draw(20_000, 2.0)
    assert fit_temperature(logits * np.float32(temperature), labels) == pytest.approx(temperature, rel=0.05)


def test_faultless_logits_have_a_temperature_too():
    """Else a model that is always right could not be finished."""
    labels = np.arange(70) % 7
    temperature = fit_temperature(np.eye(7, dtype=np.float32)[labels] * 10, labels)
    assert 0 < temperature <= 1
    assert np.isfinite(softmax(np.eye(7, dtype=np.float32) * 10, temperature)).all()


def test_calibrated_answers_have_a_small_calibration_error_and_overconfident_ones_a_large():
    """Else ECE would not tell the two apart."""
    logits, labels = draw(20_000, 2.0)
    assert summarize(softmax(logits), labels)["ece"] < 0.015
    assert summarize(softmax(logits * 3), labels)["ece"] > 0.1
    assert summarize(softmax(logits * 3, 3.0), labels)["ece"] < 0.015


def test_the_reliability_diagram_is_what_the_calibration_error_sums_up():
    """Else the plot beside the figure would show something else."""
    logits, labels = draw(2000, 2.0)
    probabilities = softmax(logits * 2)
    confidence, accuracy, count = reliability(probabilities, labels)
    assert confidence.shape == accuracy.shape == count.shape == (15,)
    assert count.sum() == 2000
    assert count[0] == 0  # of seven, the largest is at least 1/7
    assert np.isnan(confidence[0])
    assert np.isnan(accuracy[0])
    filled = count > 0
    assert ((confidence[filled] * 15).astype(int) == np.flatnonzero(filled)).all()
    total = (count[filled] * np.abs(confidence - accuracy)[filled]).sum() / 2000
    assert total == pytest.approx(summarize(probabilities, labels)["ece"], abs=1e-5)
    assert reliability(np.eye(7, dtype=np.float32), np.arange(7))[2][-1] == 7
