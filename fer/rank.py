"""``fer rank``: what each rank of a tensor regression head costs and brings. ``fer convert``: a head becomes one.

There is no formula for the rank. Two curves take its place: heads trained anew at each rank, on the checkpoint's own
trunk, and the checkpoint's own head, cut down to its most important components without any training.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fer import dataset
from fer.checkpoint import Checkpoint, load_checkpoint
from fer.config import Config, ConvertConfig, ModelConfig, RankConfig
from fer.curve import RANKS, RankCurve, RankPoint
from fer.errors import ConfigError
from fer.evaluation import check_data, check_derivable, write_derived
from fer.heads import HeadData, as_linear, fit_linear, head_data, head_logits, shares_right, train_head, with_head
from fer.models import TRL_HEADS, create_head, parameter_count
from fer.shelf import make_folder
from fer.trl import TensorRegressionLayer

mpl.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["convert", "rank", "rank_curve"]

PLOT = "ranks.png"

#: Images whose features tell how much each component of a head does.
SAMPLES = 8192


def rank(name: str, config: RankConfig) -> int:
    """Run ``fer rank``: print the table, write ``ranks.json`` and ``ranks.png``, and the smaller checkpoint if wished.

    Returns:
        The exit status.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: its head has no rank, the data is not what it was trained on although something is to be kept, or
            a folder cannot be written.
        DatasetError: the data is missing.
    """
    checkpoint, data = _prepare(name, config)
    _own_head(checkpoint)
    output = config.output or Path(f"runs/rank-{checkpoint.name}")
    make_folder(output, "--output")
    needed = config if config.retrain else dataclasses.replace(config, views=1)
    features = head_data(checkpoint.model, data, needed, checkpoint.config.training, config.tta)
    curve, heads = rank_curve(checkpoint, features, config)
    chosen = curve.smallest(config.loss)
    for folder in (output, *([checkpoint.folder] if config.publish else [])):
        curve.write(folder)
        _plot(curve, config.loss, chosen, folder / PLOT)
    console = Console()
    console.print(_render(curve, config, chosen))
    _tell(console, curve, config.loss, chosen)
    if not config.publish:
        console.print(f"{output / RANKS}, {output / PLOT}; --publish puts both into {checkpoint.folder} too")
    if chosen is not None:
        model = dataclasses.replace(checkpoint.config.model, rank=chosen.rank)
        _write(checkpoint, data, model, heads[chosen.rank], f"rank{chosen.rank}", config)
    return 0


def rank_curve(
    checkpoint: Checkpoint, features: HeadData, config: RankConfig
) -> tuple[RankCurve, dict[int, nn.Module]]:
    """Measure a checkpoint's head, heads trained anew at other ranks, and its own head cut down.

    Args:
        checkpoint: with a tensor regression head.
        features: of its trunk.
        config: the ranks and the budget.

    Returns:
        The curve, and for each of its ranks the better of the two heads.

    Raises:
        ConfigError: the head has no rank.
    """
    own, settings = _own_head(checkpoint), checkpoint.config.model
    shape = features.views[0].shape[1:]
    device = next(own.parameters()).device
    samples = _samples(features).to(device) if config.importance == "scores" else None
    points, heads = [], {}
    for r in sorted(set(config.ranks)):
        candidates: dict[str, nn.Module] = {}
        if config.retrain:
            torch.manual_seed(config.seed)
            fresh = create_head(dataclasses.replace(settings, rank=r), torch.Size(shape)).to(device)
            train_head(fresh, features, config, seed=config.seed, caption=f"rank {r}")
            candidates["retrained"] = fresh
        if r < settings.rank:
            candidates["truncated"] = own.truncated(r, samples)
        scores = {how: shares_right(head_logits(head, features.val), features) for how, head in candidates.items()}
        measured = {
            f"{how}_{key}": value
            for how, pair in scores.items()
            for key, value in zip(("accuracy", "leak_free"), pair, strict=True)
        }
        size = type(own).parameters_at(shape, own.num_classes, r) + own.num_classes
        points.append(RankPoint(r, size, **measured))
        if candidates:
            heads[r] = candidates[max(scores, key=lambda how: scores[how][1])]
    accuracy, leak_free = shares_right(head_logits(own, features.val), features)
    curve = RankCurve(
        checkpoint.name, len(features.labels), settings.rank, accuracy, leak_free, tuple(points), features.name
    )
    return curve, heads


def convert(name: str, config: ConvertConfig) -> int:
    """Run ``fer convert``: a trained head becomes a tensor regression layer; prints what each step does to accuracy.

    A linear head (dense, gap, another tensor regression layer) is first read off exactly as the dense map that it is.
    For fc, whose hidden layers no linear map equals, the map is fitted to its scores by least squares on the training
    features. The map is then factorised, and the layer fine-tuned on the frozen trunk.

    Returns:
        The exit status.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: the checkpoint was trained on other data, or the folder to write holds one.
        DatasetError: the data is missing.
    """
    checkpoint, data = _prepare(name, config)
    features = head_data(checkpoint.model, data, config, checkpoint.config.training, config.tta)
    head, shape = checkpoint.model.head, features.views[0].shape[1:]
    exact = checkpoint.config.model.head != "fc"
    linear = as_linear(head, shape) if exact else fit_linear(head, features)
    layer = TRL_HEADS[config.head].from_linear(
        linear,
        shape,
        config.rank,
        tensor_dropout=config.tensor_dropout,
        x=_samples(features).to(next(head.parameters()).device),
    )

    table = Table(title=f"{checkpoint.name}: {checkpoint.config.model.head} to {config.head}, rank {config.rank}")
    for column in ("head", "parameters", "accuracy", "leak-free"):
        table.add_column(column, justify="left" if column == "head" else "right")

    def add(step: str, head: nn.Module) -> float:
        accuracy, leak_free = shares_right(head_logits(head, features.val), features)
        table.add_row(step, f"{parameter_count(head):,}", f"{accuracy:.2%}", f"{leak_free:.2%}")
        return leak_free

    add(f"{checkpoint.config.model.head}, as it is", head)
    add("the dense map it is" if exact else "the dense map fitted to it", nn.Sequential(nn.Flatten(), linear))
    before = add(f"{config.head} fitted to that", layer)
    if config.epochs:
        tuned = copy.deepcopy(layer)
        train_head(tuned, features, config, seed=config.seed, caption="fine-tuning")
        if add(f"after {config.epochs} epochs of fine-tuning", tuned) >= before:
            layer = tuned
    Console().print(table)
    model = dataclasses.replace(
        checkpoint.config.model, head=config.head, rank=config.rank, tensor_dropout=config.tensor_dropout
    )
    _write(checkpoint, data, model, layer, config.head, config)
    return 0


def _prepare(name: str, config: RankConfig | ConvertConfig) -> tuple[Checkpoint, dataset.Dataset]:
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint, data = load_checkpoint(name, device=config.device), dataset.load(config.data)
    if config.write is not None:
        check_derivable(config.write, checkpoint, data)
    elif isinstance(config, RankConfig) and config.publish:
        check_data(checkpoint, data)
    return checkpoint, data


def _own_head(checkpoint: Checkpoint) -> TensorRegressionLayer:
    head = checkpoint.model.head
    if not isinstance(head, TensorRegressionLayer):
        raise ConfigError(
            f"{checkpoint.name} has the head {checkpoint.config.model.head}, which has no rank: make it a tensor "
            f"regression layer first, with fer convert {checkpoint.folder} --write FOLDER"
        )
    return head


def _samples(features: HeadData) -> Tensor:
    """Some thousand training features, (B, C, H, W) float32."""
    rows = np.random.default_rng(0).permutation(features.chosen)[:SAMPLES]
    return features.batch(np.sort(rows), 0)[0]


def _write(
    checkpoint: Checkpoint,
    data: dataset.Dataset,
    model: ModelConfig,
    head: nn.Module,
    suffix: str,
    config: RankConfig | ConvertConfig,
) -> None:
    """A whole checkpoint with another head, if one is wanted: weights, temperature, figures, plots and card."""
    if config.write is None:
        return
    record = Config(f"{checkpoint.name}-{suffix}", model, checkpoint.config.training)
    network = with_head(checkpoint.model, head, model)
    write_derived(config.write, network, record, checkpoint, data, device=config.device)
    Console().print(config.write)


def _render(curve: RankCurve, config: RankConfig, chosen: RankPoint | None) -> Table:
    table = Table(title=f"{curve.checkpoint} on {curve.data} val ({curve.n:,} images), tta {config.tta}")
    table.add_column("rank", justify="right")
    table.add_column("parameters", justify="right")
    for how in ("retrained", "cut down"):
        table.add_column(f"{how}:\naccuracy", justify="right")
        table.add_column("\nleak-free", justify="right")

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    for p in curve.ranks:
        values = (p.retrained_accuracy, p.retrained_leak_free, p.truncated_accuracy, p.truncated_leak_free)
        style = "bold" if p == chosen else None
        table.add_row(str(p.rank), f"{p.parameters:,}", *map(cell, values), style=style)
    table.add_section()
    own = (curve.full_accuracy, curve.full_leak_free)
    table.add_row(f"{curve.full_rank} (its own)", "", "", "", *map(cell, own))
    return table


def _tell(console: Console, curve: RankCurve, loss: float, chosen: RankPoint | None) -> None:
    if chosen is None:
        console.print(
            f"No rank below {curve.full_rank} that was tried stays within {loss} points: keep it, or allow more."
        )
        return
    retrained = chosen.best == chosen.retrained_leak_free
    console.print(
        f"Smallest rank within {loss} points of {curve.full_leak_free:.2%} (leak-free): {chosen.rank}, "
        f"{'retrained' if retrained else 'cut down'}, {chosen.best:.2%}. It was chosen on these very images, so that "
        "figure is optimistic: fer evaluate --split test measures on others."
    )


def _plot(curve: RankCurve, loss: float, chosen: RankPoint | None, file: Path) -> None:
    """Leak-free accuracy against rank, with the number of parameters on the upper axis."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    ranks = [p.rank for p in curve.ranks]
    lines: Sequence[tuple[str, list[float | None]]] = (
        ("trained anew at each rank", [p.retrained_leak_free for p in curve.ranks]),
        (f"rank {curve.full_rank} cut down", [p.truncated_leak_free for p in curve.ranks]),
    )
    for label, values in lines:
        if any(value is not None for value in values):
            axis.plot(ranks, [np.nan if v is None else 100 * v for v in values], "o-", label=label)
    full = 100 * curve.full_leak_free
    axis.axhline(full, color="black", label=f"the checkpoint, rank {curve.full_rank}")
    axis.axhspan(full - loss, full, color="grey", alpha=0.25, label=f"within {loss} points")
    if chosen is not None:
        axis.plot(chosen.rank, 100 * chosen.best, "*", markersize=16, color="tab:red", label=f"rank {chosen.rank}")
    axis.set(xlabel="rank", ylabel=f"leak-free accuracy on {curve.data} val, %", xscale="log")
    axis.set_xticks(ranks, [str(r) for r in ranks])
    axis.minorticks_off()
    above = axis.secondary_xaxis("top")
    above.set_xticks(ranks, [f"{p.parameters:,}" for p in curve.ranks], rotation=30, fontsize=8)
    above.set_xlabel("parameters of the head")
    above.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
