import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fer.checkpoint import (
    Checkpoint,
    available_checkpoints,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    update_checkpoint,
)
from fer.config import Config, ModelConfig, Preprocessing, TrainConfig
from fer.emotions import EMOTIONS
from fer.errors import CheckpointError, ConfigError
from fer.models import EmotionModel, create_model

CONFIG = Config(
    name="tiny",
    model=ModelConfig(trunk="cnn", rank=4, tensor_dropout=0.2, preprocessing=Preprocessing(size=32, mean=0.4, std=0.3)),
    training=TrainConfig(epochs=3, lr=0.01),
)


@pytest.fixture(scope="module")
def model() -> EmotionModel:
    torch.manual_seed(0)
    model = create_model(CONFIG.model)
    model(torch.randn(8, 1, 32, 32))  # BatchNorm's statistics leave their start
    return model


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save_checkpoint(tmp_path / "tiny", model, CONFIG, temperature=1.25)
    return tmp_path / "tiny"


def edit(folder: Path, change, file: str = "config.json") -> None:
    record = json.loads((folder / file).read_text())
    change(record)
    (folder / file).write_text(json.dumps(record))


def refusal(folder: Path, error: type[Exception] = CheckpointError, **options: str) -> str:
    with pytest.raises(error) as caught:
        load_checkpoint(folder, **options)
    return str(caught.value)


def test_a_checkpoint_carries_all_that_its_use_needs(folder, model):
    """Else a user would have to know how it was trained to feed it right."""
    loaded = load_checkpoint(folder)
    assert isinstance(loaded, Checkpoint)
    assert (loaded.name, loaded.temperature, loaded.folder, loaded.metrics) == ("tiny", 1.25, folder, {})
    assert loaded.config == CONFIG
    assert loaded.config.model.preprocessing == Preprocessing(size=32, mean=0.4, std=0.3)
    assert json.loads((folder / "config.json").read_text())["labels"] == [e.label for e in EMOTIONS]
    assert not any(module.training for module in loaded.model.modules())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    x = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        expected = model.eval()(x)
    model.train()
    assert loaded.model(x).numpy() == pytest.approx(expected.numpy(), abs=2e-2)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]  # no .part is left


def test_loading_unpickles_nothing(folder, monkeypatch):
    """Else a checkpoint from a stranger could run code of theirs."""

    def never(*_: object, **__: object) -> None:
        pytest.fail("something was unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, never)
    load_checkpoint(folder)


def test_kernels_are_stored_in_half_and_batch_norm_in_full(folder, model):
    """Else files would be twice as large, or BatchNorm's variances leave float16's range."""
    stored = load_file(folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert stored[name].dtype == (torch.float16 if tensor.ndim > 1 else torch.float32), name
    loaded = load_checkpoint(folder).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        half = tensor.is_floating_point() and tensor.ndim > 1
        assert torch.equal(loaded[name], tensor.half().float() if half else tensor), name


def test_float32_weights_return_to_the_bit(model, tmp_path):
    """Else --no-half would not keep what was trained."""
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, half=False))
    save_checkpoint(tmp_path, model, config)
    loaded = load_checkpoint(tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_flipped_byte_is_noticed(folder):
    """Else a damaged download would answer, but wrongly."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    assert "is damaged or was replaced" in refusal(folder)
    file.unlink()
    assert "model.safetensors is missing" in refusal(folder)


def test_weights_that_do_not_fit_are_refused_by_name(folder):
    """Else a network would be filled in part, or the error be PyTorch's page of keys."""
    edit(folder, lambda record: record["model"].update(rank=5))
    message = refusal(folder)
    assert "does not fit its config.json" in message
    assert "head.weight" in message
    assert "asks for (256, 5), the file has (256, 4)" in message
    edit(folder, lambda record: record["model"].update(rank=4, head="gap"))
    assert "config.json asks for (7, 256), the file has nothing" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=2), "format 2, this version reads 1"),
        (lambda r: r.pop("sha256"), "lacks sha256"),
        (lambda r: r.update(sha256=5), "sha256 must be a string"),
        (lambda r: r.update(labels=r["labels"][::-1]), "labels are .*neutral.*, expected"),
        (lambda r: r.update(temperature=0), "temperature must be a positive number, not 0"),
        (lambda r: r.update(temperature="warm"), "temperature must be a positive number"),
        (lambda r: r["model"].update(rank="four"), "ModelConfig.rank must be int, not 'four'; it was written by"),
        (lambda r: r["model"].pop("trunk"), "ModelConfig lacks trunk"),
        (lambda r: r["training"].update(magic=1), "TrainConfig has unknown magic"),
    ],
)
def test_an_edited_record_is_refused_by_name(folder, change, message):
    """Else a mistake made by hand would come out as a KeyError, or not at all."""
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_unreadable_files_are_refused(folder):
    """Else an interrupted copy would end in a traceback."""
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[: len(config) // 2])
    assert "fetch the checkpoint again" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "expected a JSON object, found list" in refusal(folder)
    (folder / "config.json").write_text(config)
    (folder / "metrics.json").write_text("{")
    assert "metrics.json" in refusal(folder)
    (folder / "metrics.json").unlink()
    load_checkpoint(folder)


def test_an_interrupted_write_is_noticed(folder, model, tmp_path):
    """Else old settings would be used with new weights."""
    save_checkpoint(tmp_path / "new", create_model(CONFIG.model), CONFIG)
    (tmp_path / "new" / "model.safetensors").replace(folder / "model.safetensors")
    assert "is not the file that config.json describes" in refusal(folder)
    save_checkpoint(folder, model, CONFIG)
    load_checkpoint(folder)


def test_an_unknown_name_lists_the_known(tmp_path):
    """Else a typing error would leave the user searching."""
    message = refusal(tmp_path / "vgg17")
    assert "no checkpoint" in message
    assert "vgg17" in message
    for name in available_checkpoints() or ["none"]:
        assert name in message


@pytest.mark.parametrize("name", available_checkpoints())
def test_shipped_checkpoints_load_and_state_their_figures(name):
    """Else what is delivered could not be used."""
    checkpoint = load_checkpoint(name)
    assert checkpoint.name == name == find_checkpoint(name).name
    assert checkpoint.metrics["data"] == "FER2013"
    assert 0.5 < checkpoint.metrics["leak_free_accuracy"] <= checkpoint.metrics["accuracy"] + 0.02 < 1
    assert (checkpoint.folder / "README.md").is_file()
    p = checkpoint.config.model.preprocessing
    logits = checkpoint.model(torch.zeros(1, p.channels, p.size, p.size))
    assert np.isfinite(logits.numpy()).all()


def test_a_device_that_is_not_there_is_refused_in_a_line(folder):
    """Else --device cuda without a GPU would end in a traceback."""
    message = refusal(folder, ConfigError, device="gpu")
    assert "device 'gpu' is not to be had here" in message
    assert "\n" not in message
    if not torch.cuda.is_available():
        assert "device 'cuda' is not to be had here" in refusal(folder, ConfigError, device="cuda")
    assert load_checkpoint(folder, device="auto").model.trunk[0].weight.device.type in ("cpu", "cuda", "mps")


def test_new_figures_leave_the_weights_alone(folder):
    """Else evaluating would change what is evaluated."""
    before = (folder / "model.safetensors").read_bytes()
    update_checkpoint(folder, temperature=0.8, metrics={"accuracy": 0.5})
    assert (folder / "model.safetensors").read_bytes() == before
    loaded = load_checkpoint(folder)
    assert (loaded.temperature, loaded.metrics, loaded.config) == (0.8, {"accuracy": 0.5}, CONFIG)
