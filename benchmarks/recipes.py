"""Short runs that decide how to train: one change each, the same seed, about the same cost, a paired test.

    python benchmarks/recipes.py --precision bf16 --threads 1
    python benchmarks/recipes.py --only vgg16 vgg16-sgd --limit 6000
    python benchmarks/recipes.py --only-print

The vgg16 runs see the first --limit images for 3 epochs; changes that make an epoch cheaper get more of them. The cnn
runs see all of Training for 6. Cost is this process's CPU time, without that of the worker that draws the views. Each
run is compared with the first of its kind on leak-free PublicTest, by an exact McNemar test: of the images that one of
the two alone got right, how uneven a share.

What a run needs beside the options of `fer train` is a class here; what pays belongs into fer/training.py. A run that
is killed goes on where it was, and one that is finished is not run again: other options need another --output.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from fer import dataset
from fer.config import IMAGENET_GREY, Config, recipe, to_dict
from fer.models import EmotionModel
from fer.preprocessing import CROP
from fer.training import STATE, Run

RESULT, LOGITS = "result.json", "logits.npy"
#: Settings that make no other run of it.
FREE = {"data", "output", "resume", "workers", "threads", "weights"}


class EightConvolutions(Run):
    """VGG16's trunk without its third convolutions and its fifth block: eight layers and half of the cost."""

    def start(self, images: NDArray[np.uint8]) -> EmotionModel:
        model = super().start(images)
        layers = [i for i, layer in enumerate(model.trunk) if isinstance(layer, nn.Conv2d)]
        for first in (layers[i] for i in (6, 9, 10, 11, 12)):
            for i in range(first, first + 3):  # convolution, BatchNorm, ReLU
                model.trunk[i] = nn.Identity()
        return model


class SmallViews(Run):
    """Views of 36 pixels, whose 512x2x2 are stretched to the 3x3 of the head, and of 48 in the last epoch."""

    def start(self, images: NDArray[np.uint8]) -> EmotionModel:
        model = super().start(images)
        side = model.trunk_shape()[-1]
        model.head.register_forward_pre_hook(
            lambda _, inputs: interpolate(inputs[0], size=side, mode="bilinear", align_corners=True)
        )
        return model

    def _train_step(self, images: Tensor, targets: Tensor, mixup: float) -> tuple[Tensor, Tensor, Tensor]:
        if self.epoch < self.config.training.epochs - 1:
            images = interpolate(images, size=36, mode="bilinear", antialias=True)
        return super()._train_step(images, targets, mixup)


class SelectiveBackprop(Run):
    """Backward for the half of each batch that has the larger loss."""

    def _train_step(self, images: Tensor, targets: Tensor, mixup: float) -> tuple[Tensor, Tensor, Tensor]:
        self.wrapped.eval()
        with torch.no_grad():
            losses = cross_entropy(self.wrapped(images), targets, reduction="none")
        self._set_mode()
        hard = losses.topk(len(images) // 2).indices
        return super()._train_step(images[hard], targets[hard], mixup)


class RandomCrops(Run):
    """A random crop of 44 of 48 pixels for each view, enlarged again as those of the ten-crop are."""

    def _train_step(self, images: Tensor, targets: Tensor, mixup: float) -> tuple[Tensor, Tensor, Tensor]:
        size = images.shape[-1]
        side = round(CROP * size)
        corners = torch.randint(size - side + 1, (len(images), 2)).tolist()
        crops = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, corners, strict=True)]
        enlarged = interpolate(torch.stack(crops), size=size, mode="bilinear")
        return super()._train_step(enlarged.contiguous(memory_format=torch.channels_last), targets, mixup)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: what differs from the recipe."""

    what: str
    recipe: str
    epochs: int
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    run: type[Run] = Run


def vgg16(what: str, epochs: int = 3, run: type[Run] = Run, model: dict[str, Any] | None = None, **more: Any) -> Trial:
    return Trial(what, "vgg16-cp-trl", epochs, model or {}, more, run)


def cnn(what: str, run: type[Run] = Run, **more: Any) -> Trial:
    return Trial(what, "cnn-cp-trl", 6, {}, more, run)


TRIALS = {
    "vgg16": vgg16("the recipe"),
    "vgg16-poolings": vgg16("all five poolings", model={"poolings": 5}),
    "vgg16-six": vgg16("three poolings, 512x6x6", model={"poolings": 3}),
    "vgg16-64": vgg16("64 pixels, 512x4x4", 2, model={"preprocessing": dataclasses.replace(IMAGENET_GREY, size=64)}),
    "vgg16-plain": vgg16("no BatchNorm", model={"batch_norm": False}),
    "vgg16-eight": vgg16("eight convolutions", 6, EightConvolutions),
    "vgg16-frozen": vgg16("first two blocks frozen after an epoch", 4, freeze_blocks=2),
    "vgg16-small": vgg16("36-pixel views first", 4, SmallViews),
    "vgg16-selective": vgg16("backward for half of each batch", 4, SelectiveBackprop),
    "vgg16-sgd": vgg16("SGD-Nesterov", optimizer="sgd", lr=0.02, trunk_lr=0.01, weight_decay=5e-4),
    "vgg16-crops": vgg16("44-pixel crops instead of shifts", run=RandomCrops, shift=0.0),
    "vgg16-taught": vgg16("taught by both shipped networks", teachers="vgg16-cp-trl,cnn-cp-trl", distill_views=2),
    "vgg16-mixup": vgg16("mixup 0.2, off at the end", mixup=0.2, mixup_off=1),
    "vgg16-ferplus": vgg16("0.3 from FER+ votes", ferplus=0.3),
    "vgg16-sharp": vgg16("no label smoothing", label_smoothing=0.0),
    "vgg16-last": vgg16("weights not averaged", ema=0.0),
    "cnn": cnn("the recipe"),
    "cnn-still": cnn("no scale, no rotation", scale=0.0, rotation=0.0),
    "cnn-crops": cnn("44-pixel crops instead of shifts", RandomCrops, shift=0.0),
    "cnn-whole": cnn("no erasing", erase=0.0),
    "cnn-copies": cnn("repeated images kept", drop_copies=False),
    "cnn-sgd": cnn("SGD-Nesterov", optimizer="sgd", lr=0.05, weight_decay=5e-4),
    "cnn-mixup": cnn("mixup 0.2, off at the end", mixup=0.2, mixup_off=1),
    "cnn-ferplus": cnn("0.3 from FER+ votes", ferplus=0.3),
}


@dataclasses.dataclass(frozen=True)
class Options:
    only: tuple[Literal[tuple(TRIALS)], ...] = tuple(TRIALS)  # type: ignore[valid-type]
    """which runs; vgg16 and cnn are those that the others are compared with"""
    data: str = "data"
    """FER2013, or 'synthetic'"""
    weights: str = "imagenet"
    """start of the vgg16 runs, as for `fer train`"""
    limit: int = 12_000
    """images of Training that the vgg16 runs see"""
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch"""
    seed: int = 0
    output: Path = Path("runs/recipes")
    """folder of the runs"""
    only_print: bool = False
    """run nothing, print what is there"""


def config_of(name: str, options: Options) -> Config:
    trial = TRIALS[name]
    base = recipe(trial.recipe)
    shared: dict[str, Any] = {
        "data": options.data,
        "output": str(options.output / name),
        "epochs": trial.epochs,
        "device": "cpu",
        "precision": options.precision,
        "threads": options.threads,
        "seed": options.seed,
        "resume": (options.output / name / STATE).is_file(),
    }
    if trial.recipe.startswith("vgg16"):
        shared |= {"weights": options.weights, "limit": options.limit}
    return Config(
        name,
        dataclasses.replace(base.model, **trial.model),
        dataclasses.replace(base.training, **shared | trial.training),
    )


def train(name: str, options: Options) -> None:
    """Run a trial to its end; its folder then has what show reads."""
    config = config_of(name, options)
    folder, training = config.run_folder, config.training
    settings = {k: v for k, v in to_dict(config)["training"].items() if k not in FREE}
    if (folder / RESULT).is_file():
        if (before := json.loads((folder / RESULT).read_text())["settings"]) != settings:
            changed = ", ".join(f"{k} was {before.get(k)}, not {v}" for k, v in settings.items() if before.get(k) != v)
            raise SystemExit(f"{folder} holds the result of other settings ({changed}): choose another --output")
        return
    started = time.process_time()
    run = TRIALS[name].run.open(config)
    if run.epoch:  # its opening was paid for before
        started = time.process_time()
    cost = folder / "cpu_seconds.json"
    spent: list[float] = json.loads(cost.read_text()) if cost.is_file() else []
    while run.epoch < training.epochs:
        run.train_epoch()
        ended = time.process_time()
        spent, started = [*spent[: run.epoch - 1], ended - started], ended
        cost.write_text(json.dumps(spent))
    run.close()
    np.save(folder / LOGITS, run.val_logits())
    result = {"minutes": sum(spent) / 60, "epochs": training.epochs, "settings": settings}
    (folder / RESULT).write_text(json.dumps(result))


def show(options: Options) -> None:
    val = dataset.load(options.data).split("val")
    clean = ~val.leaked
    for base in ("vgg16", "cnn"):
        table = Table(box=box.MARKDOWN)
        for column in ("change", "epochs", "CPU minutes", "accuracy", "leak-free", "difference", "p"):
            table.add_column(column, justify="left" if column == "change" else "right")
        rights: dict[str, NDArray[np.bool_]] = {}
        shared: dict[str, list[Any]] = {}
        for name in (n for n in TRIALS if n.partition("-")[0] == base):
            folder = options.output / name
            if not (folder / RESULT).is_file():
                continue
            result = json.loads((folder / RESULT).read_text())
            shared[name] = [result["settings"][key] for key in ("limit", "seed", "precision")]
            right = rights[name] = np.load(folder / LOGITS).argmax(1) == val.labels
            row = [TRIALS[name].what, str(result["epochs"]), f"{result['minutes']:.1f}"]
            row += [f"{100 * share:.1f}" for share in (right.mean(), right[clean].mean())]
            if name != base and shared[name] == shared.get(base):
                gained, lost = (right & ~rights[base])[clean].sum(), (rights[base] & ~right)[clean].sum()
                p = binomtest(int(gained), int(gained + lost)).pvalue if gained + lost else 1.0
                row += [f"{100 * (gained - lost) / clean.sum():+.1f}", f"{p:.3f}"]
            table.add_row(*row)
        Console(width=120).print(table)


def main(options: Options) -> None:
    if not options.only_print:
        for name in options.only:
            train(name, options)
    show(options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
