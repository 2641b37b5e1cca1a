import numpy as np
import pytest
import torch
from torch import nn

from fer.config import Preprocessing
from fer.dataset import Dataset
from fer.preprocessing import prepare
from fer.robustness import CORRUPTIONS, SEVERITIES, attack, corrupt, subset


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_repeatable_and_grows_with_severity(synthetic: Dataset, name: str) -> None:
    """Else two heads would be measured on different images, or a "hard" figure be easier than a "mild" one."""
    faces = synthetic.split("val").images[:40]
    before = faces.copy()
    changed = [corrupt(faces, name, severity) for severity in SEVERITIES]
    assert np.array_equal(faces, before)
    for copy, severity in zip(changed, SEVERITIES, strict=True):
        assert copy.dtype == np.uint8
        assert copy.shape == faces.shape
        assert np.array_equal(copy, corrupt(faces, name, severity))
        assert np.array_equal(copy[30:], corrupt(faces, name, severity)[30:])
    strays = [np.abs(copy.astype(float) - faces).mean() for copy in changed]
    assert 0 < strays[0] < strays[1] < strays[2] < 64


def test_a_corruption_is_what_its_name_says() -> None:
    """A table that says noise has to have measured noise, of the deviation that it states."""
    flat = np.full((20, 48, 48), 128, np.uint8)
    assert corrupt(flat, "noise", 2).std() == pytest.approx(16, rel=0.02)
    ramp = np.tile(np.arange(48, dtype=np.uint8) * 5, (1, 48, 1))
    assert corrupt(ramp, "contrast", 1).std() == pytest.approx(ramp.std() / 2, rel=0.02)
    edge = np.zeros((1, 48, 48), np.uint8)
    edge[..., 24:] = 200
    steps = [np.diff(corrupt(edge, "blur", severity)[0, 24].astype(int)).max() for severity in SEVERITIES]
    assert 200 > steps[0] > steps[1] > steps[2]
    dots = np.where(np.indices((48, 48)).sum(0) % 2, 90, 110).astype(np.uint8)[None]  # no pixel has the mean's grey
    assert (corrupt(dots, "occlusion", 3) == 100).mean() == pytest.approx(0.3, abs=0.02)


@pytest.fixture
def linear() -> nn.Module:
    """Small enough that its worst perturbation is known in closed form, once two classes are left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 2)).double().eval().requires_grad_(False)
    return nn.Sequential(AsDouble(), model)


class AsDouble(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


@pytest.mark.parametrize("steps", [1, 10])
def test_an_attack_finds_the_worst_pixels_of_a_linear_model(linear: nn.Module, steps: int) -> None:
    """An attack that falls short makes every model look robust. Here its optimum is known: eps times the L1 norm."""
    p = Preprocessing(size=16, mean=0.4, std=0.2)
    faces = np.random.default_rng(0).integers(60, 190, (70, 16, 16), np.uint8)  # more than a batch, away from 0 and 1
    labels = np.arange(70) % 2
    epsilon = 4 / 255
    weight = linear[1][1].weight
    with torch.no_grad():
        logits = linear(torch.from_numpy(prepare(faces, p))).numpy()
    attacked = attack(linear, faces, labels, p, epsilon=epsilon, steps=steps)
    sign = np.where(labels == 0, 1, -1)
    before, after = (sign * (scores[:, 0] - scores[:, 1]) for scores in (logits, attacked))
    worst = epsilon / p.std * float((weight[0] - weight[1]).abs().sum())
    assert before - after == pytest.approx(np.full(70, worst), rel=1e-4)


def test_an_attack_stays_within_what_pixels_can_be(linear: nn.Module) -> None:
    """White cannot become whiter; a gain from there would be none that an image file can hold."""
    p = Preprocessing(size=16, mean=0.4, std=0.2)
    seen = []
    handle = linear.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach() * p.std + p.mean))
    faces = np.stack([np.zeros((16, 16)), np.full((16, 16), 255)]).astype(np.uint8)
    attack(linear, faces, np.array([0, 1]), p, epsilon=8 / 255, steps=5)
    handle.remove()
    assert all(float(x.min()) >= -1e-6 and float(x.max()) <= 1 + 1e-6 for x in seen)
    assert all(float((x - torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).abs().max()) <= 8 / 255 + 1e-6 for x in seen)


def test_faces_of_another_size_are_attacked_at_the_networks(linear: nn.Module) -> None:
    """The README's figures are of 48-pixel faces, but a checkpoint may have any size and three channels."""
    p = Preprocessing(size=16, channels=3)
    model = nn.Sequential(nn.AvgPool3d((3, 1, 1)), linear)
    scores = attack(model, np.full((3, 48, 48), 90, np.uint8), np.array([0, 1, 0]), p, epsilon=2 / 255)
    assert scores.shape == (3, 2)


def test_the_subset_is_fixed() -> None:
    """Else the heads of a table would be attacked on different images."""
    first = subset(1000, 3589)
    assert np.array_equal(first, subset(1000, 3589))
    assert len(set(first.tolist())) == 1000
    assert np.array_equal(first, np.sort(first))
    assert len(subset(1000, 7)) == 7
