"""A checkpoint folder in, a model out, and back.

::

    NAME/
      model.safetensors   weights, float16 or float32; no pickle
      config.json         model, training, labels, temperature, and the SHA-256 of the weights
      metrics.json        figures of `fer evaluate`
      README.md           model card
      *.png               curves, confusion matrix, reliability
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fer.config import Config, Preprocessing, from_dict, to_dict
from fer.emotions import EMOTIONS
from fer.errors import CheckpointError, ConfigError
from fer.inference import forward
from fer.models import EmotionModel, create_model
from fer.shelf import CONFIG, METRICS, WEIGHTS, available_checkpoints, find_checkpoint, read_json

__all__ = ["Checkpoint", "available_checkpoints", "find_checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what it needs to be used: a :class:`fer.classifier.Classifier` that runs in PyTorch.

    Attributes:
        name: the recipe's name.
        config: the model, its preprocessing, and how it was trained.
        model: in evaluation mode, float32.
        temperature: logits are divided by it before the softmax.
        metrics: contents of metrics.json; empty before the first evaluation.
        folder: where it lies.
    """

    name: str
    config: Config
    model: EmotionModel
    temperature: float
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """How faces become the model's input."""
        return self.config.model.preprocessing

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 7) logits of faces from :func:`fer.preprocessing.prepare`, (B, C, S, S)."""
        return forward(self.model, batch)


def load_checkpoint(name: str | Path, *, device: str = "cpu") -> Checkpoint:
    """Load a model for use.

    Args:
        name: a shipped name ("vgg16-cp-trl") or a folder.
        device: "auto" (CUDA, then Apple's MPS, then the CPU) or a PyTorch device.

    Raises:
        CheckpointError: nothing there, a damaged file, or weights that do not fit the configuration.
        ConfigError: there is no such device.
    """
    folder = find_checkpoint(name)
    record = read_json(folder / CONFIG)
    config, labels = _parse(record, folder)
    if labels != [emotion.label for emotion in EMOTIONS]:
        raise CheckpointError(f"{folder / CONFIG}: labels are {labels}, expected {[e.label for e in EMOTIONS]}")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing: fetch the checkpoint again")
    if (found := _sha256(weights)) != record["sha256"]:
        raise CheckpointError(
            f"{weights} is not the file that {CONFIG} describes (sha256 {found[:12]}.., expected "
            f"{record['sha256'][:12]}..): it is damaged or was replaced; fetch the checkpoint again"
        )
    model = create_model(config.model)
    _fill(model, _read_weights(weights), weights)
    metrics = read_json(folder / METRICS) if (folder / METRICS).is_file() else {}
    model.eval().requires_grad_(False).to(_device(device))
    return Checkpoint(config.name, config, model, record["temperature"], folder, metrics)


def save_checkpoint(folder: Path, model: EmotionModel, config: Config, *, temperature: float = 1.0) -> None:
    """Write weights and configuration.

    Matrices and kernels are stored in float16 where ``config.training.half`` says so, vectors always in float32: they
    are small, and BatchNorm's variances may leave float16's range. Each file is replaced in one step, the
    configuration last, so that an interrupted write is noticed by the checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = config.training.half

    def stored(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu().contiguous()
        return tensor.half() if half and tensor.is_floating_point() and tensor.ndim > 1 else tensor

    temporary = folder / f"{WEIGHTS}.part"
    # Not save_file, whose files only their owner may read.
    temporary.write_bytes(save({name: stored(tensor) for name, tensor in model.state_dict().items()}))
    record = {
        "format": FORMAT,
        **to_dict(config),
        "labels": [emotion.label for emotion in EMOTIONS],
        "temperature": temperature,
        "sha256": _sha256(temporary),
    }
    temporary.replace(folder / WEIGHTS)
    _write_json(folder / CONFIG, record)


def update_checkpoint(folder: Path, *, temperature: float, metrics: dict[str, Any]) -> None:
    """Write a new temperature and new figures beside unchanged weights."""
    _write_json(folder / CONFIG, read_json(folder / CONFIG) | {"temperature": temperature})
    _write_json(folder / METRICS, metrics)


def _parse(record: dict[str, Any], folder: Path) -> tuple[Config, list[str]]:
    where = folder / CONFIG
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{where}: format {record.get('format')!r}, this version reads {FORMAT}")
    lacking = {"name", "model", "training", "labels", "temperature", "sha256"} - record.keys()
    if lacking:
        raise CheckpointError(f"{where} lacks {', '.join(sorted(lacking))}: fetch the checkpoint again")
    if not (isinstance(t := record["temperature"], int | float) and 0 < t < math.inf):
        raise CheckpointError(f"{where}: temperature must be a positive number, not {t!r}")
    if not isinstance(record["sha256"], str):
        raise CheckpointError(f"{where}: sha256 must be a string, not {record['sha256']!r}")
    try:
        config = from_dict(Config, {key: record[key] for key in ("name", "model", "training")})
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}; it was written by another version or edited by hand") from error
    return config, record["labels"]


def _fill(model: EmotionModel, state: dict[str, Tensor], file: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [
        f"{name}: {CONFIG} asks for {expected.get(name, 'nothing')}, the file has {found.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{file} does not fit its {CONFIG}: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(state)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {file}: {error}; fetch the checkpoint again") from error


def _device(device: str) -> torch.device:
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # whatever the missing backend raises, often at length
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"device {device!r} is not to be had here: {reason}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_json(file: Path, record: dict[str, Any]) -> None:
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
