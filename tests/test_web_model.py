"""A visitor would lose the truth about a checkpoint: its figures, its size, and what rank and dropout change."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_page import answer, get, launched

from fer import create_model
from fer.config import ModelConfig
from fer.models import parameter_count
from fer.shelf import available_checkpoints, find_checkpoint
from fer.trl import CPTRL
from fer.web_common import gr
from fer.web_model import GUIDE_FC, Card, model_tab

CNN = ModelConfig(trunk="cnn", rank=4)
POINT = {
    "retrained_accuracy": None,
    "retrained_leak_free": None,
    "truncated_accuracy": None,
    "truncated_leak_free": None,
}


class Page:
    """The tab as a visitor has it: what it answers when it is opened, and when a slider is moved."""

    def __init__(self, url: str) -> None:
        self.url, config = url, get(f"{url}config").json()
        self.names = {c["props"].get("label", c["props"].get("value")): c["id"] for c in config["components"]}
        self.events = {(tuple(target)): d["id"] for d in config["dependencies"] for target in d["targets"]}

    def ask(self, label: str, trigger: str, data: list[Any], visitor: str = "visitor") -> Any:
        output = answer(self.url, self.events[self.names[label], trigger], data, visitor)["output"]
        return output.get("data") or output["error"]

    def choose(self, name: str) -> tuple[str, Any, str, str]:
        """The card, the settings of the rank's slider, the figure, and the layers."""
        answer = self.ask("Checkpoint", "change", [name, None])
        assert isinstance(answer, list), answer
        self.chosen = name
        card, _, rank, _, figure, layers = answer
        return unescape(card), rank, unescape(figure), unescape(layers)

    def move(self, rank: int, dropout: float) -> str:
        return unescape(self.ask("Rank", "input", [self.chosen, rank, dropout, None])[0])


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with measured ranks, which was not evaluated."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("shelf") / "mine")
    points = [
        POINT | {"rank": 1, "parameters": 340, "retrained_leak_free": 0.4, "truncated_leak_free": 0.25},
        POINT | {"rank": 16, "parameters": 5335, "retrained_leak_free": 0.6},
    ]
    full = {"rank": 4, "accuracy": 0.6, "leak_free_accuracy": 0.55}
    record = {"checkpoint": "mine", "data": "FER2013", "n": 10, "split": "val", "full": full, "ranks": points}
    (folder / "ranks.json").write_text(json.dumps(record))
    return folder


@contextmanager
def served(checkpoint: Path) -> Iterator[Page]:
    with gr.Blocks() as app:
        model_tab(str(checkpoint))
    with launched(app) as url:
        yield Page(url)


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    with served(folder) as page:
        yield page


@pytest.mark.parametrize("name", available_checkpoints())
def test_card_is_true(page: Page, name: str) -> None:
    """Of every shipped checkpoint: figures, sizes, and its pictures in words too."""
    card, rank, figure, layers = page.choose(name)
    metrics = json.loads((find_checkpoint(name) / "metrics.json").read_text())
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", card))
    assert shown["Accuracy"] == f"{metrics['accuracy']:.1%}"
    assert shown["without leaked images"] == f"{metrics['leak_free_accuracy']:.1%}"
    assert shown["Macro-F1"] == f"{metrics['macro_f1']:.1%}"
    assert shown["Calibration error"] == f"{metrics['ece']:.3f}"
    for emotion, row in metrics["per_class"].items():
        assert re.search(
            f">{emotion}</th>.*?{row['recall']:.1%}.*?{row['precision']:.1%}.*?{row['support']}</td>", card
        )
    config = Card.read(name).config
    model = create_model(config)
    assert shown["of them in the head"] == f"{parameter_count(model.head):,}"
    assert f"<td>{parameter_count(model):,}</td>" in layers
    assert f"{GUIDE_FC:,}" in card
    assert "119,574,535" in card
    assert rank["value"] == config.rank
    if config.head == "cp-trl":
        assert f"= {model.head.num_parameters:,} parameters" in figure
    pictures = re.findall(r'<img alt="(.*?)"', card)
    assert len(pictures) == 3
    assert re.search(r"most frequent mistake: \w+ taken for \w+ \(\d+% of its images\)", pictures[0])


def test_rank_is_what_it_costs(page: Page, folder: Path) -> None:
    _, rank, figure, _ = page.choose(str(folder))
    assert rank["maximum"] == 2 * CPTRL.break_even_rank((256, 3, 3), 7) == 118
    assert "4 × (256 + 3 + 3 + 7) = 1,076 parameters" in figure
    assert "7% of the plain linear map's 16,128. Up to rank 59" in figure
    assert "more than the plain linear map's 16,128, 2.0 times as many" in page.move(118, 0.1)


def test_measured_accuracy_is_told_and_no_other(page: Page, folder: Path) -> None:
    assert "the checkpoint's own rank: 55.0% right" in page.choose(str(folder))[2]
    assert "at rank 1: 40.0% trained anew, 25.0% this checkpoint's head cut down" in page.move(1, 0)
    assert "at rank 16: 60.0% trained anew," in page.move(16, 0)
    assert "Not measured at rank 8. Nearest, without leaked images: rank 1: 40.0%" in page.move(8, 0)


def test_nothing_is_claimed_without_measurements(page: Page, folder: Path, tmp_path: Path) -> None:
    card, *_ = page.choose(str(folder))
    assert "not evaluated yet" in card
    assert "Accuracy" not in card
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "ranks.json").unlink()
    with served(tmp_path / "copy") as unmeasured:
        _, _, figure, _ = unmeasured.choose(str(tmp_path / "copy"))
    assert f"was not measured: <code>fer rank {tmp_path / 'copy'} --publish</code>" in figure
    assert "%" not in figure.partition("<svg")[0].partition("Up to rank")[2]


def test_dropout_drops_its_share(page: Page, folder: Path) -> None:
    page.choose(str(folder))
    assert "fer-off" not in page.move(100, 0)
    for dropout in (0.1, 0.5, 0.9):
        figure = page.move(100, dropout)
        dropped = figure.count("fer-off")
        assert dropped == pytest.approx(100 * dropout, abs=4 * (100 * dropout * (1 - dropout)) ** 0.5)
        assert f"{100 - dropped} of 100 terms take part" in figure
        assert f"counts {1 / (1 - dropout):.2f} times" in figure
    now, (_, after) = page.move(100, 0.5), page.ask("Next step", "click", [str(folder), 100, 0.5, None])
    assert unescape(after) != now
    assert unescape(after) == page.move(100, 0.5)


def test_sliders_outlive_the_session(page: Page, folder: Path) -> None:
    """The server forgets a visitor whose connection breaks for a moment, while the page stays open."""
    page.choose(str(folder))
    (figure,) = page.ask("Rank", "input", [str(folder), 100, 0.5, None], "forgotten")
    assert "100 × (256 + 3 + 3 + 7)" in unescape(figure)
    _, after = page.ask("Next step", "click", [str(folder), 100, 0.5, None], "forgotten too")
    assert after != figure
    (most,) = page.ask("Rank", "input", [str(folder), 500_000, 0, None], "forgotten")
    assert "118 × (256 + 3 + 3 + 7)" in unescape(most)  # where the card's own slider ends


@pytest.mark.parametrize(("head", "told"), [
    ("tucker-trl", ("components of the channels", "of the classes")),
    ("tt-trl", ("components of bond 1", "of bond 3")),
    ("gap", ("gap is no tensor regression layer",)),
    ("fc", ("fc is no tensor regression layer",)),
])  # fmt: skip
def test_other_heads(head: Any, told: tuple[str, ...], tmp_path: Path) -> None:
    config = replace(CNN, head=head)
    (tmp_path / "config.json").write_text(json.dumps({"model": asdict(config)}))
    with served(tmp_path) as page:
        card, _, figure, _ = page.choose(str(tmp_path))
    assert all(text in figure for text in told)
    with torch.device("meta"):
        assert f"<dd>{parameter_count(create_model(config).head):,}</dd>" in card


def test_only_offered_checkpoints_are_read(page: Page, folder: Path) -> None:
    """A request cannot name another folder of the server."""
    shutil.copytree(folder, folder.parent / "other")
    refused = page.ask("Checkpoint", "change", [str(folder.parent / "other"), None])
    assert "not in the list of choices" in refused


def test_damaged_card_says_so(page: Page, folder: Path) -> None:
    content = (folder / "config.json").read_text()
    (folder / "config.json").write_text("{")
    try:
        assert "cannot read" in page.ask("Checkpoint", "change", [str(folder), None])[0]
        assert "cannot read" in page.ask("Rank", "input", [str(folder), 1, 0, None])[0]
    finally:
        (folder / "config.json").write_text(content)
