"""Where checkpoints lie, and their small files; the weights themselves are :mod:`fer.checkpoint`'s."""

import json
from pathlib import Path
from typing import Any

from fer.errors import CheckpointError, ConfigError

__all__ = ["CONFIG", "METRICS", "WEIGHTS", "available_checkpoints", "find_checkpoint", "make_folder", "read_json"]

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
METRICS = "metrics.json"


def _shelves() -> list[Path]:
    """Folders that hold shipped checkpoints: inside an installed package, or beside it in a clone."""
    here = Path(__file__).resolve().parent
    return [shelf for shelf in (here / "checkpoints", here.parent / "checkpoints") if shelf.is_dir()]


def make_folder(folder: Path, option: str) -> None:
    """Make the folder that an option names, before work is spent on what belongs there.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose another {option}") from error


def available_checkpoints() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted({config.parent.name for shelf in _shelves() for config in shelf.glob(f"*/{CONFIG}")})


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a shipped checkpoint, or the given folder itself.

    Raises:
        CheckpointError: there is none of that name and no such folder.
    """
    for folder in (Path(name), *(shelf / name for shelf in _shelves())):
        if (folder / CONFIG).is_file():
            return folder
    known = ", ".join(available_checkpoints()) or "none"
    raise CheckpointError(
        f"no checkpoint {str(name)!r}: expected a folder with {CONFIG}, or one of those shipped: {known}"
    )


def read_json(file: Path) -> dict[str, Any]:
    """The object that a checkpoint's JSON file holds.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; fetch the checkpoint again") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(record).__name__}")
    return record
