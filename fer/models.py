"""The networks: a convolutional trunk, and a head that maps its activation tensor to seven logits.

Any trunk takes any head; the shape that a head sees is found by running the trunk, never typed.
"""

import copy
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fer.config import IMAGENET_GREY, ModelConfig
from fer.emotions import EMOTIONS
from fer.errors import CheckpointError
from fer.trl import CPTRL, TTTRL, TensorRegressionLayer, TuckerTRL

__all__ = [
    "EmotionModel",
    "create_head",
    "create_model",
    "layer_shapes",
    "load_imagenet_trunk",
    "parameter_count",
    "replace_classifier",
]

TRL_HEADS: dict[str, type[TensorRegressionLayer]] = {layer.name: layer for layer in (CPTRL, TuckerTRL, TTTRL)}

#: ImageNet normalisation of torchvision's VGG16: means and standard deviations of R, G and B in 0..1.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

#: Output channels of VGG16's 3x3 convolutions (Simonyan and Zisserman 2015), by block; a block ends with a pooling.
_VGG16_BLOCKS: tuple[tuple[int, ...], ...] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)

#: Output channels of the scratch network's residual blocks; each "/2" halves the resolution.
_CNN_STEM = 16
_CNN_BLOCKS: tuple[tuple[int, int], ...] = ((32, 2), (64, 2), (128, 2), (128, 1), (256, 2), (256, 1))


class EmotionModel(nn.Module):
    """A trunk and a head.

    Attributes:
        config: what it was made from.
        trunk: (B, C, S, S) normalised faces -> (B, channels, height, width).
        head: the trunk's output -> (B, 7) logits in the order of :class:`fer.Emotion`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _TRUNKS[config.trunk](config)
        self.head = create_head(config, self.trunk_shape())

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, 7), of normalised faces, (B, C, S, S)."""
        x = self.trunk(x)  # vgg16-cp-trl: (B, 1, 48, 48) -> (B, 512, 3, 3)
        return self.head(x)  # type: ignore[no-any-return]  # (B, 512, 3, 3) -> (B, 7)

    @torch.no_grad()
    def trunk_shape(self) -> torch.Size:
        """Shape of the trunk's output for one face, (channels, height, width), found by running it."""
        p, training = self.config.preprocessing, self.trunk.training
        device = next(self.trunk.parameters()).device  # not always "meta", which takes 1.5 s to be imported
        shape: torch.Size = self.trunk.eval()(torch.zeros(1, p.channels, p.size, p.size, device=device)).shape
        self.trunk.train(training)
        return shape[1:]


def create_model(config: ModelConfig) -> EmotionModel:
    """A network with random weights, in training mode, in channels-last memory format.

    PyTorch's random generator decides the weights: seed it first for a reproducible start.
    """
    return EmotionModel(config).to(memory_format=torch.channels_last)


# -- trunks -----------------------------------------------------------------------------------------------------------


def _vgg16_trunk(config: ModelConfig) -> nn.Sequential:
    """Torchvision's VGG16 (same order of layers and initialisation) without its last ``5 - poolings`` poolings."""
    layers: list[nn.Module] = []
    inputs = config.preprocessing.channels
    for block, channels in enumerate(_VGG16_BLOCKS):
        for outputs in channels:
            conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers += [conv, *([nn.BatchNorm2d(outputs)] if config.batch_norm else []), nn.ReLU(inplace=True)]
            inputs = outputs
        if block < config.poolings:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _guide_trunk(config: ModelConfig) -> nn.Sequential:
    """The guide's small network: at 32x32 its output is 64x13x13."""
    return nn.Sequential(
        nn.Conv2d(config.preprocessing.channels, 32, kernel_size=3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016), average-pooled where it halves (He et al. 2019)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]  # starts as its shortcut (Goyal et al. 2017)
        shortcut: list[nn.Module] = [nn.AvgPool2d(stride)] if stride > 1 else []
        if inputs != outputs:
            shortcut += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _cnn_trunk(config: ModelConfig) -> nn.Sequential:
    """The scratch network: a full-resolution stem and residual blocks, 48x48 -> 256x3x3 in 2.7 M parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(config.preprocessing.channels, _CNN_STEM, 3, padding=1, bias=False),
        nn.BatchNorm2d(_CNN_STEM),
        nn.ReLU(inplace=True),
    ]
    inputs = _CNN_STEM
    for outputs, stride in _CNN_BLOCKS:
        layers.append(_Residual(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*layers)


_TRUNKS = {"vgg16": _vgg16_trunk, "cnn": _cnn_trunk, "guide-cnn": _guide_trunk}


# -- heads ------------------------------------------------------------------------------------------------------------


def create_head(config: ModelConfig, shape: torch.Size) -> nn.Module:
    """A head with random weights for a trunk's output of that shape, (channels, height, width)."""
    classes = len(EMOTIONS)
    if config.head in TRL_HEADS:
        return TRL_HEADS[config.head](shape, classes, config.rank, tensor_dropout=config.tensor_dropout)
    if config.head == "gap":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))
    if config.head == "dense":
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), classes))
    return nn.Sequential(  # VGG's own classifier
        nn.Flatten(),
        nn.Linear(shape.numel(), 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(config.dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(config.dropout),
        nn.Linear(4096, classes),
    )


def replace_classifier(model: nn.Module, rank: int, num_classes: int) -> tuple[str, TensorRegressionLayer]:
    """A CP-TRL in the place of a torchvision classifier's fully connected layers.

    Returns:
        The replaced module's name, and the layer for the activation tensor that came before pooling and flattening, as
        at 224x224 pixels: 256x6x6 for AlexNet, 512x7x7 for VGG, 2048x7x7 for the ResNets of 50 layers and more.
    """
    name = "classifier" if hasattr(model, "classifier") else "fc"
    features: Any = getattr(model, "features", None)
    if features is None:
        features = nn.Sequential(OrderedDict((n, m) for n, m in model.named_children() if n not in ("avgpool", "fc")))
    with torch.device("meta"):
        shape = copy.deepcopy(features).to("meta").eval()(torch.empty(1, 3, 224, 224)).shape[1:]
        return name, CPTRL(shape, num_classes, rank)


# -- ImageNet ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def load_imagenet_trunk(trunk: nn.Sequential, source: str, faces: Tensor) -> None:
    """Give a ``vgg16`` trunk its ImageNet weights.

    A one-channel trunk gets the first kernel summed over R, G and B; the three normalisations are folded in. Where the
    trunk has BatchNorm, which the pretrained network has not, each BatchNorm is set so that the trunk computes what the
    plain one does on ``faces``, up to a positive factor for each channel of its output: the BatchNorm's scale is 1, its
    offset mean / std of the convolution's output, and the std is handed on to the next convolution, past ReLU and
    pooling, which both let positive factors through.

    Args:
        trunk: from :func:`create_model`.
        source: ``imagenet`` for torchvision's download, or a .safetensors or .pth file with torchvision's names.
        faces: (B, C, S, S) normalised with :data:`fer.config.IMAGENET_GREY`'s mean and std; a few hundred.

    Raises:
        CheckpointError: the file cannot be read or lacks a layer.
    """
    convolutions = [m for m in trunk if isinstance(m, nn.Conv2d)]
    plain = _vgg16_trunk(ModelConfig(poolings=5, batch_norm=False))  # numbers its layers as torchvision does
    indices = (i for i, layer in enumerate(plain) if isinstance(layer, nn.Conv2d))
    state = _imagenet_state(source)
    for conv, index in zip(convolutions, indices, strict=True):
        try:
            weight, bias = (state[f"features.{index}.{part}"].float() for part in ("weight", "bias"))
        except KeyError as error:
            raise CheckpointError(
                f"{source} has no {error.args[0]}: expected VGG16's convolutional layers under torchvision's names"
            ) from None
        inputs = conv.in_channels if index else 3
        if weight.shape != (conv.out_channels, inputs, 3, 3) or bias.shape != (conv.out_channels,):
            raise CheckpointError(
                f"{source} has features.{index} of shape {tuple(weight.shape)}, expected "
                f"{(conv.out_channels, inputs, 3, 3)}: it holds another network's weights, not VGG16's"
            )
        if index == 0:
            weight, bias = _for_grey_normalisation(weight, bias)
            weight = weight if conv.in_channels == 3 else weight.sum(1, keepdim=True)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)  # type: ignore[union-attr]
    if any(isinstance(layer, nn.BatchNorm2d) for layer in trunk):
        _calibrate(trunk.eval(), faces)
        trunk.train()


def _imagenet_state(source: str) -> dict[str, Tensor]:
    if source == "imagenet":
        from torchvision.models import VGG16_Weights  # takes a second

        weights = VGG16_Weights.IMAGENET1K_V1
        try:
            return dict(weights.get_state_dict(progress=True, check_hash=True))
        except OSError as error:
            raise CheckpointError(
                f"cannot download VGG16's ImageNet weights from {weights.url}: {error}; "
                "fetch the file elsewhere and pass --weights FILE"
            ) from error
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: expected none, imagenet, or a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # safetensors and torch raise whatever the bytes lead them to
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error


def _for_grey_normalisation(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The first convolution, expecting (grey - m) / s of each channel in place of (grey - mean) / std."""
    mean = torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1)
    bias = bias + (weight * (IMAGENET_GREY.mean - mean) / std).sum((1, 2, 3))
    return weight * IMAGENET_GREY.std / std, bias


def _calibrate(trunk: nn.Sequential, x: Tensor) -> None:
    scale: Tensor | float = 1.0  # what the BatchNorm before divided its output by, per channel
    gain = 1.0  # product of the factors below: biases of later convolutions share it
    for layer in trunk:
        if isinstance(layer, nn.Conv2d):
            # A convolution's size is undone by its BatchNorm, but decides how fast it learns: give it the usual one.
            layer.weight *= scale
            usual = math.sqrt(2 / (9 * layer.out_channels))
            factor = usual / float(layer.weight.std())
            gain *= factor
            layer.weight *= factor
            layer.bias.mul_(gain)  # type: ignore[union-attr]
        elif isinstance(layer, nn.BatchNorm2d):
            variance, mean = torch.var_mean(x, (0, 2, 3))
            deviation = (variance + layer.eps).sqrt()
            scale = deviation.view(1, -1, 1, 1)
            layer.running_mean.copy_(mean)  # type: ignore[union-attr]
            layer.running_var.copy_(variance)  # type: ignore[union-attr]
            layer.weight.fill_(1)
            layer.bias.copy_(mean / deviation)
        x = layer(x)


# -- looking inside ---------------------------------------------------------------------------------------------------


def layer_shapes(model: EmotionModel) -> list[tuple[str, str, torch.Size, int]]:
    """Each leaf layer's name, type, output shape for one face (without the batch) and number of parameters."""
    p = model.config.preprocessing
    rows: list[tuple[str, str, torch.Size, int]] = []
    ghost = copy.deepcopy(model).eval()
    for name, module in ghost.named_modules():
        if not any(True for _ in module.children()) and not isinstance(module, nn.Sequential):  # an empty shortcut

            def note(module: nn.Module, _: Any, output: Tensor, name: str = name) -> None:
                rows.append((name, type(module).__name__, output.shape[1:], parameter_count(module)))

            module.register_forward_hook(note)
    with torch.no_grad():
        device = next(ghost.parameters()).device  # not always "meta": see trunk_shape
        x = ghost.trunk(torch.zeros(1, p.channels, p.size, p.size, device=device))
        if isinstance(ghost.head, TensorRegressionLayer):  # known without a run
            output = torch.Size([ghost.head.num_classes])
            rows.append(("head", type(ghost.head).__name__, output, parameter_count(ghost.head)))
        else:
            ghost.head(x)
    return rows


def parameter_count(module: nn.Module) -> int:
    """Number of learned numbers in a network or a part of one."""
    return sum(parameter.numel() for parameter in module.parameters())
