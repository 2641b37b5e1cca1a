"""A visitor would lose the Video tab: choosing a film, progress, results, and a way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from films import write_film

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright").expect
Visit = Callable[..., Any]

SCREENSHOTS = Path(__file__).parents[2] / "runs" / "screenshots"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a moving face."""
    file = tmp_path_factory.mktemp("clip") / "a film.mp4"
    write_film(file, range(0, 512 * 75, 512), size=(640, 480), sound="aac")
    return file


def choose(page: Any, file: Path) -> None:
    page.get_by_role("tab", name="Video").click()
    page.locator(".fer-film input[type=file]").set_input_files(file)
    expect(page.locator(".fer-film video").first).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_results(visit: Visit, clip: Path, scheme: str, width: int) -> None:
    page = visit(scheme=scheme, width=width)
    choose(page, clip)
    assert page.get_by_role("button", name="Trim").count() == 0  # it would fetch FFmpeg from another host
    page.get_by_role("button", name="Analyse").click()
    expect(page.locator(".fer-people tbody tr")).to_have_count(1)
    result = page.locator(".fer-film video").nth(1)
    expect(result).to_have_js_property("videoWidth", 640)  # the browser plays it
    assert result.evaluate("video => video.duration") == pytest.approx(3, abs=0.1)
    expect(page.get_by_alt_text("How probable each emotion was over time")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all faces as CSV").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 1 + 75
    page.screenshot(path=SCREENSHOTS / f"video-{scheme}{'-phone' * (width < 600)}.png", full_page=True)


def test_recording(visit: Visit) -> None:
    """What browsers record tells neither its length nor its number of frames."""
    page = visit()
    page.get_by_role("tab", name="Video").click()
    page.get_by_label("Capture from camera").click()
    page.locator(".fer-film").get_by_text("Click to Access Webcam").click()
    page.locator(".fer-film button", has_text="Record").click()
    page.wait_for_timeout(2000)
    page.locator(".fer-film button", has_text="Stop").click()
    page.get_by_role("button", name="Clear").wait_for()
    page.get_by_role("button", name="Analyse").click()
    expect(page.locator(".fer-people tbody tr")).to_have_count(1)


def test_cancel(visit: Visit, long_film: Path) -> None:
    page = visit()
    choose(page, long_film)
    start, cancel = (page.get_by_role("button", name=name) for name in ("Analyse", "Cancel"))
    expect(cancel).to_be_disabled()
    start.click()
    expect(page.get_by_role("progressbar", name="Analysing")).to_be_visible()
    expect(start).to_be_disabled()
    cancel.click()
    expect(page.get_by_text("Cancelled.")).to_be_visible()
    expect(start).to_be_enabled()


def test_what_is_not_a_film(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "notes <b>.mp4").write_text("There is text in this film.")
    page = visit()
    page.get_by_role("tab", name="Video").click()
    page.locator(".fer-film input[type=file]").set_input_files(tmp_path / "notes <b>.mp4")
    page.get_by_role("button", name="Clear").wait_for()
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("alert").filter(has_text="cannot read notes")).to_be_visible()
