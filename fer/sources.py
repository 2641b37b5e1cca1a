"""Where frames come from: a camera, a stream, a video file, a folder of images.

    with open_source("0") as source:
        for image, time in source:      # (H, W, 3) uint8 RGB, and seconds from the source's beginning
            ...

A live source (camera, stream) has a thread that reads every frame and keeps only the newest, so whoever takes frames
slowly gets fewer, never older ones. A file loses no frame.
"""

import math
import re
import threading
import time as clock
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Protocol, Self

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fer.errors import CameraError, ImageError
from fer.images import SUFFIXES, image_files, read_image
from fer.opencv import quiet_opencv

__all__ = [
    "Camera",
    "Frame",
    "FrameSource",
    "ImageFolder",
    "Live",
    "Stream",
    "VideoFile",
    "open_media",
    "open_source",
    "played",
]

#: Pixels, (H, W, 3) uint8 RGB, and seconds: from a file's own beginning, or from a live source's first frame.
Frame = tuple[NDArray[np.uint8], float]
Pixels = Generator[NDArray[np.uint8], None, None]

#: Frames a second of a folder of images, and of a video that does not tell its own.
RATE = Fraction(25)
#: How often a live source that fails is opened anew before it is given up, and the seconds before the first of these
#: attempts; each further one waits twice as long.
RETRIES, BACKOFF = 5, 0.5
#: Seconds to wait for a stream to open, and for its next packet.
TIMEOUT = 5.0
#: Seconds by which a video may end before the time that it promises.
SHORTFALL = 0.5

#: How many times as wide as high a pixel may be, and the inverse; beyond, the file is wrong. Films have 0.7 to 2.
STRETCH = 4

#: Kinds of files that are read, as FFmpeg names them: none that names other files, or takes any text for a film.
FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mjpeg,h264,hevc,ivf,rm,wav,mp3"

_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class FrameSource(Protocol):
    """Anything that gives frames; iterate over it once.

    Attributes:
        name: for messages.
        live: frames that nobody takes in time are lost.
    """

    name: str
    live: bool

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            CameraError: it could not be opened, or has stopped before its end.
        """
        ...

    def ready(self, timeout: float) -> bool:
        """Wait up to so many seconds; whether the next step of the iteration will not have to wait."""
        ...

    def close(self) -> None:
        """Release the camera, connection or file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_source(source: str, *, size: tuple[int, int] = (640, 480)) -> FrameSource:
    """The source of that name.

    Args:
        source: the number of a camera, a stream's URL, a video file, an image or a folder of images.
        size: width and height to ask a camera for, pixels.

    Raises:
        CameraError: there is no such file, or it is not a video.
    """
    path = Path(source)
    if source.isdecimal():
        return Camera(int(source), size=size)
    if "://" in source:
        return Stream(source)
    if path.is_dir() or path.suffix.lower() in SUFFIXES - {".gif"}:
        return ImageFolder(path)
    return VideoFile(path)


def open_media(path: str | Path) -> tuple[av.container.InputContainer, Fraction]:
    """A file with pictures or sound, and the second of its own clock at which it begins.

    Raises:
        CameraError: it is missing, unreadable, damaged at its head or of an unknown kind.
    """
    # Files come from strangers too: a playlist would name other files and addresses.
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path}", options=options)
    except OSError as error:
        raise CameraError(f"cannot read {path}: {error.strerror}") from error
    except av.FFmpegError as error:
        raise CameraError(f"cannot read {path}: it is damaged, or not a video of a known kind") from error
    # Before zero there is only what a sound's decoder needs to warm up.
    return container, Fraction(max(0, container.start_time or 0), av.time_base)


class _Stored:
    """What files have in common."""

    live = False

    def ready(self, timeout: float) -> bool:  # noqa: ARG002 - of the protocol
        return True

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoFile(_Stored):
    """The frames of a video file, all of them, stretched and turned as its metadata says, at the times it gives them.

    Attributes:
        name: the file.
        rate: mean frames a second.
        time_base: seconds of which all times are multiples.
        duration: seconds, where the file tells it.
        frames: about how many, where the file tells it.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file.

        Raises:
            CameraError: it is missing, unreadable, damaged at its head, or holds no video.
        """
        self.name = str(path)
        self._container, start = open_media(path)
        try:
            self._stream = stream = _film(self._container, self.name)
        except CameraError:
            self._container.close()
            raise
        stream.thread_type = "AUTO"
        self.rate = stream.average_rate or stream.guessed_rate or RATE
        self.time_base = stream.time_base or 1 / RATE
        self.duration = self._promised()
        self.frames = stream.frames or (None if self.duration is None else round(self.duration * self.rate))
        self._start = float(start)

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Yields:
            Pixels and time; times rise strictly.

        Raises:
            CameraError: after the last frame that can be decoded, if the file is damaged or ends too early.
        """
        step, first, last, end = float(1 / self.rate), None, -math.inf, 0.0
        damage: Exception | None = None
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    damage = error  # what follows may be whole again
                    continue
                for frame in frames:
                    time = last + step if frame.pts is None else frame.time - self._start
                    if not time > last:
                        time = 0.0 if first is None else last + step
                    first, last = time if first is None else first, time
                    end = time + frame.duration * float(frame.time_base or 0)
                    yield _upright(frame, self._stream), time
        except av.FFmpegError as error:
            damage = error
        if first is None:
            raise CameraError(f"cannot read {self.name}: {_reason(damage) if damage else 'it holds no picture'}")
        if damage:
            raise CameraError(f"{self.name} is damaged; its good frames up to {end:.2f} s were read: {_reason(damage)}")
        if self.duration is not None and end - first < self.duration - SHORTFALL:
            raise CameraError(f"{self.name} is cut off: it ends after {end:.2f} s of {self.duration:.2f} s")

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _promised(self) -> float | None:
        """Seconds that the picture lasts, as the file says."""
        stream = self._stream
        if stream.duration is not None:
            return stream.duration * float(stream.time_base or 0)
        # Matroska tells when the picture ends, which may begin late: 00:01:02.500000000
        if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(float, tag.groups())
            start = (stream.start_time or 0) * float(stream.time_base or 0)
            return 3600 * hours + 60 * minutes + seconds - max(0.0, start)
        return None


class ImageFolder(_Stored):
    """The images of a folder, by name, as the frames of a video: 25 a second."""

    def __init__(self, path: str | Path) -> None:
        """Look for the images.

        Args:
            path: a folder, searched with its subfolders, or an image.

        Raises:
            CameraError: there is none.
        """
        self.name = str(path)
        try:
            self._files = image_files([path])
        except ImageError as error:
            raise CameraError(str(error)) from error
        if not self._files:
            raise CameraError(f"there is no image in {path}")

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            ImageError: a file cannot be read; the message names it.
        """
        for index, file in enumerate(self._files):
            yield read_image(file), float(index / RATE)


class Live:
    """A source that never falls behind: a thread reads every frame and keeps only the newest.

    Where the frames stop, it connects again, a bounded number of times, before it gives up.

    Attributes:
        begin: when the first frame was captured, on the clock of ``time.monotonic``; 0 until then.
    """

    live = True

    def __init__(self, name: str, connect: Callable[[], Pixels], *, retries: int = RETRIES) -> None:
        """Nothing is opened before the first frame is asked for.

        Args:
            name: for messages.
            connect: opens the source and yields its pixels, (H, W, 3) uint8 RGB, as they come; raises CameraError
                where it cannot be opened or breaks down. It runs in the thread.
            retries: how often to connect again, once there were frames.
        """
        self.name, self.begin = name, 0.0
        self._connect, self._retries = connect, retries
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._over = False
        self._error: Exception | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Yields:
            The newest pixels, each at most once, and seconds from the first frame's capture to theirs.

        Raises:
            CameraError: the source stopped and did not come back.
        """
        while True:
            while not self.ready(1.0):  # with a timeout, as Ctrl+C does not interrupt a wait without one everywhere
                pass
            with self._changed:
                newest, self._newest = self._newest, None
            if newest:
                yield newest
            elif self._error:
                raise self._error
            else:
                return

    def ready(self, timeout: float) -> bool:
        """Wait up to so many seconds for a frame, the end or the failure."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name=f"reader of {self.name}", daemon=True)
            self._thread.start()
        with self._changed:
            return self._changed.wait_for(lambda: self._newest is not None or self._over, timeout)

    def close(self) -> None:
        """End the thread and release the source."""
        self._stopping.set()
        if self._thread:
            self._thread.join(timeout=TIMEOUT)  # a camera's driver may hold it longer; it ends with the process then

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            self._read_on()
        except Exception as error:  # to be raised where the frames are taken
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _read_on(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with closing(self._connect()) as frames:
                    for pixels in frames:
                        now, failures = clock.monotonic(), 0
                        self.begin = self.begin or now
                        with self._changed:
                            self._newest = pixels, now - self.begin
                            self._changed.notify_all()
                        if self._stopping.is_set():
                            break
                return
            except CameraError as error:
                if failures == (self._retries if self.begin else 0):
                    raise CameraError(f"{error} (tried again {failures} times)" if failures else str(error)) from error
            self._stopping.wait(BACKOFF * 2**failures)
            failures += 1


class Camera(Live):
    """A camera, through OpenCV."""

    def __init__(self, number: int, *, size: tuple[int, int] = (640, 480)) -> None:
        """Nothing is opened before the first frame is asked for.

        Args:
            number: from 0.
            size: width and height to ask it for; it may answer with others.
        """
        super().__init__(f"camera {number}", lambda: _camera(number, size))


class Stream(Live):
    """A stream that FFmpeg can read: rtsp://, http:// (MJPEG, HLS, MPEG-TS), udp://, ...

    A whole film, which tells its length, comes at its own pace.
    """

    def __init__(self, url: str) -> None:
        """Nothing is opened before the first frame is asked for. Its name is the URL without user and password."""
        name = re.sub(r"(?<=://)[^/?#]*@", "", url)
        super().__init__(name, lambda: _stream(url, name))


def played(video: VideoFile) -> Live:
    """A video file as if a camera saw it now: frames come at the file's pace, and who is slow gets fewer."""

    def connect() -> Pixels:
        wait = _pace()
        with video:
            for pixels, time in video:
                wait(time)
                yield pixels

    return Live(video.name, connect, retries=0)


def _pace() -> Callable[[float], None]:
    """What sleeps until it is time for a frame, given its seconds; the first one is due at once."""
    begin: float | None = None

    def wait(time: float) -> None:
        nonlocal begin
        begin = clock.monotonic() - time if begin is None else begin
        clock.sleep(max(0, begin + time - clock.monotonic()))

    return wait


def _camera(number: int, size: tuple[int, int]) -> Pixels:
    with quiet_opencv():
        capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise CameraError(
                f"camera {number} cannot be opened; is it plugged in, allowed, and not used by another program?"
            )
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        while True:
            good, pixels = capture.read()
            if not good:
                raise CameraError(f"camera {number} gives no more pictures")
            yield cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
    finally:
        capture.release()


def _stream(url: str, name: str) -> Pixels:
    # RTSP over UDP loses packets and passes few firewalls; a buffer would be lag.
    options = {"rtsp_transport": "tcp", "fflags": "nobuffer", "flags": "low_delay"}
    try:
        with av.open(url, options=options, timeout=TIMEOUT) as container:
            stream, wait, whole = _film(container, name), _pace(), container.duration is not None
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue  # a stream that is joined midway begins with what cannot be decoded
                for frame in frames:
                    pixels = _upright(frame, stream)
                    if whole and frame.time is not None:
                        wait(frame.time)
                    yield pixels
            if not whole:
                raise CameraError(f"{name} was cut")
    except (av.FFmpegError, OSError) as error:
        raise CameraError(f"cannot read {name}: {_reason(error)}") from error


def _film(container: av.container.InputContainer, name: str) -> VideoStream:
    """The first video, but for the cover of an album."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise CameraError(f"cannot read {name}: it holds no video")


def _upright(frame: av.VideoFrame, stream: VideoStream) -> NDArray[np.uint8]:
    """As it is to be seen: with square pixels, and turned."""
    aspect = stream.sample_aspect_ratio
    stretched = round(frame.width * aspect) if aspect and 1 / STRETCH <= aspect <= STRETCH else frame.width
    pixels = frame.to_ndarray(format="rgb24", width=stretched)
    turn = _TURNS.get(round(frame.rotation / 90) * 90 % 360)
    return np.asarray(pixels if turn is None else cv2.rotate(pixels, turn), np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return f"no data for {TIMEOUT:g} s"
    return getattr(error, "strerror", None) or str(error)
