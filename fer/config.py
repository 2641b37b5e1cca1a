"""Settings: frozen dataclasses that are the command line, the record of a run and a checkpoint's config.json.

Each field's docstring line becomes its ``--help``. ``RECIPES`` holds the named configurations.
"""

import dataclasses
import shlex
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fer.errors import ConfigError

__all__ = [
    "IMAGENET_GREY",
    "RECIPES",
    "AppConfig",
    "AverageConfig",
    "Config",
    "ConvertConfig",
    "DetectorName",
    "ExportConfig",
    "HeadTraining",
    "LiveConfig",
    "ModelConfig",
    "PredictConfig",
    "Preprocessing",
    "RankConfig",
    "RecognizerConfig",
    "Runtime",
    "TrackingConfig",
    "TrainConfig",
    "VideoConfig",
    "command_line",
    "from_dict",
    "recipe",
    "to_dict",
]

T = typing.TypeVar("T")

Trunk = Literal["vgg16", "cnn", "guide-cnn"]
TRLHead = Literal["cp-trl", "tucker-trl", "tt-trl"]
Head = Literal["cp-trl", "tucker-trl", "tt-trl", "dense", "fc", "gap"]
TestTimeAugmentation = Literal["none", "flip", "ten-crop"]
DetectorName = Literal["auto", "retinaface", "yunet"]
Runtime = Literal["torch", "onnx"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class Preprocessing:
    """How the pixels of a face become the network's input; see :mod:`fer.preprocessing`."""

    size: int = 48
    """side of the square input, in pixels"""
    channels: int = 1
    """1 for grey, 3 for grey repeated over RGB"""
    mean: float = 0.508
    """subtracted from grey values scaled to 0..1 (FER2013's own mean by default)"""
    std: float = 0.255
    """the difference is divided by this (FER2013's own standard deviation by default)"""

    def __post_init__(self) -> None:
        _require(self.size >= 16, f"size must be at least 16 pixels, not {self.size}")
        _require(self.channels in (1, 3), f"channels must be 1 or 3, not {self.channels}")
        _require(self.std > 0, f"std must be positive, not {self.std}")


#: Grey equivalent of torchvision's ImageNet normalisation: the averages of its three means and deviations.
IMAGENET_GREY = Preprocessing(mean=0.449, std=0.226)


@dataclass(frozen=True)
class ModelConfig:
    """The network: a convolutional trunk and the head that maps its activation tensor to seven logits."""

    trunk: Trunk = "vgg16"
    """convolutional part"""
    head: Head = "cp-trl"
    """cp-trl, tucker-trl and tt-trl are tensor regression layers; dense is the linear map that they factorise; fc is
    VGG's three fully connected layers; gap is global average pooling and one linear layer"""
    rank: int = 32
    """rank of the tensor regression layer"""
    tensor_dropout: float = 0.1
    """probability with which each rank component is dropped in training"""
    dropout: float = 0.5
    """probability of ordinary dropout in the fc head"""
    poolings: int = 4
    """vgg16 only: how many of its five max-poolings to keep (at 48 pixels: 4 give 512x3x3, 3 give 512x6x6)"""
    batch_norm: bool = True
    """vgg16 only: BatchNorm after each convolution"""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        _require(self.rank >= 1, f"rank must be at least 1, not {self.rank}")
        _require(0 <= self.tensor_dropout < 1, f"tensor dropout must be in [0, 1), not {self.tensor_dropout}")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")
        _require(1 <= self.poolings <= 5, f"poolings must be 1 to 5, not {self.poolings}")
        _require(
            self.trunk != "vgg16" or self.preprocessing.size >= 2**self.poolings,
            f"{self.poolings} poolings leave nothing of {self.preprocessing.size} pixels: give fewer poolings or a "
            "larger size",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    data: str = "data"
    """FER2013: a .csv, .zip or .tar.gz, Kaggle's image folder, a folder that holds one of these, or 'synthetic'"""
    output: str = ""
    """folder of the run; runs/RECIPE by default"""
    resume: bool = False
    """go on from the last whole epoch in the output folder"""
    seed: int = 0
    """decides initial weights, order, views, mixup and dropout"""

    epochs: int = 40
    """passes over the training images"""
    batch_size: int = 64
    """images a step, over all processes together"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd is SGD with Nesterov momentum 0.9"""
    lr: float = 0.02
    """peak learning rate of the head (of the whole network where trunk_lr is not given)"""
    trunk_lr: float | None = None
    """peak learning rate of the trunk"""
    weight_decay: float = 5e-4
    """decay of weights with two or more dimensions; biases and BatchNorm have none"""
    head_epochs: float = 0.0
    """epochs at the start in which the trunk is frozen"""
    freeze_trunk: bool = False
    """train the head alone, on features computed once and kept in the cache"""
    freeze_blocks: int = 0
    """vgg16 only: how many of its first blocks learn no more after freeze_after epochs (two: a quarter of the time)"""
    freeze_after: int = 1
    """epochs in which those blocks learn"""
    warmup: float = 0.05
    """share of all steps in which the learning rate rises; it then falls along a cosine"""
    clip: float = 5.0
    """largest norm of the gradient; 0 for no clipping"""
    ema: float = 0.999
    """decay a step of the averaged weights that are evaluated and kept; 0 to keep the weights themselves"""

    label_smoothing: float = 0.1
    """share of each target spread over all classes"""
    ferplus: float = 0.0
    """share of each target taken from the FER+ votes, as FER2013 would label them (needs fer2013new.csv)"""
    teachers: str = ""
    """checkpoints, separated by commas, whose averaged probabilities are mixed into the targets (distillation)"""
    distill: float = 0.5
    """share of each target taken from the teachers"""
    distill_views: int = 8
    """random views of each image over which the teachers' probabilities are averaged"""
    mixup: float = 0.0
    """alpha of mixup's Beta distribution; 0 for none"""
    mixup_off: int = 0
    """epochs at the end without mixup"""
    drop_copies: bool = True
    """leave out training images that repeat an earlier one to the pixel"""

    flip: bool = True
    """mirror half of the views"""
    shift: float = 0.1
    """largest shift of a view, as a share of its side"""
    scale: float = 0.2
    """views are scaled by 1 - scale to 1 + scale"""
    rotation: float = 15.0
    """largest rotation of a view, degrees"""
    brightness: float = 0.15
    """largest relative change of brightness and of contrast"""
    erase: float = 0.25
    """probability that a rectangle of a view is erased"""

    weights: str = "none"
    """where training starts: none (random), imagenet (torchvision's VGG16), a .safetensors or .pth file with VGG16's
    convolutional layers under torchvision's names, or a checkpoint's name or folder"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 needs a CPU with AVX512-BF16 or AMX, or a GPU; fp16 needs a GPU"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int = 0
    """CPU threads for training; 0 leaves the choice to PyTorch"""
    workers: int = 1
    """processes that prepare batches; 0 prepares them in the training process"""
    tta: TestTimeAugmentation = "flip"
    """views averaged in each epoch's validation (with freeze_trunk only at the end) and for the temperature"""
    limit: int = 0
    """train on the first so many images only, for trials; 0 for all"""
    half: bool = True
    """store the checkpoint's weights in float16"""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        _require(self.batch_size >= 1, f"batch size must be at least 1, not {self.batch_size}")
        _require(self.freeze_blocks >= 0, f"freeze blocks must not be negative, not {self.freeze_blocks}")
        _require(self.freeze_after >= 0, f"freeze after must not be negative, not {self.freeze_after}")
        _require(self.lr > 0, f"lr must be positive, not {self.lr}")
        _require(self.trunk_lr is None or self.trunk_lr > 0, f"trunk lr must be positive, not {self.trunk_lr}")
        _require(0 <= self.head_epochs <= self.epochs, f"head epochs must be in [0, epochs], not {self.head_epochs}")
        _require(0 <= self.warmup < 1, f"warmup must be in [0, 1), not {self.warmup}")
        _require(0 <= self.ema < 1, f"ema must be in [0, 1), not {self.ema}")
        _require(0 <= self.label_smoothing < 1, f"label smoothing must be in [0, 1), not {self.label_smoothing}")
        _require(0 <= self.ferplus <= 1, f"ferplus must be in [0, 1], not {self.ferplus}")
        _require(0 <= self.distill <= 1, f"distill must be in [0, 1], not {self.distill}")
        _require(self.distill_views >= 1, f"distill views must be at least 1, not {self.distill_views}")
        for name in ("seed", "weight_decay", "clip", "mixup", "mixup_off", "rotation", "threads", "workers", "limit"):
            value = getattr(self, name)
            _require(value >= 0, f"{name.replace('_', ' ')} must not be negative, not {value}")
        for name in ("shift", "scale", "brightness"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), not {getattr(self, name)}")
        _require(0 <= self.erase <= 1, f"erase must be in [0, 1], not {self.erase}")
        _require(
            not (self.freeze_trunk and self.head_epochs),
            "freeze_trunk trains the head alone throughout; leave head_epochs at 0",
        )
        _require(not (self.freeze_trunk and self.teachers), "teachers need a trunk that is trained: leave freeze_trunk")

    @property
    def starts_as_vgg16(self) -> bool:
        """Whether ``weights`` are those of VGG16, rather than none or a checkpoint's."""
        return self.weights == "imagenet" or Path(self.weights).suffix in (".safetensors", ".pth")


@dataclass(frozen=True)
class Config:
    """A named model and how to train it."""

    name: str
    """name of the run and of its checkpoint"""
    model: ModelConfig
    training: TrainConfig

    def __post_init__(self) -> None:
        _require(
            self.model.trunk == "vgg16" or not self.training.starts_as_vgg16,
            f"ImageNet's weights are there for the vgg16 trunk only; {self.model.trunk} starts with --weights none or "
            "from a checkpoint",
        )
        blocks = self.model.poolings if self.model.trunk == "vgg16" else 0
        _require(
            self.training.freeze_blocks <= blocks,
            f"freeze blocks must be at most {blocks}, not {self.training.freeze_blocks}: so many blocks of "
            f"the trunk {self.model.trunk} end in a pooling",
        )

    @property
    def run_folder(self) -> Path:
        """Where the run keeps its state and logs."""
        return Path(self.training.output or f"runs/{self.name}")


@dataclass(frozen=True)
class RecognizerConfig:
    """What recognises: the checkpoint, where it runs, and what finds the faces."""

    checkpoint: str = "vgg16-cp-trl"
    """a shipped checkpoint or a folder; with the runtime onnx also a .onnx file"""
    runtime: Runtime = "torch"
    """what runs the network; onnx takes what `fer export` wrote and does without PyTorch"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    detector: DetectorName = "auto"
    """auto is yunet where its file is, else retinaface"""
    detector_model: Path | None = None
    """a YuNet .onnx file"""
    threshold: float = 0.6
    """least score of a face, between 0 and 1"""
    max_side: int = 1280
    """a longer image is scaled down to this many pixels before faces are looked for in it"""
    tta: TestTimeAugmentation = "none"
    """views averaged for each face; flip takes twice the time of none"""
    threads: int = 0
    """CPU threads of the detector and of the network; 0 leaves the choice to them"""

    def __post_init__(self) -> None:
        _require(self.threads >= 0, f"threads must not be negative, not {self.threads}")


@dataclass(frozen=True)
class PredictConfig(RecognizerConfig):
    """How ``fer predict`` works."""

    tta: TestTimeAugmentation = "flip"
    """views averaged for each face"""
    out: Path | None = None
    """write a row for each face to this .csv or .jsonl file"""
    annotate: Path | None = None
    """write copies with boxes and labels into this folder"""
    batch_size: int = 64
    """faces at a time"""


@dataclass(frozen=True)
class TrackingConfig(RecognizerConfig):
    """How faces are followed from frame to frame; see :mod:`fer.live`."""

    smoothing: float = 0.15
    """time constant of the mean over a face's probabilities, seconds; 0 for none"""
    lead: float = 0.1
    """by how much another emotion's probability must lead before the label changes"""
    detect_every: int = 1
    """look for faces in every n-th frame only, and follow them in between"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.smoothing >= 0, f"smoothing must not be negative, not {self.smoothing}")
        _require(0 <= self.lead < 1, f"lead must be in [0, 1), not {self.lead}")
        _require(self.detect_every >= 1, f"detect every must be at least 1, not {self.detect_every}")


@dataclass(frozen=True)
class LiveConfig(TrackingConfig):
    """How ``fer live`` works."""

    source: str = "0"
    """number of a camera, a video file, a folder of images, or the URL of a stream"""
    camera_size: tuple[int, int] = (640, 480)
    """width and height to ask a camera for"""
    max_side: int = 960
    """a longer picture is scaled down to this many pixels before faces are looked for in it"""
    detect_every: int = 2
    """look for faces in every n-th frame only, and follow them in between"""
    headless: bool = False
    """open no window; print a JSON line for each frame"""
    record: Path | None = None
    """write what is seen, with boxes and labels, to this video file"""


@dataclass(frozen=True)
class VideoConfig(TrackingConfig):
    """How ``fer video`` works."""

    out: Path | None = None
    """write the video with boxes, labels and its own sound to this .mp4, .mov or .mkv file"""
    csv: Path | None = None
    """write a row for each face in each frame to this .csv file"""
    plot: Path | None = None
    """draw each person's emotions over time into this .png, .svg or .pdf file"""


@dataclass(frozen=True)
class AppConfig(TrackingConfig):
    """How the web page is served."""

    detect_every: int = 2
    """look for faces in every n-th frame only, and follow them in between"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 lets other machines in"""
    port: int = 7860
    """port to listen on; 0 takes any free one"""
    open_browser: bool = False
    """open the page in the browser"""
    camera: str | None = None
    """open a window with this camera instead of the page, as `fer live --source` does"""
    ssl_certfile: Path | None = None
    """certificate (.pem): serve https, without which browsers give the camera to this machine only"""
    ssl_keyfile: Path | None = None
    """its private key (.pem)"""
    stream: bool = False
    """a plainer and slower Live tab, for browsers in which the usual one does not work"""
    mcp: bool = False
    """also serve the recogniser as a tool for assistants (MCP); needs `pip install "fer-trl[mcp]"`"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.port <= 65535, f"port must be 0 to 65535, not {self.port}")
        _require(
            (self.ssl_certfile is None) == (self.ssl_keyfile is None),
            "give both --ssl-certfile and --ssl-keyfile, or neither",
        )


@dataclass(frozen=True)
class HeadTraining:
    """How heads are trained on a frozen trunk's kept outputs; see :mod:`fer.heads`."""

    data: str = "data"
    """FER2013 in any of its forms, or 'synthetic'"""
    views: int = 4
    """random views of each training image whose features are computed and kept (250 MB each for 512x3x3)"""
    epochs: int = 8
    """passes over the training images; the views take turns"""
    batch_size: int = 256
    """images a step"""
    lr: float = 3e-3
    """peak learning rate; low ranks need a high one"""
    weight_decay: float = 0.05
    """of AdamW"""
    label_smoothing: float = 0.1
    """share of each target spread over all classes"""
    seed: int = 0
    """decides initial weights, order and dropout"""
    tta: TestTimeAugmentation = "flip"
    """views of a validation image whose logits are averaged"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the trunk on training images; bf16 needs a CPU with AVX512-BF16 or AMX, or a GPU"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch"""
    limit: int = 0
    """use the first so many training images only, for trials; 0 for all"""

    def __post_init__(self) -> None:
        for name in ("views", "batch_size"):
            value = getattr(self, name)
            _require(value >= 1, f"{name.replace('_', ' ')} must be at least 1, not {value}")
        _require(self.lr > 0, f"lr must be positive, not {self.lr}")
        _require(0 <= self.label_smoothing < 1, f"label smoothing must be in [0, 1), not {self.label_smoothing}")
        for name in ("epochs", "seed", "weight_decay", "threads", "limit"):
            value = getattr(self, name)
            _require(value >= 0, f"{name.replace('_', ' ')} must not be negative, not {value}")


@dataclass(frozen=True)
class RankConfig(HeadTraining):
    """How ``fer rank`` works."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """ranks to try"""
    loss: float = 0.2
    """percentage points of leak-free accuracy that the proposed rank may cost"""
    retrain: bool = True
    """train a head at each rank; --no-retrain only cuts the checkpoint's own head"""
    importance: Literal["scores", "norm"] = "scores"
    """by what the checkpoint's own head is cut down: by what its scores need, on training images, or by its weights
    alone (of cp-trl the components of the largest norm)"""
    output: Path | None = None
    """folder for ranks.json and ranks.png; runs/rank-NAME by default"""
    publish: bool = False
    """put both into the checkpoint's own folder too, where the web page shows them"""
    write: Path | None = None
    """write the checkpoint with the proposed rank into this folder"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.ranks) and min(self.ranks) >= 1, f"ranks must be positive numbers, not {self.ranks}")
        _require(self.loss >= 0, f"loss must not be negative, not {self.loss}")
        _require(self.epochs >= 1 or not self.retrain, "epochs must be at least 1; --no-retrain trains nothing")


@dataclass(frozen=True)
class ConvertConfig(HeadTraining):
    """How ``fer convert`` works."""

    head: TRLHead = "cp-trl"
    """the tensor regression layer that takes the head's place"""
    rank: int = 32
    """its rank"""
    tensor_dropout: float = 0.0
    """probability with which each rank component is dropped in fine-tuning"""
    epochs: int = 2
    """passes of fine-tuning after the conversion; 0 for none"""
    write: Path | None = None
    """write the converted checkpoint, before or after fine-tuning, whichever does better, into this folder"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.rank >= 1, f"rank must be at least 1, not {self.rank}")
        _require(0 <= self.tensor_dropout < 1, f"tensor dropout must be in [0, 1), not {self.tensor_dropout}")


@dataclass(frozen=True)
class AverageConfig:
    """How ``fer average`` works."""

    write: Path
    """write the mean into this folder"""
    data: str = "data"
    """FER2013 in any of its forms, or 'synthetic': the temperature is fitted and the mean measured on its PublicTest"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""


@dataclass(frozen=True)
class ExportConfig:
    """How ``fer export`` works."""

    format: Literal["onnx"] = "onnx"
    """what to write"""
    int8: bool = False
    """compute with 8-bit integers: several times as fast, a fourth of the size; calibrated on Training images"""
    out: Path | None = None
    """the file; model.onnx or model-int8.onnx in the checkpoint's folder by default"""
    data: str = "data"
    """FER2013, to calibrate int8 with and to check the result on; without int8, schematic faces do where it is not"""


RECIPES: dict[str, Config] = {
    recipe.name: recipe
    for recipe in (
        Config(
            name="vgg16-cp-trl",
            model=ModelConfig(rank=32, tensor_dropout=0.1, preprocessing=IMAGENET_GREY),
            training=TrainConfig(
                weights="imagenet",
                epochs=14,
                optimizer="adamw",
                lr=1e-3,
                trunk_lr=3e-4,
                weight_decay=0.05,
                head_epochs=0.1,
                scale=0.15,
                rotation=12.0,
                erase=0.15,
            ),
        ),
        Config(
            name="cnn-cp-trl",
            model=ModelConfig(trunk="cnn", rank=32, tensor_dropout=0.1),
            training=TrainConfig(epochs=40, optimizer="adamw", lr=2e-3, weight_decay=0.05, erase=0.15),
        ),
        Config(
            name="guide-vgg16",
            model=ModelConfig(
                rank=10_000,
                tensor_dropout=0.4,
                poolings=5,
                batch_norm=False,
                preprocessing=dataclasses.replace(IMAGENET_GREY, size=224),
            ),
            training=TrainConfig(
                weights="imagenet", freeze_trunk=True, epochs=10, optimizer="adamw", lr=1e-3, weight_decay=1e-2
            ),
        ),
        Config(
            name="guide-cnn",
            model=ModelConfig(
                trunk="guide-cnn",
                rank=100,
                tensor_dropout=0.0,
                preprocessing=Preprocessing(size=32, channels=3),
            ),
            training=TrainConfig(epochs=30, optimizer="adamw", lr=1e-3, weight_decay=1e-2),
        ),
    )
}


def recipe(name: str) -> Config:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}") from None


def command_line(config: Config) -> str:
    """The ``fer train`` command that stands for a configuration: the nearest recipe and what differs from it."""

    def differences(recipe: Config) -> list[str]:
        now, before = _flatten(to_dict(config)), _flatten(to_dict(recipe))
        flags: list[str] = []
        for key, value in now.items():
            option = key.replace("_", "-")
            if value == before[key] or key == "resume":
                continue
            flags += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
        return flags

    nearest = min(RECIPES.values(), key=lambda recipe: len(differences(recipe)))
    return shlex.join(["fer", "train", nearest.name, *differences(nearest)])


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value) if isinstance(value, dict) else {key: value}
    return flat


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dicts, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """The inverse of :func:`to_dict`, strict: every field must be there, none may be unknown, types must fit.

    Only a setting of training, which no longer has any effect, may be missing: it is newer than the record, and its
    default is what was done before there was a choice.

    Raises:
        ConfigError: a field is missing, unknown or of the wrong type, or the values contradict each other.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    _require(isinstance(values, dict), f"{cls.__name__} must be an object, not {type(values).__name__}")
    if cls is TrainConfig:
        values = to_dict(TrainConfig()) | values
    missing, unknown = sorted(names - values.keys()), sorted(values.keys() - names)
    _require(not missing, f"{cls.__name__} lacks {', '.join(missing)}")
    _require(not unknown, f"{cls.__name__} has unknown {', '.join(unknown)}")
    return cls(**{name: _coerce(hints[name], values[name], f"{cls.__name__}.{name}") for name in names})


def _coerce(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type[Any], kind), value)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        _require(value in choices, f"{where} must be one of {', '.join(map(str, choices))}, not {value!r}")
        return value
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is float and type(value) is int:
        return float(value)
    _require(type(value) is kind, f"{where} must be {kind.__name__}, not {value!r}")
    return value
