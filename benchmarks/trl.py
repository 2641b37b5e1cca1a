"""The speed of the tensor regression layers beside ``nn.Linear`` on the flattened input and tensorly-torch's ``TRL``.

    python benchmarks/trl.py
    python benchmarks/trl.py --layer tucker-trl --ranks 4 64 --threads 2

All figures of a row are taken in turns within one run, so that what else the machine does falls on all of them alike.
What is printed is the ratio of the medians: of processor time on one thread, of elapsed time on more. In evaluation
the same call is repeated; in training a step (forward, and backward with the input's gradient) finds the caches as the
others left them.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Literal

import tltorch
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fer.trl import CPTRL, TTTRL, TuckerTRL

LAYERS = {layer.name: layer for layer in (CPTRL, TuckerTRL, TTTRL)}
CLASSES = 7


def main(
    layer: Literal["cp-trl", "tucker-trl", "tt-trl"] = "cp-trl",
    ranks: tuple[int, ...] = (1, 4, 16, 64, 329, 1000, 10_000),
    rounds: int = 25,
    threads: int = 1,
) -> None:
    """Print the table.

    Args:
        layer: which of the three.
        ranks: one row each.
        rounds: measurements of each figure.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for shape in ((512, 3, 3), (512, 7, 7)):
        table = Table(title=f"{layer}, {'x'.join(map(str, shape))} -> {CLASSES}, {threads} thread(s)")
        table.add_column("rank", justify="right")
        table.add_column("parameters", justify="right")
        for column in ("evaluation, 1", "evaluation, 32", "training, 32"):
            table.add_column(f"{column}:\nnn.Linear", justify="right", style="dim")
            table.add_column("\nfer", justify="right")
            table.add_column("\ntltorch", justify="right")
        table.add_column("with tensor\ndropout 0.4", justify="right")
        for rank in ranks:
            table.add_row(f"{rank:,}", *row(layer, shape, rank, rounds))
        Console(width=max(140, Console().width)).print(table)
    print("nn.Linear in microseconds, the others as multiples of it. Parameters without the bias.")


def row(name: str, shape: tuple[int, ...], rank: int, rounds: int) -> list[str]:
    ours = LAYERS[name](shape, CLASSES, rank)
    dropping = LAYERS[name](shape, CLASSES, rank, tensor_dropout=0.4)
    theirs = tltorch.TRL(
        shape, (CLASSES,), bias=True, factorization=name.removesuffix("-trl"), rank=ours.weight.rank
    )  # ours first: it cuts a rank to what the modes can use
    theirs.init_from_random()
    linear = nn.Linear(ours.dense_parameters // CLASSES, CLASSES)
    cells = [f"{ours.num_parameters:,}"]
    for batch in (1, 32):
        x = torch.randn(batch, *shape)
        with torch.inference_mode():
            modules = [m.eval() for m in (linear, ours, theirs)]
            cells += compare([partial(use, m, x) for m in modules], rounds, 2e-3)
    x = torch.randn(32, *shape, requires_grad=True)
    modules = [m.train() for m in (linear, ours, theirs, dropping)]
    return cells + compare([partial(train, m, x, [x, *m.parameters()]) for m in modules], rounds)


def use(module: nn.Module, x: Tensor) -> Tensor:
    return module(x.flatten(1) if isinstance(module, nn.Linear) else x)


def train(module: nn.Module, x: Tensor, learned: list[Tensor]) -> None:
    use(module, x).sum().backward()
    for tensor in learned:
        tensor.grad = None


def compare(calls: list[Callable[[], object]], rounds: int, at_least: float = 0) -> list[str]:
    """The first one's median in microseconds, the others' as multiples of it; each is repeated for some seconds."""
    counts = [1 + int(at_least / seconds(call, 3)) for call in calls]
    times = [[seconds(call, n, warm=n > 1) for call, n in zip(calls, counts, strict=True)] for _ in range(rounds)]
    first, *others = map(median, zip(*times, strict=True))
    return [f"{first * 1e6:.0f}", *(f"{other / first:.2f}" for other in others)]


def seconds(call: Callable[[], object], repeat: int, warm: bool = True) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    if warm:
        call()
    start = clock()
    for _ in range(repeat):
        call()
    return (clock() - start) / repeat


if __name__ == "__main__":
    tyro.cli(main)
