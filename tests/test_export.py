"""A user would ship a network that answers differently, or not know it, if any of these failed."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fer import export as module
from fer.checkpoint import load_checkpoint, save_checkpoint
from fer.classifier import average_logits
from fer.cli import main
from fer.config import Config, ExportConfig, ModelConfig, Preprocessing, TrainConfig
from fer.emotions import EMOTIONS
from fer.errors import DatasetError, ExportError
from fer.export import ExportReport, export, render
from fer.inference import predict_logits
from fer.models import create_model
from fer.onnx_runtime import load_onnx

FACES = np.random.default_rng(0).integers(0, 256, (9, 48, 48), np.uint8)
NOWHERE = "/nowhere/fer2013"


def save(folder: Path, model: ModelConfig) -> Path:
    """An untrained checkpoint."""
    torch.manual_seed(0)
    network, p = create_model(model), model.preprocessing
    network(torch.randn(8, p.channels, p.size, p.size))  # BatchNorm's statistics leave their start
    save_checkpoint(folder, network, Config(folder.name, model, TrainConfig()))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    preprocessing = Preprocessing(size=32, channels=3)
    return save(tmp_path / "small", ModelConfig("guide-cnn", "tucker-trl", rank=3, preprocessing=preprocessing))


@pytest.fixture(autouse=True, scope="module")
def fewer_faces() -> Iterator[None]:
    """``exported`` was compared on all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHECKED", 64)
        yield


@pytest.fixture(scope="module")
def plain(exported: Path) -> Path:
    """The file that ``exported`` wrote."""
    return exported / "model.onnx"


@pytest.fixture(scope="module")
def int8(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    file = tmp_path_factory.mktemp("int8") / "model.onnx"
    return export(exported, ExportConfig(int8=True, out=file, data="synthetic"))


def operators(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_file_answers_as_pytorch_does_at_any_batch(plain, exported, batch_size):
    """Else a machine with ONNX Runtime would see other emotions."""
    checkpoint, onnx_ = load_checkpoint(exported), load_onnx(plain)
    ours = predict_logits(checkpoint.model, FACES, checkpoint.preprocessing, tta="ten-crop")
    theirs = average_logits(onnx_.logits, FACES, onnx_.preprocessing, tta="ten-crop", batch_size=batch_size)
    assert np.ptp(ours) > 0.02
    assert theirs == pytest.approx(ours, abs=1e-4)


def test_the_file_carries_all_its_use_needs(plain, exported):
    """Else a user would need the checkpoint's folder beside it."""
    checkpoint, onnx_ = load_checkpoint(exported), load_onnx(plain)
    assert (onnx_.name, onnx_.temperature, onnx_.precision) == (checkpoint.name, checkpoint.temperature, "fp32")
    assert onnx_.preprocessing == checkpoint.preprocessing
    assert onnx_.sha256 == json.loads((exported / "config.json").read_text())["sha256"]
    meta = {prop.key: prop.value for prop in onnx.load(plain).metadata_props}
    assert json.loads(meta["labels"]) == [emotion.label for emotion in EMOTIONS]
    assert json.loads(meta["preprocessing"])["mean"] == checkpoint.preprocessing.mean


def test_layer_and_batch_norm_are_folded(plain, exported):
    """Else the file would be slower than it must be, and int8 would measure the wrong thing."""
    ops = operators(plain)
    assert set(ops) == {"Conv", "Relu", "AveragePool", "Add", "Reshape", "Gemm"}
    assert ops.count("Gemm") == 1
    weights = load_checkpoint(exported).model.trunk.parameters()
    assert plain.stat().st_size < 4 * sum(w.numel() for w in weights) * 1.05


def test_nothing_of_this_machine_is_in_the_file(plain, int8):
    """Else whoever ships the file would publish their folders."""
    for file in (plain, int8.file):
        content = file.read_bytes()
        assert str(Path(module.__file__).parent).encode() not in content
        assert b"stack_trace" not in content


def test_int8_computes_with_integers_and_says_what_it_costs(plain, int8):
    """Else int8 would be slow in part, or its loss unknown."""
    report = int8
    assert report.size < 0.3 * plain.stat().st_size
    file = onnx.load(report.file)
    convolutions = [node for node in file.graph.node if node.op_type == "Conv"]
    made_by = {output: node.op_type for node in file.graph.node for output in node.output}
    assert convolutions
    assert all(made_by[name] == "DequantizeLinear" for node in convolutions for name in node.input[:2])
    assert "AveragePool" not in made_by.values()
    assert report.agreement > 0.9
    assert report.before["n"] == 350
    assert abs(report.before["accuracy"] - report.after["accuracy"]) <= module.LOSS
    assert load_onnx(report.file).metrics == report.after
    assert "int8" in render(report)
    assert f"{report.after['accuracy']:.2%}" in render(report)


def test_other_networks_can_be_exported(small, tmp_path):
    """Else what a user trained with another trunk or head would stay in PyTorch."""
    vgg = save(tmp_path / "vgg", ModelConfig(trunk="vgg16", head="gap", preprocessing=Preprocessing(size=32)))
    for folder in (small, vgg):
        report = export(folder, ExportConfig(data=NOWHERE))
        assert report.file == folder / "model.onnx"
        assert report.faces == "64 schematic faces"
        assert max(report.logits, report.probabilities) <= 1e-4
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "model.onnx"}


@pytest.mark.parametrize(
    ("setting", "value", "int8", "message"),
    [("TOLERANCE", -1.0, False, "differs from PyTorch by"), ("LOSS", -2.0, True, "loses .* without --int8")],
)
def test_a_file_that_answers_otherwise_is_not_written(small, tmp_path, monkeypatch, setting, value, int8, message):
    """Else a broken export would replace one that works."""
    monkeypatch.setattr(module, setting, value)
    target = tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    target.write_bytes(b"the one that works")
    with pytest.raises(ExportError, match=message):
        export(small, ExportConfig(int8=int8, out=target, data="synthetic"))
    assert target.read_bytes() == b"the one that works"
    assert list(target.parent.iterdir()) == [target]


def test_int8_wants_training_images(exported, tmp_path):
    """Else it would be calibrated on what nobody shows it."""
    with pytest.raises(DatasetError, match="int8 is calibrated on Training images: no data at"):
        export(exported, ExportConfig(int8=True, out=tmp_path / "model.onnx", data=NOWHERE))
    with pytest.raises(ExportError, match=r"must end in \.onnx"):
        export(exported, ExportConfig(out=tmp_path / "model"))


def test_the_command_writes_figures_along_and_prints_how_far_the_two_differ(small, tmp_path, capsys):
    """Else nobody would know that it was checked, nor how good the network is."""
    folder = shutil.copytree(small, tmp_path / "mine")
    (folder / "metrics.json").write_text('{"data": "FER2013", "split": "val", "accuracy": 0.7, "confusion": [[1]]}')
    target = tmp_path / "sub" / "mine.onnx"
    assert main(["export", str(folder), "--format", "onnx", "--out", str(target), "--data", NOWHERE]) == 0
    printed = capsys.readouterr().out
    assert f"{target}: fp32, " in printed
    assert "fp32 beside PyTorch on 64 schematic faces: logits differ by" in printed
    assert load_onnx(target).metrics == {"data": "FER2013", "split": "val", "accuracy": 0.7}


def test_what_is_missing_is_named(monkeypatch, capsys):
    """Else the user would be left with PyTorch's ModuleNotFoundError."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "fer.export")
    assert main(["export", "vgg16-cp-trl"]) == 2
    printed = capsys.readouterr().err
    assert 'onnxscript is not installed, and exporting needs it: pip install "fer-trl[export]"' in printed
