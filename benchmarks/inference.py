"""What a face costs: PyTorch, torch.compile and ONNX Runtime with floats and with 8-bit integers.

    python benchmarks/inference.py
    python benchmarks/inference.py cnn-cp-trl --threads 1 --batches 1 --rounds 50

Milliseconds a face, from a prepared batch to its logits, as the recogniser calls the network. All figures of a row are
taken in turns within one run, so that what else the machine does falls on all of them alike; each is the median over
the rounds, of processor time on one thread and of elapsed time on more, where only a quiet machine tells the truth. The
last columns set the operations a second of the ONNX networks beside the machine's own fp32 product of two matrices of
1,024 by 1,024, which takes its turn too. Networks that `fer export` has not written yet are exported first, into a
temporary folder (int8 with FER2013 only).
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from fer.checkpoint import Checkpoint, load_checkpoint
from fer.config import ExportConfig
from fer.errors import FerError
from fer.export import export
from fer.inference import forward
from fer.onnx_runtime import FILES, load_onnx, start_session

#: Sides of the matrices that the machine is measured by.
SIDE = 1024

Call = Callable[[], object]


@dataclass
class Options:
    checkpoints: tyro.conf.Positional[tuple[str, ...]] = ("vgg16-cp-trl", "cnn-cp-trl")
    batches: tuple[int, ...] = (1, 8, 64)
    """faces at a time"""
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 9
    """turns of each, beside a first one that does not count"""
    turn: float = 0.03
    """seconds that a turn takes at least"""
    compile: bool = True
    """torch.compile too; it needs a C++ compiler, and a minute or two for all cells"""
    data: str = "data"
    """FER2013, to export int8 with where that was not done yet"""


def main(options: Options) -> None:
    contenders = ["PyTorch", *(["torch.compile"] if options.compile else []), "ONNX fp32", "ONNX int8"]
    columns = ["network", "faces", "threads", *contenders, "fp32 / PyTorch", "int8 / fp32"]
    columns += ["GFLOP/s: product", "fp32", "int8"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.checkpoints:
            checkpoint = load_checkpoint(name)
            files = {kind: exported(checkpoint, int8, options.data, Path(folder)) for kind, int8 in KINDS.items()}
            for threads in options.threads:
                torch.set_num_threads(threads)
                torch.compiler.reset()  # compiled loops keep the number of threads that they were made for
                for batch in options.batches:
                    times = measure(calls(checkpoint, files, batch, threads, options), options, threads)
                    print(row(checkpoint, batch, threads, times, contenders), flush=True)


KINDS = {"ONNX fp32": False, "ONNX int8": True}


def exported(checkpoint: Checkpoint, int8: bool, data: str, folder: Path) -> Path | None:
    file = checkpoint.folder / FILES[int8]
    if file.is_file():
        return file
    file = folder / f"{checkpoint.name}-{FILES[int8]}"
    try:
        return export(checkpoint.folder, ExportConfig(int8=int8, out=file, data=data)).file
    except FerError as error:
        print(f"no {FILES[int8]} of {checkpoint.name}: {error}")
        return None


def calls(
    checkpoint: Checkpoint, files: dict[str, Path | None], batch: int, threads: int, options: Options
) -> dict[str, Call]:
    """What takes turns."""
    p = checkpoint.preprocessing
    faces = np.random.default_rng(0).standard_normal((batch, p.channels, p.size, p.size)).astype(np.float32)
    matrix = np.random.default_rng(1).standard_normal((SIDE, SIDE)).astype(np.float32)
    multiply = start_session(product(), threads=threads)
    made: dict[str, Call] = {
        "product": partial(multiply.run, None, {"a": matrix}),
        "PyTorch": partial(checkpoint.logits, faces),
    }
    if options.compile:
        compiled = torch.compile(checkpoint.model, dynamic=False)
        made["torch.compile"] = lambda: forward(compiled, faces)
        try:
            made["torch.compile"]()
        except Exception as error:  # whatever the compiler, or its absence, leads to
            print(f"no torch.compile: {str(error).strip().partition(chr(10))[0]}")
            del made["torch.compile"]
            options.compile = False
    for kind, file in files.items():
        if file is not None:
            made[kind] = partial(load_onnx(file, threads=threads).logits, faces)
    return made


def product() -> bytes:
    """A square matrix times itself in ONNX Runtime, which on some CPUs is twice as fast as PyTorch's product."""
    value = onnx.helper.make_tensor_value_info
    shape = (SIDE, SIDE)
    inputs, outputs = ([value(name, onnx.TensorProto.FLOAT, shape)] for name in "ab")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["a", "a"], ["b"])], "product", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def measure(contenders: dict[str, Call], options: Options, threads: int) -> dict[str, float]:
    """Seconds a call, the median over the rounds."""
    clock = time.process_time if threads == 1 else time.perf_counter

    def seconds(call: Call, repeat: int) -> float:
        if repeat > 1:
            call()
        start = clock()
        for _ in range(repeat):
            call()
        return (clock() - start) / repeat

    counts = {name: 1 + int(options.turn / seconds(call, 3)) for name, call in contenders.items()}
    taken = [{n: seconds(call, counts[n]) for n, call in contenders.items()} for _ in range(options.rounds)]
    return {name: median(times[name] for times in taken) for name in contenders}


def row(checkpoint: Checkpoint, batch: int, threads: int, times: dict[str, float], contenders: list[str]) -> str:
    def ratio(a: str, b: str) -> str:
        return f"{times[a] / times[b]:.2f}" if a in times and b in times else "-"

    p = checkpoint.preprocessing
    with FlopCounterMode(display=False) as counter:
        forward(checkpoint.model, np.zeros((1, p.channels, p.size, p.size), np.float32))
    work = {name: batch * counter.get_total_flops() for name in KINDS} | {"product": 2 * SIDE**3}
    speeds = [f"{work[name] / times[name] / 1e9:.0f}" if name in times else "-" for name in ("product", *KINDS)]
    milliseconds = [f"{times[name] * 1e3 / batch:.3f}" if name in times else "-" for name in contenders]
    ratios = [ratio("ONNX fp32", "PyTorch"), ratio("ONNX int8", "ONNX fp32")]
    return f"| {' | '.join((checkpoint.name, str(batch), str(threads), *milliseconds, *ratios, *speeds))} |"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
