"""Facial expression recognition with tensor regression layers."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress, subcommand

from fer.config import (
    RECIPES,
    AppConfig,
    AverageConfig,
    Config,
    ConvertConfig,
    ExportConfig,
    LiveConfig,
    PredictConfig,
    RankConfig,
    TestTimeAugmentation,
    TrackingConfig,
    VideoConfig,
)
from fer.errors import FerError

# A command imports its heavy modules when it runs, so that `fer --help` is quick.

__all__ = ["main"]

Split = Literal["train", "val", "test"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 where some input could not be processed, 2 for an error that the package raises on
        purpose or the system raises about a file (the message goes to stderr), 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(_COMMANDS, "fer", __doc__ or "", arguments)
    except (FerError, OSError) as error:  # OSError: a disk that is full, a file that may not be written
        print(f"fer: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(commands: Any, prog: str, description: str, arguments: list[str]) -> int:
    markers = (OmitArgPrefixes, OmitSubcommandPrefixes)
    return int(tyro.cli(commands, prog=prog, description=description, args=arguments, config=markers))


def train(config: Config) -> int:
    """Train a recipe, evaluate it and write its checkpoint with model card and plots."""
    from rich.console import Console

    from fer import dataset
    from fer.evaluation import finish, render
    from fer.training import fit

    folder = fit(config)
    if folder is not None:  # else another process of this run does the rest
        Console().print(render(finish(folder, dataset.load(config.training.data), device=config.training.device)))
        print(folder)
    return 0


def evaluate(
    name: Positional[str],
    *,
    data: str = "data",
    split: Split = "val",
    tta: TestTimeAugmentation = "flip",
    output: Path | None = None,
    predictions: Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> int:
    """Measure a checkpoint on a split of FER2013.

    Args:
        name: a shipped checkpoint or a folder
        data: FER2013 in any of its forms, or 'synthetic'
        split: val is PublicTest, test is PrivateTest
        tta: views averaged for each face
        output: folder for metrics.json, confusion.png and reliability.png
        predictions: CSV file with a row of seven probabilities for each image
        batch_size: faces at a time
        device: auto, cpu, cuda or mps
    """
    from rich.console import Console

    from fer import dataset, evaluation
    from fer.checkpoint import load_checkpoint

    report = evaluation.evaluate(
        load_checkpoint(name, device=device),
        dataset.load(data),
        split=split,
        tta=tta,
        output=output,
        predictions=predictions,
        batch_size=batch_size,
    )
    Console().print(evaluation.render(report))
    return 0


def predict(paths: Positional[tuple[Path, ...]], config: PredictConfig) -> int:
    """Recognise the expressions of all faces in images and folders of images.

    Args:
        paths: image files and folders
        config: with what, and where the results go
    """
    from fer.predict import predict

    return predict(paths, config)


def video(source: Positional[Path], config: VideoConfig) -> int:
    """Follow the faces of a video file: annotated video, table of faces, plot of each person's emotions.

    Args:
        source: the video file
        config: with what, and where the results go
    """
    from fer.video import video

    return video(source, config)


def models(recipe: Positional[Literal[tuple(RECIPES)] | None] = None, *, layers: bool = False, rank: int = 100) -> int:  # type: ignore[valid-type]
    """Where networks keep their parameters, and what a tensor regression layer leaves of them.

    Args:
        recipe: only this one, layer by layer
        layers: show each layer's output shape
        rank: of the layer that takes the ImageNet classifiers' place
    """
    from rich.console import Console

    from fer.parameters import layer_table, parameter_table

    console = Console()
    if recipe is not None or layers:
        for name in [recipe] if recipe else RECIPES:
            console.print(layer_table(RECIPES[name].model, name))
    else:
        console.print(*parameter_table(rank), sep="\n")
    return 0


def rank(name: Positional[str], config: RankConfig) -> int:
    """Accuracy against the rank of a checkpoint's head, and the smallest rank that will do.

    Args:
        name: a shipped checkpoint or a folder, with a tensor regression head
        config: which ranks, and the budget
    """
    from fer.rank import rank

    return rank(name, config)


def convert(name: Positional[str], config: ConvertConfig) -> int:
    """Turn a checkpoint's head (gap, dense, fc, or another) into a tensor regression layer fitted to it.

    Args:
        name: a shipped checkpoint or a folder
        config: into which, and the fine-tuning
    """
    from fer.rank import convert

    return convert(name, config)


def average(names: Positional[tuple[str, ...]], config: AverageConfig) -> int:
    """Average the weights of checkpoints that were trained one from another, such as a fine-tuned one and its start.

    Args:
        names: shipped checkpoints or folders; the mean takes its name from the first
        config: where to write it
    """
    from rich.console import Console

    from fer.average import average
    from fer.evaluation import render

    Console().print(render(average(names, config)), config.write)
    return 0


def export(name: Positional[str], config: ExportConfig) -> int:
    """Write a checkpoint for ONNX Runtime (needs `pip install "fer-trl[export]"`; using the file does not).

    Args:
        name: a shipped checkpoint or a folder
        config: in what form, and where to
    """
    from fer.export import export, render

    print(render(export(name, config)))
    return 0


def data_check(path: Positional[str] = "data") -> int:
    """Count a dataset's images, copies and flat images, and warn of filtered copies.

    Args:
        path: FER2013 in any of its forms, or 'synthetic'
    """
    from rich.console import Console

    from fer.dataset import load
    from fer.dataset_check import check, render

    Console().print(render(check(load(path))))
    return 0


def data_download(target: Positional[Path] = Path("data")) -> int:
    """Fetch FER2013 from Kaggle (needs `pip install "fer-trl[data]"` and a Kaggle account).

    Args:
        target: folder to put it in
    """
    from fer import dataset

    print(dataset.download(target))
    return 0


def detector_download(version: Literal["2026may", "2023mar"] | None = None) -> int:
    """Fetch the YuNet face detector from OpenCV's model zoo and verify it.

    Args:
        version: release of the model; the newest that can be had by default
    """
    from fer.faces import download_yunet

    print(download_yunet(version=version))
    return 0


def live(config: LiveConfig) -> int:
    """Recognise faces live in a window: from a camera, a stream, a video or a folder. q quits, s takes a snapshot,
    r records.
    """
    from fer.window import live

    return live(config)


def app(config: AppConfig) -> int:
    """Serve the web page: photographs and live webcam."""
    if config.camera is not None:
        # What was not asked for is as `fer live` has it, which searches smaller pictures than the page does.
        asked = dict(vars(config).items() - vars(AppConfig()).items())
        shared = {option.name: asked[option.name] for option in fields(TrackingConfig) if option.name in asked}
        return live(LiveConfig(**shared, source=config.camera))
    from fer.web import launch

    return launch(config)


def _group(commands: dict[str, Callable[..., int]]) -> Any:
    """A choice of subcommands as tyro wants it: a union, which Python lets have no fewer than two members."""
    choices = [Annotated[Any, subcommand(name, constructor=run)] for name, run in commands.items()]
    return Union[tuple(choices + [Annotated[None, Suppress]] * (len(choices) == 1))]  # noqa: UP007 - made at run time


def _nested(doc: str, choice: Any) -> Callable[..., int]:
    def run(command: Any) -> int:
        return int(command)

    run.__doc__, run.__annotations__["command"] = doc, choice
    return run


train.__annotations__["config"] = tyro.extras.subcommand_type_from_defaults(
    dict(RECIPES), {name: f"{r.model.trunk} trunk, {r.model.head} head" for name, r in RECIPES.items()}
)

_COMMANDS = _group(
    {
        "app": app,
        "live": live,
        "predict": predict,
        "video": video,
        "train": train,
        "evaluate": evaluate,
        "export": export,
        "models": models,
        "rank": rank,
        "convert": convert,
        "average": average,
        "data": _nested("Check or download FER2013.", _group({"check": data_check, "download": data_download})),
        "detector": _nested("The YuNet face detector.", _group({"download": detector_download})),
    }
)
