"""``fer predict``: images and folders in; a table, CSV or JSON lines, and annotated copies out."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from fer.config import PredictConfig
from fer.drawing import draw_predictions
from fer.errors import ConfigError, ImageError
from fer.images import image_files, read_image
from fer.recognizer import EmotionRecognizer, FacePrediction
from fer.records import FACE_COLUMNS, Record, face_record

__all__ = ["COLUMNS", "count", "legible", "predict", "predict_with", "record"]

#: Of the CSV file, and keys of the JSON lines.
COLUMNS = ("file", "face", *FACE_COLUMNS)

#: What annotated copies are written as; a copy of anything else becomes a PNG.
COPIED = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

#: An annotated copy is at least this long, pixels, so that its label can be read.
LEGIBLE = 320


def predict(paths: Sequence[Path], config: PredictConfig) -> int:
    """Find the faces in images and tell their expressions.

    Args:
        paths: images, and folders to search for images.
        config: with what, and where the results go.

    Returns:
        Exit status: 0, or 1 where an image could not be read or a copy could not be written.

    Raises:
        FerError: the checkpoint, the detector or a setting is not usable.
    """
    _check(paths, config.out, config.annotate, config.batch_size)
    recognizer = EmotionRecognizer.from_config(config)
    return predict_with(recognizer, paths, out=config.out, annotate=config.annotate, batch_size=config.batch_size)


def predict_with(
    recognizer: EmotionRecognizer,
    paths: Sequence[Path],
    *,
    out: Path | None = None,
    annotate: Path | None = None,
    batch_size: int = 64,
) -> int:
    """As :func:`predict`, with a recogniser that is there already."""
    _check(paths, out, annotate, batch_size)
    failures: list[str] = []

    def fail(message: str) -> None:
        failures.append(message)
        tqdm.write(f"fer: {message}", file=sys.stderr)

    sources = _sources(paths, annotate, fail)
    targets = _targets(sources, annotate) if annotate else {}
    table = _table()
    faces, images = 0, 0
    results = recognizer.analyze_many(sources, batch_size=batch_size)
    bar = tqdm(zip(sources, results, strict=True), total=len(sources), unit="img", disable=None, leave=False)
    with _writer(out if sources else None) as write:
        for file, predictions in bar:
            if isinstance(predictions, ImageError):
                fail(str(predictions))
                continue
            faces, images = faces + len(predictions), images + 1
            _add_rows(table, file, predictions)
            for number, prediction in enumerate(predictions, start=1):
                write(record(file, number, prediction))
            if annotate:
                try:
                    _annotate(file, predictions, targets[file])
                except (OSError, ValueError, ImageError) as error:  # ValueError: too large for the format
                    fail(f"cannot write {targets[file]}: {error}")
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(f"{count(faces, 'face')} in {count(images, 'image')}", highlight=False)
    return 1 if failures else 0


def record(file: Path, number: int, prediction: FacePrediction) -> Record:
    """A face as a row of the CSV file or a JSON line; see :func:`fer.records.face_record`."""
    return {"file": str(file), "face": number, **face_record(prediction)}


def legible(
    image: NDArray[np.uint8], predictions: Sequence[FacePrediction], longest: int | None = None
) -> tuple[NDArray[np.uint8], Sequence[FacePrediction]]:
    """An image to draw on, and its predictions, at a size at which labels can be read.

    Args:
        image: (H, W, 3) uint8, RGB; one that is smaller than ``LEGIBLE`` is enlarged to it.
        predictions: in pixels of that image.
        longest: a longer image is scaled down to this many pixels.
    """
    side = max(image.shape[:2])
    wanted = max(side, LEGIBLE) if longest is None else min(max(side, LEGIBLE), longest)
    if wanted == side:
        return image, predictions
    height, width = (max(1, round(length * wanted / side)) for length in image.shape[:2])
    x, y = width / image.shape[1], height / image.shape[0]
    interpolation = cv2.INTER_AREA if wanted < side else cv2.INTER_LINEAR
    image = cv2.resize(image, (width, height), interpolation=interpolation).astype(np.uint8, copy=False)
    return image, [replace(p, face=p.face.scaled(x, y)) for p in predictions]


def _check(paths: Sequence[Path], out: Path | None, annotate: Path | None, batch_size: int) -> None:
    if not paths:
        raise ConfigError("give at least one image or folder")
    if out and out.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"--out must end in .csv or .jsonl, not {out}")
    if out and out.is_dir():
        raise ConfigError(f"--out must name a file; {out} is a folder")
    if annotate and annotate.exists() and not annotate.is_dir():
        raise ConfigError(f"--annotate must name a folder; {annotate} is a file")
    if annotate and annotate.resolve() in {path.resolve() for path in paths if path.is_dir()}:
        raise ConfigError(f"--annotate must name another folder than that of the images, {annotate}")
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, not {batch_size}")


def _sources(paths: Sequence[Path], annotate: Path | None, fail: Callable[[str], None]) -> dict[Path, Path]:
    """Image files, each with its name relative to the folder that was given, without earlier annotated copies."""
    sources: dict[Path, Path] = {}
    seen: set[Path] = set()
    for path in paths:
        try:
            files = image_files([path])
        except ImageError as error:
            fail(str(error))
            continue
        if not files:
            fail(f"there is no image in {path}")
        for file in files:
            resolved = file.resolve()
            copied = annotate and file != path and resolved.is_relative_to(annotate.resolve())
            if not copied and resolved not in seen:
                seen.add(resolved)
                sources[file] = Path(file.name) if file == path else file.relative_to(path)
    return sources


def _targets(sources: dict[Path, Path], folder: Path) -> dict[Path, Path]:
    """Where each annotated copy goes: no two to the same place, and none over an input."""
    taken = {_place(file) for file in sources}
    targets = {}
    for file, name in sources.items():
        plain = folder / (name if name.suffix.lower() in COPIED else name.with_name(f"{name.name}.png"))
        target, number = plain, 2
        while _place(target) in taken:
            target, number = plain.with_stem(f"{plain.stem}-{number}"), number + 1
        taken.add(_place(target))
        targets[file] = target
    return targets


def _place(file: Path) -> str:
    return str(file.resolve()).casefold()  # some file systems do not tell cases apart


def _annotate(file: Path, predictions: Sequence[FacePrediction], target: Path) -> None:
    image, predictions = legible(read_image(file), predictions)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_predictions(image, predictions)).save(target, quality=92)


@contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[Record], Any]]:
    """What writes a record to the file, if one is wanted. Names that are not UTF-8 keep their bytes in CSV.

    The rows get the file's name when they are all there; until then an older file of that name stays.
    """
    if out is None:
        yield lambda _: None
        return
    part = out.with_stem(f"{out.stem}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stream = part.open("w", encoding="utf-8", newline="", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    try:
        with stream:
            yield _row_writer(stream, out.suffix)
    except BaseException:
        tqdm.write(f"fer: what was done until then is in {part}", file=sys.stderr)
        raise
    part.replace(out)


def _row_writer(stream: IO[str], suffix: str) -> Callable[[Record], Any]:
    if suffix.lower() == ".csv":
        rows = csv.DictWriter(stream, COLUMNS)
        rows.writeheader()
        return rows.writerow
    return lambda values: stream.write(json.dumps(values) + "\n")


def _table() -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("face", "box", "detection"):
        table.add_column(name, justify="right")
    table.add_column("emotion")
    table.add_column("confidence", justify="right")
    return table


def _add_rows(table: Table, file: Path, predictions: Sequence[FacePrediction]) -> None:
    name = Text(_printable(str(file)))
    if not predictions:
        table.add_row(name, "-", "", "", Text("no face", "dim"), "")
    for number, prediction in enumerate(predictions, start=1):
        x, y, width, height = prediction.box
        detection = "whole image" if prediction.face.whole_image else f"{prediction.face.score:.2f}"
        emotion = Text(prediction.emotion.label, f"rgb({','.join(map(str, prediction.emotion.color))})")
        box = f"{width}x{height}{x:+d}{y:+d}"
        table.add_row(name, str(number), box, detection, emotion, f"{prediction.confidence:.0%}")


def _printable(text: str) -> str:
    """With question marks for what standard output cannot show, such as bytes of a file name that is not UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def count(number: int, noun: str) -> str:
    """``1 face``, ``2 faces``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
