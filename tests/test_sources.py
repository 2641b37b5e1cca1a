"""A user would see a late or a wrong picture, or wait for ever for a camera that is gone, if any of these failed."""

import http.server
import socket
import socketserver
import threading
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data
from av.stream import Disposition
from patience import PATIENCE
from PIL import Image

from fer import sources
from fer.errors import CameraError, ImageError
from fer.sources import Camera, ImageFolder, Live, Stream, VideoFile, open_media, open_source, played

RATE = 25


PHOTO = cv2.resize(skimage.data.astronaut(), (160, 120))


def numbered(index: int) -> np.ndarray:
    """A photograph with eight fields above it that tell the number, to survive compression."""
    image = PHOTO.copy()
    for bit in range(8):
        image[:20, 20 * bit : 20 * bit + 20] = 255 if index >> bit & 1 else 0
    return image


def number(image: np.ndarray) -> int:
    return sum(int(image[10, 20 * bit + 10].mean() > 127) << bit for bit in range(8))


def write(
    path: Path, times: list[float], *, rotation: int = 0, aspect: int = 1, sound: bool = False, **options: str
) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=RATE, width=160, height=120, pix_fmt="yuv420p")
        stream.codec_context.options = {"g": "10", "preset": "ultrafast"}
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if rotation:
            stream.set_display_rotation(rotation)
        if sound:
            tone = container.add_stream("aac", rate=16000, layout="mono")
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(index), "rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 16000, 0
            container.mux(tone.encode(silence))
            container.mux(tone.encode(None))
    return path


def steady(seconds: float) -> list[float]:
    return [k / RATE for k in range(round(seconds * RATE))]


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Two seconds, 50 numbered frames."""
    return write(tmp_path_factory.mktemp("film") / "film.mp4", steady(2))


def test_a_file_loses_no_frame_however_slow_its_reader(film: Path) -> None:
    with open_source(str(film)) as source:
        assert not source.live
        seen = []
        for image, time in source:
            assert image.shape == (120, 160, 3)
            assert image.dtype == np.uint8
            seen.append((number(image), round(time, 6)))
            if len(seen) == 10:
                clock.sleep(0.3)  # long enough for a reader ahead of us to drop some
    assert seen == [(k, k / RATE) for k in range(50)]


def test_a_file_keeps_its_own_irregular_times(tmp_path: Path) -> None:
    """Else smoothing and every chart of a phone's video would be off."""
    times = [0.0, 0.04, 0.05, 0.3, 0.301, 1.0, 2.5]
    for name in ("a.mp4", "a.mkv"):
        assert [t for _, t in VideoFile(write(tmp_path / name, times))] == pytest.approx(times, abs=1e-6)


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_phone_held_upright_gives_upright_faces(rotation: int, turns: int, tmp_path: Path) -> None:
    """Else no face is found in most videos that people have."""
    plain = next(iter(VideoFile(write(tmp_path / "plain.mp4", [0.0]))))[0]
    turned = next(iter(VideoFile(write(tmp_path / "turned.mp4", [0.0], rotation=rotation))))[0]
    assert (turned == np.rot90(plain, turns)).all()  # both counter-clockwise


@pytest.mark.parametrize(("aspect", "width"), [(2, 320), (100, 160)])
def test_wide_pixels_give_faces_that_are_not_squashed(aspect: int, width: int, tmp_path: Path) -> None:
    """Else the films of camcorders and DVDs, 1440 or 720 wide, would be judged by narrow faces. 100 is no film's."""
    assert next(iter(VideoFile(write(tmp_path / "a.mp4", [0.0], aspect=aspect))))[0].shape == (120, width, 3)
    turned = next(iter(VideoFile(write(tmp_path / "b.mp4", [0.0], aspect=aspect, rotation=90))))[0]
    assert turned.shape == (width, 120, 3)


def test_colours_are_right(tmp_path: Path) -> None:
    error = np.abs(next(iter(VideoFile(write(tmp_path / "a.mp4", [0.0]))))[0][30:].astype(int) - numbered(0)[30:])
    assert error.mean() < 6


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_truncated_file_gives_its_good_frames_and_then_says_so(name: str, tmp_path: Path) -> None:
    """Else a broken download would look like a short video."""
    content = write(tmp_path / f"whole-{name}", steady(4), movflags="faststart").read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 6 // 10])
    seen = []
    with pytest.raises(CameraError, match=f"{name} is (damaged|cut off)"):
        seen.extend(number(image) for image, _ in VideoFile(tmp_path / name))
    assert 30 <= len(seen) < 100
    assert seen[:-3] == list(range(len(seen) - 3))


def test_a_whole_file_with_longer_sound_is_not_called_truncated(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        assert len(list(VideoFile(write(tmp_path / name, steady(1), sound=True)))) == 25


def test_a_whole_file_that_begins_late_is_not_called_truncated(tmp_path: Path) -> None:
    """Else a part of a recording, whose clock goes on from the part before, would be refused after all its frames."""
    for name in ("a.mp4", "a.mkv"):
        film = VideoFile(write(tmp_path / name, [2 + time for time in steady(1)]))
        assert film.duration == pytest.approx(1, abs=0.05)
        assert [time for _, time in film] == pytest.approx(steady(1), abs=2e-3)


def test_a_length_that_is_no_time_is_left_alone(tmp_path: Path) -> None:
    """Else one odd tag, as any program may write it, would end in a traceback."""
    content = write(tmp_path / "a.mkv", steady(1)).read_bytes()
    assert content.count(b"00:00:01.000000000") == 1
    (tmp_path / "a.mkv").write_bytes(content.replace(b"00:00:01.000000000", b"about a second    "))
    film = VideoFile(tmp_path / "a.mkv")
    assert film.duration is None
    assert len(list(film)) == 25


def test_files_that_are_no_video(tmp_path: Path) -> None:
    """Else a user would get FFmpeg's numbers instead of a reason."""
    text = tmp_path / "notes.txt"
    text.write_text("hello\n" * 1000)
    with pytest.raises(CameraError, match=r"cannot read .*notes\.txt: it is damaged, or not a video"):
        VideoFile(text)
    with pytest.raises(CameraError, match=r"cannot read .*gone\.mp4: No such file"):
        open_source(str(tmp_path / "gone.mp4"))
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        tone = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        cover = container.add_stream("mjpeg", width=160, height=120, pix_fmt="yuvj420p")
        cover.disposition = Disposition.attached_pic  # of an album
        container.mux(cover.encode(av.VideoFrame.from_ndarray(PHOTO, "rgb24").reformat(format="yuvj420p")))
        container.mux(tone.encode(silence))
        container.mux(tone.encode(None))
    with pytest.raises(CameraError, match=r"song\.mp4: it holds no video"):
        VideoFile(tmp_path / "song.mp4")


def test_a_playlist_cannot_make_us_read_other_files(film: Path, tmp_path: Path) -> None:
    """Else a stranger's upload could show files of the server."""
    playlist = tmp_path / "evil.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:2,\nfile://{film}\n#EXT-X-ENDLIST\n")
    with pytest.raises(CameraError, match="cannot read"):
        open_media(playlist)
    playlist.write_text(f"ffconcat version 1.0\nfile {film}\n")
    with pytest.raises(CameraError, match="cannot read"):
        open_media(playlist)


def test_a_folder_of_images_plays_in_order(tmp_path: Path) -> None:
    for k in range(12):
        Image.fromarray(numbered(k)).save(tmp_path / f"{k:03}.png")
    (tmp_path / "notes.txt").touch()
    with open_source(str(tmp_path)) as source:
        assert [(number(image), time) for image, time in source] == [(k, k / RATE) for k in range(12)]
    with open_source(str(tmp_path / "007.png")) as source:
        assert [number(image) for image, _ in source] == [7]
    (tmp_path / "005.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"005\.png"):
        list(ImageFolder(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CameraError, match="there is no image in"):
        ImageFolder(tmp_path / "empty")


def test_a_live_source_gives_the_newest_frame_only() -> None:
    """Else the picture would lag more and more behind a slow computer."""
    taken, caught_up = threading.Event(), threading.Event()

    def connect() -> Iterator[np.ndarray]:
        yield numbered(0)
        taken.wait(PATIENCE)
        for k in range(1, 50):  # while the first one is in work
            yield numbered(k)
        caught_up.set()

    seen, times = [], []
    with Live("camera", connect) as source:
        for image, time in source:
            seen.append(number(image))
            times.append(time)
            taken.set()
            assert caught_up.wait(PATIENCE)
    assert seen == [0, 49]
    assert 0 == times[0] < times[1]


def test_a_film_that_is_played_takes_its_time(film: Path) -> None:
    """Else a demonstration from a file would not show what a camera would."""
    begin = clock.monotonic()
    with played(VideoFile(film)) as source:
        assert source.live
        seen = [(number(image), time) for image, time in source]
    assert clock.monotonic() - begin > 49 / RATE
    assert seen == sorted(set(seen))
    assert seen[-1][0] == 49
    assert all(time > index / RATE - 0.01 for index, time in seen)  # a slow computer may show them later, not earlier


def test_what_is_played_ends_and_tells_of_damage(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.mkv", steady(2)).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: len(content) // 2])
    with (
        pytest.raises(CameraError, match=r"^\S+cut\.mkv is (cut off|damaged)") as caught,
        played(VideoFile(cut)) as source,
    ):
        list(source)
    assert "tried again" not in str(caught.value)


class Streamer(http.server.BaseHTTPRequestHandler):
    """Sends a film, as a network camera would, and cuts it; as many times as ``lives`` says.

    Where it is ``stored``, its length is told.
    """

    content, lives, stored = b"", 0, False

    def do_GET(self) -> None:
        cls = type(self)
        cls.lives -= 1
        if cls.lives < 0:
            self.send_error(404)
            return
        self.send_response(200)
        if cls.stored:
            self.send_header("Content-Length", str(len(cls.content)))
        self.end_headers()
        for start in range(0, len(cls.content), 4096):
            self.wfile.write(cls.content[start : start + 4096])
            clock.sleep(0.002)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def streaming(content: bytes, lives: int, *, stored: bool = False) -> Iterator[tuple[str, type[Streamer]]]:
    handler = type("Handler", (Streamer,), {"content": content, "lives": lives, "stored": stored})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/live.ts", handler
        finally:
            server.shutdown()
            thread.join()


def test_a_stream_that_is_cut_is_taken_up_again_and_given_up_in_the_end(tmp_path: Path, monkeypatch) -> None:
    """Else a camera's restart would end the session, or its end never be told."""
    monkeypatch.setattr(sources, "BACKOFF", 0.02)
    content = write(tmp_path / "film.ts", steady(2)).read_bytes()
    with streaming(content, lives=3) as (url, handler), open_source(url) as source:
        assert isinstance(source, Stream)
        times = []
        with pytest.raises(CameraError, match=r"cannot read .*live\.ts: .*404.* \(tried again 5 times\)"):
            times.extend(time for _, time in source)
    assert times == sorted(times)
    assert handler.lives == -sources.RETRIES


def test_a_film_on_a_server_takes_its_time_and_ends(tmp_path: Path) -> None:
    """Else it would rush by as fast as the network carries it, and begin anew."""
    content = write(tmp_path / "film.mp4", steady(1), movflags="faststart").read_bytes()
    with streaming(content, lives=2, stored=True) as (url, handler), open_source(url) as source:
        seen = [(number(image), time) for image, time in source]
    first = seen[0][0]  # some were used up to find out what it is
    assert first < 15
    assert seen[-1][0] == 24
    assert all(time > (index - first) / RATE - 0.01 for index, time in seen)
    assert handler.lives == 1


def test_a_stream_that_was_never_there_is_told_at_once() -> None:
    with pytest.raises(CameraError, match=r"cannot read http://127\.0\.0\.1:9/x@2: Connection refused$"):
        next(iter(Stream("http://user:p@ss@127.0.0.1:9/x@2")))  # was not tried again, and the password is not shown


def test_a_stream_that_hangs_is_told(monkeypatch) -> None:
    """Else the user would read of an exit that was requested."""
    monkeypatch.setattr(sources, "TIMEOUT", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(CameraError, match=r"cannot read \S+: no data for 0\.2 s$"),
    ):
        next(iter(Stream(f"http://127.0.0.1:{server.getsockname()[1]}/x")))


def test_no_camera(capfd) -> None:
    """Else the user would read OpenCV's warnings and wait."""
    with pytest.raises(CameraError, match="camera 63 cannot be opened; is it plugged in"), Camera(63) as source:
        next(iter(source))
    assert capfd.readouterr() == ("", "")


def test_a_camera_that_is_unplugged(film: Path, monkeypatch) -> None:
    """Played by a file: OpenCV reads it as it reads a camera, and it ends. The second time there is no device."""
    monkeypatch.setattr(sources, "BACKOFF", 0.02)
    real, opened = cv2.VideoCapture, []

    def device(index: int) -> cv2.VideoCapture:
        opened.append(index)
        return real(str(film)) if len(opened) == 1 else real("gone.mp4", cv2.CAP_FFMPEG)

    monkeypatch.setattr(cv2, "VideoCapture", device)
    shapes = []
    with pytest.raises(CameraError, match=r"camera 0 cannot be opened.* \(tried again 5 times\)"), Camera(0) as source:
        shapes.extend(image.shape for image, _ in source)
    assert shapes
    assert set(shapes) == {(120, 160, 3)}
    assert opened == [0] * (1 + sources.RETRIES)


def test_any_failure_of_the_reader_reaches_the_user() -> None:
    """Else a program's error would look like the end of the video."""

    def connect() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2, 3), np.uint8)
        raise MemoryError("no memory for a frame")

    with pytest.raises(MemoryError, match="no memory for a frame"), Live("broken", connect) as source:
        list(source)


def test_closing_ends_the_thread_and_releases_the_source() -> None:
    """Else the camera's light would stay on."""
    released = threading.Event()

    def connect() -> Iterator[np.ndarray]:
        try:
            while True:
                yield np.zeros((2, 2, 3), np.uint8)
                clock.sleep(0.005)
        finally:
            released.set()

    with Live("the camera of this test", connect) as source:
        next(iter(source))
        assert "reader of the camera of this test" in names_of_threads()
    assert released.is_set()
    assert "reader of the camera of this test" not in names_of_threads()


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_waiting_for_a_camera_that_stalls_does_not_block() -> None:
    """Else the window's keys would be dead for as long as it stalls."""
    going = threading.Event()

    def connect() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2, 3), np.uint8)
        going.wait(PATIENCE)

    with Live("camera", connect) as source:
        frames = iter(source)
        next(frames)
        assert not source.ready(0.05)  # while the camera keeps us waiting
        assert not going.is_set()
        going.set()
        assert source.ready(PATIENCE)
        assert next(frames, None) is None
