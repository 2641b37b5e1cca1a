"""``fit(config)``: data in, trained checkpoint out.

The loop is plain PyTorch; Hugging Face Accelerate decides device, precision and distribution. Every random number comes
from (seed, epoch, process) or (seed, epoch, image), so that a resumed run repeats the very steps of one that was never
interrupted.
"""

import csv
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fer import dataset as datasets
from fer.augmentation import Views, seed_of
from fer.checkpoint import load_checkpoint, save_checkpoint
from fer.config import Config, Preprocessing, TrainConfig, to_dict
from fer.errors import ConfigError, DatasetError
from fer.features import trunk_features
from fer.heads import head_logits, with_head
from fer.inference import predict_logits
from fer.models import EmotionModel, create_model, load_imagenet_trunk
from fer.preprocessing import prepare
from fer.shelf import make_folder
from fer.teachers import teachers_answers

__all__ = ["fit"]

STATE = "state.pt"
LOG = "log.csv"
TEACHERS = "teachers.npy"

#: Settings that a resumed run may change without becoming another run.
_FREE = {"data", "output", "resume", "workers", "threads"}

Batch = tuple[Tensor, Tensor]
Row = dict[str, float]


def fit(config: Config) -> Path | None:
    """Train, and keep the weights that do best on the validation images without a copy in Training.

    Writes to ``config.run_folder``: ``state.pt`` (everything that ``--resume`` needs, replaced in one step after each
    epoch), ``log.csv``, TensorBoard events, ``checkpoint/`` (the best so far) and in it ``curves.png``.

    Returns:
        The checkpoint's folder; None in all processes but the first.

    Raises:
        ConfigError: settings that cannot work together, or a run folder that holds another run.
        DatasetError: the data is missing or malformed.
    """
    run = Run.open(config)
    while run.epoch < config.training.epochs:
        run.train_epoch()
    run.close()
    return run.folder / "checkpoint" if run.accelerator.is_main_process else None


class Run:
    """One training run: model, optimiser, averaged weights, data, logs."""

    @classmethod
    def open(cls, config: Config) -> Self:
        """A new run, or with ``resume`` the one in its folder.

        Raises:
            ConfigError, DatasetError: as :func:`fit`.
        """
        cfg = config.training
        state = config.run_folder / STATE
        if cfg.resume and not state.is_file():
            raise ConfigError(f"nothing to resume: {state} does not exist; start without --resume")
        if state.exists() and not cfg.resume:
            raise ConfigError(
                f"{config.run_folder} holds a run already: go on with --resume, or choose another --output"
            )
        _set_threads(cfg.threads)
        run = cls(config, _accelerator(cfg))
        make_folder(run.folder, "--output")
        if cfg.resume:
            run.resume()
        run.accelerator.wait_for_everyone()
        return run

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        cfg = config.training
        self.config, self.accelerator = config, accelerator
        self.folder = config.run_folder
        self.state_file = self.folder / STATE
        self.epoch = 0
        self.log: list[Row] = []

        data = datasets.load(cfg.data)
        train, val = data.split("train"), data.split("val")
        if val.leaked.all():
            raise DatasetError(
                f"{cfg.data}: every image of val has a copy in train, so no epoch can be chosen by it; give val "
                "images of its own"
            )
        chosen = np.flatnonzero(~train.copies) if cfg.drop_copies else np.arange(len(train))
        chosen = chosen[: cfg.limit or None]
        self.data_digest = data.digest
        self.val_labels, self.val_leaked = val.labels, val.leaked

        torch.manual_seed(cfg.seed)
        self.model = self.start(train.images[:512]).to(accelerator.device)

        targets = train.soft_targets(cfg.ferplus)[chosen]  # (N, 7)
        self.trained: nn.Module = self.model
        if cfg.freeze_trunk:
            self.trained = self.model.head
            self.model.trunk.requires_grad_(False).eval()
            with accelerator.main_process_first(), accelerator.autocast():
                key = f"{data.digest} {cfg.precision}"
                features = trunk_features(self.model, train.images, f"{key} train")
                self.val_inputs: NDArray[Any] = trunk_features(self.model, val.images, f"{key} val")
            samples: Dataset[Batch] = _FeatureSet(features, chosen, targets)
        else:
            self.val_inputs = val.images
            images = train.images[chosen]
            if cfg.teachers:
                with accelerator.main_process_first():
                    answers = self._teachers_answers(images)
                targets = ((1 - cfg.distill) * targets + cfg.distill * answers).astype(np.float32)
            samples = _FaceSet(images, targets, cfg, config.model.preprocessing)
        self.batches = _Batches(len(chosen), cfg, accelerator.process_index, accelerator.num_processes)
        self.loader = DataLoader(
            samples,
            batch_sampler=self.batches,
            collate_fn=_as_is,
            num_workers=cfg.workers,
            persistent_workers=cfg.workers > 0,
            prefetch_factor=4 if cfg.workers else None,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that starting an epoch draws nothing from the global one
        )
        self.head_steps = round(cfg.head_epochs * len(self.batches))
        # Prepared, it undoes the scaling of fp16's gradients; otherwise it passes everything on.
        self.optimizer = accelerator.prepare_optimizer(_optimizer(self.model, cfg))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, _rates(self.optimizer, cfg, cfg.epochs * len(self.batches), self.head_steps)
        )
        self.average = AveragedModel(self.trained, use_buffers=True) if cfg.ema else None
        self.step = 0
        self.wrapped = self._wrap()
        self.writer: SummaryWriter | None = None

    def start(self, images: NDArray[np.uint8]) -> EmotionModel:
        """The model to train; images (N, 48, 48) show ImageNet's weights what faces are like."""
        model, cfg = create_model(self.config.model), self.config.training
        if cfg.weights != "none" and (cfg.freeze_trunk or not cfg.resume):  # a frozen trunk is not in the state
            _load_weights(model, cfg, images)
        return model

    def _teachers_answers(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the teachers make of each image, (N, 7); kept in the run's folder for ``--resume``."""
        cfg, file = self.config.training, self.folder / TEACHERS
        if self.accelerator.is_main_process and not (cfg.resume and file.is_file()):
            with self.accelerator.autocast():
                answers = teachers_answers(images, cfg, self.accelerator.device.type)
            make_folder(self.folder, "--output")
            np.save(file, answers)
        kept: NDArray[np.float32] = np.load(file)
        return kept

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        cfg, accelerator = self.config.training, self.accelerator
        self.batches.epoch = self.epoch
        batches = iter(self.loader)
        if cfg.freeze_blocks and self.epoch == cfg.freeze_after:
            self.wrapped = self._wrap()
        torch.manual_seed(seed_of(cfg.seed, self.epoch, accelerator.process_index))
        self._set_mode()
        mixup = cfg.mixup if self.epoch < cfg.epochs - cfg.mixup_off else 0.0
        seen, loss_sum, hits = 0, torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
        started = time.perf_counter()
        bar = tqdm(
            total=len(self.batches) * cfg.batch_size,
            desc=f"epoch {self.epoch + 1}/{cfg.epochs}",
            unit="img",
            leave=False,
            disable=None if accelerator.is_main_process else True,  # None: off where nobody watches
        )
        for images, targets in batches:
            if self.step == self.head_steps and self.step:
                self.wrapped = self._wrap()
                self._set_mode()
            images, targets = self._to_device(images, targets)
            loss, logits, targets = self._train_step(images, targets, mixup)
            seen += len(images)
            loss_sum += loss * len(images)
            hits += (logits.argmax(1) == targets.argmax(1)).sum()
            bar.update(len(images) * accelerator.num_processes)
            if self.step % 20 == 0:  # reading a value waits for the device
                bar.set_postfix(loss=f"{loss_sum.item() / seen:.3f}", accuracy=f"{hits.item() / seen:.1%}")
        bar.close()
        rate = seen * accelerator.num_processes / (time.perf_counter() - started)
        sums = accelerator.reduce(torch.stack([loss_sum, hits, torch.full_like(hits, seen)]), reduction="sum")
        if not sums[0].isfinite():
            kept = f"{self.folder} keeps the epochs before" if self.epoch else "nothing was kept"
            raise ConfigError(
                f"epoch {self.epoch + 1}: the loss is no longer a finite number; {kept}. Lower --lr (or --trunk-lr) "
                "or set --clip"
            )
        self.epoch += 1
        if accelerator.is_main_process:
            self._finish_epoch(
                {
                    "epoch": self.epoch,
                    "learning_rate": self.optimizer.param_groups[-1]["lr"],
                    "train_loss": (sums[0] / sums[2]).item(),
                    "train_accuracy": (sums[1] / sums[2]).item(),
                    **self._validate(),
                    "images_per_second": rate,
                    "seconds": time.perf_counter() - started,
                }
            )
        accelerator.wait_for_everyone()

    def _train_step(self, images: Tensor, targets: Tensor, mixup: float) -> tuple[Tensor, Tensor, Tensor]:
        cfg = self.config.training
        if mixup:
            share = float(torch.distributions.Beta(mixup, mixup).sample())
            other = torch.randperm(len(images), device=images.device)
            images = share * images + (1 - share) * images[other]
            targets = share * targets + (1 - share) * targets[other]
        logits = self.wrapped(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=cfg.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if cfg.clip:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), cfg.clip)
        self.optimizer.step()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)`")  # fp16 may skip a step
            self.schedule.step()
        self.step += 1
        if self.average is not None:
            # An average over the last 1/(1-decay) steps, or over all of them while there are fewer.
            decay = min(cfg.ema, self.step / (self.step + 9))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self.average.update_parameters(self.trained)
        return loss.detach(), logits.detach(), targets

    def _set_mode(self) -> None:
        self.wrapped.train()
        if self.step < self.head_steps or self.config.training.freeze_trunk:
            self.model.trunk.eval()
        self._frozen_blocks().eval()

    def _wrap(self) -> nn.Module:
        """The trained module, ready for distribution; anew when layers freeze or thaw, since gradients are counted."""
        self.model.trunk.requires_grad_(self.step >= self.head_steps and not self.config.training.freeze_trunk)
        self._frozen_blocks().requires_grad_(False)
        wrapped: nn.Module = self.accelerator.prepare_model(self.trained)
        return wrapped

    def _frozen_blocks(self) -> nn.Sequential:
        """The trunk's first blocks, up to a pooling, while they do not learn."""
        cfg, trunk = self.config.training, self.model.trunk
        if not cfg.freeze_blocks or self.epoch < cfg.freeze_after:
            return nn.Sequential()
        ends = [i for i, layer in enumerate(trunk) if isinstance(layer, nn.MaxPool2d)]
        return trunk[: ends[cfg.freeze_blocks - 1]]

    def _to_device(self, images: Tensor, targets: Tensor) -> Batch:
        device = self.accelerator.device
        layout = torch.channels_last if images.ndim == 4 else torch.preserve_format
        images = images.to(device, memory_format=layout, non_blocking=True)
        return images, targets.to(device, non_blocking=True)

    # -- after an epoch -----------------------------------------------------------------------------------------------

    def _evaluated(self) -> nn.Module:
        return self.trained if self.average is None else self.average.module

    def val_logits(self) -> NDArray[np.float32]:
        """The averaged weights' logits of the validation images, (N, 7)."""
        cfg, model = self.config.training, self._evaluated()
        model.eval()
        with self.accelerator.autocast():
            if cfg.freeze_trunk:
                return head_logits(model, [self.val_inputs])
            return predict_logits(
                model, self.val_inputs, self.config.model.preprocessing, tta=cfg.tta, progress="validation"
            )

    def _validate(self) -> Row:
        logits = self.val_logits()
        right = logits.argmax(1) == self.val_labels
        loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(self.val_labels)).item()
        return {
            "val_loss": loss,
            "val_accuracy": float(right.mean()),
            "leak_free_accuracy": float(right[~self.val_leaked].mean()),
        }

    def _finish_epoch(self, row: Row) -> None:
        best = max((r["leak_free_accuracy"] for r in self.log), default=-1.0)
        self.log.append(row)
        if row["leak_free_accuracy"] > best:
            save_checkpoint(self.folder / "checkpoint", self._best_model(), self.config)
        self._write_log()
        self._save_state()
        mark = " *" if row["leak_free_accuracy"] > best else ""
        tqdm.write(
            f"epoch {row['epoch']:3d}  train loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:.1%}  "
            f"val loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:.2%} "
            f"leak-free {row['leak_free_accuracy']:.2%}  {row['images_per_second']:.0f} img/s "
            f"{row['seconds']:.0f} s{mark}"
        )

    def _best_model(self) -> EmotionModel:
        if not self.config.training.freeze_trunk:
            return self._evaluated()  # type: ignore[return-value]
        return with_head(self.model, self._evaluated(), self.config.model)

    def _write_log(self) -> None:
        temporary = self.folder / f"{LOG}.part"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.log[0].keys())
            writer.writeheader()
            writer.writerows(self.log)
        temporary.replace(self.folder / LOG)
        if self.writer is None:
            self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=int(self.log[-1]["epoch"]))
        for name, value in self.log[-1].items():
            self.writer.add_scalar(name, value, int(self.log[-1]["epoch"]))
        plot_curves(self.log, self.folder / "checkpoint" / "curves.png")

    def _save_state(self) -> None:
        temporary = self.state_file.with_suffix(".part")
        torch.save(
            {
                "config": to_dict(self.config),
                "data": self.data_digest,
                "processes": self.accelerator.num_processes,
                "epoch": self.epoch,
                "step": self.step,
                "log": self.log,
                "model": self.trained.state_dict(),
                "average": self.average and self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            },
            temporary,
        )
        temporary.replace(self.state_file)

    def resume(self) -> None:
        """Take up the state of the last whole epoch.

        Raises:
            ConfigError: it belongs to other settings or other data, or is damaged.
        """
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
            raise ConfigError(f"{self.state_file} is damaged or no state; start anew in another --output") from error
        before = _essentials(state["config"], state["processes"])
        now = _essentials(to_dict(self.config), self.accelerator.num_processes)
        changed = [f"{k} was {before.get(k)}, not {v}" for k, v in now.items() if before.get(k) != v]
        if changed:
            raise ConfigError(
                f"{self.folder} was trained with other settings: {'; '.join(changed)}. Repeat them to resume"
            )
        if state["data"] != self.data_digest:
            raise ConfigError(f"{self.folder} was trained on other data than {self.config.training.data}")
        self.epoch, self.step, self.log = state["epoch"], state["step"], state["log"]
        try:
            self.trained.load_state_dict(state["model"])
        except RuntimeError as error:  # the settings are the same, but the name now stands for another network
            raise ConfigError(
                f"{self.state_file} is of another architecture than {self.config.model.trunk} is in this version;"
                " go on with the version that began it, or start anew in another --output"
            ) from error
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.wrapped = self._wrap()
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Flush the logs and leave the process group."""
        if self.writer is not None:
            self.writer.close()
        self.accelerator.end_training()


# -- pieces -----------------------------------------------------------------------------------------------------------


class _FaceSet(Dataset[Batch]):
    """Random views of faces, new in every epoch, prepared for the network, a whole batch at a time."""

    def __init__(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], cfg: TrainConfig, preprocessing: Preprocessing
    ) -> None:
        self._images, self._targets, self._seed, self._preprocessing = images, targets, cfg.seed, preprocessing
        self._views = Views(cfg)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        targets = self._targets[[i for _, i in items]]
        views = [self._views(self._images[i], seed_of(self._seed, epoch, i)) for epoch, i in items]
        return torch.from_numpy(prepare(views, self._preprocessing)), torch.from_numpy(targets)


class _FeatureSet(Dataset[Batch]):
    """A frozen trunk's outputs, a whole batch at a time."""

    def __init__(self, features: NDArray[np.float16], chosen: NDArray[np.int64], targets: NDArray[np.float32]) -> None:
        self._features, self._chosen, self._targets = features, chosen, targets

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = [i for _, i in items]
        return torch.from_numpy(self._features[self._chosen[rows]]).float(), torch.from_numpy(self._targets[rows])


class _Batches(Sampler[list[tuple[int, int]]]):
    """This process's share of each batch, as (epoch, image): the order depends on seed and epoch alone."""

    def __init__(self, images: int, cfg: TrainConfig, process: int, processes: int) -> None:
        self._images, self._seed, self._process, self._processes = images, cfg.seed, process, processes
        self._size = cfg.batch_size
        self.epoch = 0
        if self._size > images:
            raise ConfigError(f"batch size {self._size} is larger than the {images} training images: lower it")
        if self._size % processes:
            raise ConfigError(f"batch size {self._size} does not divide among {processes} processes")

    def __len__(self) -> int:
        return self._images // self._size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._images)
        for batch in range(len(self)):
            share = order[batch * self._size : (batch + 1) * self._size][self._process :: self._processes]
            yield [(self.epoch, int(i)) for i in share]


def _load_weights(model: EmotionModel, cfg: TrainConfig, images: NDArray[np.uint8]) -> None:
    """ImageNet's weights for the trunk, or a checkpoint's for the trunk and, where it is of the same kind, the head."""
    preprocessing = model.config.preprocessing
    if cfg.starts_as_vgg16:
        load_imagenet_trunk(model.trunk, cfg.weights, torch.from_numpy(prepare(images, preprocessing)))
        return
    start = load_checkpoint(cfg.weights)
    if dataclasses.replace(start.preprocessing, size=preprocessing.size) != preprocessing:
        raise ConfigError(
            f"{start.folder} was trained on {start.preprocessing}, not on {preprocessing}: "
            "make --channels, --mean and --std the same, or choose other --weights"
        )
    ours, theirs = (m.trunk.state_dict() for m in (model, start.model))
    try:
        model.trunk.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))  # poolings only shift the names
    except (RuntimeError, ValueError) as error:
        trunks = " and ".join(f"{c.trunk} (batch_norm: {c.batch_norm})" for c in (start.config.model, model.config))
        raise ConfigError(f"{start.folder} does not fit: the trunks are {trunks}; choose other --weights") from error
    before, after = (m.head.state_dict() for m in (start.model, model))
    if {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}:
        model.head.load_state_dict(before)


def _essentials(config: dict[str, Any], processes: int) -> dict[str, Any]:
    """The settings that make a run what it is, by name; those that an older state lacks have their defaults."""
    settings = (
        to_dict(TrainConfig())
        | config["training"]
        | config["model"]
        | config["model"]["preprocessing"]
        | {"processes": processes}
    )
    return {name: value for name, value in settings.items() if name not in _FREE | {"preprocessing"}}


def _as_is(batch: Any) -> Any:
    return batch


def _set_threads(threads: int) -> None:
    cv2.setNumThreads(0)  # its pool does not survive the fork of a worker, which would then wait for ever
    if threads:
        torch.set_num_threads(threads)


def _accelerator(cfg: TrainConfig) -> Accelerator:
    precision = "no" if cfg.precision == "fp32" else cfg.precision
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=cfg.device == "cpu")
    except ValueError as error:
        raise ConfigError(f"precision {cfg.precision} on device {cfg.device}: {error}") from error
    if cfg.device not in ("auto", accelerator.device.type):
        raise ConfigError(f"device {cfg.device} is not to be had here; Accelerate found {accelerator.device.type}")
    return accelerator


def _optimizer(model: EmotionModel, cfg: TrainConfig) -> torch.optim.Optimizer:
    """Parameter groups trunk and head, each with and without decay; the head's come last.

    Fused: one pass over weights, gradients and moments, which takes a sixth of the time for 50 M parameters on a core.
    """
    groups = []
    for part, rate in ((model.trunk, cfg.trunk_lr or cfg.lr), (model.head, cfg.lr)):
        if part is model.trunk and cfg.freeze_trunk:
            continue
        for matrices, decay in ((True, cfg.weight_decay), (False, 0.0)):
            parameters = [p for p in part.parameters() if (p.ndim > 1) == matrices]
            groups.append({"params": parameters, "lr": rate, "weight_decay": decay, "trunk": part is model.trunk})
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)


def _rates(
    optimizer: torch.optim.Optimizer, cfg: TrainConfig, steps: int, head_steps: int
) -> list[Callable[[int], float]]:
    """Factor of each group's learning rate at a step: a linear rise, then half a cosine down to 0."""

    def curve(first: int) -> Callable[[int], float]:
        rise = max(1, round(cfg.warmup * (steps - first)))

        def factor(step: int) -> float:
            step -= first
            if step < rise:
                return max(0.0, (step + 1) / rise) if step >= 0 else 0.0
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - first - rise)))

        return factor

    return [curve(head_steps if group["trunk"] else 0) for group in optimizer.param_groups]


def plot_curves(log: Sequence[Row], file: Path) -> None:
    """Loss and accuracy of every epoch, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    epochs = [row["epoch"] for row in log]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, quantity in ((left, "loss"), (right, "accuracy")):
        for split, style in (("train", "--"), ("val", "-")):
            axis.plot(epochs, [row[f"{split}_{quantity}"] for row in log], style, label=split)
        axis.set(xlabel="epoch", ylabel=quantity)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    right.plot(epochs, [row["leak_free_accuracy"] for row in log], ":", label="val, leak-free")
    left.legend()
    right.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
