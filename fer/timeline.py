"""Each person's emotions over the length of a video: gathered frame by frame in bounded memory, told and plotted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fer.emotions import EMOTIONS, Emotion
from fer.faces import crop_face
from fer.live import FrameResult
from fer.preprocessing import resize_face

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLOT_SUFFIXES", "Person", "Timeline", "clock_time"]

#: What a plot can be written as.
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

#: Cells that each person's time is kept in, and the seconds of one at first; they grow as the video does.
CELLS, CELL = 600, 0.1
#: Persons that are kept; beyond, the one that was seen for the shortest time is forgotten, and counted.
PERSONS = 200
#: Seconds that a frame lasts, where there is no other to tell it.
FRAME = 0.04
#: Side of a person's picture, pixels.
PICTURE = 64
#: An emotion's area is labelled where it is the largest for this share of the time.
LABEL_WIDTH = 0.09
#: One for each emotion, so that areas differ by more than their colour.
HATCHES = ("//", "xx", "..", "", "\\\\", "++", "--")


@dataclass
class Person:
    """What was seen of a person.

    Attributes:
        track: number of the track.
        start: when they were first seen, seconds.
        end: when they were last seen.
        labelled: (7,) for how long each emotion was their label, seconds.
        cells: (CELLS, 8) for each cell of time the sum of the seven probabilities, each times the seconds that it
            stood, and those seconds.
        picture: (PICTURE, PICTURE) uint8, grey, the face where it was found most certainly; None without images.
        score: of the detector, there.
    """

    track: int
    start: float
    end: float
    labelled: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(EMOTIONS)))
    cells: NDArray[np.float32] = field(default_factory=lambda: np.zeros((CELLS, len(EMOTIONS) + 1), np.float32))
    picture: NDArray[np.uint8] | None = None
    score: float = -1.0

    @property
    def seconds(self) -> float:
        """For how long they were seen."""
        return float(self.labelled.sum())

    @property
    def shares(self) -> dict[Emotion, float]:
        """For what share of that time each emotion was their label: those that ever were, the longest first."""
        order = sorted(EMOTIONS, key=lambda emotion: -self.labelled[emotion])
        return {emotion: float(self.labelled[emotion] / self.seconds) for emotion in order if self.labelled[emotion]}


class Timeline:
    """Gathers results frame by frame.

    Its memory does not grow with the video: time is kept in a fixed number of cells, which double in length when the
    video outgrows them, and of more than ``PERSONS`` persons, those seen for the shortest time are forgotten.

    Attributes:
        end: of the last frame, seconds; 0 before there is one.
    """

    def __init__(self) -> None:
        self.end = 0.0
        self._cell = CELL
        self._persons: dict[int, Person] = {}
        self._forgotten = 0
        self._last: FrameResult | None = None
        self._step = FRAME

    def add(self, result: FrameResult, image: NDArray[np.uint8] | None = None) -> None:
        """Take in a frame; it stands until the next one, and the last one for as long as the one before it.

        Args:
            result: its time must be after that of the last one.
            image: (H, W, 3) uint8, RGB: the frame, for the persons' pictures.
        """
        if self._last:
            self._step = result.time - self._last.time
            self._settle()
        self._last, self.end = result, result.time + self._step
        for tracked in result.faces:
            person = self._persons.setdefault(tracked.track, Person(tracked.track, result.time, result.time))
            face = tracked.raw.face
            if image is not None and face.score > person.score:
                person.score, person.picture = face.score, resize_face(crop_face(image, face), PICTURE)
        if len(self._persons) > PERSONS:
            present = {tracked.track for tracked in result.faces}
            absent = (person for person in self._persons.values() if person.track not in present)
            if shortest := min(absent, key=lambda person: person.seconds, default=None):
                del self._persons[shortest.track]
                self._forgotten += 1

    def longest_seen(self, most: int) -> tuple[list[Person], str]:
        """At most so many persons, the longest seen first, and how many are left out, in words, if any are."""
        self._settle()
        persons = sorted(self._persons.values(), key=lambda person: (-person.seconds, person.track))
        left = max(0, len(persons) - most) + self._forgotten
        noun = "person" if left == 1 else "people"
        return persons[:most], f"{left} more {noun}, seen for a shorter time, left out" if left else ""

    def table(self, most: int = 20) -> Group:
        """Who was seen, when and for how long, and the share of each emotion, for the terminal."""
        shown, left_out = self.longest_seen(most)
        table = Table(box=None, pad_edge=False)
        for name in ("person", "from", "to", "seen"):
            table.add_column(name, justify="right")
        table.add_column("of that time")
        for person in shown:
            shares = Text(", ").join(
                Text(f"{emotion.label} {share:.0%}", f"rgb({','.join(map(str, emotion.color))})")
                for emotion, share in person.shares.items()
            )
            times = (clock_time(person.start), clock_time(person.end), f"{person.seconds:.1f} s")
            table.add_row(str(person.track), *times, shares)
        return Group(table, left_out) if left_out else Group(table)

    def plot(self, file: Path, most: int = 6) -> None:
        """Draw a panel for each person: how probable each emotion was over time.

        Args:
            file: with one of ``PLOT_SUFFIXES``.
            most: persons; those seen longest are drawn, and it is said how many are left out.

        Raises:
            OSError: the file cannot be written.
        """
        from matplotlib.figure import Figure  # without pyplot, whose state is shared by all threads
        from matplotlib.patches import Patch

        shown, left_out = self.longest_seen(most)
        figure = Figure(figsize=(10, 1.3 + 1.4 * max(1, len(shown))), layout="constrained")
        panels = figure.subplots(max(1, len(shown)), squeeze=False, sharex=True)[:, 0]
        for panel, person in zip(panels, shown, strict=False):
            self._draw(panel, person)
        if shown:
            patches = [Patch(**_look(emotion), label=emotion.label) for emotion in EMOTIONS]
            figure.legend(handles=patches, loc="outside lower center", ncols=len(EMOTIONS), frameon=False)
        else:
            panels[0].text(0.5, 0.5, "no face was seen", transform=panels[0].transAxes, ha="center", va="center")
            panels[0].set_yticks([])
        panels[-1].set_xlim(0, max(self.end, FRAME))
        if self.end > 60:
            panels[-1].xaxis.set_major_formatter(lambda seconds, _: clock_time(seconds))
        panels[-1].set_xlabel(f"{'time' if self.end > 60 else 'seconds'}\n{left_out}".strip())
        figure.savefig(file, dpi=110)

    def _settle(self) -> None:
        """Count the last frame, now that it is known how long it stands."""
        if self._last is None:
            return
        start = max(0.0, self._last.time)
        end = start + self._step
        while end > CELLS * self._cell:
            self._coarsen()
        first, last = int(start / self._cell), min(int(end / self._cell), CELLS - 1)
        edges = np.arange(first, last + 2) * self._cell
        lengths = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None)
        for tracked in self._last.faces:
            person = self._persons[tracked.track]
            row = np.array([*tracked.prediction.probabilities.values(), 1])
            person.cells[first : last + 1] += np.outer(lengths, row)
            person.labelled[tracked.prediction.emotion] += self._step
            person.end = end
        self._last = None

    def _coarsen(self) -> None:
        self._cell *= 2
        for person in self._persons.values():
            merged = person.cells.reshape(CELLS // 2, 2, -1).sum(axis=1)
            person.cells[:] = 0
            person.cells[: CELLS // 2] = merged

    def _draw(self, panel: "Axes", person: Person) -> None:
        seen = person.cells[:, -1:] > 0
        shares = np.where(seen, person.cells[:, :-1] / np.maximum(person.cells[:, -1:], 1e-9), np.nan)  # (CELLS, 7)
        edges = np.arange(CELLS + 1) * self._cell
        tops = np.cumsum(shares, axis=1)
        for emotion in EMOTIONS:
            bottom = tops[:, emotion] - shares[:, emotion]
            panel.stairs(tops[:, emotion], edges, baseline=bottom, fill=True, **_look(emotion))
        for emotion, cell in self._places(shares):
            middle = tops[cell, emotion] - shares[cell, emotion] / 2
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            panel.text(edges[cell], middle, emotion.label, ha="center", va="center", fontsize=8, bbox=box)
        mostly = next(iter(person.shares)).label
        panel.set_title(f"person {person.track}, mostly {mostly}", loc="left", fontsize=9)
        panel.set_ylim(0, 1)
        panel.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        if person.picture is not None:
            picture = panel.inset_axes((1.01, 0.0, 0.12, 1.0))
            picture.imshow(person.picture, cmap="gray", vmin=0, vmax=255)
            picture.set_axis_off()

    def _places(self, shares: NDArray[np.floating[Any]]) -> Iterator[tuple[Emotion, int]]:
        """Cells in the middle of stretches where an emotion is the most probable one, long enough for a label."""
        best = np.where(np.isnan(shares[:, 0]), -1, np.nan_to_num(shares).argmax(axis=1))
        changes = np.flatnonzero(np.diff(best, prepend=-2, append=-2))
        for start, end in pairwise(changes):
            if best[start] >= 0 and (end - start) * self._cell >= LABEL_WIDTH * self.end:
                yield EMOTIONS[best[start]], int(start + end) // 2


def clock_time(seconds: float) -> str:
    """Minutes and seconds, 1:02.5, and hours where there are any, 1:00:02.5; whole seconds without the tenths."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02}:{text}" if minutes >= 60 else f"{minutes}:{text}"


def _look(emotion: Emotion) -> dict[str, Any]:
    """Areas differ by their hatching too, never by colour alone."""
    color = np.array(emotion.color) / 255
    return {"facecolor": color, "edgecolor": 0.7 * color, "hatch": HATCHES[emotion], "linewidth": 0.0}
