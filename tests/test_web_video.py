"""A visitor would lose the Video tab's results, their privacy, or their turn, if any of these failed."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import av
import pytest
from films import frame_times, write_film
from gradio_page import Message, answer, asking, get, launched, post
from patience import wait_for

from fer.config import AppConfig
from fer.recognizer import EmotionRecognizer
from fer.web_common import gr
from fer.web_video import video_tab

META = {"_type": "gradio.FileData"}


class Page:
    """The tab as a browser talks to it."""

    def __init__(self, app: gr.Blocks, work: Path) -> None:
        self.app, self.url, self.work = app, app.local_url, work
        self.address = f"{self.url}gradio_api"
        self.functions = {function.name: number for number, function in app.fns.items()}
        self.visits = 0

    def upload(self, file: Path) -> dict[str, Any]:
        (path,) = post(f"{self.address}/upload", files={"files": (file.name, file.read_bytes())}).json()
        return {"path": path, "orig_name": file.name, "meta": META}

    def press(self, ask: Callable[..., Any], upload: dict[str, Any] | None) -> Any:
        """Press the button, as a new visitor."""
        self.visits += 1
        return ask(self.url, self.functions["analyse"], [upload], f"visit{self.visits}")

    def analysing(self, upload: dict[str, Any] | None) -> AbstractContextManager[tuple[Message, Iterator[Message]]]:
        return self.press(asking, upload)

    def result(self, upload: dict[str, Any] | None) -> list[Any]:
        """What the tab shows in the end: words, video, plot, table, and the two buttons."""
        last = self.press(answer, upload)
        assert last["success"]
        return list(last["output"]["data"])

    def leave(self, request: Message) -> None:
        post(f"{self.address}/cancel", json=request).raise_for_status()

    def cancel(self, request: Message) -> None:
        """Press the button."""
        event = {"fn_index": self.functions["stop_analysing"], "session_hash": request["session_hash"], "data": []}
        post(f"{self.address}/run/predict", json=event).raise_for_status()

    def fetch(self, data: dict[str, Any], file: Path) -> Path:
        file.write_bytes(get(f"{self.address}/file={data['path']}").raise_for_status().content)
        return file

    def wait(self, at_work: bool) -> None:
        """Until there are files of some work, or none any more."""
        wait_for(lambda: any(self.work.iterdir()) == at_work)


@pytest.fixture(scope="module")
def page(recognizer: EmotionRecognizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page whose work can be watched."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(tempfile, "tempdir", str(work))
        app = gr.Blocks()
        with app:
            video_tab(recognizer, AppConfig(), Path(app.GRADIO_CACHE).resolve())
        with launched(app):
            yield Page(app, work)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("films") / "film.mp4"
    write_film(file, sound="aac", options={"movflags": "faststart"})
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
    assert not page.press(answer, stolen)["success"]
    ((said, video, *_),) = page.app.fns[page.functions["analyse"]].fn(stolen, gr.Request(session_hash="thief"))
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


def test_full_disk(page: Page, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tab would wait for ever, with its button locked."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a file that no byte fits into")
    upload = page.upload(film)
    (tmp_path / "faces.csv").symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: nullcontext(str(tmp_path)))
    said, *_, start, cancel = page.result(upload)
    assert "cannot be written: No space left on device" in said
    assert (start["interactive"], cancel["interactive"]) == (True, False)


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
            page.leave(request)
        assert len(list(page.work.iterdir())) == 1
    page.wait(at_work=False)  # the first visitor has left
    with page.analysing(upload) as (request, events):
        page.wait(at_work=True)
        page.cancel(request)
        told = [next(events)]
        while told[-1]["msg"] != "process_completed":
            told.append(next(events))
        assert "Cancelled." in json.dumps(told[-2:])  # nothing is told after it
        page.wait(at_work=False)


def test_endpoints_are_not_for_programs(page: Page) -> None:
    info = get(f"{page.address}/info").json()
    assert info == {"named_endpoints": {}, "unnamed_endpoints": {}}
