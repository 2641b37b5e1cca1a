import io

import pytest
import torch
import torchvision
from rich.console import Console

from fer.config import RECIPES
from fer.models import create_model
from fer.parameters import count_parameters, layer_table, parameter_table


@pytest.mark.parametrize(
    ("name", "total", "dense", "share"),
    [
        ("alexnet", 61_100_840, 58_631_144, 0.96),
        ("vgg19", 143_667_240, 123_642_856, 0.86),
        ("resnet50", 25_557_032, 2_049_000, 0.08),
        ("resnet101", 44_549_160, 2_049_000, 0.046),
    ],
)
def test_the_guides_table_comes_out(name, total, dense, share):
    """Else the figures that explain why a tensor regression layer is worth having would be wrong."""
    with torch.device("meta"):
        count = count_parameters(torchvision.models.get_model(name), rank=100)
    assert (count.total, count.dense) == (total, dense)
    assert count.dense / count.total == pytest.approx(share, abs=0.005)
    assert count.rank == 100


def test_what_a_tensor_regression_layer_leaves():
    """Else the saving would be overstated: AlexNet's convolutions stay, and 100 (256 + 6 + 6 + 1000) + 1000 come."""
    with torch.device("meta"):
        count = count_parameters(torchvision.models.alexnet(), rank=100)
    assert count.with_trl == 61_100_840 - 58_631_144 + 100 * (256 + 6 + 6 + 1000) + 1000


def shown(*tables: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*tables)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_tables_show_every_network_and_every_layer():
    """Else `fer models` would leave out what it was asked for."""
    text = shown(*parameter_table(rank=100))
    for expected in ("61,100,840", "58,631,144", "96.0%", "143,667,240", "86.1%", "8.0%", "4.6%", *RECIPES):
        assert expected in text
    model = create_model(RECIPES["guide-cnn"].model)
    total = sum(p.numel() for p in model.parameters())
    assert f"{total:,}" in text
    assert f"{64 * 13 * 13 * 7 + 7:,}" in text or f"{64 * 13 * 13 * 7:,}" in text  # the dense map it stands for

    layers = shown(layer_table(RECIPES["guide-cnn"].model, "guide-cnn"))
    for expected in ("32x30x30", "32x15x15", "64x13x13", "CPTRL", f"{total:,}"):
        assert expected in layers
