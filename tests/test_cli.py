import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faces_csv import write_faces

from fer.checkpoint import load_checkpoint
from fer.cli import main
from fer.config import RECIPES

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(synthetic, tmp_path_factory) -> Path:
    """A fer2013.csv with some synthetic faces and without a test split."""
    return write_faces(tmp_path_factory.mktemp("data"), synthetic, train=140, val=35)


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HELP, *command, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


#: Runs a command and fails where it has loaded what only the command's work needs.
HELP = """
import sys
from fer.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "gradio", "accelerate", "matplotlib", "albumentations", "cv2"} & sys.modules.keys()
    assert not heavy, heavy
"""


def subcommands(text: str) -> list[str]:
    found = re.search(r"\{([\w,-]+)\}\s*$", text.split("\n\n")[0])
    return found[1].split(",") if found else []


def test_every_command_explains_itself_without_loading_its_machinery(capsys, monkeypatch):
    """Else `fer --help` would take seconds, or a command's help be a traceback."""
    commands = subcommands(help_of())
    assert {"app", "predict", "train", "evaluate", "models", "data", "detector"} <= set(commands)
    monkeypatch.setenv("COLUMNS", "120")
    todo = [[command] for command in commands]
    seen = []
    while todo:
        command = todo.pop()
        seen.append(" ".join(command))
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        text = capsys.readouterr().out
        assert caught.value.code == 0
        assert f"usage: fer {' '.join(command)}" in text
        todo += [[*command, name] for name in subcommands(text)]
    assert {"data check", "data download", "detector download", *(f"train {name}" for name in RECIPES)} <= set(seen)


def test_train_py_is_the_same_command(capsys):
    """Else the commands of the README would work in one form only."""
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "guide-cnn", "--help"], capture_output=True, text=True, check=True
    )
    with pytest.raises(SystemExit):
        main(["train", "guide-cnn", "--help"])
    options = re.findall(r"--[a-z][\w-]+", done.stdout)
    assert options == re.findall(r"--[a-z][\w-]+", capsys.readouterr().out)
    assert {"--epochs", "--tensor-dropout", "--resume", "--no-flip", "--size"} <= set(options)
    assert "go on from the last whole epoch" in done.stdout  # a field's line in fer/config.py


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train guide-cnn --epochs 0", "epochs must be at least 1, not 0"),
        ("train guide-cnn --rank -3", "rank must be at least 1, not -3"),
        ("train guide-cnn --weights imagenet", "weights are there for the vgg16 trunk only"),
        ("train vgg16-cp-trl --poolings 5 --size 16", "5 poolings leave nothing of 16 pixels"),
        ("train guide-cnn --data {gone} --output {new}", "no data at"),
        ("train guide-cnn --resume --output {new}", "nothing to resume: "),
        ("train guide-cnn --data {data} --batch-size 200 --device cpu --output {new}", "larger than the 140 training"),
        ("train guide-cnn --data {data} --precision fp16 --device cpu --output {new}", "precision fp16 on device cpu"),
        ("evaluate {gone}", "no checkpoint"),
        ("evaluate {checkpoint} --data {gone}", "no data at"),
        ("evaluate {checkpoint} --data {data} --split test", "the data has no split 'test' (Usage PrivateTest)"),
        ("evaluate {checkpoint} --data {data} --device gpu", "device 'gpu' is not to be had here"),
        ("evaluate {checkpoint} --data {data} --output {file}/out", "Not a directory"),
        ("data check {gone}", "no data at"),
    ],
)
def test_mistakes_are_told_in_one_line(command, message, checkpoint, data, tmp_path, capsys):
    """Else a user would have to read a traceback to find a wrong path."""
    (tmp_path / "file").touch()
    places = {"gone": tmp_path / "gone", "new": tmp_path / "new", "file": tmp_path / "file"}
    arguments = [part.format(checkpoint=checkpoint, data=data, **places) for part in command.split()]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("fer: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "new" / "state.pt").exists()


def test_a_wrong_word_is_refused_with_status_2(capsys):
    """Else a script would go on after a command that was never run."""
    for arguments in (["trian"], ["train", "resnet"], ["evaluate"], ["train", "guide-cnn", "--epochs", "many"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err


def test_train_then_evaluate(data, tmp_path, capsys):
    """Else the two commands that a newcomer types first would not work together."""
    run = tmp_path / "run"
    command = f"train guide-cnn --data {data} --output {run} --device cpu --threads 1 --workers 0 --tta none"
    assert main([*command.split(), "--epochs", "2", "--batch-size", "35", "--rank", "10"]) == 0
    out = capsys.readouterr().out
    assert "guide-cnn on fer2013.csv val, tta none" in out
    assert out.splitlines()[-1] == str(run / "checkpoint")
    done = load_checkpoint(run / "checkpoint")
    assert done.config.training.epochs == 2
    assert done.metrics["n"] == 35
    card = (run / "checkpoint" / "README.md").read_text()
    assert "fer train guide-cnn --rank 10 " in card
    assert {p.name for p in (run / "checkpoint").iterdir()} == {
        *("model.safetensors", "config.json", "metrics.json", "README.md"),
        *("curves.png", "confusion.png", "reliability.png"),
    }

    output = ["--output", str(tmp_path / "out"), "--predictions", str(tmp_path / "p.csv")]
    assert main(["evaluate", str(run / "checkpoint"), "--data", str(data), "--tta", "none", *output]) == 0
    assert "leak_free_accuracy" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report.items() <= done.metrics.items()  # the figures of the card, again
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 36
    assert np.array([row[3:] for row in rows[1:]], float).sum(1) == pytest.approx(1, abs=1e-4)


def test_tables_are_printed_whole_on_80_columns(data, capsys, monkeypatch):
    """Else `fer models` would show `14,73…` in an ordinary terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["models"]) == 0
    assert main(["models", "guide-cnn"]) == 0
    assert main(["models", "--layers"]) == 0
    assert main(["data", "check", str(data)]) == 0
    out = capsys.readouterr().out
    for expected in ("61,100,840", "123,642,856", "vgg16-cp-trl", "134,288,071", "64x13x13", "512x7x7"):
        assert expected in out
