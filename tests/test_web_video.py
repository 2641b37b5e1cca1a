"""A visitor would lose the Video tab's results, their privacy, or their turn, if any of these failed."""

import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
import torch
from films import frame_times, write_film

from fer.checkpoint import save_checkpoint
from fer.config import AppConfig, Config, ModelConfig, TrainConfig
from fer.faces import RetinaFace
from fer.models import create_model
from fer.recognizer import EmotionRecognizer
from fer.web_common import gr
from fer.web_video import video_tab

Event = dict[str, Any]

META = {"_type": "gradio.FileData"}


class Page:
    """The tab as a browser talks to it."""

    def __init__(self, app: gr.Blocks, work: Path) -> None:
        self.app, self.address, self.work = app, f"{app.local_url}gradio_api", work
        self.functions = {function.name: number for number, function in app.fns.items()}
        self.visits = 0

    def upload(self, file: Path) -> dict[str, Any]:
        answer = httpx.post(f"{self.address}/upload", files={"files": (file.name, file.read_bytes())})
        return {"path": answer.json()[0], "orig_name": file.name, "meta": META}

    @contextmanager
    def analysing(self, upload: dict[str, Any] | None) -> Iterator[tuple[dict[str, Any], Iterator[Event]]]:
        """Press the button; what names the request, and the events that come back until the visitor leaves."""
        self.visits += 1
        visit = {"session_hash": f"visit{self.visits}", "fn_index": self.functions["analyse"]}
        joined = httpx.post(f"{self.address}/queue/join", json=visit | {"data": [upload]})
        address = f"{self.address}/queue/data?session_hash={visit['session_hash']}"
        with httpx.stream("GET", address, timeout=60) as stream:
            lines = (line[6:] for line in stream.iter_lines() if line.startswith("data: "))
            yield visit | joined.json(), map(json.loads, lines)

    def result(self, upload: dict[str, Any] | None) -> list[Any]:
        """What the tab shows in the end: words, video, plot, table, and the two buttons."""
        with self.analysing(upload) as (_, events):
            last = next(event for event in events if event["msg"] == "process_completed")
        assert last["success"]
        return list(last["output"]["data"])

    def fetch(self, data: dict[str, Any], file: Path) -> Path:
        file.write_bytes(httpx.get(f"{self.address}/file={data['path']}").raise_for_status().content)
        return file

    def wait(self, at_work: bool) -> None:
        """Until there are files of some work, or none any more."""
        end = time.monotonic() + 20
        while any(self.work.iterdir()) != at_work:
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page with a small untrained network, whose work can be watched."""
    folder, work = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    config = Config("tiny", ModelConfig(trunk="cnn", rank=4), TrainConfig())
    save_checkpoint(folder, create_model(config.model), config)
    recognizer = EmotionRecognizer.load(folder, device="cpu", detector=RetinaFace(threads=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(tempfile, "tempdir", str(work))
        app = gr.Blocks()
        with app:
            video_tab(recognizer, AppConfig(), Path(app.GRADIO_CACHE).resolve())
        app.launch(prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False)
        yield Page(app, work)
        app.close(verbose=False)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("films") / "film.mp4"
    write_film(file, sound="aac", options={"movflags": "faststart"})
    return file


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than can be done while a test looks."""
    file = tmp_path_factory.mktemp("films") / "long.mp4"
    write_film(file, range(0, 512 * 1500, 512))
    return file


def test_results(page: Page, film: Path, tmp_path: Path) -> None:
    said, video, plot, table, start, cancel = page.result(page.upload(film))
    assert "<td>1.0 s</td>" in said
    assert frame_times(page.fetch(video, tmp_path / "v.mp4")) == pytest.approx(frame_times(film))
    with av.open(str(tmp_path / "v.mp4")) as result:
        assert result.streams.audio
    assert page.fetch(plot["value"], tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(page.fetch(table["value"], tmp_path / "t.csv").read_text().splitlines()) == 1 + 25
    assert (table["interactive"], start["interactive"], cancel["interactive"]) == (True, True, False)
    page.wait(at_work=False)


def test_nothing_chosen(page: Page) -> None:
    assert "Choose or record a video" in page.result(None)[0]


def test_files_of_the_server_stay_private(page: Page, film: Path) -> None:
    """Gradio refuses this kind of file by itself; the tab does not rely on it."""
    stolen = {"path": str(film), "orig_name": "film.mp4", "meta": META}
    with page.analysing(stolen) as (_, events):
        assert not next(event for event in events if event["msg"] == "process_completed")["success"]
    ((said, video, *_),) = page.app.fns[page.functions["analyse"]].fn(stolen)
    assert "was not uploaded" in said
    assert video is None


def test_what_is_not_a_film(page: Page, tmp_path: Path) -> None:
    for content in (b"There is text in this film.", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"):
        (tmp_path / "a <b>film.mp4").write_bytes(content)
        upload = page.upload(tmp_path / "a <b>film.mp4")
        said = page.result(upload)[0]
        assert 'role="alert"' in said
        assert "cannot read" in said
        assert upload["path"] not in said
        assert "<b>" not in said
    page.wait(at_work=False)


def test_cut_off_film(page: Page, film: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size * 6 // 10])
    said, video, *_ = page.result(page.upload(cut))
    assert 'role="alert"' in said
    assert "fer-people" in said
    assert 2 < len(frame_times(page.fetch(video, tmp_path / "v.mp4"))) < 25


def test_long_films_are_cut(page: Page, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fer.web_video.LIMIT", 0.5)
    said, video, *_ = page.result(page.upload(film))
    assert "Only the first" in said
    assert len(frame_times(page.fetch(video, tmp_path / "v.mp4"))) == 13


def test_one_at_a_time_and_who_leaves_or_cancels_frees_the_files_and_the_place(page: Page, long_film: Path) -> None:
    upload = page.upload(long_film)
    with page.analysing(upload) as (_, events):
        assert any(re.search(r"0:[0-5][1-9] of 1:00", json.dumps(event)) for event in events)  # there is progress
        page.wait(at_work=True)
        with page.analysing(upload) as (request, waiting):
            assert next(waiting)["msg"] == "estimation"
            assert len(list(page.work.iterdir())) == 1
            httpx.post(f"{page.address}/cancel", json=request)
        assert len(list(page.work.iterdir())) == 1
    page.wait(at_work=False)  # the first visitor has left
    with page.analysing(upload) as (request, events):
        page.wait(at_work=True)
        httpx.post(f"{page.address}/cancel", json=request, timeout=20)
        page.wait(at_work=False)


def test_endpoints_are_not_for_programs(page: Page) -> None:
    info = httpx.get(f"{page.address}/info").json()
    assert info == {"named_endpoints": {}, "unnamed_endpoints": {}}
