import dataclasses
from pathlib import Path

import pytest
import torch
from faces_csv import write_faces

from fer.checkpoint import load_checkpoint, save_checkpoint
from fer.cli import main
from fer.config import Config, ModelConfig, Preprocessing, TrainConfig, command_line
from fer.models import create_model

MODEL = ModelConfig(trunk="cnn", rank=3, preprocessing=Preprocessing(size=16))


def make(folder: Path, seed: int, model: ModelConfig = MODEL) -> Path:
    """An untrained checkpoint."""
    torch.manual_seed(seed)
    network, p = create_model(model), model.preprocessing
    network(torch.randn(8, p.channels, p.size, p.size))  # BatchNorm's statistics leave their start
    save_checkpoint(folder, network, Config(folder.name, model, TrainConfig(half=False, lr=1e-3 * (1 + seed))))
    return folder


@pytest.fixture(scope="module")
def data(synthetic, tmp_path_factory) -> Path:
    return write_faces(tmp_path_factory.mktemp("data"), synthetic, train=70, val=70)


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    """Two networks of one kind; what is drawn in training may differ."""
    return [make(tmp_path / "tuned", 0), make(tmp_path / "start", 1, dataclasses.replace(MODEL, tensor_dropout=0.3))]


def run(*names: Path, write: Path, data: Path | str = "synthetic") -> int:
    return main(["average", *map(str, names), "--write", str(write), "--data", str(data), "--device", "cpu"])


def test_the_mean_is_a_whole_checkpoint(pair, data, tmp_path, capsys, monkeypatch):
    """Else it could neither be used nor be made again."""
    mean = tmp_path / "mean"
    monkeypatch.setattr("sys.argv", ["fer", "average", *map(str, pair), "--write", str(mean)])
    assert run(*pair, write=mean, data=data) == 0
    tuned, start, found = (load_checkpoint(folder) for folder in (*pair, mean))
    a, b, weights = (checkpoint.model.state_dict() for checkpoint in (tuned, start, found))
    for name, tensor in weights.items():
        expected = (a[name] + b[name]) / 2 if tensor.is_floating_point() else a[name]
        torch.testing.assert_close(tensor, expected)
    assert not torch.equal(weights["trunk.0.weight"], a["trunk.0.weight"])
    assert found.config == tuned.config
    assert f"{found.metrics['accuracy']:.2%}" in capsys.readouterr().out
    card = (mean / "README.md").read_text()
    assert f"{command_line(tuned.config)}\nfer average {pair[0]} {pair[1]} --write {mean}" in card
    assert (mean / "confusion.png").is_file()


def test_what_has_no_mean_is_refused_and_nothing_written(pair, data, tmp_path, capsys):
    """Else unlike networks would give one that answers at random, or a good checkpoint be lost."""
    other = make(tmp_path / "other", 0, dataclasses.replace(MODEL, rank=5))
    for names, write, message in (
        ([pair[0]], tmp_path / "new", "at least two"),
        ([pair[0], other], tmp_path / "new", f"{other} is another network than {pair[0]}"),
        (pair, pair[1], "holds a checkpoint already"),
    ):
        before = (pair[1] / "model.safetensors").read_bytes()
        assert run(*names, write=write, data=data) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / "new").exists()
        assert (pair[1] / "model.safetensors").read_bytes() == before


def test_data_that_cannot_measure_the_mean_is_refused_and_nothing_written(pair, data, synthetic, tmp_path, capsys):
    """Else half a checkpoint would lie there, or one whose card and temperature are of other faces."""
    metrics = pair[0] / "metrics.json"
    metrics.write_text('{"data": "FER2013"}')
    alone = {name: tmp_path / name for name in ("train", "val")}
    for name, folder in alone.items():
        folder.mkdir()
        write_faces(folder, synthetic, **{name: 70})
    for faces, message in (
        (alone["train"], "no split 'val'"),
        (alone["val"], "no split 'train'"),
        (data, "was trained on FER2013, not on"),
    ):
        assert run(*pair, write=tmp_path / "new", data=faces) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / "new").exists()
