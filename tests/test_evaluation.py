import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fer.config import Config, ModelConfig, Preprocessing, TrainConfig
from fer.dataset import Dataset
from fer.emotions import EMOTIONS
from fer.errors import ConfigError, DatasetError
from fer.evaluation import evaluate, finish, render
from fer.inference import predict_logits, softmax
from fer.models import create_model

CONFIG = Config(
    name="tiny",
    model=ModelConfig(trunk="guide-cnn", rank=20, preprocessing=Preprocessing(size=32)),
    training=TrainConfig(tta="flip", epochs=2),
)


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "tiny", create_model(CONFIG.model), CONFIG, temperature=0.5)
    return load_checkpoint(tmp_path / "tiny")


@pytest.fixture(scope="module")
def data(synthetic) -> Dataset:
    """A few of the synthetic faces; every fifth of val is marked as leaked."""
    splits = {}
    for name, split in synthetic.splits.items():
        leaked = (np.arange(70) % 5 == 0) & (name != "train")
        splits[name] = dataclasses.replace(
            split, images=split.images[:70], labels=split.labels[:70], leaked=leaked, copies=split.copies[:70]
        )
    return dataclasses.replace(synthetic, splits=splits)


def is_plot(file: Path) -> bool:
    with Image.open(file) as image:
        return image.format == "PNG" and min(image.size) > 300 and len(image.convert("RGB").getcolors(10**6)) > 10


def test_an_evaluation_says_all_that_was_measured(checkpoint, data, tmp_path):
    """Else a comparison of two models would lack its ground."""
    report = evaluate(checkpoint, data, split="val", tta="flip", output=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written == report
    assert list(report) == [
        *("checkpoint", "data", "split", "tta", "n", "accuracy", "leak_free_accuracy", "macro_f1", "nll", "ece"),
        *("per_class", "confusion"),
    ]
    assert [report[key] for key in ("checkpoint", "data", "split", "tta", "n")] == [
        "tiny",
        "synthetic",
        "val",
        "flip",
        70,
    ]
    val = data.split("val")
    logits = predict_logits(checkpoint.model, val.images, CONFIG.model.preprocessing, tta="flip")
    right = logits.argmax(1) == val.labels
    assert report["accuracy"] == pytest.approx(right.mean())
    assert report["leak_free_accuracy"] == pytest.approx(right[~val.leaked].mean())
    nll = -np.log(softmax(logits, 0.5)[np.arange(70), val.labels]).mean()  # at the checkpoint's temperature
    assert report["nll"] == pytest.approx(nll, rel=1e-5)
    assert is_plot(tmp_path / "out" / "confusion.png")
    assert is_plot(tmp_path / "out" / "reliability.png")
    assert load_checkpoint(checkpoint.folder).metrics == {}  # the checkpoint itself is left alone


def test_predictions_come_in_the_datasets_order(checkpoint, data, tmp_path):
    """Else they could not be laid beside the images, or beside another model's."""
    evaluate(checkpoint, data, split="test", tta="none", predictions=tmp_path / "new" / "p.csv", batch_size=16)
    with (tmp_path / "new" / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "label", "prediction", *(e.label for e in EMOTIONS)]
    assert [int(row["index"]) for row in rows] == list(range(70))
    test = data.split("test")
    assert [row["label"] for row in rows] == [EMOTIONS[label].label for label in test.labels]
    found = np.array([[float(row[e.label]) for e in EMOTIONS] for row in rows])
    expected = softmax(predict_logits(checkpoint.model, test.images, CONFIG.model.preprocessing), 0.5)
    assert found == pytest.approx(expected, abs=1e-5)
    assert [row["prediction"] for row in rows] == [EMOTIONS[i].label for i in expected.argmax(1)]


def test_leak_free_is_said_only_where_it_can_be_known(checkpoint, data):
    """Else a figure on val alone would pass for one without leaks."""
    assert "leak_free_accuracy" not in evaluate(checkpoint, data, split="train", tta="none")
    alone = dataclasses.replace(data, splits={"val": data.split("val")})
    report = evaluate(checkpoint, alone, split="val", tta="none")
    assert "leak_free_accuracy" not in report
    with pytest.raises(DatasetError, match="no split 'test'"):
        evaluate(checkpoint, alone, split="test")


def test_finishing_makes_a_checkpoint_whole(checkpoint, data):
    """Else a trained model would lack its temperature, its figures, its plots or its card."""
    folder = checkpoint.folder
    report = finish(folder, data)
    done = load_checkpoint(folder)
    assert done.metrics == report
    assert done.temperature != 0.5
    val = data.split("val")
    logits = predict_logits(done.model, val.images, CONFIG.model.preprocessing, tta="flip")
    clean = ~val.leaked
    at = [
        -np.log(softmax(logits, t)[np.arange(70), val.labels])[clean].mean()
        for t in (done.temperature * 0.8, done.temperature, done.temperature * 1.25)
    ]
    assert at[1] <= min(at)
    assert is_plot(folder / "confusion.png")
    assert is_plot(folder / "reliability.png")
    card = (folder / "README.md").read_text()
    for expected in (
        "# tiny",
        f"{report['accuracy']:.2%} | {report['leak_free_accuracy']:.2%} | {report['macro_f1']:.2%}",
        f"| temperature | {done.temperature:.3f} |",
        "fer train ",
        "| disgust |",
        "synthetic",
    ):
        assert expected in card
    assert "FER2013 Training" not in card  # it was not trained on it


def test_the_card_of_a_model_of_fer2013_states_the_datas_terms(checkpoint, data):
    """Else weights would be passed on without a word on what they come from."""
    finish(checkpoint.folder, dataclasses.replace(data, name="FER2013"))
    card = (checkpoint.folder / "README.md").read_text()
    assert "| trained on | FER2013 Training, without repeated images |" in card
    assert "come from FER2013" in card
    assert "Not for decisions about people" in card


def test_the_card_of_other_data_does_not_call_it_fer2013(checkpoint, data):
    """Else figures on somebody's own faces would pass for FER2013's, and a start's terms be forgotten."""
    config = checkpoint.config
    training = dataclasses.replace(config.training, weights="vgg16-cp-trl")
    save_checkpoint(checkpoint.folder, checkpoint.model, dataclasses.replace(config, training=training))
    finish(checkpoint.folder, dataclasses.replace(data, name="mine"))
    card = (checkpoint.folder / "README.md").read_text()
    assert "FER2013" not in card
    assert "| trained on | mine train" in card
    assert "On mine val (70 images)" in card
    assert "from the faces of mine, whose terms apply, and from the checkpoint vgg16-cp-trl" in card


@pytest.mark.parametrize("where", ["output", "predictions"])
def test_results_that_cannot_be_written_are_named_before_the_work(checkpoint, data, where, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write to .*file"):
        evaluate(checkpoint, data, **{where: tmp_path / "file" / "x"})
    with pytest.raises(ConfigError, match="must name a file"):
        evaluate(checkpoint, data, predictions=tmp_path)
    with pytest.raises(ConfigError, match="batch size must be at least 1, not 0"):
        evaluate(checkpoint, data, batch_size=0)


def test_the_card_says_where_the_weights_came_from(checkpoint, data):
    """Else a fine-tuned model would be sold as ImageNet's, and a head without a rank as one that has it."""
    folder = checkpoint.folder
    finish(folder, data)
    card = (folder / "README.md").read_text()
    assert "started from random weights" in card
    assert "| head | cp-trl, rank " in card
    assert "taught by" not in card

    training = dataclasses.replace(CONFIG.training, weights="before", teachers="one,two", ferplus=0.3)
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, head="gap"), training=training)
    save_checkpoint(folder, create_model(other.model), other)
    finish(folder, data)
    card = (folder / "README.md").read_text()
    assert "started from the checkpoint before," in card
    assert "| head | gap: " in card
    assert "| taught by | one,two |" in card
    assert "synthetic train, FER+ votes, without repeated images" in card


def test_the_table_shows_the_reports_figures(checkpoint, data):
    """Else the terminal would state other figures than metrics.json."""
    report = evaluate(checkpoint, data, tta="none")
    console = Console(width=120, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(render(report))
    text = captured.get()
    for expected in ("tiny on synthetic val", f"{report['accuracy']:.2%}", f"{report['ece']:.4f}", "disgust", "70"):
        assert expected in text
