"""Films for the tests: a photographed face that moves, written by FFmpeg as many a program would."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

FACE = skimage.data.astronaut()[20:220, 120:320]  # public domain; the face's middle is (104, 103), 115 pixels high


def picture(number: int, size: tuple[int, int] = (240, 180), faces: int = 1) -> NDArray[np.uint8]:
    """A frame, (height, width, 3) RGB of that (width, height); each face moves to the right by a pixel a frame."""
    width, height = size
    frame = np.full((height, width, 3), 110, np.uint8)
    side = min(height, width // max(faces, 1))
    for face in range(faces):
        left = min(face * width // faces + number, width - side)
        frame[:side, left : left + side] = cv2.resize(FACE, (side, side), interpolation=cv2.INTER_AREA)
    return frame


def write_film(
    path: Path,
    times: Sequence[int] = range(0, 12_800, 512),
    *,
    size: tuple[int, int] = (240, 180),
    faces: int = 1,
    time_base: Fraction = Fraction(1, 12_800),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: str = "",
    rate: int = 48_000,
    channels: str = "mono",
    options: dict[str, str] | None = None,
) -> list[int]:
    """Write a film with a frame at each time, in units of the time base, and a tone as long; returns the times.

    The rate is the sound's, samples a second.
    """
    with av.open(str(path), "w", options=options or {}) as film:
        video = film.add_stream(codec, 25, width=size[0], height=size[1], time_base=time_base)
        video.pix_fmt = pixels
        tone = film.add_stream(sound, rate, layout=channels) if sound else None
        if tone:
            tone.bit_rate = 64_000  # WMA's encoder has none of its own
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, size, faces), "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, time_base
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        if tone:
            seconds = float((times[-1] + 512) * time_base)
            wave = 0.3 * np.sin(2 * np.pi * 440 / 48_000 * np.arange(int(48_000 * seconds), dtype=np.float32))
            piece = 24 if sound.startswith("pcm") else len(wave)  # PCM in packets shorter than Matroska's millisecond
            for start in range(0, len(wave), piece):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + piece].astype(np.float32), "fltp", "mono")
                frame.rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
                film.mux(tone.encode(frame))
            film.mux(tone.encode(None))
    return list(times)


def frame_times(path: Path) -> list[float]:
    """Seconds at which each picture of a film is shown; every one is decoded."""
    with av.open(str(path)) as film:
        return [frame.time for frame in film.decode(video=0)]


def sound_packets(path: Path) -> list[bytes]:
    """The encoded sound of a film."""
    with av.open(str(path)) as film:
        return [bytes(packet) for packet in film.demux(audio=0) if packet.size]
