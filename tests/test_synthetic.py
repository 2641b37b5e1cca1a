import numpy as np
import torch
from torch import nn

from fer.dataset import Split, load
from fer.synthetic import draw_faces


def tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = (split.images[:, None] / 255 - 0.5).astype(np.float32)  # (N, 1, 48, 48)
    return torch.from_numpy(pixels), torch.from_numpy(split.labels)


def test_the_same_seed_draws_the_same_faces():
    """Else two runs on synthetic data could not be compared, and a resumed run would find other data."""
    labels = np.arange(14) % 7
    first = draw_faces(labels, seed=3)
    assert first.shape == (14, 48, 48)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw_faces(labels, seed=3))
    assert not np.array_equal(first, draw_faces(labels, seed=4))


def test_synthetic_data_has_all_three_splits_balanced_and_without_leaks(synthetic):
    """Else `--data synthetic` would not stand in for FER2013 in training and evaluation."""
    assert synthetic.name == "synthetic"
    assert {name: len(split) for name, split in synthetic.splits.items()} == {"train": 2100, "val": 350, "test": 350}
    for split in synthetic.splits.values():
        assert np.bincount(split.labels).tolist() == [len(split) // 7] * 7
        assert split.votes is None
        assert not split.leaked.any()
        assert not split.copies.any()
    assert load("synthetic").digest == synthetic.digest


def test_a_small_network_learns_the_expressions_but_not_all_of_them_in_one_epoch(synthetic):
    """Else a newcomer's first run would say nothing: chance, or perfect whatever is wrong with the model."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in ((1, 16), (16, 32), (32, 64))
    ]
    model = nn.Sequential(*stages, nn.Flatten(), nn.Linear(64 * 6 * 6, 7))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    faces, labels = tensors(synthetic.split("train"))
    for rows in torch.randperm(len(labels)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(faces[rows]), labels[rows]).backward()
        optimizer.step()
    model.eval()
    faces, labels = tensors(synthetic.split("val"))
    with torch.no_grad():
        accuracy = (model(faces).argmax(dim=1) == labels).float().mean().item()
    assert 0.35 < accuracy < 0.9
