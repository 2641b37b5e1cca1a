"""Where a network keeps its parameters: the guide's table, and the same for the recipes here."""

from dataclasses import dataclass

import torch
import torchvision
from rich import box
from rich.table import Table
from torch import nn

from fer.config import RECIPES, ModelConfig
from fer.models import EmotionModel, create_model, layer_shapes, parameter_count, replace_classifier
from fer.trl import TensorRegressionLayer

__all__ = ["ParameterCount", "count_parameters", "layer_table", "parameter_table"]

#: The architectures of the guide's table.
ARCHITECTURES = ("alexnet", "vgg19", "resnet50", "resnet101")


@dataclass(frozen=True)
class ParameterCount:
    """A network's parameters.

    Attributes:
        total: all.
        dense: those in fully connected layers, biases included.
        with_trl: all, after a CP-TRL of rank ``rank`` has taken the fully connected layers' place.
        rank: that rank.
    """

    total: int
    dense: int
    with_trl: int
    rank: int


def count_parameters(model: nn.Module, rank: int) -> ParameterCount:
    """Count a torchvision ImageNet classifier's parameters and what a CP-TRL would leave of them."""
    total = parameter_count(model)
    dense = sum(parameter_count(m) for m in model.modules() if isinstance(m, nn.Linear))
    _, layer = replace_classifier(model, rank, 1000)
    return ParameterCount(total, dense, total - dense + parameter_count(layer), rank)


def parameter_table(rank: int) -> tuple[Table, Table]:
    """The guide's table for torchvision's ImageNet classifiers, and the recipes' own.

    Args:
        rank: of the CP-TRL in the classifiers' place.
    """
    known = Table(title="torchvision, 1000 ImageNet classes", caption=f"with TRL: a CP-TRL of rank {rank} instead")
    for name in ("network", "parameters", "in FC layers", "share", "with TRL", "left"):
        known.add_column(name, justify="left" if name == "network" else "right")
    with torch.device("meta"):
        for name in ARCHITECTURES:
            c = count_parameters(torchvision.models.get_model(name), rank)
            share, left = c.dense / c.total, c.with_trl / c.total
            known.add_row(name, f"{c.total:,}", f"{c.dense:,}", f"{share:.1%}", f"{c.with_trl:,}", f"{left:.1%}")

    ours = Table(
        title="recipes here, 7 expressions",
        caption="output: the trunk's; fc instead: the same trunk with VGG's three FC layers",
        box=box.SIMPLE_HEAD,
        padding=0,  # fits a terminal of 80 columns
    )
    for name in ("recipe", "parameters", "output", "head", "rank", "in head", "dense map", "fc instead"):
        ours.add_column(name, justify="left" if name in ("recipe", "head") else "right")
    for name, recipe in RECIPES.items():
        ours.add_row(name, *_recipe_row(recipe.model))
    return known, ours


def _recipe_row(config: ModelConfig) -> tuple[str, ...]:
    with torch.device("meta"):
        model = EmotionModel(config)
    shape = model.trunk_shape()
    head, trunk = parameter_count(model.head), parameter_count(model.trunk)
    fc = (shape.numel() + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 7
    dense = model.head.dense_parameters if isinstance(model.head, TensorRegressionLayer) else head
    shape_text = "x".join(map(str, shape))
    return (
        f"{trunk + head:,}",
        shape_text,
        config.head,
        f"{config.rank:,}",
        f"{head:,}",
        f"{dense:,}",
        f"{trunk + fc:,}",
    )


def layer_table(config: ModelConfig, name: str) -> Table:
    """Every layer of a network with the shape of its output for one face."""
    table = Table(title=name)
    for column in ("layer", "type", "output", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    model = create_model(config)
    for layer, kind, shape, size in layer_shapes(model):
        table.add_row(layer, kind, "x".join(map(str, shape)), f"{size:,}" if size else "")
    table.add_section()
    table.add_row("total", "", "", f"{parameter_count(model):,}")
    return table
