"""``fer data check``: what is in a copy of FER2013, and whether it is the data as released."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fer.dataset import OFFICIAL_SIZES, SIDE, Dataset, Split, SplitName
from fer.emotions import EMOTIONS

__all__ = ["Report", "SplitReport", "check", "render"]

#: As released; sharpness is SplitReport's. JPEG of quality 75 to 95 moves them by less than 0.1, 0.1 and 5 %.
OFFICIAL_MEAN, OFFICIAL_STD, OFFICIAL_SHARPNESS = 129.5, 65.0, 2310


@dataclass(frozen=True)
class SplitReport:
    """Figures of one split.

    Attributes:
        images: how many.
        classes: how many of each emotion, in the order of :class:`fer.emotions.Emotion`.
        mean: of all pixels, 0..255.
        std: of all pixels.
        sharpness: mean over the images of the variance of their Laplacian, which blur lowers before all else.
        copies: images that repeat an earlier one of the split to the pixel.
        conflicts: groups of identical images of the split whose labels differ.
        leaked: images with a pixel-identical copy in Training.
        flat: images of one single grey.
        agreement: share of the images whose label is also the majority of their FER+ votes, 0..1; None without votes.
    """

    images: int
    classes: tuple[int, ...]
    mean: float
    std: float
    sharpness: float
    copies: int
    conflicts: int
    leaked: int
    flat: int
    agreement: float | None


@dataclass(frozen=True)
class Report:
    """What :func:`check` found."""

    name: str
    digest: str
    votes: bool
    splits: Mapping[SplitName, SplitReport]
    warnings: tuple[str, ...]


def check(dataset: Dataset) -> Report:
    """Counts, statistics, copies and flat images of each split, and what is not as in FER2013 as released."""
    splits = {name: _check_split(split) for name, split in dataset.splits.items()}
    warnings = [
        f"{name} has no image of {emotion.label}"
        for name, split in splits.items()
        for emotion in EMOTIONS
        if not split.classes[emotion]
    ]
    if dataset.name != "synthetic":
        warnings += _deviations(splits)
    votes = all(split.votes is not None for split in dataset.splits.values())
    return Report(dataset.name, dataset.digest, votes, splits, tuple(warnings))


def _check_split(split: Split) -> SplitReport:
    labels_of: dict[bytes, set[int]] = {}
    for image, label in zip(split.images, split.labels, strict=True):
        labels_of.setdefault(image.tobytes(), set()).add(int(label))
    mean, std = (float(figure.item()) for figure in cv2.meanStdDev(split.images.reshape(-1, SIDE)))
    return SplitReport(
        images=len(split),
        classes=tuple(np.bincount(split.labels, minlength=len(EMOTIONS)).tolist()),
        mean=mean,
        std=std,
        sharpness=float(np.mean([cv2.meanStdDev(cv2.Laplacian(image, cv2.CV_32F))[1] ** 2 for image in split.images])),
        copies=int(split.copies.sum()),
        conflicts=sum(len(labels) > 1 for labels in labels_of.values()),
        leaked=int(split.leaked.sum()),
        flat=int((np.ptp(split.images, axis=(1, 2)) == 0).sum()),
        agreement=None if split.votes is None else float((split.ferplus_labels() == split.labels).mean()),
    )


def _deviations(splits: Mapping[SplitName, SplitReport]) -> Iterator[str]:
    for name, size in OFFICIAL_SIZES.items():
        if name not in splits:
            effect = ", so images that leak from it into the others cannot be marked" if name == "train" else ""
            yield f"there is no split {name}{effect}"
            continue
        split = splits[name]
        if split.images != size:
            yield f"{name} has {split.images:,} images; as released it has {size:,}"
        # The limits are wide for a sample of 1,000 and tight for any filter: Gaussian 3x3, median 3x3, bilateral,
        # resizing there and back leave at most 0.46 of the sharpness; equalising and sharpening at least double it.
        sharpness = split.sharpness / OFFICIAL_SHARPNESS
        if split.images >= 1000 and not 0.75 < sharpness < 1.35:
            kind = "blurred" if sharpness < 1 else "sharpened or equalised"
            yield (
                f"{name} is a {kind} copy: its sharpness is {split.sharpness:,.0f}, as released "
                f"{OFFICIAL_SHARPNESS:,}. Models trained on it do worse on real faces; get the official data"
            )
        if split.images >= 1000 and (abs(split.mean - OFFICIAL_MEAN) > 4 or abs(split.std - OFFICIAL_STD) > 4):
            yield (
                f"{name} is a filtered copy: its mean is {split.mean:.1f} and its std {split.std:.1f}, as released "
                f"{OFFICIAL_MEAN} and {OFFICIAL_STD}; get the official data"
            )


def render(report: Report) -> Group:
    """A report as a table and its warnings, for :func:`rich.print`."""
    splits = report.splits.values()
    table = Table(title=f"{report.name}, {'with' if report.votes else 'without'} FER+ votes, {report.digest[:12]}")
    table.add_column()
    for name in report.splits:
        table.add_column(name, justify="right")
    table.add_row("images", *(f"{s.images:,}" for s in splits), end_section=True)
    for emotion in EMOTIONS:
        counts = ((s.classes[emotion], s.images) for s in splits)
        table.add_row(emotion.label, *(f"{n:,} {n / total:6.1%}" for n, total in counts))
    table.add_section()
    for title, field in (("mean", "mean"), ("std", "std"), ("sharpness", "sharpness")):
        table.add_row(title, *(f"{getattr(s, field):,.1f}" for s in splits))
    table.add_section()
    table.add_row("repeat an earlier image", *(f"{s.copies:,}" for s in splits))
    table.add_row("copies with differing labels", *(f"{s.conflicts:,}" for s in splits))
    table.add_row("have a copy in train", *(f"{s.leaked:,}" for s in splits))
    table.add_row("one flat grey", *(f"{s.flat:,}" for s in splits))
    if report.votes:
        table.add_row("labels that FER+ confirms", *(f"{s.agreement:.1%}" for s in splits))
    return Group(table, *(Text(f"warning: {warning}", style="yellow") for warning in report.warnings))
