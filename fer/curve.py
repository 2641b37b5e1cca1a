"""Accuracy against rank, as ``fer rank`` measures it and the web page shows it: the file ranks.json."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fer.errors import CheckpointError

__all__ = ["RANKS", "RankCurve", "RankPoint"]

#: Name of the file in a checkpoint's folder.
RANKS = "ranks.json"


@dataclass(frozen=True)
class RankPoint:
    """What was measured at one rank; accuracies in 0..1, None where nothing was.

    Attributes:
        rank: of the tensor regression layer.
        parameters: of the head, with its bias.
        retrained_accuracy: of a head trained at that rank, on all images of the split.
        retrained_leak_free: the same without the images that have a copy in Training.
        truncated_accuracy: of the checkpoint's own head, cut down to that rank.
        truncated_leak_free: the same without the images that have a copy in Training.
    """

    rank: int
    parameters: int
    retrained_accuracy: float | None = None
    retrained_leak_free: float | None = None
    truncated_accuracy: float | None = None
    truncated_leak_free: float | None = None

    @property
    def best(self) -> float:
        """The better leak-free accuracy of the two heads."""
        return max(self.retrained_leak_free or 0.0, self.truncated_leak_free or 0.0)


@dataclass(frozen=True)
class RankCurve:
    """Accuracy against rank.

    Attributes:
        checkpoint: its name.
        n: images of the split.
        full_rank: the checkpoint's own rank.
        full_accuracy: the checkpoint's own accuracy, 0..1.
        full_leak_free: the same without the images that have a copy in Training.
        ranks: the points, by rank.
        data: what they were measured on, its val.
    """

    checkpoint: str
    n: int
    full_rank: int
    full_accuracy: float
    full_leak_free: float
    ranks: tuple[RankPoint, ...]
    data: str = "FER2013"

    def smallest(self, loss: float) -> RankPoint | None:
        """The lowest rank below the checkpoint's own that costs no more than ``loss`` percentage points, if any does.

        Leak-free accuracy counts.
        """
        bound = self.full_leak_free - loss / 100 - 1e-12
        return next((p for p in self.ranks if p.rank < self.full_rank and p.best >= bound), None)

    def write(self, folder: Path) -> None:
        """Write ``ranks.json`` into a folder."""
        record = {
            "checkpoint": self.checkpoint,
            "n": self.n,
            "data": self.data,
            "split": "val",
            "full": {
                "rank": self.full_rank,
                "accuracy": self.full_accuracy,
                "leak_free_accuracy": self.full_leak_free,
            },
            "ranks": [dataclasses.asdict(point) for point in self.ranks],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RANKS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The inverse of :meth:`write`.

        Raises:
            CheckpointError: the file is missing or is not one that :meth:`write` wrote.
        """
        file = folder / RANKS
        try:
            record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            full = record["full"]
            points = tuple(RankPoint(**point) for point in record["ranks"])
            return cls(
                record["checkpoint"],
                record["n"],
                full["rank"],
                full["accuracy"],
                full["leak_free_accuracy"],
                points,
                record["data"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"cannot read {file}: {error}; write it again with fer rank") from error
