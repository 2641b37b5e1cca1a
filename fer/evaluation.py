"""``evaluate``: a checkpoint's figures on a split, with plots, and the model card that states them."""

import csv
import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, update_checkpoint
from fer.config import Config, TestTimeAugmentation, command_line
from fer.dataset import Dataset, SplitName
from fer.emotions import EMOTIONS
from fer.inference import predict_logits, softmax
from fer.metrics import fit_temperature, reliability, summarize
from fer.models import EmotionModel
from fer.shelf import METRICS
from fer.trl import TensorRegressionLayer

mpl.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["evaluate", "finish", "render", "write_derived"]

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
    """
    faces = data.split(split)
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
        output.mkdir(parents=True, exist_ok=True)
        (output / METRICS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _plot(report, probabilities, faces.labels, output)
    if predictions is not None:
        _write_predictions(probabilities, faces.labels, predictions)
    return report


def finish(folder: Path, data: Dataset, *, made: str | None = None) -> dict[str, Any]:
    """Make a freshly trained checkpoint complete: temperature, metrics.json, plots and model card.

    The temperature is fitted on the leak-free part of val.

    Args:
        folder: the checkpoint's.
        data: what it was trained on.
        made: the commands that made it, one a line; that of its training unless given.
    """
    checkpoint = load_checkpoint(folder, device="auto")
    val = data.split("val")
    preprocessing, tta = checkpoint.config.model.preprocessing, checkpoint.config.training.tta
    logits = predict_logits(checkpoint.model, val.images, preprocessing, tta=tta, progress="evaluation")
    temperature = fit_temperature(logits[~val.leaked], val.labels[~val.leaked])
    probabilities = softmax(logits, temperature)
    report = _report(checkpoint, data, "val", tta, probabilities)
    report["uncalibrated_ece"] = summarize(softmax(logits), val.labels)["ece"]
    update_checkpoint(folder, temperature=temperature, metrics=report)
    _plot(report, probabilities, val.labels, folder)
    card = _card(replace(checkpoint, temperature=temperature), report, made or command_line(checkpoint.config))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def write_derived(
    folder: Path, model: EmotionModel, config: Config, source: Checkpoint, data: Dataset
) -> dict[str, Any]:
    """Write, complete as :func:`finish` does, a checkpoint that the running command made from another one.

    Args:
        folder: where to.
        model: its network.
        config: its name, its network's settings, and those of the training behind it.
        source: what it was made from, whose training curves it keeps.
        data: what that was trained on.
    """
    save_checkpoint(folder, model, config, temperature=source.temperature)
    if (curves := source.folder / "curves.png").is_file():
        shutil.copy(curves, folder / curves.name)
    return finish(folder, data, made=f"{command_line(source.config)}\n{shlex.join(['fer', *sys.argv[1:]])}")


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
    known_leaks = faces.leaked if split != "train" and "train" in data.splits else None
    report: dict[str, Any] = {"checkpoint": checkpoint.name, "data": data.name, "split": split, "tta": tta}
    return report | summarize(probabilities, faces.labels, known_leaks)


def _plot(report: dict[str, Any], probabilities: NDArray[np.float32], labels: NDArray[np.int64], output: Path) -> None:
    _plot_confusion(np.array(report["confusion"]), output / "confusion.png")
    _plot_reliability(probabilities, labels, report["ece"], output / "reliability.png")


def _write_predictions(probabilities: NDArray[np.float32], labels: NDArray[np.int64], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
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


def _card(checkpoint: Checkpoint, report: dict[str, Any], made: str) -> str:
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
    half = "float16, computed with in float32" if training.half else "float32"
    return f"""# {checkpoint.name}

Recognises seven facial expressions ({", ".join(LABELS)}) on a grey face of {model.preprocessing.size} pixels.

| | |
| --- | --- |
| trunk | {model.trunk}, started from {start}, output {shape} |
| head | {model.head}{kind}: {sum(p.numel() for p in layer.parameters()):,} parameters |
| parameters | {size:,}, stored in {half} |
| trained on | {report["data"]} Training{votes}{", without repeated images" if training.drop_copies else ""} |{taught}
| temperature | {checkpoint.temperature:.3f} |

## Measured

On {report["data"]} PublicTest ({report["n"]:,} images), test-time augmentation `{report["tta"]}`:

| accuracy | without leaked images | macro-F1 | negative log-likelihood | ECE | ECE before scaling |
| --- | --- | --- | --- | --- | --- |
| {report["accuracy"]:.2%} | {report["leak_free_accuracy"]:.2%} | {report["macro_f1"]:.2%} | {report["nll"]:.3f} \
| {report["ece"]:.3f} | {report["uncalibrated_ece"]:.3f} |

| class | precision | recall | F1 | images |
| --- | --- | --- | --- | --- |
{rows}

`fer evaluate {checkpoint.name} --data PATH --split val --tta {report["tta"]}` prints these figures. Leaked images have
a pixel-identical copy in Training. PublicTest without them also chose the epoch and the temperature, so the figures are
slightly optimistic; `--split test` measures on PrivateTest, which nothing here has seen.

![loss and accuracy](curves.png)
![confusion](confusion.png)
![reliability](reliability.png)

## Made by

```
{made}
```

## Data and licence

{_terms(report["data"], model.trunk == "vgg16" and training.weights != "none")}
"""


def _terms(data: str, pretrained: bool) -> str:
    if data != "FER2013":
        return f"Trained on {data} data, to try things out: it says nothing of photographs. The code is MIT-licensed."
    imagenet = ", and the trunk's start from ImageNet (research use)" if pretrained else ""
    return f"""\
The weights come from FER2013 (Goodfellow et al. 2013), collected by web search for the ICML 2013 challenge and given
for research; its images are not included{imagenet}. The code is MIT-licensed; whoever uses the weights commercially
should settle the data's terms for themselves.

Labels say what annotators believed to see in a posed or caught moment, not what a person feels. Faces of FER2013 are
unevenly distributed over age, sex and origin, and no fairness was measured. Not for decisions about people."""
