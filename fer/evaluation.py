"""``evaluate``: a checkpoint's figures on a split, with plots, and the model card that states them."""

import csv
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, update_checkpoint
from fer.config import Config, TestTimeAugmentation, TrainConfig, command_line
from fer.dataset import SPLITS, Dataset, SplitName
from fer.emotions import EMOTIONS
from fer.errors import ConfigError, DatasetError
from fer.inference import predict_logits, softmax
from fer.metrics import fit_temperature, reliability, summarize
from fer.models import EmotionModel
from fer.shelf import CONFIG, METRICS, make_folder
from fer.trl import TensorRegressionLayer

mpl.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["check_data", "check_derivable", "evaluate", "finish", "render", "write_derived"]

LABELS = [emotion.label for emotion in EMOTIONS]


def evaluate(
    checkpoint: Checkpoint,
    data: Dataset,
    *,
    split: SplitName = "val",
    tta: TestTimeAugmentation = "flip",
    output: Path | None = None,
    predictions: Path | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Measure a checkpoint on a split.

    Args:
        checkpoint: from :func:`fer.load_checkpoint`; its temperature scales the logits.
        data: from :func:`fer.dataset.load`.
        split: train, val (PublicTest) or test (PrivateTest).
        tta: views whose logits are averaged.
        output: folder for metrics.json, confusion.png and reliability.png.
        predictions: CSV file with one row an image, in the dataset's order: index, label, prediction, and the seven
            probabilities.
        batch_size: faces at a time.

    Returns:
        What :func:`fer.metrics.summarize` does, after the checkpoint's name, the data's, the split and the views.

    Raises:
        DatasetError: the data lacks that split.
        ConfigError: the batch size is not positive, or a result cannot be written.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, not {batch_size}")
    faces = data.split(split)
    _make_room(output, predictions)
    logits = predict_logits(
        checkpoint.model,
        faces.images,
        checkpoint.config.model.preprocessing,
        tta=tta,
        batch_size=batch_size,
        progress=f"{checkpoint.name} on {split}",
    )
    probabilities = softmax(logits, checkpoint.temperature)
    report = _report(checkpoint, data, split, tta, probabilities)
    if output is not None:
        (output / METRICS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _plot(report, probabilities, faces.labels, output)
    if predictions is not None:
        _write_predictions(probabilities, faces.labels, predictions)
    return report


def finish(folder: Path, data: Dataset, *, device: str = "auto", made: Sequence[str] = ()) -> dict[str, Any]:
    """Make a freshly trained checkpoint complete: temperature, metrics.json, plots and model card.

    The temperature is fitted on the leak-free part of val.

    Args:
        folder: the checkpoint's.
        data: what it was trained on.
        device: as for :func:`fer.load_checkpoint`.
        made: the commands that made it; that of its training unless given.
    """
    checkpoint = load_checkpoint(folder, device=device)
    val = data.split("val")
    preprocessing, tta = checkpoint.config.model.preprocessing, checkpoint.config.training.tta
    logits = predict_logits(checkpoint.model, val.images, preprocessing, tta=tta, progress="evaluation")
    temperature = fit_temperature(logits[~val.leaked], val.labels[~val.leaked])
    probabilities = softmax(logits, temperature)
    report = _report(checkpoint, data, "val", tta, probabilities)
    report["uncalibrated_ece"] = summarize(softmax(logits), val.labels)["ece"]
    report["made"] = list(made) or [command_line(checkpoint.config)]
    update_checkpoint(folder, temperature=temperature, metrics=report)
    _plot(report, probabilities, val.labels, folder)
    card = _card(replace(checkpoint, temperature=temperature), report)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def check_derivable(folder: Path, source: Checkpoint, data: Dataset) -> None:
    """Refuse, before any work, what :func:`write_derived` could not finish or should not write.

    Raises:
        ConfigError: the folder holds a checkpoint, or the data is not what the source was trained on.
        DatasetError: the data lacks a split, or images of val without a copy in train.
    """
    if (folder / CONFIG).exists() or folder.is_file():
        kind = "holds a checkpoint already" if folder.is_dir() else "is a file"
        raise ConfigError(f"{folder} {kind}: choose another folder to --write")
    data.split("train")
    if data.split("val").leaked.all():
        raise DatasetError(
            "every image of val has a copy in train, so nothing can be measured: give val images of its own"
        )
    check_data(source, data)


def check_data(source: Checkpoint, data: Dataset) -> None:
    """Refuse to keep figures of other data than a checkpoint was trained on.

    Raises:
        ConfigError: the data is not what its metrics.json names.
    """
    if (trained := source.metrics.get("data", data.name)) != data.name:
        raise ConfigError(
            f"{source.folder} was trained on {trained}, not on {data.name}: figures and temperature to keep beside its "
            f"weights, or what is made from them, need {trained} as --data"
        )


def write_derived(
    folder: Path, model: EmotionModel, config: Config, source: Checkpoint, data: Dataset, *, device: str
) -> dict[str, Any]:
    """Write, complete as :func:`finish` does, a checkpoint that the running command made from another one.

    Args:
        folder: where to, after :func:`check_derivable`.
        model: its network.
        config: its name, its network's settings, and those of the training behind it.
        source: what it was made from, whose training curves it keeps.
        data: what that was trained on.
        device: as for :func:`fer.load_checkpoint`.
    """
    save_checkpoint(folder, model, config, temperature=source.temperature)
    if (curves := source.folder / "curves.png").is_file():
        shutil.copy(curves, folder / curves.name)
    before = source.metrics.get("made") or [command_line(source.config)]
    return finish(folder, data, device=device, made=[*before, shlex.join(["fer", *sys.argv[1:]])])


def render(report: dict[str, Any]) -> Table:
    """A report as a table for the terminal."""
    table = Table(title=f"{report['checkpoint']} on {report['data']} {report['split']}, tta {report['tta']}")
    for name in ("class", "precision", "recall", "f1", "images"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, row in report["per_class"].items():
        table.add_row(name, *(f"{row[key]:.1%}" for key in ("precision", "recall", "f1")), str(row["support"]))
    table.add_section()
    for key in ("accuracy", "leak_free_accuracy", "macro_f1", "nll", "ece"):
        if key in report:
            value = f"{report[key]:.4f}" if key in ("nll", "ece") else f"{report[key]:.2%}"
            table.add_row(key, "", "", value, str(report["n"]) if key == "accuracy" else "")
    return table


def _report(
    checkpoint: Checkpoint,
    data: Dataset,
    split: SplitName,
    tta: TestTimeAugmentation,
    probabilities: NDArray[np.float32],
) -> dict[str, Any]:
    faces = data.split(split)
    known = split != "train" and "train" in data.splits and not faces.leaked.all()
    known_leaks = faces.leaked if known else None
    report: dict[str, Any] = {"checkpoint": checkpoint.name, "data": data.name, "split": split, "tta": tta}
    return report | summarize(probabilities, faces.labels, known_leaks)


def _plot(report: dict[str, Any], probabilities: NDArray[np.float32], labels: NDArray[np.int64], output: Path) -> None:
    _plot_confusion(np.array(report["confusion"]), output / "confusion.png")
    _plot_reliability(probabilities, labels, report["ece"], output / "reliability.png")


def _make_room(output: Path | None, predictions: Path | None) -> None:
    """Make the folders that results go to, before anything is measured."""
    if predictions is not None and predictions.is_dir():
        raise ConfigError(f"--predictions must name a file; {predictions} is a folder")
    if predictions is not None:
        make_folder(predictions.parent, "--predictions")
    if output is not None:
        make_folder(output, "--output")


def _write_predictions(probabilities: NDArray[np.float32], labels: NDArray[np.int64], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["index", "label", "prediction", *LABELS])
        for i, (row, label) in enumerate(zip(probabilities, labels, strict=True)):
            writer.writerow([i, LABELS[label], LABELS[row.argmax()], *(f"{p:.6f}" for p in row)])


def _plot_confusion(confusion: NDArray[np.int64], file: Path) -> None:
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(6, 5.4), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        color = "white" if share > 0.5 else "black"
        axis.text(j, i, f"{share:.0%}\n{confusion[i, j]}", ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(LABELS)), LABELS, rotation=45)
    axis.set_yticks(range(len(LABELS)), LABELS)
    axis.set(xlabel="predicted", ylabel="label", title="Confusion: share of each label's images, and their number")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _plot_reliability(probabilities: NDArray[np.float32], labels: NDArray[np.int64], ece: float, file: Path) -> None:
    confidence, accuracy, count = reliability(probabilities, labels)
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(5, 5.6), layout="constrained", sharex=True, height_ratios=(3, 1)
    )
    axis.plot((0, 1), (0, 1), "--", color="grey", label="perfect calibration")
    axis.plot(confidence, accuracy, "o-", label=f"this model, ECE {ece:.3f}")
    axis.set(ylabel="accuracy", ylim=(0, 1))
    axis.legend()
    below.bar((np.arange(len(count)) + 0.5) / len(count), count, width=0.9 / len(count))
    below.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _card(checkpoint: Checkpoint, report: dict[str, Any]) -> str:
    model, training = checkpoint.config.model, checkpoint.config.training
    size = sum(p.numel() for p in checkpoint.model.parameters())
    shape = "x".join(map(str, checkpoint.model.trunk_shape()))
    start = {"none": "random weights"}.get(training.weights, f"the checkpoint {training.weights}")
    start = "ImageNet (VGG16)" if training.starts_as_vgg16 else start
    layer = checkpoint.model.head
    kind = (
        f", rank {model.rank}, tensor dropout {model.tensor_dropout}"
        if isinstance(layer, TensorRegressionLayer)
        else ""
    )
    votes = ", FER+ votes" if training.ferplus else ""
    taught = f"\n| taught by | {training.teachers} |" if training.teachers else ""
    rows = "\n".join(
        f"| {name} | {row['precision']:.1%} | {row['recall']:.1%} | {row['f1']:.1%} | {row['support']} |"
        for name, row in report["per_class"].items()
    )
    released = report["data"] == "FER2013"
    train, val, test = ("Training", "PublicTest", "PrivateTest") if released else SPLITS
    chosen = "Recipe, epoch and temperature" if released else "Epoch and temperature"
    half = "float16, computed with in float32" if training.half else "float32"
    return f"""# {checkpoint.name}

Recognises seven facial expressions ({", ".join(LABELS)}) on a grey face of {model.preprocessing.size} pixels.

| | |
| --- | --- |
| trunk | {model.trunk}, started from {start}, output {shape} |
| head | {model.head}{kind}: {sum(p.numel() for p in layer.parameters()):,} parameters |
| parameters | {size:,}, stored in {half} |
| trained on | {report["data"]} {train}{votes}{", without repeated images" if training.drop_copies else ""} |{taught}
| temperature | {checkpoint.temperature:.3f} |

## Measured

On {report["data"]} {val} ({report["n"]:,} images), test-time augmentation `{report["tta"]}`:

| accuracy | without leaked images | macro-F1 | negative log-likelihood | ECE | ECE before scaling |
| --- | --- | --- | --- | --- | --- |
| {report["accuracy"]:.2%} | {report["leak_free_accuracy"]:.2%} | {report["macro_f1"]:.2%} | {report["nll"]:.3f} \
| {report["ece"]:.3f} | {report["uncalibrated_ece"]:.3f} |

| class | precision | recall | F1 | images |
| --- | --- | --- | --- | --- |
{rows}

`fer evaluate FOLDER --data PATH --split val --tta {report["tta"]}` with this folder prints these figures. Leaked images
have a pixel-identical copy in {train}. {chosen} were chosen on {val} without them, so the
figures are slightly optimistic; `--split test` measures on {test}, which nothing here has seen.

![loss and accuracy](curves.png)
![confusion](confusion.png)
![reliability](reliability.png)

## Made by

```
{chr(10).join(report["made"])}
```

## Data and licence

{_terms(report["data"], model.trunk, training)}
"""


def _terms(data: str, trunk: str, training: TrainConfig) -> str:
    forebears = [f"the checkpoints {training.teachers}"] if training.teachers else []
    if training.weights != "none" and not training.starts_as_vgg16:
        forebears.insert(0, f"the checkpoint {training.weights}")
    if data == "synthetic" and not forebears:
        return f"Trained on {data} data, to try things out: it says nothing of photographs. The code is MIT-licensed."
    pretrained = trunk == "vgg16" and training.weights != "none"
    imagenet = ", and the trunk's start from ImageNet (research use)" if pretrained else ""
    if data != "FER2013":
        behind = f", and from {' and '.join(forebears)}, whose cards say what is behind them" if forebears else ""
        return f"""\
The weights come from the faces of {data}, whose terms apply{behind}{imagenet}. The code is MIT-licensed.

Labels say what annotators believed to see, not what a person feels. Not for decisions about people."""
    return f"""\
The weights come from FER2013 (Goodfellow et al. 2013), collected by web search for the ICML 2013 challenge and given
for research; its images are not included{imagenet}. The code is MIT-licensed; whoever uses the weights commercially
should settle the data's terms for themselves.

Labels say what annotators believed to see in a posed or caught moment, not what a person feels. Faces of FER2013 are
unevenly distributed over age, sex and origin, and no fairness was measured. Not for decisions about people."""
