"""Frames into a video file: H.264 at the times that they were taken at, and the sound of another file beside them.

FFmpeg is inside PyAV's wheel, so nothing else has to be installed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fer.errors import ConfigError
from fer.sources import open_media

__all__ = ["VIDEO_SUFFIXES", "VideoWriter", "check_spared", "check_suffix"]

#: What a video can be written as.
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")

#: Of x264's presets, superfast takes as long and writes seven times as much, ultrafast half the time and five times as
#: much. A crf of 21 would keep the camera's noise: five times the size, 1.7 times the time. A key frame at least every
#: 100 frames makes seeking quick.
ENCODER = {"preset": "veryfast", "crf": "23", "g": "100"}

#: An index for each stretch from key frame to key frame, instead of one at the end.
FRAGMENTS = {
    "mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"},
    "matroska": {"cluster_time_limit": "1000", "flush_packets": "1"},  # milliseconds; else up to 5 s are held back
}

#: Sound that FFmpeg offers to put into these formats, and either fails at or few players play; it becomes AAC.
UNFIT = {"mp4": ("vorbis", "truehd", "pcm"), "mov": ("opus", "flac", "truehd"), "matroska": ()}
#: Samples a second of MP3 below which neither MP4 nor MOV takes it.
MP3_RATE = 16_000
#: Samples a second of AAC that every player takes; the last one for sound that has another rate.
AAC_RATES = (32_000, 44_100, 48_000)

# PyAV's classes are generic for type checkers only.
if TYPE_CHECKING:
    AudioPacket = Packet[AudioStream]
else:
    AudioPacket = Packet
Conversion = Callable[[AudioPacket], list[AudioPacket]]


def check_suffix(file: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file name whose extension says something else than can be written.

    Raises:
        ConfigError: the message lists the extensions.
    """
    if file.suffix.lower() not in suffixes:
        raise ConfigError(f"cannot write {file}: its name must end in {' or '.join(suffixes)}")


def check_spared(source: Path, target: Path, *written: Path) -> None:
    """Refuse to write over the video that is read.

    Args:
        source: the video; one that is no file, as of a stream, cannot be written over.
        target: what is to be written.
        written: files that are written on the way there.

    Raises:
        ConfigError: one of them is the video itself, by whatever name.
    """
    if source.exists() and any(file.exists() and file.samefile(source) for file in (target, *written)):
        raise ConfigError(f"writing {target} would destroy the video itself: choose another name")


class VideoWriter:
    """Writes frames into a video; what was written is playable once it is closed, however early that is.

    Attributes:
        notes: what a user should know about the sound.
    """

    def __init__(
        self,
        path: Path,
        *,
        rate: Fraction = Fraction(25),
        time_base: Fraction = Fraction(1, 90_000),
        sound: Path | None = None,
        crash_safe: bool = False,
    ) -> None:
        """Begin a file; one that is there is overwritten.

        Args:
            path: the kind of file follows from its extension.
            rate: about how many frames a second will come; it decides nothing but how long the last one lasts.
            time_base: seconds; times are rounded to multiples of it.
            sound: a file whose sound is copied, as it is where the new file can hold it, else as AAC.
            crash_safe: let the file be playable, but for its last seconds, even if the process is killed; it grows
                larger for that.

        Raises:
            ConfigError: the extension is not one of ``VIDEO_SUFFIXES``.
            OSError: the file cannot be written.
            CameraError: the file with the sound cannot be read.
        """
        check_suffix(path, VIDEO_SUFFIXES)
        self.notes: list[str] = []
        kind = path.suffix.lower()[1:].replace("mkv", "matroska")
        options = FRAGMENTS.get(kind, FRAGMENTS["mp4"]) if crash_safe else {}
        self._path = path
        path.open("ab").close()  # FFmpeg opens it at the first frame only, and does not name it when it cannot
        self._container = av.open(str(path.absolute()), "w", kind, options)  # 12:30.mp4 alone would name a protocol
        self._encoder = ENCODER | ({"tune": "zerolatency", "g": "25"} if crash_safe else {})
        self._stream: VideoStream | None = None
        self._size = (0, 0)
        self._failure: OSError | None = None
        self._rate, self._time_base, self._last = rate, time_base, -1
        self._sound = None if sound is None else _Sound(sound, self._container, self.notes)

    def write(self, image: NDArray[np.uint8], time: float) -> None:
        """Add a frame, and the sound until then.

        Args:
            image: (H, W, 3) uint8, RGB. The first one tells the size, others are scaled to it; where it is odd, the
                last row or column is repeated, as H.264 cannot do without.
            time: seconds from the file's beginning; where frames come closer than the time base, they are moved apart.

        Raises:
            OSError: the file cannot be written any more, say because the disk is full, or FFmpeg fails at the sound.
        """
        self._stream = self._stream or self._begin(*image.shape[:2])
        height, width = self._size
        pixels: cv2.typing.MatLike = image
        if image.shape[:2] != self._size:
            pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        if height % 2 or width % 2:
            pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8, copy=False), "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts = self._last = max(round(time / self._time_base), self._last + 1)
        frame.time_base = self._time_base
        with self._once_failed_never_again():
            if self._sound:
                self._sound.copy(until=time)
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Add the sound that goes on after the last frame; errors as of :meth:`write`."""
        with self._once_failed_never_again():
            if self._sound:
                self._sound.copy(until=math.inf)

    def close(self) -> None:
        """Write what is still under way, and the index without which the file could not be played; errors as above."""
        if self._sound:
            self._sound.close()
        try:
            if self._stream and not self._failure:
                with self._once_failed_never_again():
                    self._container.mux(self._stream.encode(None))
        finally:
            with self._errors_of_the_system():
                self._container.close()

    @contextmanager
    def _once_failed_never_again(self) -> Iterator[None]:
        """After a failed attempt to write, another one would crash FFmpeg."""
        if self._failure:
            raise self._failure
        try:
            with self._errors_of_the_system():
                yield
        except OSError as error:
            self._failure = error
            raise

    @contextmanager
    def _errors_of_the_system(self) -> Iterator[None]:
        """FFmpeg's own errors, and PyAV's ValueError for a sound that changes its form midway, as OSError."""
        try:
            yield
        except OSError:
            raise
        except (av.FFmpegError, ValueError) as error:
            raise OSError(f"cannot write {self._path}: {getattr(error, 'strerror', error)}") from error

    def _begin(self, height: int, width: int) -> VideoStream:
        self._size = height, width
        stream = self._container.add_stream(
            "libx264",
            self._rate,
            self._encoder,
            width=width + width % 2,
            height=height + height % 2,
            time_base=self._time_base,
        )
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 1, 1, 1, 1  # BT.709
        return stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sound:
    """The sound of a file on its way into another, packet by packet, in step with the frames."""

    def __init__(self, path: Path, target: OutputContainer, notes: list[str]) -> None:
        self._source, self._start = open_media(path)
        self._target, self._matroska = target, target.format.name == "matroska"
        self._converted: dict[int, Conversion] = {}  # by the number of the stream in the source
        self._last: dict[int, int] = {}  # time of its last packet, by the same number
        for stream in self._source.streams.audio:
            if stream.codec_context is None:
                notes.append(f"{path} has sound of a kind that FFmpeg does not know; it is left out")
            elif copy := _copy_of(stream, target):
                self._converted[stream.index] = _copying(copy, self._start, from_zero=self._matroska)
            else:
                self._converted[stream.index] = _encoding(_encoder_for(stream, target), self._start)
        streams = tuple(stream for stream in self._source.streams.audio if stream.index in self._converted)
        self._packets = iter(self._source.demux(streams) if streams else ())
        self._next = self._read()

    def copy(self, until: float) -> None:
        """Copy what begins before that time, seconds."""
        while (packet := self._next) is not None and self._begin(packet) < until:
            index = packet.stream.index
            for new in self._converted[index](packet):
                # A file takes no packet that goes back in time; in Matroska some share a millisecond, as TrueHD's do.
                last = self._last.get(index, -math.inf)
                if new.dts is not None and (new.dts > last or (new.dts == last and self._matroska)):
                    self._last[index] = new.dts
                    self._target.mux(new)
            self._next = self._read()

    def close(self) -> None:
        self._source.close()

    def _read(self) -> AudioPacket | None:
        try:
            return next(self._packets, None)
        except av.FFmpegError:
            return None  # damaged or cut off: whoever reads the pictures tells it

    def _begin(self, packet: AudioPacket) -> float:
        return -math.inf if packet.pts is None else float(packet.pts * packet.time_base - self._start)


def _copy_of(stream: AudioStream, target: OutputContainer) -> AudioStream | None:
    codec = stream.codec.canonical_name
    slow = codec == "mp3" and stream.rate < MP3_RATE and target.format.name != "matroska"
    if slow or codec.startswith(UNFIT[target.format.name]):
        return None
    try:
        return target.add_stream_from_template(stream)
    except ValueError:  # the format cannot hold it
        return None


def _encoder_for(stream: AudioStream, target: OutputContainer) -> AudioStream:
    rate = stream.rate if stream.rate in AAC_RATES else AAC_RATES[-1]
    encoder = target.add_stream("aac", rate=rate)
    encoder.layout = "mono" if stream.channels == 1 else "stereo"
    return encoder


def _copying(copy: AudioStream, start: Fraction, *, from_zero: bool) -> Conversion:
    def convert(packet: AudioPacket) -> list[AudioPacket]:
        if packet.dts is None or packet.pts is None:
            return []  # the empty one at the end
        shift = round(start / packet.time_base)
        packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
        # What ends before 0 prepares the decoder and is not heard: MP4 can say so, Matroska would delay the pictures.
        unheard = from_zero and packet.dts < 0 and packet.dts + (packet.duration or 0) <= 0
        return [] if unheard else [packet]

    return convert


def _encoding(encoder: AudioStream, start: Fraction) -> Conversion:
    time = 0

    def convert(packet: AudioPacket) -> list[AudioPacket]:
        nonlocal time
        try:
            frames = packet.decode()
        except av.FFmpegError:
            return []  # a damaged packet is a click, not the end
        for frame in frames:
            if frame.pts is not None and frame.time_base:  # else it follows the one before
                time = round((frame.pts * frame.time_base - start) * frame.rate)
            # In samples, as the file's own unit may be longer than a packet.
            frame.pts, frame.time_base, time = time, Fraction(1, frame.rate), time + frame.samples
        packets = [new for frame in frames for new in encoder.encode(frame)]
        return packets if packet.size else packets + encoder.encode(None)  # an empty packet is the last

    return convert
