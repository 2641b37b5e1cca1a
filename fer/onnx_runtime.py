"""A network that ``fer export`` wrote, on ONNX Runtime: needs neither PyTorch nor the checkpoint's weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fer.config import Preprocessing, from_dict
from fer.emotions import EMOTIONS
from fer.errors import CheckpointError, ConfigError
from fer.shelf import CONFIG, find_checkpoint, read_json

__all__ = ["FILES", "FORMAT", "INPUT", "OUTPUT", "OnnxCheckpoint", "find_onnx", "load_onnx", "start_session"]

#: What an exported network is called in its checkpoint's folder, and which is taken where both are there.
FILES = {False: "model.onnx", True: "model-int8.onnx"}  # by whether it is int8
#: Of the metadata; another one when their meaning changes.
FORMAT = "1"
INPUT, OUTPUT = "faces", "logits"


@dataclass(frozen=True)
class OnnxCheckpoint:
    """An exported network and what its use needs: a :class:`fer.classifier.Classifier` without PyTorch.

    Attributes:
        name: the checkpoint's.
        preprocessing: how faces become its input.
        temperature: logits are divided by it before the softmax.
        metrics: figures of this very file, if it is int8, else of the checkpoint; empty where there were none.
        precision: of its arithmetic, "fp32" or "int8".
        sha256: of the weights that it was made from.
        file: where it lies.
        session: ONNX Runtime's; may be shared between threads.
    """

    name: str
    preprocessing: Preprocessing
    temperature: float
    metrics: dict[str, Any]
    precision: str
    sha256: str
    file: Path
    session: onnxruntime.InferenceSession

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 7) logits of faces from :func:`fer.preprocessing.prepare`, (B, C, S, S)."""
        return np.asarray(self.session.run([OUTPUT], {INPUT: batch})[0], np.float32)


def find_onnx(name: str | Path) -> Path:
    """The exported file of a checkpoint, or the given .onnx file itself.

    Args:
        name: a shipped checkpoint or a folder, whose model.onnx is taken, else its model-int8.onnx; or a .onnx file.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    if Path(name).suffix == ".onnx":
        return Path(name)
    folder = find_checkpoint(name)
    for file in (folder / known for known in FILES.values()):
        if file.is_file():
            return file
    raise CheckpointError(
        f"{folder} has neither {' nor '.join(FILES.values())}: make one with `fer export {name} --format onnx` "
        "(add --int8 for the faster one), or give the path of a .onnx file"
    )


def load_onnx(name: str | Path, *, threads: int = 0) -> OnnxCheckpoint:
    """Load an exported network for use.

    Args:
        name: as for :func:`find_onnx`.
        threads: CPU threads; 0 leaves the choice to ONNX Runtime.

    Raises:
        CheckpointError: nothing there, a damaged file, one that ``fer export`` did not write, or an outdated one.
    """
    file = find_onnx(name)
    if not file.is_file():
        raise CheckpointError(f"no network at {file}: write one with `fer export NAME --out {file}`")
    try:
        session = start_session(file, threads=threads)
    except Exception as error:  # ONNX Runtime's have no base class of their own
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot load {file}: {reason}; export it again, or fetch it again") from error
    checkpoint = _describe(session, file)
    if Path(name).suffix != ".onnx":
        record = read_json(file.parent / CONFIG)
        if (record.get("sha256"), record.get("temperature")) != (checkpoint.sha256, checkpoint.temperature):
            raise CheckpointError(
                f"{file} was exported before the checkpoint beside it last changed: run `fer export {name}"
                f"{' --int8' if checkpoint.precision == 'int8' else ''}` again"
            )
    return checkpoint


def start_session(model: Path | bytes, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, set up for small networks that share the machine.

    Args:
        model: the .onnx file, or its content.
        threads: CPU threads; 0 for one a core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait for the next layer spin, as they must: it comes within microseconds. But not beyond the answer:
    # until the next face comes, the time is the detector's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])


def _describe(session: onnxruntime.InferenceSession, file: Path) -> OnnxCheckpoint:
    meta = session.get_modelmeta().custom_metadata_map
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} is not a network of `fer export`, or of another version's: its metadata's format is "
            f"{meta.get('format')!r}, expected {FORMAT!r}; run `fer export` again"
        )
    try:
        labels = json.loads(meta["labels"])
        preprocessing = from_dict(Preprocessing, json.loads(meta["preprocessing"]))
        temperature, metrics = float(meta["temperature"]), json.loads(meta["metrics"])
        name, precision, sha256 = meta["name"], meta["precision"], meta["sha256"]
    except (KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{file}: its metadata lacks or garbles {error}; run `fer export` again") from error
    if labels != [emotion.label for emotion in EMOTIONS] or not 0 < temperature < math.inf:
        raise CheckpointError(
            f"{file}: labels are {labels} and the temperature is {temperature}, expected "
            f"{[emotion.label for emotion in EMOTIONS]} and a positive number; run `fer export` again"
        )
    return OnnxCheckpoint(name, preprocessing, temperature, metrics, precision, sha256, file, session)
