"""``fer average``: the mean of the weights of checkpoints that were trained one from another.

Weights that were fine-tuned from the same start lie in one valley of the loss, and their mean often does better than
each of them, on unlike images above all, at the cost of one (Wortsman et al. 2022, "Model soups" and "Robust
fine-tuning of zero-shot models"). Weights of networks that started apart have no useful mean.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fer.checkpoint import Checkpoint, load_checkpoint
from fer.config import AverageConfig, ModelConfig
from fer.dataset import load
from fer.errors import ConfigError
from fer.evaluation import check_derivable, write_derived

__all__ = ["average"]


def average(names: Sequence[str], config: AverageConfig) -> dict[str, Any]:
    """Write the mean of checkpoints as a checkpoint, with temperature, figures, plots and card of its own.

    Args:
        names: shipped names or folders; the mean takes name and training settings of the first.
        config: where to write it, and what to measure it on.

    Returns:
        Its figures on val, as :func:`fer.evaluation.evaluate` gives them.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        ConfigError: fewer than two are given, they are different networks or of other data, or the folder holds a
            checkpoint.
        DatasetError: the data is missing, malformed or incomplete.
    """
    if len(names) < 2:
        raise ConfigError("give at least two checkpoints to average")
    checkpoints = [load_checkpoint(name, device=config.device) for name in names]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if _network(other) != _network(first):
            raise ConfigError(
                f"{other.folder} is another network than {first.folder}, so their weights have no mean: "
                f"{_network(other)}, not {_network(first)}"
            )
    data = load(config.data)
    check_derivable(config.write, first, data)
    first.model.load_state_dict(_mean([c.model.state_dict() for c in checkpoints]))
    return write_derived(config.write, first.model, first.config, first, data, device=config.device)


def _network(checkpoint: Checkpoint) -> ModelConfig:
    """What decides the shapes of the weights and what they are fed."""
    return dataclasses.replace(checkpoint.config.model, tensor_dropout=0.0, dropout=0.0)


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of tensors that are numbers; counters are the first's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
