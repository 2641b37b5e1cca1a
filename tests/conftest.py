import os
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
