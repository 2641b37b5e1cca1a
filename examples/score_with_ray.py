"""Score any number of photographs on any number of machines with Ray Data.

    pip install "fer-trl[ray]"
    python examples/score_with_ray.py photos/ scores/ --workers 4

``photos`` is a folder or a bucket (s3://...). Each worker is a process that loads the model once and takes one CPU; Ray
starts them wherever its cluster has room, streams the files through them, and starts a lost one anew. ``scores`` gets
Parquet files with a row for each face, and one with ``error`` for each file that is no image.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import tyro

from fer import EmotionRecognizer, ImageError
from fer.config import Runtime
from fer.records import FACE_COLUMNS, face_record


class Scorer:
    """A recogniser that lives as long as its worker."""

    def __init__(self, checkpoint: str, runtime: Runtime) -> None:
        self.recognizer = EmotionRecognizer.load(checkpoint, runtime=runtime, threads=1)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Rows of faces for a batch of files.

        Args:
            batch: ``path`` and ``bytes`` of each file.
        """
        rows = list(self._rows(batch))
        return {column: [row.get(column) for row in rows] for column in ("file", *FACE_COLUMNS, "error")}

    def _rows(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        results = self.recognizer.analyze_many(batch["bytes"])
        for path, faces in zip(batch["path"], results, strict=True):
            if isinstance(faces, ImageError):
                yield {"file": path, "error": str(faces)}
            else:
                yield from ({"file": path, **face_record(face)} for face in faces)


def main(
    photos: tyro.conf.Positional[str],
    scores: tyro.conf.Positional[str],
    *,
    checkpoint: str = "vgg16-cp-trl",
    runtime: Runtime = "torch",
    workers: int = 1,
    batch_size: int = 64,
) -> None:
    """Score photographs with Ray Data.

    Args:
        photos: folder or bucket of photographs
        scores: folder or bucket for the Parquet files
        checkpoint: a shipped checkpoint, or a folder or .onnx file that every machine sees
        runtime: onnx takes what `fer export` wrote, int8 too, and needs no PyTorch
        workers: processes, each with a CPU of its own; reading needs one more, else Ray waits for ever
        batch_size: photographs at a time
    """
    files = ray.data.read_binary_files(photos, include_paths=True)
    faces = files.map_batches(
        Scorer,
        fn_constructor_args=(checkpoint, runtime),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    faces.write_parquet(scores)


if __name__ == "__main__":
    tyro.cli(main)
