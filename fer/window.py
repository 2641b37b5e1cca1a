"""``fer live``: the faces of a camera, stream, file or folder in a window, as JSON lines and as a video."""

import json
import os
import re
import subprocess
import sys
import time as clock
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer.config import LiveConfig
from fer.drawing import draw_predictions, draw_status
from fer.errors import ConfigError
from fer.live import FrameResult, LivePipeline
from fer.recognizer import EmotionRecognizer
from fer.recording import VIDEO_SUFFIXES, VideoWriter, check_spared, check_suffix
from fer.records import face_record
from fer.sources import FrameSource, Live, VideoFile, open_source

__all__ = ["check_window", "live", "live_with"]

TITLE = "fer live: q quits, s takes a snapshot, r records"
#: A larger picture is shown scaled down to this width and height.
LARGEST = 1280, 800
#: Seconds without a picture after which the window says so.
STALLED = 1.0

_INSTEAD = "--headless does without: it prints a JSON line for each frame, and --record FILE writes the video"


def live(config: LiveConfig) -> int:
    """Show the faces of a source until it ends, or a key or Ctrl+C ends it.

    Args:
        config: which source, with what, and where the results go.

    Returns:
        0, the exit status.

    Raises:
        ConfigError: no window can be opened here, or a setting is out of range.
        CameraError: the source cannot be opened or has stopped. What was recorded until then is kept.
        FerError: the checkpoint or the detector is not usable.
    """
    record = config.record
    if record:
        check_suffix(record, VIDEO_SUFFIXES)
    if not config.headless:
        check_window()
    with open_source(config.source, size=config.camera_size) as source:
        if record and isinstance(source, VideoFile):
            check_spared(Path(source.name), record)
        pipeline = LivePipeline.from_config(EmotionRecognizer.from_config(config), config)
        live_with(pipeline, source, headless=config.headless, record=record)
    return 0


def live_with(
    pipeline: LivePipeline, source: FrameSource, *, headless: bool = False, record: Path | None = None
) -> None:
    """As :func:`live`, with a pipeline and a source that are there already."""
    with _Recorder(record) as recorder:
        if headless:
            _print(pipeline, source, recorder)
        else:
            with _Window() as window:
                _show(pipeline, source, recorder, window)


def check_window() -> None:
    """Make sure that a window can be opened: where it cannot, OpenCV would end the process without a word.

    Raises:
        ConfigError: it cannot; the message says what to do.
    """
    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        raise ConfigError(
            "this OpenCV has no windows, as opencv-python-headless has overwritten opencv-python; mend it with "
            f"`pip install --force-reinstall --no-deps opencv-python`. {_INSTEAD}"
        )
    if not sys.platform.startswith("linux"):
        return
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not display:
        raise ConfigError(f"there is no display to open a window on. {_INSTEAD}")
    # One that is named may be gone, forbidden, or of a kind that this OpenCV cannot talk to.
    trial = [sys.executable, "-c", "import cv2; cv2.namedWindow('fer')"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        raise ConfigError(f"no window can be opened on the display {display}. {_INSTEAD}")


def _print(pipeline: LivePipeline, source: FrameSource, recorder: "_Recorder") -> None:
    """As JSON lines, until the source ends or nobody reads on."""
    try:
        for image, time in source:
            result = pipeline.process(image, time)
            print(json.dumps(_line(result)), flush=True)
            if recorder.running:
                recorder.write(_draw(image, result), time)
    except BrokenPipeError:  # `fer live --headless | head`
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - else Python complains as it exits
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _show(pipeline: LivePipeline, source: FrameSource, recorder: "_Recorder", window: "_Window") -> None:
    """In a window, until the source ends or the user closes it."""
    picture: NDArray[np.uint8] | None = None
    shown = deque([clock.monotonic()], maxlen=31)  # when the last pictures were
    status, begin, due = "", 0.0, 0.0
    frames = iter(source)
    while _obey(window.key(due - clock.monotonic()), picture, recorder):
        if clock.monotonic() < due:
            continue
        if not source.ready(0.05):
            if picture is not None and clock.monotonic() - shown[-1] > STALLED:
                window.show(draw_status(picture, f"no picture from {source.name}"))
            continue
        frame = next(frames, None)
        if frame is None:
            return
        image, time = frame
        captured = source.begin + time if isinstance(source, Live) else clock.monotonic()
        picture = _draw(image, pipeline.process(image, time))
        recorder.write(picture, time)
        window.show(draw_status(picture, status + ", recording" * recorder.running))
        shown.append(clock.monotonic())
        status = f"{(len(shown) - 1) / (shown[-1] - shown[0]):.0f} fps, {1000 * (shown[-1] - captured):.0f} ms"
        if not source.live:  # a file is shown at its own pace, or as fast as we are
            begin = max(begin, shown[-1] - time)
            due = begin + time


def _obey(key: str, picture: NDArray[np.uint8] | None, recorder: "_Recorder") -> bool:
    """Do what a key asks for; whether to go on."""
    if key == "r":
        recorder.toggle()
    elif key == "s" and picture is not None:
        file = _new_file(".png")
        Image.fromarray(picture).save(file)
        print(file, flush=True)
    return key != "q"


def _draw(image: NDArray[np.uint8], result: FrameResult) -> NDArray[np.uint8]:
    return draw_predictions(image, [f.prediction for f in result.faces], names=[f"{f.track}" for f in result.faces])


def _line(result: FrameResult) -> dict[str, Any]:
    faces = [{"track": face.track, **face_record(face.prediction)} for face in result.faces]
    return {"frame": result.index, "time": round(result.time, 4), "faces": faces}


def _new_file(suffix: str) -> Path:
    return Path(f"fer-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3] + suffix)


class _Window:
    """OpenCV's window."""

    def __init__(self) -> None:
        self._open = False

    def show(self, picture: NDArray[np.uint8]) -> None:
        if not self._open:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
            height, width = picture.shape[:2]
            scale = min(1.0, LARGEST[0] / width, LARGEST[1] / height)
            cv2.resizeWindow(TITLE, max(1, round(scale * width)), max(1, round(scale * height)))
            self._open = True
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def key(self, seconds: float) -> str:
        """The key that was pressed within that time, or a tenth of a second, if any; q where the window was closed."""
        if not self._open:
            return ""
        milliseconds = min(max(1, int(1000 * seconds)), 100)  # Ctrl+C is heard in between only
        code = cv2.waitKeyEx(milliseconds) & 0xFFFF  # without the flags for NumLock and the like
        if cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
            return "q"
        return chr(code).lower() if code < 128 else ""  # waitKey would take the left arrow for a Q

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            cv2.destroyAllWindows()


class _Recorder:
    """Writes a video while it runs; all but its last second can be played even if the program is killed."""

    def __init__(self, file: Path | None) -> None:
        self._writer: VideoWriter | None = None
        self._begin: float | None = None
        if file:
            self._start(file)

    @property
    def running(self) -> bool:
        return self._writer is not None

    def toggle(self) -> None:
        """Begin a new file, or end the one under way."""
        if self._writer:
            self._stop()
        else:
            self._start(_new_file(".mp4"))

    def write(self, picture: NDArray[np.uint8], time: float) -> None:
        if self._writer:
            self._begin = time if self._begin is None else self._begin
            self._writer.write(picture, time - self._begin)

    def _start(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._writer, self._begin = file, VideoWriter(file, crash_safe=True), None
        print(f"recording {file}", file=sys.stderr)

    def _stop(self) -> None:
        if self._writer:
            writer, self._writer = self._writer, None
            writer.close()
            if not self._file.stat().st_size:  # no frame came
                self._file.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
