"""What a tensor regression layer buys: heads of every kind on one trained trunk, trained alike and measured alike.

    python benchmarks/heads.py
    python benchmarks/heads.py --heads cp-trl dense gap --ranks 8 32 --dropouts 0 0.1 --seeds 0 --grids 3
    python benchmarks/heads.py --attacks --heads cp-trl dense fc --ranks 32 --dropouts 0.1 --seeds 0
    python benchmarks/heads.py --only-print --markdown

The trunk is a checkpoint's and stays as it is; its outputs are computed once for some random views of each training
image, and every head gets the same views, passes, batches and optimiser (AdamW, one cycle). Its learning rate is chosen
for every head and rank by the same search: the one of ``--lrs`` with the lowest negative log-likelihood on leak-free
PublicTest, with a seed that the table does not use and a tensor dropout of 0.1; a single one is taken as it is. That is
the split that the table is about, so all its figures are optimistic alike.

Grid 3 is the trunk's output, 512x3x3 for vgg16-cp-trl. Grid 6 is the same trunk with the stride of its last pooling
taken out and the convolutions after it dilated by two (a trous, as in DeepLab): at its even positions it computes just
what it computed before, so that every head on 3x3 is also one on 6x6, without any training of the trunk, and that the
features of the small grid are taken from the large where both are wanted.

The trunk was trained with the head that its checkpoint has: a head of that kind may find it a little easier.

Whatever is finished is a row of a CSV file under --output and is not computed again; heads are kept beside it, so that
attacks can be run on them later. Corruptions are of all of PublicTest, at three severities, averaged; attacks are of
--attack-images of it, the same for all heads, on pixels, through trunk and head, and the accuracy of the same images
without attack stands beside them. An image counts as right under an attack only if it is so without one too, and under
the attack's weaker forms: the same method within a smaller distance, and for PGD also FGSM. So nothing is spent on what
has already fallen.
"""

import copy
import csv
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import nn

from fer import dataset
from fer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fer.config import Config, Head, HeadTraining, ModelConfig
from fer.features import feature_file, trunk_features
from fer.heads import HeadData, head_data, head_logits, train_head, with_head
from fer.inference import softmax
from fer.metrics import summarize
from fer.models import TRL_HEADS, EmotionModel, create_head, parameter_count
from fer.robustness import CORRUPTIONS, SEVERITIES, attack, corrupt, subset

SEARCH_SEED, SEARCH_DROPOUT = 1000, 0.1
#: What a learning rate is searched for.
SEARCHED = ("trunk", "grid", "budget", "head", "rank")

#: Distance, steps, and the weaker ones, under which an image must have stood, of each attack.
ATTACKS = {
    "fgsm2": (2 / 255, 1, ("clean",)),
    "fgsm4": (4 / 255, 1, ("fgsm2",)),
    "pgd2": (2 / 255, 10, ("fgsm2",)),
    "pgd4": (4 / 255, 10, ("fgsm4", "pgd2")),
}

#: Of the table's columns, where a file's column has another name.
TITLES = {"leak_free_accuracy": "leak-free", "macro_f1": "macro-F1", "ece": "ECE", "head_us": "µs a face"}


@dataclasses.dataclass(frozen=True)
class Options(HeadTraining):
    trunk: str = "vgg16-cp-trl"
    """checkpoint whose trunk is used"""
    heads: tuple[Head, ...] = get_args(Head)
    """kinds of heads"""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """of cp-trl"""
    other_ranks: tuple[int, ...] = (8, 32)
    """of tucker-trl and tt-trl, cut to what each mode or bond can use"""
    dropouts: tuple[float, ...] = (0.1, 0.0, 0.2, 0.4)
    """tensor dropout; the learning rate is searched with 0.1"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one head each"""
    grids: tuple[Literal[3, 6], ...] = (3, 6)
    """3: the trunk's output as it is; 6: with the last pooling's stride taken out"""
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """learning rates to choose from"""
    corruptions: bool = True
    """measure accuracy under corruptions too"""
    attacks: bool = False
    """attack the heads (minutes each)"""
    tta: Literal["none"] = "none"
    """one view of a face throughout, so that all columns compare"""
    attack_images: int = 1000
    """how many images of PublicTest are attacked"""
    output: Path = Path("runs/heads")
    """folder of the CSV files and the heads"""
    seed: tyro.conf.Suppress[int] = 0
    lr: tyro.conf.Suppress[float] = 3e-3
    export: Path | None = None
    """write the first seed's heads on 3x3, with their trunk, into this folder as checkpoints, for fer convert"""
    only_print: bool = False
    """compute nothing, print what is there"""
    markdown: bool = False
    """print the table as Markdown"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One head to be trained; what a CSV row begins with."""

    trunk: str
    grid: int
    budget: str
    head: str
    rank: int
    dropout: float
    seed: int
    lr: float

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(map(str, dataclasses.astuple(self)))

    @property
    def file(self) -> str:
        return hashlib.sha256(repr(self.key).encode()).hexdigest()[:16] + ".safetensors"


class Results:
    """A CSV file that grows by whole rows and is asked what it has."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, str]] = []
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # a row that was being written when the process was killed
                file.write_text(whole, encoding="utf-8")
            self.rows = list(csv.DictReader(whole.splitlines()))

    def of(self, cell: Cell) -> dict[str, str] | None:
        names = [field.name for field in dataclasses.fields(Cell)]
        return next((row for row in self.rows if tuple(row[name] for name in names) == cell.key), None)

    def add(self, cell: Cell, **values: Any) -> dict[str, str]:
        row = {name: str(value) for name, value in (dataclasses.asdict(cell) | values).items()}
        new = not self.rows
        with self.file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, row, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)
        return row


class Bench:
    """One trunk at one grid: its features, and the heads on it."""

    def __init__(self, options: Options, checkpoint: Checkpoint, data: dataset.Dataset, grid: int) -> None:
        self.options, self.checkpoint, self.data, self.grid = options, checkpoint, data, grid
        # what computes the features, and what the heads sit on: the same, or the trunk whose grid is cut out of it
        self.source = without_last_stride(checkpoint.model) if 6 in options.grids else checkpoint.model
        self.model = self.source if grid == 6 else checkpoint.model
        features = head_data(self.source, data, options, checkpoint.config.training, options.tta)
        views, val = ([self.on_grid(view) for view in kept] for kept in (features.views, features.val))
        self.features: HeadData = dataclasses.replace(features, views=views, val=val)
        self.shape = self.model.trunk_shape()
        # the trunk's weights, however the checkpoint is called
        self.digest = f"{checkpoint.name} {feature_file(checkpoint.model, '').stem[-8:]}"
        self.budget = " ".join(
            f"{getattr(options, name)}"
            for name in ("views", "epochs", "batch_size", "weight_decay", "label_smoothing", "precision", "limit")
        )
        self.searched = Results(options.output / "search.csv")
        self.trained = Results(options.output / "heads.csv")
        self.corrupted = Results(options.output / "corruptions.csv")
        self.attacked = Results(options.output / f"attacks-{options.attack_images}.csv")

    def on_grid(self, features: NDArray[np.float16]) -> NDArray[np.float16]:
        """(N, C, H, W) of the model, from those of the source."""
        return features if self.source is self.model else np.ascontiguousarray(features[..., ::2, ::2])

    def run(self) -> None:
        for head, rank, dropout in variants(self.options):
            lr = self.search(head, rank)
            for seed in self.options.seeds:
                self.measure(Cell(self.digest, self.grid, self.budget, head, rank, dropout, seed, lr))

    def search(self, head: str, rank: int) -> float:
        """The learning rate for that head and rank."""
        if len(self.options.lrs) == 1:
            return self.options.lrs[0]
        dropout = SEARCH_DROPOUT if head in TRL_HEADS else 0.0
        found = []
        for lr in self.options.lrs:
            cell = Cell(self.digest, self.grid, self.budget, head, rank, dropout, SEARCH_SEED, lr)
            row = self.searched.of(cell)
            if row is None:
                trained, _ = self.train(cell)
                clean = ~self.features.leaked
                report = summarize(self.probabilities(trained)[clean], self.features.labels[clean])
                row = self.searched.add(cell, nll=report["nll"], accuracy=report["accuracy"])
            found.append((float(row["nll"]), lr))
        return min(found)[1]

    def measure(self, cell: Cell) -> None:
        options, head = self.options, None
        file = options.output / cell.file
        if self.trained.of(cell) is None:
            head, seconds = self.train(cell)
            report = summarize(self.probabilities(head), self.features.labels, self.features.leaked)
            save_file(head.state_dict(), file)
            figures = {name: report[name] for name in ("accuracy", "leak_free_accuracy", "macro_f1", "ece")}
            times = {"head_us": 1e6 * face_seconds(head, self.shape), "train_seconds": seconds}
            self.trained.add(cell, parameters=parameter_count(head), **figures, **times)
            print(cell.grid, cell.head, cell.rank, cell.dropout, cell.seed, f"{report['accuracy']:.4f}", flush=True)
        if options.corruptions and self.corrupted.of(cell) is None:
            self.corrupted.add(cell, **self.under_corruptions(head or self.load(cell)))
        if options.attacks and self.attacked.of(cell) is None:
            self.attacked.add(cell, **self.under_attack(head or self.load(cell)))
        if options.export is not None and cell.grid == 3 and cell.seed == options.seeds[0]:
            name = f"{cell.head}-{cell.rank}-{cell.dropout}" if cell.head in TRL_HEADS else cell.head
            network = with_head(self.model, head or self.load(cell), self.settings(cell))
            config = Config(name, self.settings(cell), self.checkpoint.config.training)
            save_checkpoint(options.export / name, network, config)

    def settings(self, cell: Cell) -> ModelConfig:
        return dataclasses.replace(
            self.checkpoint.config.model, head=cell.head, rank=cell.rank, tensor_dropout=cell.dropout
        )

    def create(self, cell: Cell) -> nn.Module:
        return create_head(self.settings(cell), self.shape).to(next(self.model.trunk.parameters()).device)

    def load(self, cell: Cell) -> nn.Module:
        head = self.create(cell)
        head.load_state_dict(load_file(self.options.output / cell.file))
        return head.eval().requires_grad_(False)

    def train(self, cell: Cell) -> tuple[nn.Module, float]:
        torch.manual_seed(cell.seed)
        head = self.create(cell)
        budget = dataclasses.replace(self.options, lr=cell.lr)
        started = time.perf_counter()
        train_head(head, self.features, budget, seed=cell.seed, caption=f"{cell.head} {cell.rank}")
        return head, time.perf_counter() - started

    def probabilities(self, head: nn.Module) -> NDArray[np.float32]:
        return softmax(head_logits(head, self.features.val))

    @cached_property
    def corrupted_features(self) -> dict[str, list[NDArray[np.float16]]]:
        """Of PublicTest under each corruption at each severity."""
        features: dict[str, list[NDArray[np.float16]]] = {}
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                faces = corrupt(self.data.split("val").images, name, severity)
                key = f"{self.data.digest} fp32 val {hashlib.sha256(faces.tobytes()).hexdigest()}"
                features.setdefault(name, []).append(self.on_grid(trunk_features(self.source, faces, key)))
        return features

    def under_corruptions(self, head: nn.Module) -> dict[str, float]:
        labels = self.features.labels
        return {
            name: mean(float((head_logits(head, [part]).argmax(1) == labels).mean()) for part in parts)
            for name, parts in self.corrupted_features.items()
        }

    def under_attack(self, head: nn.Module) -> dict[str, float]:
        val = self.data.split("val")
        chosen = subset(self.options.attack_images, len(val))
        faces, labels = val.images[chosen], val.labels[chosen]
        network = nn.Sequential(self.model.trunk, head).eval().requires_grad_(False)
        stands = {"clean": head_logits(head, [self.features.val[0][chosen]]).argmax(1) == labels}
        for name, (epsilon, steps, weaker) in ATTACKS.items():
            right = np.logical_and.reduce([stands[attacked] for attacked in weaker])
            if right.any():
                logits = attack(
                    network,
                    faces[right],
                    labels[right],
                    self.model.config.preprocessing,
                    epsilon=epsilon,
                    steps=steps,
                    caption=name,
                )
                right[right] = logits.argmax(1) == labels[right]
            stands[name] = right
        return {name: float(right.mean()) for name, right in stands.items()}


def without_last_stride(model: EmotionModel) -> EmotionModel:
    """The same weights with the last pooling at stride 1 and what follows dilated: twice the grid.

    At even positions the output is the model's own. One row and one column of zeros, which no ReLU goes below, let the
    pooling's window keep its size at the border.
    """
    pools = [i for i, layer in enumerate(model.trunk) if isinstance(layer, nn.MaxPool2d)]
    last = pools[-1]
    if model.config.trunk != "vgg16" or last == len(model.trunk) - 1:
        raise SystemExit("grid 6 needs a vgg16 trunk with convolutions after its last pooling: give --grids 3")
    layers = [*model.trunk[:last], nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, stride=1))]
    for layer in model.trunk[last + 1 :]:
        if isinstance(layer, nn.Conv2d):
            dilated = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=2, dilation=2)
            dilated.to(layer.weight).load_state_dict(layer.state_dict())
            layers.append(dilated)
        else:
            layers.append(layer)
    wide = copy.copy(model)
    wide._modules = {"trunk": nn.Sequential(*layers).to(memory_format=torch.channels_last), "head": nn.Identity()}
    return wide.eval().requires_grad_(False)


def variants(options: Options) -> Iterator[tuple[str, int, float]]:
    """Head, rank and tensor dropout of each line of the table."""
    for head in options.heads:
        if head not in TRL_HEADS:
            yield head, 1, 0.0
            continue
        for rank in options.ranks if head == "cp-trl" else options.other_ranks:
            for dropout in options.dropouts:
                yield head, rank, dropout


def face_seconds(head: nn.Module, shape: torch.Size, rounds: int = 30) -> float:
    """Median processor time of the head for one face, its trunk's time not counted."""
    x = torch.randn(1, *shape, device=next(head.parameters()).device)
    with torch.inference_mode():
        times = []
        for _ in range(rounds):
            started = time.process_time()
            for _ in range(10):
                head(x)
            times.append((time.process_time() - started) / 10)
    return median(times)


def render(options: Options) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table: mean and spread (standard deviation) over the seeds."""
    results = {
        name: Results(options.output / f"{name}.csv")
        for name in ("heads", "corruptions", f"attacks-{options.attack_images}")
    }
    figures = [
        *("accuracy", "leak_free_accuracy", "macro_f1", "ece", "head_us"),
        *CORRUPTIONS,
        *(["clean", *ATTACKS] if results[f"attacks-{options.attack_images}"].rows else []),
    ]
    best: dict[tuple[str, ...], tuple[float, str]] = {}  # of the learning rates that were searched, should one be added
    for row in Results(options.output / "search.csv").rows:
        searched = tuple(row[name] for name in SEARCHED)
        best[searched] = min(best.get(searched, (float("inf"), "")), (float(row["nll"]), row["lr"]))
    identity = (*SEARCHED, "dropout")
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    parameters: dict[tuple[str, ...], str] = {}
    for result in results.values():
        for row in result.rows:
            group = tuple(row[name] for name in identity)
            if best.get(group[:-1], (0, row["lr"]))[1] != row["lr"]:
                continue
            parameters[group] = row.get("parameters") or parameters.get(group, "")
            for name in figures:
                if name in row:
                    groups.setdefault(group, {}).setdefault(name, []).append(float(row[name]))

    def order(group: tuple[str, ...]) -> Any:
        trunk, grid, budget, head, rank, dropout = group
        return trunk, budget, int(grid), get_args(Head)[::-1].index(head), int(rank), float(dropout)

    table = []
    for group in sorted(groups, key=order):
        _, grid, _, head, rank, dropout = group
        is_trl = head in TRL_HEADS
        cells = [f"{grid}x{grid}", head, rank if is_trl else "", dropout if is_trl else ""]
        values = groups[group]
        cells.append(f"{int(parameters[group]):,}")
        cells.append(str(len(values.get("accuracy", []))))
        table.append(cells + [spread(values.get(name, []), name) for name in figures])
    return ["grid", "head", "rank", "dropout", "parameters", "seeds", *(TITLES.get(f, f) for f in figures)], table


def spread(values: list[float], name: str) -> str:
    if not values:
        return ""
    if name == "head_us":
        return f"{median(values):.0f}"
    scale, digits = (1, 3) if name == "ece" else (100, 1 if name in CORRUPTIONS or name in ATTACKS else 2)
    around = f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * mean(values):.{digits}f}{around}"


def main(options: Options) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.only_print:
        options.output.mkdir(parents=True, exist_ok=True)
        checkpoint, data = load_checkpoint(options.trunk, device=options.device), dataset.load(options.data)
        for grid in options.grids:
            Bench(options, checkpoint, data, grid).run()
    columns, rows = render(options)
    if options.markdown:
        print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join(row)} |")
        return
    table = Table(title="heads on one trunk; shares in %, mean ± standard deviation over the seeds")
    for column in columns:
        table.add_column(column, justify="left" if column == "head" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=max(200, Console().width)).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
