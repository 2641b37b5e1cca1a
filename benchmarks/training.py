"""What the training loop costs beside the arithmetic that no loop can do without.

    python benchmarks/training.py cnn-cp-trl
    python benchmarks/training.py vgg16-cp-trl --data data --images 512

The loop of `fer train` (views, mixup, clipping, averaged weights, logs) and a bare loop of forward, backward and step
on tensors that are there already take turns, so that other work on the machine weighs on both; read the ratio. Both
have the same model, optimiser, batches, threads and precision.
"""

import contextlib
import dataclasses
import io
import tempfile
import time
from statistics import median
from typing import Annotated, Literal

import torch
import tyro
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from fer.config import RECIPES, Config, recipe
from fer.training import Run


@dataclasses.dataclass
class Options:
    recipe: tyro.conf.Positional[Literal[tuple(RECIPES)]] = "vgg16-cp-trl"  # type: ignore[valid-type]
    data: str = "synthetic"
    """FER2013, or 'synthetic'"""
    images: int = 256
    """images a turn"""
    batch_size: int = 64
    """images a step"""
    rounds: int = 5
    """turns of each loop"""
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch"""
    workers: int = 1
    """processes that prepare batches; 0 prepares them in the training process"""
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"


class Bare:
    """Forward, backward and step on batches in memory."""

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        batches = [run._to_device(*batch) for batch in run.loader]
        self.run, self.accelerator, self.batches = run, accelerator, batches

    def epoch(self) -> float:
        """Images a second."""
        run, accelerator = self.run, self.accelerator
        run.wrapped.train()
        loss = torch.zeros(())
        started = time.perf_counter()
        for images, targets in self.batches:
            logits = run.wrapped(images)
            loss = cross_entropy(logits, targets, label_smoothing=run.config.training.label_smoothing)
            run.optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            run.optimizer.step()
        loss.item()  # waits for the device
        return sum(len(images) for images, _ in self.batches) / (time.perf_counter() - started)


def make_run(config: Config, accelerator: Accelerator) -> Run:
    run = Run(config, accelerator)
    run.val_inputs, run.val_labels, run.val_leaked = run.val_inputs[:8], run.val_labels[:8], run.val_leaked[:8]
    return run


def main(options: Options) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    base = recipe(options.recipe)
    with tempfile.TemporaryDirectory() as folder:
        training = dataclasses.replace(
            base.training,
            data=options.data,
            output=folder,
            epochs=options.rounds + 1,
            batch_size=options.batch_size,
            limit=options.images,
            threads=options.threads,
            workers=options.workers,
            precision=options.precision,
            device=options.device,
            weights="none",
            head_epochs=0.0,
            tta="none",
        )
        config = dataclasses.replace(base, training=training)
        precision = "no" if options.precision == "fp32" else options.precision
        accelerator = Accelerator(mixed_precision=precision, cpu=options.device == "cpu")
        ours = make_run(config, accelerator)
        bare = Bare(make_run(config, accelerator), accelerator)
        rates: list[tuple[float, float]] = []
        for _ in range(options.rounds + 1):
            with contextlib.redirect_stdout(io.StringIO()):  # its line for each epoch
                ours.train_epoch()
            rates.append((ours.log[-1]["images_per_second"], bare.epoch()))
        ours.close()
    warm = rates[1:]  # the first turn starts the worker and finds the fastest kernels
    print(f"{options.recipe}, {options.precision}, batches of {options.batch_size}, {torch.get_num_threads()} threads")
    for name, column in zip(("fer train", "bare loop"), zip(*warm, strict=True), strict=True):
        print(f"{name}  {median(column):7.1f} img/s  (turns: {', '.join(f'{rate:.0f}' for rate in column)})")
    print(f"ratio      {median(a / b for a, b in warm):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
