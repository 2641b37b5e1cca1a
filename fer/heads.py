"""Heads on a frozen trunk: trained on its kept outputs in seconds, read off as one linear map, measured."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from fer.config import HeadTraining, ModelConfig, TestTimeAugmentation, TrainConfig
from fer.dataset import Dataset
from fer.errors import ConfigError
from fer.features import augmented_features, tta_features
from fer.models import EmotionModel, create_model

__all__ = ["HeadData", "as_linear", "fit_linear", "head_data", "head_logits", "shares_right", "train_head", "with_head"]

BATCH = 512
Features = NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class HeadData:
    """What a head trains on and is measured on.

    Attributes:
        name: of the dataset.
        views: a frozen trunk's outputs for random views of the training images, (N, C, H, W) float16 for each view.
        chosen: which of the N to train on.
        targets: (N, 7) float32.
        val: the same for the views of test-time augmentation of the validation images.
        labels: (M,) of the validation images.
        leaked: (M,) marks of those that have a copy in Training.
    """

    name: str
    views: Sequence[Features]
    chosen: NDArray[np.int64]
    targets: NDArray[np.float32]
    val: Sequence[Features]
    labels: NDArray[np.int64]
    leaked: NDArray[np.bool_]

    def batch(self, rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Features, (B, C, H, W) float32, and targets of some images; the views take turns from epoch to epoch."""
        number = (rows + epoch) % len(self.views)
        x = np.empty((len(rows), *self.views[0].shape[1:]), np.float16)
        for i, view in enumerate(self.views):
            x[number == i] = view[rows[number == i]]
        return torch.from_numpy(x).float(), torch.from_numpy(self.targets[rows])


def head_data(
    model: EmotionModel, data: Dataset, config: HeadTraining, training: TrainConfig, tta: TestTimeAugmentation
) -> HeadData:
    """The features of a dataset under a trunk, from the cache or computed now.

    Args:
        model: its trunk is used, in evaluation mode, on the device where it is.
        data: has train and val.
        config: how many views, and in which precision (the validation features are always computed in float32).
        training: how far a view may stray, and whether repeated images are left out.
        tta: views of a validation image.

    Raises:
        DatasetError: a split is missing.
        ConfigError: fewer images to train on than one batch.
    """
    train, val = data.split("train"), data.split("val")
    count = config.limit or len(train)
    kept = ~train.copies[:count] if training.drop_copies else np.ones(len(train.images[:count]), bool)
    _steps(int(kept.sum()), config)
    key = f"{data.digest} {config.precision} train {count}"
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext():
        views = augmented_features(model, train.images[:count], key, config.views, training)
    return HeadData(
        name=data.name,
        views=views,
        chosen=np.flatnonzero(kept),
        targets=train.soft_targets(training.ferplus)[:count],
        val=tta_features(model, val.images, f"{data.digest} fp32 val", tta),
        labels=val.labels,
        leaked=val.leaked,
    )


def train_head(
    head: nn.Module, data: HeadData, config: HeadTraining, *, seed: int = 0, caption: str | None = None
) -> None:
    """Train a head: AdamW, one cycle of the learning rate, the weights of the last step.

    Args:
        head: (B, C, H, W) -> (B, 7); trained in place, on the device where it is, and left in evaluation mode.
        data: the features.
        config: the budget.
        seed: decides order and dropout.
        caption: of a progress bar; none without one.

    Raises:
        ConfigError: fewer images than one batch.
    """
    device = next(head.parameters()).device
    steps = _steps(len(data.chosen), config)
    total = config.epochs * steps
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    rise = 0.11 if total == 10 else 0.1  # a tenth of ten steps is one, by whose length less one PyTorch divides
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=total, pct_start=rise, cycle_momentum=False
    )
    head.train().requires_grad_(True)
    bar = tqdm(total=total, desc=caption, disable=None if caption else True, leave=False)
    for epoch in range(config.epochs):
        rows = order.permutation(data.chosen)[: steps * config.batch_size]
        for part in rows.reshape(steps, -1):
            x, targets = (tensor.to(device) for tensor in data.batch(part, epoch))
            loss = cross_entropy(head(x), targets, label_smoothing=config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    head.eval().requires_grad_(False)


def _steps(images: int, config: HeadTraining) -> int:
    if images < config.batch_size and config.epochs:
        raise ConfigError(f"batch size {config.batch_size} is larger than the {images} training images: lower it")
    return images // config.batch_size


@torch.inference_mode()
def head_logits(head: nn.Module, views: Sequence[Features]) -> NDArray[np.float32]:
    """A head's logits, (N, 7) float32, averaged over views of the same images, (N, C, H, W) float16 each."""
    device = next(head.parameters()).device

    def logits(features: Features) -> NDArray[np.float32]:
        parts = (torch.tensor(features[i : i + BATCH]).to(device).float() for i in range(0, len(features), BATCH))
        return np.concatenate([head(part).float().cpu().numpy() for part in parts])

    return np.asarray(np.mean([logits(view) for view in views], axis=0), np.float32)


def shares_right(logits: NDArray[np.float32], data: HeadData) -> tuple[float, float]:
    """Accuracy on the validation images, and on those without a copy in Training, 0..1."""
    right = logits.argmax(1) == data.labels
    return float(right.mean()), float(right[~data.leaked].mean())


def with_head(model: EmotionModel, head: nn.Module, config: ModelConfig) -> EmotionModel:
    """A model of its own, on the CPU, from one model's trunk and another head, which ``config`` describes."""
    network = create_model(config).eval()
    network.trunk.load_state_dict(model.trunk.state_dict())
    network.head.load_state_dict(head.state_dict())
    return network


# -- as one linear map ------------------------------------------------------------------------------------------------


@torch.no_grad()
def as_linear(head: nn.Module, shape: Sequence[int]) -> nn.Linear:
    """The map on the flattened input that a linear head (dense, gap, a tensor regression layer) is.

    Read off by what it makes of each unit tensor.

    Args:
        head: (B, C, H, W) -> (B, 7), linear but for a bias; in evaluation mode.
        shape: (C, H, W).
    """
    device = next(head.parameters()).device
    size = int(np.prod(shape))
    bias = head(torch.zeros(1, *shape, device=device))[0]
    linear = nn.Linear(size, len(bias), device=device)
    for start in range(0, size, BATCH):
        units = torch.zeros(min(BATCH, size - start), size, device=device)
        units[:, start:].fill_diagonal_(1)
        linear.weight[:, start : start + BATCH] = (head(units.view(-1, *shape)) - bias).t()
    linear.bias.copy_(bias)
    return linear.eval()


@torch.no_grad()
def fit_linear(head: nn.Module, data: HeadData, ridge: float = 0.1) -> nn.Linear:
    """The linear map whose scores are nearest to a head's on the training features, by least squares.

    For a head with hidden layers, which no linear map equals.

    Args:
        head: in evaluation mode.
        data: all its views are used.
        ridge: added to the features' covariance, as a share of its mean diagonal entry.
    """
    device = next(head.parameters()).device
    size = int(np.prod(data.views[0].shape[1:]))
    gram = torch.zeros(size + 1, size + 1, dtype=torch.float64, device=device)
    product = torch.zeros(size + 1, data.targets.shape[1], dtype=torch.float64, device=device)
    for epoch in range(len(data.views)):
        for start in range(0, len(data.chosen), 4 * BATCH):
            x = data.batch(data.chosen[start : start + 4 * BATCH], epoch)[0].to(device)
            scores = head(x)
            x = torch.nn.functional.pad(x.flatten(1), (0, 1), value=1.0)  # the last input is 1, for the bias
            gram += (x.t() @ x).double()
            product += (x.t() @ scores).double()
    gram[:size, :size].diagonal().add_(ridge * gram.diagonal()[:size].mean())
    solution = torch.linalg.solve(gram, product)
    linear = nn.Linear(size, product.shape[1], device=device)
    linear.weight.copy_(solution[:-1].t())
    linear.bias.copy_(solution[-1])
    return linear.eval()
