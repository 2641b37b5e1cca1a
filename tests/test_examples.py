"""Whoever starts from an example would start from something broken if any of these failed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from fer.records import FACE_COLUMNS

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(("runtime", "file"), [("torch", ""), ("onnx", "model.onnx")])
def test_ray_scores_photographs_and_names_what_is_none(runtime: str, file: str, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]'")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(skimage.data.astronaut()).save(photos / name)
    (photos / "broken.png").write_text("no pixels")
    options = ["--checkpoint", exported / file, "--runtime", runtime]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "score_with_ray.py", photos, tmp_path / "scores", *options],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    import pyarrow.parquet

    rows = {Path(row["file"]).name: row for row in pyarrow.parquet.read_table(tmp_path / "scores").to_pylist()}
    assert set(rows) == {"a.png", "b.png", "broken.png"}
    assert set(rows["a.png"]) == {"file", *FACE_COLUMNS, "error"}
    assert rows["a.png"]["width"] > 80
    assert rows["a.png"]["emotion"] == rows["b.png"]["emotion"]
    assert rows["a.png"]["error"] is None
    assert "broken.png" in rows["broken.png"]["error"] or "image" in rows["broken.png"]["error"]
    assert rows["broken.png"]["emotion"] is None
