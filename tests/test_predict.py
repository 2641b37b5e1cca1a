"""A user would lose results, pictures or the notice of a failure if any of these failed."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fer.config import PredictConfig
from fer.emotions import EMOTIONS
from fer.errors import CheckpointError, ConfigError, ImageError
from fer.predict import COLUMNS, predict, predict_with
from fer.recognizer import EmotionRecognizer, FacePrediction

PHOTO = skimage.data.astronaut()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images with four faces, and one file that is no image."""
    folder = tmp_path / "photos"
    (folder / "sub [bold]").mkdir(parents=True)
    Image.fromarray(np.hstack([PHOTO, PHOTO])).save(folder / "a, b.jpg", quality=95)
    Image.fromarray(PHOTO).save(folder / "sub [bold]" / "same.png")
    Image.fromarray(PHOTO).convert("L").save(folder / "sub [bold]" / "same.pgm")
    Image.fromarray(skimage.data.rocket()).save(folder / "rocket.gif")
    Image.fromarray(skimage.data.rocket()[:30, :40]).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


def hashes(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_csv(recognizer: EmotionRecognizer, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "results.csv"
    assert predict_with(recognizer, [photos], out=out) == 1  # because of broken.jpg
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    by_file = {}
    for row in rows:
        by_file.setdefault(Path(row["file"]).relative_to(photos).as_posix(), []).append(row)
    assert {name: [row["face"] for row in found] for name, found in by_file.items() if name != "tiny.png"} == {
        "a, b.jpg": ["1", "2"],
        "sub [bold]/same.pgm": ["1"],
        "sub [bold]/same.png": ["1"],
    }
    left, right = sorted(int(row["x"]) for row in by_file["a, b.jpg"])
    assert right - left == pytest.approx(512, abs=3)
    for row in rows:
        values = {emotion.label: float(row[emotion.label]) for emotion in EMOTIONS}
        assert sum(values.values()) == pytest.approx(1, abs=1e-4)
        assert row["emotion"] == max(values, key=lambda label: values[label])
        assert float(row["confidence"]) == max(values.values())
        assert int(row["width"]) > 0
    (whole,) = by_file["tiny.png"]
    assert (whole["detection"], whole["width"], whole["height"]) == ("", "40", "30")
    assert 0.6 < float(by_file["sub [bold]/same.png"][0]["detection"]) <= 1


def test_json_lines_say_the_same(recognizer: EmotionRecognizer, photos: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "r.csv", tmp_path / "r.JSONL"):
        predict_with(recognizer, [photos], out=out)
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    records = [json.loads(line) for line in (tmp_path / "r.JSONL").read_text(encoding="utf-8").splitlines()]
    assert [{key: "" if v is None else str(v) for key, v in r.items()} for r in records] == rows
    assert [type(records[0][key]) for key in ("face", "x", "detection", "emotion")] == [int, int, float, str]


def test_table_and_messages(
    recognizer: EmotionRecognizer, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert predict_with(recognizer, [photos / "gone.png", photos]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["file", "face", "box", "detection", "emotion", "confidence"]
    assert any("sub [bold]" in line and "same.png" in line for line in lines)  # no markup of our own in names
    assert any("rocket.gif" in line and "no face" in line for line in lines)
    assert any("tiny.png" in line and "whole image" in line for line in lines)
    assert lines[-1] == "5 faces in 5 images"
    gone, broken = err.splitlines()
    assert "gone.png" in gone
    assert "broken.jpg" in broken
    assert "Traceback" not in err


def test_status_is_0_when_all_went_well(
    recognizer: EmotionRecognizer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_with(recognizer, [photos / "rocket.gif"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 faces in 1 image"


def test_a_folder_without_images_is_reported(
    recognizer: EmotionRecognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert predict_with(recognizer, [tmp_path / "empty"], out=tmp_path / "r.csv") == 1
    assert "there is no image in" in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()


def test_annotated_copies(recognizer: EmotionRecognizer, photos: Path, tmp_path: Path) -> None:
    before = hashes(photos)
    copies = tmp_path / "copies"
    predict_with(recognizer, [photos], annotate=copies)
    names = {"a, b.jpg", "sub [bold]/same.png", "sub [bold]/same.pgm.png", "rocket.gif.png", "tiny.png"}
    assert {file.relative_to(copies).as_posix() for file in hashes(copies)} == names
    assert hashes(photos) == before
    with Image.open(copies / "sub [bold]" / "same.png") as copy:
        assert copy.size == (512, 512)
        assert (np.asarray(copy) != PHOTO).any()
    with Image.open(copies / "tiny.png") as copy:
        assert copy.size == (320, 240)  # large enough to read


def test_annotated_copies_never_replace_inputs_or_one_another(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    for name in ("one/photo.png", "two/photo.png", "two/PHOTO.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(skimage.data.rocket()).save(tmp_path / name)
    before = hashes(tmp_path)
    files = sorted(before)
    predict_with(recognizer, files, annotate=tmp_path / "one")
    after = hashes(tmp_path)
    assert after.items() >= before.items()
    assert len(after) == len(before) + len(files)
    with pytest.raises(ConfigError, match="another folder"):
        predict_with(recognizer, [tmp_path / "one"], annotate=tmp_path / "one")


def test_a_copy_that_its_format_cannot_hold_is_reported(
    recognizer: EmotionRecognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one wide picture would end a folder of thousands."""
    Image.fromarray(np.zeros((20, 17_000, 3), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "wide.png").rename(tmp_path / "wide.webp")  # WebP goes to 16,383 pixels
    assert predict_with(recognizer, [tmp_path / "wide.webp"], annotate=tmp_path / "copies") == 1
    assert "cannot write" in capsys.readouterr().err


def test_copies_inside_the_folder_are_not_taken_for_images(
    recognizer: EmotionRecognizer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        predict_with(recognizer, [photos, photos / "rocket.gif"], annotate=photos / "copies")
        assert capsys.readouterr().out.splitlines()[-1] == "5 faces in 5 images"
    assert len(hashes(photos / "copies")) == 5


def test_a_copy_that_cannot_be_written_is_reported(
    recognizer: EmotionRecognizer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "sub [bold]").write_text("in the way")
    assert predict_with(recognizer, [photos / "rocket.gif", photos], annotate=tmp_path / "copies") == 1
    err = capsys.readouterr().err
    assert "cannot write" in err
    assert (tmp_path / "copies" / "a, b.jpg").is_file()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_names_that_are_not_utf8(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    Image.fromarray(PHOTO).save(file)
    for suffix in ("csv", "jsonl"):
        assert predict_with(recognizer, [tmp_path], out=tmp_path / f"r.{suffix}", annotate=tmp_path / "copies") == 0
    assert b"caf\xe9.png" in (tmp_path / "r.csv").read_bytes()
    assert json.loads((tmp_path / "r.jsonl").read_text())["file"] == str(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "photo.jpg"}, "must end in .csv or .jsonl"),
        ({"batch_size": 0}, "batch size"),
        ({"annotate": "photos/rocket.gif"}, "must name a folder"),
        ({"out": "photos/rocket.gif/r.csv"}, "cannot write"),
        ({"out": "folder.csv"}, "must name a file"),
    ],
)
def test_settings_are_checked_before_any_work(
    recognizer: EmotionRecognizer, photos: Path, options: dict[str, object], message: str
) -> None:
    (photos.parent / "folder.csv").mkdir()
    options = {key: photos.parent / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        predict_with(recognizer, [photos], **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one image"):
        predict_with(recognizer, [])


def test_an_older_result_stays_until_the_new_one_is_whole(
    recognizer: EmotionRecognizer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a mistyped name or Ctrl+C would cost an earlier run."""
    out, part = tmp_path / "new" / "faces.csv", tmp_path / "new" / "faces.part.csv"
    out.parent.mkdir()
    out.write_text("an earlier run")
    assert predict_with(recognizer, [tmp_path / "phtos"], out=out) == 1
    assert list(out.parent.iterdir()) == [out]

    class Interrupted(EmotionRecognizer):
        def analyze_many(self, *arguments: Any, **options: Any) -> Iterator[list[FacePrediction] | ImageError]:
            yield next(super().analyze_many(*arguments, **options))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_with(Interrupted(recognizer.checkpoint, recognizer.detector), [photos], out=out)
    assert out.read_text() == "an earlier run"
    assert len(part.read_text().splitlines()) == 3  # the header and two faces
    assert str(part) in capsys.readouterr().err
    assert predict_with(recognizer, [photos], out=out) == 1  # one of them is no image
    assert len(out.read_text().splitlines()) == 6
    assert not part.exists()


def test_predict_loads_by_name(checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_CACHE", str(photos.parent / "cache"))
    assert predict((photos / "sub [bold]",), PredictConfig(str(checkpoint), device="cpu", threshold=0.5)) == 0
    with pytest.raises(CheckpointError, match="nothing-here"):
        predict((photos,), PredictConfig(checkpoint="nothing-here"))


def test_names_that_the_terminal_cannot_show(
    recognizer: EmotionRecognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "été.png")
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii", write_through=True))
    assert predict_with(recognizer, [tmp_path]) == 0
    assert b"?t?.png" in stream.getvalue()
    assert b"1 face in 1 image" in stream.getvalue()
