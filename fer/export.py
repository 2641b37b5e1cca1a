"""``fer export``: a checkpoint as an ONNX file that carries all its use needs, checked before it is written.

The file takes normalised float32 faces, as :func:`fer.preprocessing.prepare` makes them, and not raw pixels: so every
runtime is fed by the one function, test-time views included, and multiplying 2,304 pixels by a number is nothing beside
the network's hundreds of millions of products.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer import dataset
from fer.checkpoint import Checkpoint, load_checkpoint
from fer.classifier import average_logits, predict_probabilities, softmax
from fer.config import ExportConfig
from fer.emotions import EMOTIONS
from fer.errors import DatasetError, ExportError
from fer.metrics import summarize
from fer.onnx_runtime import FILES, FORMAT, INPUT, OUTPUT, OnnxCheckpoint, load_onnx
from fer.preprocessing import prepare
from fer.shelf import CONFIG, read_json
from fer.synthetic import draw_faces
from fer.trl import TensorRegressionLayer

try:
    import onnx
    import onnxscript  # noqa: F401 - torch.onnx.export wants it, and says so less plainly
    from onnxruntime import quantization as ort
except ImportError as error:
    raise ExportError(
        f'{error.name} is not installed, and exporting needs it: pip install "fer-trl[export]"'
    ) from error

__all__ = ["ExportReport", "export", "render"]

#: Largest difference of a logit or a probability between PyTorch and the file, in fp32.
TOLERANCE = 1e-4
#: Faces that the two are compared on.
CHECKED = 1000
#: Training images that the ranges of activations are taken from. 256 and 1,024 gave the same accuracy.
CALIBRATION = 512
#: Largest share of PublicTest that int8 may lose.
LOSS = 0.005

#: What an exported file keeps of a checkpoint's metrics.
_FIGURES = ("data", "split", "tta", "n", "accuracy", "leak_free_accuracy", "macro_f1", "nll", "ece")


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares.

    Attributes:
        file: where it lies.
        size: in bytes.
        precision: "fp32" or "int8".
        faces: what PyTorch and the fp32 network were compared on.
        logits: their largest difference.
        probabilities: likewise.
        before: int8 only: the fp32 network's figures on val, with flip.
        after: int8 only: the file's own.
        agreement: int8 only: share of val on which the two name the same emotion.
    """

    file: Path
    size: int
    precision: str
    faces: str
    logits: float
    probabilities: float
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    agreement: float | None = None


def export(name: str | Path, config: ExportConfig) -> ExportReport:
    """Write a checkpoint as an ONNX file for :func:`fer.onnx_runtime.load_onnx`.

    The tensor regression layer is folded into one dense map and BatchNorm into the convolutions; preprocessing,
    temperature, labels, figures and the weights' SHA-256 go into the metadata. What is written is read back and
    compared with PyTorch before it gets its name; int8 also with fp32, on all of val.

    Args:
        name: a shipped checkpoint or a folder.
        config: in what form, and where to.

    Raises:
        ExportError: the file would not answer as the checkpoint does; nothing was written.
        CheckpointError: there is no such checkpoint, or it is damaged.
        DatasetError: int8 has nothing to be calibrated on.
    """
    checkpoint = load_checkpoint(name)
    target = config.out or checkpoint.folder / FILES[config.int8]
    if target.suffix != ".onnx":
        raise ExportError(f"{target} must end in .onnx")
    data = _data(config)
    figures = {key: checkpoint.metrics[key] for key in _FIGURES if key in checkpoint.metrics}
    target.parent.mkdir(parents=True, exist_ok=True)
    with _draft(target, "fp32") as plain, _draft(target, "int8") as quantized:
        graph = _graph(checkpoint, int8=config.int8)
        _write(graph, checkpoint, "fp32", figures, plain)
        faces, source = _faces(data)
        gaps = _compare(checkpoint, load_onnx(plain), faces, source)
        report: dict[str, Any] = {}
        if config.int8 and data:
            _quantize(graph, prepare(_calibration(data), checkpoint.preprocessing), quantized)
            _write(onnx.load(quantized), checkpoint, "int8", {}, quantized)
            report = _measure(load_onnx(plain), load_onnx(quantized), data)
            _write(onnx.load(quantized), checkpoint, "int8", report["after"], quantized)
        (quantized if config.int8 else plain).replace(target)
    return ExportReport(target, target.stat().st_size, "int8" if config.int8 else "fp32", source, *gaps, **report)


def render(report: ExportReport) -> str:
    """A report as lines for the terminal."""
    lines = [
        f"{report.file}: {report.precision}, {report.size / 1e6:.1f} MB",
        f"fp32 beside PyTorch on {report.faces}: logits differ by {report.logits:.1e} at most, probabilities by "
        f"{report.probabilities:.1e}",
    ]
    if report.before and report.after:
        for key in ("accuracy", "leak_free_accuracy", "macro_f1", "ece"):
            if key in report.before:
                before, after = (f"{figures[key]:.2%}" for figures in (report.before, report.after))
                lines.append(f"{key.replace('_', '-')}: fp32 {before}, int8 {after}")
        lines.append(f"both name the same emotion for {report.agreement:.1%} of {report.before['n']:,} images")
    return "\n".join(lines)


@contextmanager
def _draft(target: Path, precision: str) -> Iterator[Path]:
    """A name beside the target, whose file is gone afterwards."""
    draft = target.with_name(f".{target.stem}.{precision}.part.onnx")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _data(config: ExportConfig) -> dataset.Dataset | None:
    try:
        return dataset.load(config.data)
    except DatasetError as error:
        if config.int8:
            raise DatasetError(f"int8 is calibrated on Training images: {error}") from error
        return None


def _faces(data: dataset.Dataset | None) -> tuple[NDArray[np.uint8], str]:
    if data and "val" in data.splits:
        images = data.split("val").images[:CHECKED]
        return images, f"{len(images):,} faces of {data.name} val"
    return draw_faces(np.arange(CHECKED) % len(EMOTIONS), seed=0), f"{CHECKED:,} schematic faces"


def _graph(checkpoint: Checkpoint, *, int8: bool) -> onnx.ModelProto:
    trunk, head = checkpoint.model.trunk, checkpoint.model.head
    if int8:
        trunk = _without_poolings(trunk)
    if isinstance(head, TensorRegressionLayer):
        head = nn.Sequential(nn.Flatten(), head.to_linear())
    p = checkpoint.preprocessing
    program = torch.onnx.export(
        nn.Sequential(trunk, head).eval(),
        (torch.zeros(2, p.channels, p.size, p.size),),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,  # what PyTorch's exporter is written in: any other is converted from it
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise ExportError(f"PyTorch {torch.__version__} made no ONNX graph of {checkpoint.name}")
    graph: onnx.ModelProto = program.model_proto
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output, graph.graph):
        del part.metadata_props[:]  # the exporter's notes: stack traces with the paths of this machine
    return graph


@torch.no_grad()
def _without_poolings(trunk: nn.Sequential) -> nn.Sequential:
    """The same network with each average pooling and the 1x1 convolution after it made one strided convolution.

    ONNX Runtime's integer pooling takes as long as a 3x3 convolution: without it the residual network takes a fifth
    less time. In floats it takes a little more.
    """
    trunk = copy.deepcopy(trunk)
    for part in [module for module in trunk.modules() if isinstance(module, nn.Sequential)]:
        for i, (pool, conv) in enumerate(pairwise(part)):
            if isinstance(pool, nn.AvgPool2d) and isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1):
                side = int(pool.kernel_size)  # type: ignore[arg-type]  # as the networks here give it
                merged = nn.Conv2d(conv.in_channels, conv.out_channels, side, side)
                merged.weight.copy_((conv.weight / side**2).expand_as(merged.weight))
                merged.bias = conv.bias
                part[i], part[i + 1] = nn.Identity(), merged
    return trunk


def _write(graph: onnx.ModelProto, checkpoint: Checkpoint, precision: str, metrics: dict[str, Any], file: Path) -> None:
    metadata = {
        "format": FORMAT,
        "name": checkpoint.name,
        "precision": precision,
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
        "temperature": repr(checkpoint.temperature),
        "labels": json.dumps([emotion.label for emotion in EMOTIONS]),
        "metrics": json.dumps(metrics),
        "sha256": read_json(checkpoint.folder / CONFIG)["sha256"],
    }
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, file)


def _compare(
    checkpoint: Checkpoint, exported: OnnxCheckpoint, faces: NDArray[np.uint8], source: str
) -> tuple[float, float]:
    ours, theirs = (
        average_logits(c.logits, faces, checkpoint.preprocessing, progress=f"{checkpoint.name} in {runtime}")
        for c, runtime in ((checkpoint, "PyTorch"), (exported, "ONNX Runtime"))
    )
    logits = float(np.abs(ours - theirs).max())
    probabilities = float(np.abs(softmax(ours, checkpoint.temperature) - softmax(theirs, exported.temperature)).max())
    if not max(logits, probabilities) <= TOLERANCE:  # also where one is not a number
        raise ExportError(
            f"{checkpoint.name} in ONNX Runtime differs from PyTorch by {logits:.1e} in logits and {probabilities:.1e} "
            f"in probabilities on {source}, at most {TOLERANCE:.0e} is allowed; nothing was written"
        )
    return logits, probabilities


def _calibration(data: dataset.Dataset) -> NDArray[np.uint8]:
    images = data.split("train").images
    chosen = np.random.default_rng(0).permutation(len(images))[:CALIBRATION]
    return images[np.sort(chosen)]


class _Batches(ort.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, faces: NDArray[np.float32]) -> None:
        self._rest = iter(np.array_split(faces, max(1, len(faces) // 32)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._rest, None)
        return None if batch is None else {INPUT: batch}


def _quantize(graph: onnx.ModelProto, faces: NDArray[np.float32], file: Path) -> None:
    """Write the graph with integer arithmetic.

    Unsigned activations and weights that are signed and scaled for each channel are what ONNX Runtime has integer
    kernels for throughout on x86: with signed activations the residual network takes twice as long. Weights have 7
    bits, because CPUs without VNNI add the products of two pairs in 16 bits, with saturation: so the answers, and the
    accuracy that is measured here, hold on every CPU. The extremes of the activations serve as well as percentiles,
    which cost hundreds of times as much to find.
    """
    graph = onnx.shape_inference.infer_shapes(graph)
    ort.quant_utils.add_pre_process_metadata(graph)  # there is nothing left to fold: spares a warning that says so
    ort.quantize_static(
        graph,
        file,
        _Batches(faces),
        quant_format=ort.QuantFormat.QDQ,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )


def _measure(plain: OnnxCheckpoint, quantized: OnnxCheckpoint, data: dataset.Dataset) -> dict[str, Any]:
    """The figures of both on val."""
    val = data.split("val")
    leaked = val.leaked if "train" in data.splits else None
    answers = [
        predict_probabilities(c, val.images, tta="flip", progress=f"{c.name} {c.precision} on val")
        for c in (plain, quantized)
    ]
    reports = [{"data": data.name, "split": "val", "tta": "flip", **summarize(p, val.labels, leaked)} for p in answers]
    before, after = ({key: report[key] for key in _FIGURES if key in report} for report in reports)
    if (lost := before["accuracy"] - after["accuracy"]) > LOSS:
        raise ExportError(
            f"{plain.name} in int8 loses {lost:.2%} of {data.name} val, at most {LOSS:.2%} is allowed; nothing was "
            "written: export it without --int8"
        )
    agreement = float((answers[0].argmax(1) == answers[1].argmax(1)).mean())
    return {"before": before, "after": after, "agreement": agreement}
