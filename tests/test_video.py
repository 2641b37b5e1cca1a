"""A user would lose a film, its sound or its timing, the results of hours, or an older file if any of these failed."""

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from films import frame_times, picture, sound_packets, write_film
from numpy.typing import NDArray
from patience import PATIENCE, wait_for

from fer.cli import main
from fer.emotions import EMOTIONS
from fer.errors import CameraError
from fer.faces import Face
from fer.recognizer import EmotionRecognizer
from fer.recording import VideoWriter
from fer.sources import VideoFile
from fer.video import COLUMNS, annotate, video_with

IRREGULAR = [0, 512, 600, 2000, 2001, 5000, 5512, 6024, 9000, 20_000]  # 1/12,800 s


def run(recognizer: EmotionRecognizer, source: Path, **options: Path) -> int:
    with VideoFile(source) as film:
        return video_with(recognizer, film, **options)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_everything_of_an_irregular_film(
    recognizer: EmotionRecognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, table, plot = (tmp_path / name for name in ("in.mp4", "new/out.mp4", "faces.csv", "plot.png"))
    write_film(source, IRREGULAR, sound="aac")
    assert run(recognizer, source, out=out, csv=table, plot=plot) == 0
    with av.open(str(out)) as film:
        assert film.streams.video[0].codec_context.name == "h264"  # what every browser plays
        assert film.streams.video[0].time_base == Fraction(1, 12_800)
        assert [frame.pts for frame in film.decode(video=0)] == IRREGULAR
    assert sound_packets(out) == sound_packets(source)
    rows = rows_of(table)
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["frame"]) for row in rows] == list(range(len(IRREGULAR)))
    assert [float(row["time"]) for row in rows] == pytest.approx([time / 12_800 for time in IRREGULAR], abs=1e-6)
    assert {row["track"] for row in rows} == {"1"}
    for row in rows:
        assert sum(float(row[emotion.label]) for emotion in EMOTIONS) == pytest.approx(1, abs=1e-4)
        assert row["confidence"] == row[row["emotion"]]
        middle = int(row["x"]) + int(row["width"]) / 2, int(row["y"]) + int(row["height"]) / 2
        assert middle == pytest.approx((94 + int(row["frame"]), 93), abs=8)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.part*"))
    seen = [row["emotion"] for row in rows]
    assert all(emotion in capsys.readouterr().out for emotion in set(seen))


@pytest.mark.parametrize("wanted", ["out", "csv", "plot", None])
def test_each_result_alone(
    recognizer: EmotionRecognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: str | None
) -> None:
    write_film(tmp_path / "in.mkv", range(0, 2560, 512))
    target = {"out": "o.mkv", "csv": "o.csv", "plot": "o.svg"}
    run(recognizer, tmp_path / "in.mkv", **({wanted: tmp_path / target[wanted]} if wanted else {}))
    assert {file.name for file in tmp_path.iterdir()} == {"in.mkv"} | ({target[wanted]} if wanted else set())
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["person", "from", "to", "seen"]
    assert row.split()[:4] == ["1", "0:00", "0:00.2", "0.2"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("odd.mkv", {"codec": "ffv1", "size": (239, 179)}),
        ("deep.mp4", {"pixels": "yuv420p10le"}),
        ("grey.mp4", {"pixels": "gray"}),
        ("film.gif", {"codec": "gif", "pixels": "rgb8", "time_base": Fraction(1, 100), "times": range(0, 40, 4)}),
        ("film.webm", {"codec": "libvpx", "time_base": Fraction(1, 1000), "times": range(0, 400, 40)}),
        ("film.ts", {"codec": "mpeg2video", "time_base": Fraction(1, 25), "times": range(10)}),
    ],
)
def test_kinds_of_films(recognizer: EmotionRecognizer, tmp_path: Path, name: str, options: dict[str, object]) -> None:
    source, out = tmp_path / name, tmp_path / "out.mp4"
    write_film(source, **({"times": range(0, 5120, 512)} | options))  # type: ignore[arg-type]
    before, first = frame_times(source), frame_times(source)[0]
    run(recognizer, source, out=out, csv=tmp_path / "faces.csv")
    shift = first if name.endswith(".ts") else 0  # whose clock begins anywhere
    assert frame_times(out) == pytest.approx([time - shift for time in before], abs=2e-3)
    assert len(rows_of(tmp_path / "faces.csv")) == 10
    with av.open(str(out)) as film:
        image = next(film.decode(video=0)).to_ndarray(format="rgb24")
    plain = picture(0, (239, 179) if "odd" in name else (240, 180))
    corner = plain[-20:, -20:]
    assert np.abs(image[-20:, -20:].astype(int) - corner[:, :]).mean() < 6  # nothing is drawn there


@pytest.mark.parametrize(
    ("source", "codec", "out", "kept"),
    [
        ("in.mkv", "pcm_s16le", "out.mp4", "aac"),
        ("in.webm", "libopus", "out.mov", "aac"),
        ("in.webm", "libopus", "out.mkv", "opus"),
        ("in.ts", "aac", "out.mp4", "aac"),
        ("in.mp4", "aac", "out.mkv", "aac"),
        ("in.mkv", "pcm_s16le", "out.mkv", "pcm_s16le"),  # whose packets share a millisecond
        ("in.mkv", "wavpack", "out.mkv", "wavpack"),  # one packet of unknown duration
    ],
)
def test_sound_goes_into_any_container(tmp_path: Path, source: str, codec: str, out: str, kept: str) -> None:
    video = "libvpx" if source.endswith("webm") else "libx264"
    write_film(tmp_path / source, codec=video, sound=codec)
    with VideoFile(tmp_path / source) as film, VideoWriter(tmp_path / out, sound=tmp_path / source) as writer:
        times = [time for image, time in film if writer.write(image, time) is None]
        writer.finish()
    assert frame_times(tmp_path / out) == pytest.approx(times, abs=1e-3)
    with av.open(str(tmp_path / out)) as film:
        assert film.streams.audio[0].codec.canonical_name == kept
        frames = list(film.decode(audio=0))
    assert sum(frame.samples for frame in frames) / frames[0].rate == pytest.approx(1, abs=0.06)
    assert frames[0].time == pytest.approx(0, abs=0.03)
    assert np.abs(np.concatenate([frame.to_ndarray().ravel() for frame in frames]).astype(float)).max() > 0.2


@pytest.mark.parametrize(("codec", "rate"), [("libmp3lame", 8000), ("wmav2", 48_000)])
def test_sound_of_old_cameras(recognizer: EmotionRecognizer, tmp_path: Path, codec: str, rate: int) -> None:
    """FFmpeg would refuse the whole file: such MP3, and WMA's last frame, which has no time."""
    write_film(tmp_path / "in.avi", sound=codec, rate=rate)
    run(recognizer, tmp_path / "in.avi", out=tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as film:
        assert film.streams.audio[0].codec.canonical_name == "aac"
        assert sum(frame.samples / frame.rate for frame in film.decode(audio=0)) == pytest.approx(1, abs=0.2)


def test_sound_that_cannot_be_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the user would get a traceback, and nothing of what was done: here the sound changes its form midway."""
    source, out, table = (tmp_path / name for name in ("in.ts", "out.mp4", "o.csv"))
    for channels in ("mono", "stereo"):
        write_film(tmp_path / f"{channels}.ts", sound="libmp3lame", rate=8000, channels=channels)
    source.write_bytes((tmp_path / "mono.ts").read_bytes() + (tmp_path / "stereo.ts").read_bytes())
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--threads", "1"]
    assert main(["video", str(source), *options, "--out", str(out), "--csv", str(table)]) == 2
    error = capsys.readouterr().err
    assert f"what was done until then is in {out}, {table}" in error
    assert "fer: error: cannot write" in error
    assert 10 < len(frame_times(out)) < 50


def turned(file: Path) -> None:
    """Write into a film that it is to be turned clockwise by 90 degrees, as telephones do."""
    content = bytearray(file.read_bytes())
    matrix = content.index(b"tkhd") + 44
    turn = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turn)
    file.write_bytes(content)


def test_turned_film(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_film(source, range(0, 2560, 512))
    turned(source)
    run(recognizer, source, out=out)
    with av.open(str(out)) as film:
        frame = next(film.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (180, 240, 0)
        seen = frame.to_ndarray(format="rgb24").astype(int)
    expected = np.rot90(picture(0), -1)
    assert np.abs(seen[190:] - expected[190:]).mean() < 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "cannot read"),
        (b"There is text in this film.\n" * 50, "cannot read"),
        ("sound", "it holds no video"),
        ("gone", "No such file"),
        ("folder", "cannot read"),
    ],
)
def test_what_is_not_a_film(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str, message: str
) -> None:
    source = tmp_path / "in.mp4"
    if content == "sound":
        with av.open(str(source), "w") as film:
            tone = film.add_stream("aac", 48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
            frame.rate = 48_000
            film.mux([*tone.encode(frame), *tone.encode(None)])
    elif content == "folder":
        source.mkdir()
    elif isinstance(content, bytes):
        source.write_bytes(content)
    names = [str(tmp_path / name) for name in ("out.mp4", "o.csv", "o.png")]
    options = ["--checkpoint", str(checkpoint), "--out", names[0], "--csv", names[1], "--plot", names[2]]
    assert main(["video", str(source), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(source) in error
    assert not [name for name in names if Path(name).exists()]


def test_film_without_pictures(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    write_film(tmp_path / "in.mkv", range(0, 5120, 512))
    content = (tmp_path / "in.mkv").read_bytes()
    (tmp_path / "in.mkv").write_bytes(content[: content.index(b"\x1f\x43\xb6\x75")])  # before the first cluster
    with pytest.raises(CameraError, match="cannot read"):
        run(
            recognizer, tmp_path / "in.mkv", out=tmp_path / "out.mp4", csv=tmp_path / "out.csv", plot=tmp_path / "p.png"
        )
    assert [file.name for file in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize("older", [False, True])
def test_cut_off_film(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], older: bool) -> None:
    source, out, table, plot = (tmp_path / name for name in ("in.mp4", "out.mp4", "o.csv", "o.pdf"))
    write_film(source, range(0, 51_200, 512), sound="aac", options={"movflags": "faststart"})
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 6 // 10])
    if older:
        out.write_bytes(b"an older result")
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--threads", "1"]
    assert main(["video", str(source), *options, "--out", str(out), "--csv", str(table), "--plot", str(plot)]) == 2
    kept = tmp_path / "out.part.mp4" if older else out
    assert 20 < len(frame_times(kept)) < 100
    assert len(rows_of(table)) == len(frame_times(kept))
    assert plot.read_bytes().startswith(b"%PDF")
    error = capsys.readouterr().err
    assert str(kept) in error
    assert f"fer: error: {source}" in error
    if older:
        assert out.read_bytes() == b"an older result"


def test_an_older_result_stays_until_the_new_one_is_whole(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_film(source, range(0, 5120, 512))
    out.write_bytes(b"an older result")
    run(recognizer, source, out=out)
    assert len(frame_times(out)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "out.avi"], r"cannot write .*out\.avi: its name must end in \.mp4 or \.mov or \.mkv"),
        (["--csv", "out.txt"], r"must end in \.csv"),
        (["--plot", "out.jpg"], r"must end in \.png or \.svg or \.pdf"),
        (["--out", "in.part.mp4"], "would destroy the video itself"),
        (["--out", "link.mp4"], "would destroy the video itself"),
        (["--out", "in.mp4"], "would destroy the video itself"),  # by way of in.part.mp4
        (["--out", "folder.mp4"], "it is a folder"),
    ],
)
def test_settings_are_checked_before_any_work(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: Sequence[str],
    message: str,
) -> None:
    source = tmp_path / "in.part.mp4"
    write_film(source, range(0, 1024, 512))
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    (tmp_path / "folder.mp4").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["video", str(source), "--checkpoint", "there is none", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert source.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(recognizer: EmotionRecognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first failure is told, and no film is promised that cannot be played."""
    write_film(tmp_path / "in.mp4", range(0, 25_600, 512), size=(480, 360))
    for name in ("out.part.mp4", "plot.part.png"):
        (tmp_path / name).symlink_to("/dev/full")
    out, table, plot = (tmp_path / name for name in ("out.mp4", "o.csv", "plot.png"))
    with pytest.raises(OSError, match=r"No space left.*out\.part\.mp4"):
        run(recognizer, tmp_path / "in.mp4", out=out, csv=table, plot=plot)
    assert f"what was done until then is in {table}\n" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"in.mp4", "o.csv"}


def test_what_is_in_the_way_is_named(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    write_film(tmp_path / "in.mp4", range(0, 1024, 512))
    (tmp_path / "out.part.mp4").mkdir()
    with pytest.raises(OSError, match=r"out\.part\.mp4"):
        run(recognizer, tmp_path / "in.mp4", out=tmp_path / "out.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="these names are not allowed there")
@pytest.mark.parametrize("name", ["12:30.mp4", "a%03d.mp4", "été 日本.mp4", os.fsdecode(b"caf\xe9.mkv")])
def test_any_name_that_a_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """FFmpeg would take the first for an address, of a protocol that it does not know."""
    monkeypatch.chdir(tmp_path)
    with VideoWriter(Path(name)) as writer:
        writer.write(picture(0), 0.0)
    with VideoFile(name) as film:
        assert len(list(film)) == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_interrupted(checkpoint: Path, tmp_path: Path) -> None:
    source, out, table = tmp_path / "in.mp4", tmp_path / "out.mp4", tmp_path / "o.csv"
    write_film(source, range(0, 204_800, 512), sound="aac")  # sixteen seconds
    options = ["--checkpoint", checkpoint, "--device", "cpu", "--threads", "1", "--out", out, "--csv", table]

    def hear_interrupts() -> None:  # a job in the background, as CI may be, inherits that they are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    code = "import sys; from fer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "video", source, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts) as process:
        part = tmp_path / "o.part.csv"
        wait_for(lambda: process.poll() is not None or (part.exists() and part.stat().st_size > 4000))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        message = process.stderr.read()
        assert process.wait(PATIENCE) == 130
    assert "Traceback" not in message
    assert str(out) in message
    count = len(frame_times(out))
    assert 20 < count < 400
    assert len(rows_of(table)) == count
    assert 0 < len(sound_packets(out)) < len(sound_packets(source))


class Constant:
    """A detector that is quick: it says that the face is where the test put it."""

    name = "constant"

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        return [Face(image.shape[1] / 4, image.shape[0] / 4, image.shape[1] / 4, image.shape[0] / 3, 0.9)]


def test_memory_does_not_grow_with_the_film(checkpoint: Path, tmp_path: Path) -> None:
    quick = EmotionRecognizer.load(checkpoint, device="cpu", detector=Constant())
    write_film(tmp_path / "in.mp4", range(0, 512 * 400, 512), sound="aac")
    process, used = psutil.Process(), []
    with VideoFile(tmp_path / "in.mp4") as film:
        for _, result in annotate(quick, film, out=tmp_path / "out.mp4", csv=tmp_path / "out.csv"):
            if result.index in (150, 399):
                used.append(process.memory_info().rss)
    assert used[1] - used[0] < 12e6  # kept frames would be 32 MB


def test_stops_at_the_limit(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    write_film(tmp_path / "in.mp4", sound="aac")
    with VideoFile(tmp_path / "in.mp4") as film:
        results = list(annotate(recognizer, film, out=tmp_path / "out.mp4", limit=0.4))
    assert [result.index for _, result in results] == list(range(10))
    with av.open(str(tmp_path / "out.mp4")) as film:
        assert film.duration / av.time_base == pytest.approx(0.4, abs=0.05)  # the sound stops there too
