import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fer.dataset import Dataset, load
from fer.errors import DatasetError


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
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that no earlier run has filled and no later one finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder with a small untrained network, and model.onnx beside it."""
    import torch

    from fer.checkpoint import save_checkpoint
    from fer.config import Config, ExportConfig, ModelConfig, Preprocessing, TrainConfig
    from fer.export import export
    from fer.models import create_model

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    config = Config("tiny", ModelConfig(trunk="cnn", rank=4, preprocessing=Preprocessing()), TrainConfig())
    model = create_model(config.model)
    model(torch.randn(8, 1, 48, 48))  # BatchNorm's statistics leave their start
    save_checkpoint(folder, model, config, temperature=0.02)
    export(folder, ExportConfig(data="/nowhere"))
    return folder
