"""``fer video``: a video in; the video with boxes and labels, a table of all faces, and a plot of each person out."""

import math
import sys
import time as clock
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from csv import writer as csv_writer
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tqdm import tqdm

from fer.config import TrackingConfig, VideoConfig
from fer.drawing import draw_predictions
from fer.errors import CameraError, ConfigError, FerError
from fer.live import FrameResult, LivePipeline
from fer.recognizer import EmotionRecognizer
from fer.recording import VIDEO_SUFFIXES, VideoWriter, check_spared, check_suffix
from fer.records import FACE_COLUMNS, face_record
from fer.sources import VideoFile
from fer.timeline import PLOT_SUFFIXES, Timeline, clock_time

__all__ = ["COLUMNS", "annotate", "video", "video_with"]

#: Of the CSV file: number of the frame, its seconds from the video's beginning, number of the person, and their face.
COLUMNS = ("frame", "time", "track", *FACE_COLUMNS)

#: Frames that may wait to be drawn and encoded while the next ones are recognised.
AHEAD = 4


def video(source: Path, config: VideoConfig) -> int:
    """Follow the faces of a video and tell their expressions.

    Args:
        source: the video.
        config: with what, and where the results go.

    Returns:
        0, the exit status.

    Raises:
        FerError: the video, the checkpoint, the detector or a setting is not usable. Where the video is damaged or cut
            off, what was done until then is kept.
        OSError: a result cannot be written.
    """
    _check(source, config.out, config.csv, config.plot)
    with VideoFile(source) as file:
        recognizer = EmotionRecognizer.from_config(config)
        return video_with(recognizer, file, out=config.out, csv=config.csv, plot=config.plot, tracking=config)


def video_with(
    recognizer: EmotionRecognizer,
    source: VideoFile,
    *,
    out: Path | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
    tracking: TrackingConfig | None = None,
) -> int:
    """As :func:`video`, with a recogniser and a file that are there already.

    Results are written under names with ``.part`` in them and take their places when all went well. After a failure or
    Ctrl+C they do so too, unless that would cost an older result; a video that cannot be played, as on a full disk, is
    deleted.
    """
    _check(Path(source.name), out, csv, plot)
    for target in filter(None, (out, csv, plot)):
        target.parent.mkdir(parents=True, exist_ok=True)
    timeline, stopped, start = Timeline(), None, clock.monotonic()
    results = annotate(
        recognizer, source, out=out and _part(out), csv=csv and _part(csv), tracking=tracking, notify=_tell
    )
    bar = tqdm(total=source.frames, unit="frame", disable=None, leave=False)
    try:
        with bar, closing(results):
            for image, result in results:
                timeline.add(result, image)
                bar.update()
                speed = result.time / (clock.monotonic() - start)
                bar.set_postfix_str(f"{speed:.1f} x real time", refresh=False)
    except (FerError, OSError, KeyboardInterrupt) as error:
        stopped = error
    if stopped and not timeline.end:
        for target in filter(None, (out, csv)):
            _part(target).unlink(missing_ok=True)
        raise stopped
    kept = _keep(timeline, out, csv, plot, whole=stopped is None)
    Console().print(timeline.table())
    if stopped:
        where = f"; what was done until then is in {', '.join(map(str, kept))}" if kept else ""
        _tell(f"stopped at {clock_time(timeline.end)}{where}")
        raise stopped
    return 0


def annotate(
    recognizer: EmotionRecognizer,
    source: VideoFile,
    *,
    out: Path | None = None,
    csv: Path | None = None,
    tracking: TrackingConfig | None = None,
    limit: float = math.inf,
    notify: Callable[[str], None] = lambda _: None,
) -> Generator[tuple[NDArray[np.uint8], FrameResult], None, None]:
    """Follow the faces of a video frame by frame, and write what is wanted.

    Its memory does not grow with the video. Frames are drawn and encoded in a thread of their own while the next ones
    are recognised. Closed early, it leaves files that can be played and read.

    Args:
        recognizer: finds and recognises; may be shared.
        source: is read once, to its end.
        out: the video with boxes and labels, and with its sound; see :class:`fer.recording.VideoWriter`.
        csv: a row of ``COLUMNS`` for each face in each frame.
        tracking: how faces are followed.
        limit: seconds of the video after which to stop.
        notify: is told what a user should know about the sound.

    Yields:
        Each frame, (H, W, 3) uint8 RGB, and what was seen in it.

    Raises:
        CameraError: the video is damaged or cut off; all good frames before were written.
        OSError: a file cannot be written.
    """
    pipeline = LivePipeline.from_config(recognizer, tracking or TrackingConfig())
    waiting: deque[Future[None]] = deque()
    with ExitStack() as stack:
        write_rows = stack.enter_context(_rows(csv))
        writer = None
        if out:
            sound = Path(source.name)
            writer = VideoWriter(out, rate=source.rate, time_base=source.time_base, sound=sound)
            stack.enter_context(writer)
            for note in writer.notes:
                notify(note)
        helper = stack.enter_context(ThreadPoolExecutor(1))  # entered last, as it must end before the files do
        for image, time in source:
            if time >= limit:
                break
            result = pipeline.process(image, time)
            if len(waiting) == AHEAD:
                waiting.popleft().result()
            waiting.append(helper.submit(_write, image, result, write_rows, writer))
            yield image, result
        else:
            if writer:
                waiting.append(helper.submit(writer.finish))
        for written in waiting:
            written.result()


def _write(
    image: NDArray[np.uint8], result: FrameResult, write_rows: Callable[[FrameResult], None], writer: VideoWriter | None
) -> None:
    write_rows(result)
    if writer:
        predictions = [face.prediction for face in result.faces]
        names = [f"#{face.track}" for face in result.faces]
        writer.write(draw_predictions(image, predictions, names=names), result.time)


@contextmanager
def _rows(file: Path | None) -> Iterator[Callable[[FrameResult], None]]:
    """What writes the rows of a frame into a CSV file, if one is wanted."""
    if file is None:
        yield lambda _: None
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv_writer(stream)
        rows.writerow(COLUMNS)

        def write(result: FrameResult) -> None:
            for face in result.faces:
                rows.writerow((result.index, round(result.time, 6), face.track, *face_record(face.prediction).values()))

        yield write


def _check(source: Path, out: Path | None, csv: Path | None, plot: Path | None) -> None:
    for target, suffixes in ((out, VIDEO_SUFFIXES), (csv, (".csv",)), (plot, PLOT_SUFFIXES)):
        if target is None:
            continue
        check_suffix(target, suffixes)
        check_spared(source, target, _part(target))
        if target.is_dir():
            raise ConfigError(f"cannot write {target}: it is a folder")


def _part(target: Path) -> Path:
    return target.with_stem(f"{target.stem}.part")


def _keep(timeline: Timeline, out: Path | None, csv: Path | None, plot: Path | None, *, whole: bool) -> list[Path]:
    """Draw the plot, and give all results their names; returns where they are, without what came to nothing."""
    if out and not whole and not _playable(_part(out)):
        _part(out).unlink(missing_ok=True)
        out = None
    kept = [_put(target, whole) for target in (out, csv) if target]
    if plot:
        try:
            timeline.plot(_part(plot))
            kept.append(_put(plot, whole))
        except OSError:
            _part(plot).unlink(missing_ok=True)
            if whole:  # else the user must know the first failure, which is raised soon
                raise
    return kept


def _put(target: Path, whole: bool) -> Path:
    """Give a result its name, but no partial one that of an older file; returns where it is."""
    if whole or not target.exists():
        return _part(target).replace(target)
    return _part(target)


def _playable(film: Path) -> bool:
    """Whether it has the index that is written last, or needs none."""
    try:
        VideoFile(film).close()
    except CameraError:
        return False
    return True


def _tell(message: str) -> None:
    tqdm.write(f"fer: {message}", file=sys.stderr)
