import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fer.dataset import Dataset, load
from fer.errors import DatasetError

if TYPE_CHECKING:
    from fer.recognizer import EmotionRecognizer


@pytest.fixture(scope="session")
def fer2013() -> Dataset:
    """FER2013 itself, from $FER_DATA or the folder data/; tests that need it are skipped where it is not there."""
    path = Path(os.environ.get("FER_DATA") or Path(__file__).parent.parent / "data")
    try:
        return load(path)
    except DatasetError as error:
        if not str(error).startswith("no data"):
            raise
        pytest.skip(f"FER2013 not found in {path}: set FER_DATA to its file or folder")


@pytest.fixture(scope="session")
def synthetic() -> Dataset:
    """The schematic faces, drawn once."""
    return load("synthetic")


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that no earlier run has filled and no later one finds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder with a small untrained network that answers decidedly. Not to be changed: make a copy."""
    import torch

    from fer.checkpoint import save_checkpoint
    from fer.config import Config, ModelConfig, Preprocessing, TrainConfig
    from fer.models import create_model

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = Config("tiny", ModelConfig(trunk="cnn", rank=4, preprocessing=Preprocessing()), TrainConfig())
    model = create_model(config.model)
    model(torch.randn(8, 1, 48, 48))  # BatchNorm's statistics leave their start
    save_checkpoint(folder, model, config, temperature=0.02)
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, and model.onnx beside it."""
    from fer.config import ExportConfig
    from fer.export import export

    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("exported") / "checkpoint")
    export(folder, ExportConfig(data="/nowhere"))
    return folder


@pytest.fixture(scope="session")
def recognizer(checkpoint: Path) -> "EmotionRecognizer":
    """With the small network and the detector that is always there, on one thread."""
    from fer.faces import RetinaFace
    from fer.recognizer import EmotionRecognizer

    return EmotionRecognizer.load(checkpoint, device="cpu", detector=RetinaFace(threads=1))


@pytest.fixture(scope="session")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of a moving face: more than can be analysed while a test looks."""
    from films import write_film

    file = tmp_path_factory.mktemp("films") / "long.mp4"
    write_film(file, range(0, 512 * 1500, 512))
    return file
