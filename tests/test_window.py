"""A user would lose a recording, or the whole program without a word, if any of these failed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time as clock
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from patience import PATIENCE

from fer import EmotionRecognizer, window
from fer.cli import main
from fer.config import LiveConfig
from fer.errors import CameraError, ConfigError
from fer.live import FrameResult, LivePipeline
from fer.recording import VideoWriter
from fer.sources import Camera, Live, VideoFile
from fer.window import check_window, live_with

ROOT = Path(__file__).parent.parent
PHOTO = cv2.resize(skimage.data.astronaut(), (320, 320))
FER = [sys.executable, "-c", "import sys; from fer.cli import main; sys.exit(main())"]
#: As quick as possible: the smallest network, one thread.
QUICK = ["--checkpoint", "guide-cnn", "--device", "cpu", "--detector", "retinaface", "--threads", "1"]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that moves, at irregular times; 20 frames in a second and a half."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path) as writer:
        for k in range(20):
            writer.write(np.roll(PHOTO, 3 * k, axis=1), k / 20 + (0.5 if k >= 10 else 0))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many seconds of pictures, quickly made."""
    folder = tmp_path_factory.mktemp("folder")
    _, jpeg = cv2.imencode(".jpg", PHOTO[..., ::-1])
    for k in range(6000):  # as long as a slow machine may need
        (folder / f"{k:04}.jpg").write_bytes(jpeg.tobytes())
    return folder


@pytest.fixture(scope="module")
def recognizer() -> EmotionRecognizer:
    return EmotionRecognizer.load("guide-cnn", device="cpu", detector="retinaface", threads=1)


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A screen in memory."""
    if not shutil.which("Xvfb") or not shutil.which("xdotool"):
        pytest.skip("the window is tested on a screen in memory: apt install xvfb xdotool")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "800x600x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read) as answer:
        yield f":{answer.readline().strip()}"
    server.terminate()
    server.wait()


def environment(display: str | None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return kept | ({"DISPLAY": display} if display else {}) | {"OMP_NUM_THREADS": "1"}


def times(path: Path) -> list[float]:
    return [time for _, time in VideoFile(path)]


@pytest.mark.parametrize("display", [None, ":98765"])
def test_without_a_display_it_says_what_to_do(display: str | None, film: Path) -> None:
    """OpenCV would abort the process (status 134)."""
    done = subprocess.run(
        [*FER, "live", "--source", film, *QUICK], env=environment(display), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "display" in done.stderr
    assert "--headless" in done.stderr
    assert "--record FILE" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_opencv_without_windows_is_told_how_to_mend(monkeypatch) -> None:
    """albumentations brings opencv-python-headless along, and whichever was unpacked last wins."""
    built = re.sub(r"GUI:\s+\S+", "GUI:                           NONE", cv2.getBuildInformation())
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: built)
    with pytest.raises(ConfigError, match=r"pip install --force-reinstall --no-deps opencv-python`.* --headless"):
        check_window()


@pytest.mark.parametrize("option", [[], ["--smoothing", "1"], ["--max-side", "500"]])
def test_app_py_with_a_camera_is_the_same_command(monkeypatch, option: list[str]) -> None:
    """Else it would be slower, or see other faces."""
    configs = []
    monkeypatch.setattr(window, "live", lambda config: configs.append(config) or 0)
    for arguments in (["live", "--source", "7"], ["app", "--camera", "7"]):
        assert main(arguments + option) == 0
    assert configs[0] == configs[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_ctrl_c_ends_a_picture_that_stands_long(display: str, tmp_path: Path) -> None:
    """Else the window of a slide show would have to be killed."""
    with VideoWriter(tmp_path / "slides.mp4") as writer:
        for time in (0, 10 * PATIENCE):
            writer.write(PHOTO, time)
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {FER[2]}"
    command = [*FER[:2], code, "live", "--source", tmp_path / "slides.mp4", *QUICK]
    env = environment(display)
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            seen = ["xdotool", "search", "--sync", "--onlyvisible", "--name", "fer live"]
            subprocess.run(seen, env=env, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
            clock.sleep(1)  # in the middle of the pause
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    assert process.returncode == 130, err


def test_the_window_and_its_keys(display: str, folder: Path, tmp_path: Path) -> None:
    """By hand, so to speak: a real window, a snapshot, a recording, and the end."""
    env = environment(display)

    def xdotool(*command: str) -> bool:
        return subprocess.run(["xdotool", *command], env=env, capture_output=True, check=False).returncode == 0

    def press(key: str, until: Callable[[], object]) -> None:
        """Again after a while, as a window that is just opening may lose the focus, and the key with it."""
        while not until() and process.poll() is None:
            if xdotool("search", "--onlyvisible", "--name", "fer live", "windowfocus", "--sync"):
                xdotool("key", "Left")  # OpenCV's waitKey takes it for a Q
                xdotool("key", key)
            end = clock.monotonic() + 15
            while not until() and clock.monotonic() < end:
                clock.sleep(0.05)

    command = [*FER, "live", "--source", folder, *QUICK]
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            press("s", lambda: [*tmp_path.glob("*.png")])
            press("r", lambda: [file for file in tmp_path.glob("*.mp4") if file.stat().st_size > 4000])  # some frames
            xdotool("key", "r")
            press("q", lambda: process.poll() is not None)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, err
    snapshots = sorted(tmp_path.glob("*.png"))
    assert out.split() == [file.name for file in snapshots]
    picture = cv2.imread(str(snapshots[0]))
    assert picture.shape == (320, 320, 3)
    assert np.abs(picture[..., ::-1].astype(int) - PHOTO).max() > 100  # with the box
    for recording in tmp_path.glob("*.mp4"):
        assert f"recording {recording.name}" in err
        assert len(times(recording)) >= 2


def test_json_lines_and_a_recording_without_a_window(film: Path, tmp_path: Path, capsys) -> None:
    """What a script on a server uses; the recording has the source's own times."""
    out = tmp_path / "out.mkv"
    assert main(["live", "--source", str(film), "--headless", "--record", str(out), *QUICK]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(20))
    assert [line["time"] for line in lines] == pytest.approx(times(film), abs=1e-4)
    assert {face["track"] for line in lines for face in line["faces"]} == {1}
    assert {"x", "y", "width", "height", "emotion", "happy"} < lines[0]["faces"][0].keys()
    assert times(out) == pytest.approx(times(film), abs=2e-3)
    before, after = next(iter(VideoFile(film)))[0], next(iter(VideoFile(out)))[0]
    assert np.abs(before.astype(int) - after).max() > 100  # with the box


def test_a_reader_that_leaves_is_no_error(recognizer: EmotionRecognizer, film: Path, monkeypatch) -> None:
    """`fer live --headless | head -1` must not end in a traceback, not even as Python flushes its output."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, VideoFile(film) as source:
        monkeypatch.setattr(sys, "stdout", pipe)
        live_with(LivePipeline(recognizer), source, headless=True)
        pipe.write("more")
        pipe.flush()


def test_a_recording_survives_sigkill(folder: Path, tmp_path: Path) -> None:
    """Else a crash or a dead battery would cost the whole session."""
    out = tmp_path / "out.mp4"
    command = [*FER, "live", "--source", folder, "--headless", "--record", out, *QUICK]
    process = subprocess.Popen(command, env=environment(None), text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        for _ in range(100):
            process.stdout.readline()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    kept = times(out)
    assert len(kept) >= 50
    assert kept == pytest.approx([k / 25 for k in range(len(kept))], abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_each_kind_of_recording_survives_sigkill(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out{suffix}"
    script = (
        "import os, pathlib, signal, skimage.data; from fer.recording import VideoWriter\n"
        f"writer = VideoWriter(pathlib.Path({str(out)!r}), crash_safe=True)\n"
        "for k in range(100): writer.write(skimage.data.camera()[:240, :320, None].repeat(3, 2), k / 25)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert len(times(out)) >= 50


class Watched(LivePipeline):
    """Tells when it begins with a frame, and can be made to wait."""

    def __init__(self, recognizer: EmotionRecognizer) -> None:
        super().__init__(recognizer)
        self.begun, self.going = threading.Semaphore(0), threading.Event()
        self.going.set()

    def process(self, image: np.ndarray, time: float) -> FrameResult:
        self.begun.release()
        self.going.wait(PATIENCE)
        return super().process(image, time)


def test_a_camera_that_fails_leaves_a_playable_recording(recognizer: EmotionRecognizer, tmp_path: Path, capsys) -> None:
    """What was recorded until the cable was pulled."""
    pipeline = Watched(recognizer)

    def connect() -> Iterator[np.ndarray]:
        for _ in range(4):
            yield PHOTO
            assert pipeline.begun.acquire(timeout=PATIENCE)
        raise CameraError("camera 0 gives no more pictures")

    out = tmp_path / "out.mp4"
    with Live("camera 0", connect, retries=0) as source, pytest.raises(CameraError, match="no more pictures"):
        live_with(pipeline, source, headless=True, record=out)
    lines = capsys.readouterr().out.splitlines()
    assert len(times(out)) == len(lines) == 4
    assert times(out) == pytest.approx([json.loads(line)["time"] for line in lines], abs=2e-3)


def test_a_camera_is_answered_without_falling_behind(recognizer: EmotionRecognizer, capsys) -> None:
    """A slow computer leaves out all frames that came while it was at work, but the newest."""
    pipeline = Watched(recognizer)
    pipeline.going.clear()

    def connect() -> Iterator[np.ndarray]:
        yield PHOTO
        assert pipeline.begun.acquire(timeout=PATIENCE)
        for _ in range(20):
            yield PHOTO // 2
        yield PHOTO * 0
        pipeline.going.set()

    with Live("camera 0", connect, retries=0) as source:
        live_with(pipeline, source, headless=True)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (len(first["faces"]), len(last["faces"])) == (1, 0)


def test_a_recording_that_cannot_be_written(recognizer: EmotionRecognizer, film: Path, tmp_path: Path, capsys) -> None:
    """Else FFmpeg's number would stand there, without the file's name; or an empty file be left behind."""
    (tmp_path / "folder.mp4").mkdir()
    with VideoFile(film) as source, pytest.raises(OSError, match=r"folder\.mp4"):
        live_with(LivePipeline(recognizer), source, headless=True, record=tmp_path / "folder.mp4")
    out = tmp_path / "new" / "out.mp4"
    with Camera(63) as source, pytest.raises(CameraError, match="camera 63"):
        live_with(LivePipeline(recognizer), source, headless=True, record=out)
    assert not out.exists()
    with VideoFile(film) as source:
        live_with(LivePipeline(recognizer), source, headless=True, record=out)
    assert len(times(out)) == len(capsys.readouterr().out.splitlines()) == 20


def test_mistakes_are_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    """Else a user would wait for the model to read that the file's name was wrong."""
    with pytest.raises(ConfigError, match=r"cannot write out\.avi"):
        window.live(LiveConfig(source="0", headless=True, record=Path("out.avi"), checkpoint="/nowhere"))
    with pytest.raises(CameraError, match=r"cannot read .*gone\.mp4"):
        window.live(LiveConfig(source=str(tmp_path / "gone.mp4"), headless=True, checkpoint="/nowhere"))


def test_a_recording_never_takes_the_place_of_its_source(film: Path, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(film)
    before = film.read_bytes()
    for record in (film, tmp_path / "link.mp4"):
        with pytest.raises(ConfigError, match=r"writing .* would destroy the video itself"):
            window.live(LiveConfig(source=str(film), record=record, headless=True, checkpoint="/nowhere"))
    assert film.read_bytes() == before
