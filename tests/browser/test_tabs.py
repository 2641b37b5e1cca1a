"""The Image and Model tabs in a real browser: what a visitor does there, by mouse and by keyboard."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from conftest import Visit
from patience import PATIENCE
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright").expect

PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(np.hstack([PHOTO, PHOTO[:, ::-1]])).save(folder / "pair.jpg")
    Image.fromarray(skimage.data.rocket()).save(folder / "rocket.jpg")
    Image.fromarray(PHOTO).save(folder / "photo.jpg")
    (folder / "a <b>broken file.jpg").write_text("no pixels")
    return folder


def test_pictures(visit: Visit, pictures: Path) -> None:
    page = visit()
    page.get_by_role("tab", name="Image").click()
    names = ("pair.jpg", "rocket.jpg", "a <b>broken file.jpg", "photo.jpg")
    page.locator("input[type=file]:not([accept*=video])").first.set_input_files([pictures / name for name in names])
    expect(page.get_by_role("heading", name="3 faces in 3 pictures")).to_be_visible()
    cards = page.locator(".fer-face:visible")
    expect(cards).to_have_count(3)
    shares = [float(share.rstrip("%")) for share in cards.first.locator("td:last-child").all_text_contents()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    broken = page.get_by_role("alert").filter(has_text="cannot read")
    expect(broken).to_contain_text("broken file.jpg: it is not an image of a known format")
    assert broken.locator("b").count() == 0
    expect(page.get_by_text("rocket.jpg: No face found")).to_be_visible()
    shown = page.get_by_alt_text("pair.jpg: happy, happy").first
    expect(shown).to_have_js_property("naturalWidth", 1024)

    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").press("Enter")
    with Path(download.value.path()).open(newline="") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == ["pair.jpg", "pair.jpg", "photo.jpg"]
    page.get_by_text("All faces as a table").press("Enter")
    expect(page.get_by_role("region", name="All faces").locator("tbody tr")).to_have_count(3)

    page.get_by_label("Clear").locator("visible=true").first.click()
    expect(cards).to_have_count(0)
    expect(page.get_by_text("Choose, drop or paste pictures").locator("visible=true")).to_be_visible()


def test_snapshot(visit: Visit) -> None:
    page = visit()
    page.get_by_role("tab", name="Image").click()
    choice = page.get_by_label("Capture from camera")
    assert choice.evaluate(
        "e => e.getBoundingClientRect().bottom <= e.closest('.block').getBoundingClientRect().bottom"
    )
    choice.click()
    page.get_by_text("Click to Access Webcam").locator("visible=true").click()
    page.get_by_label("capture photo").locator("visible=true").click()
    expect(page.get_by_role("heading", name="1 face in 1 picture")).to_be_visible()


def test_examples_on_the_page_work(visit: Visit, pictures: Path) -> None:
    """Copied as they stand, they answer: the page fills in its own address."""
    page = visit(width=390)
    page.get_by_role("tab", name="Image").click()
    page.get_by_role("button", name="Use it from a program").press("Enter")
    examples = page.locator(".fer-api pre code")
    expect(examples.first).to_contain_text(page.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    python, upload, data_url = examples.all_text_contents()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    commands = [sys.executable, "-c", f"{python}\nprint(faces)"], ["bash", "-c", upload], ["bash", "-c", data_url]
    for command in commands:
        run = subprocess.run(command, cwd=pictures, capture_output=True, text=True, env=environment, timeout=PATIENCE)
        assert "happy" in run.stdout, run.stderr
        assert "probabilities" in run.stdout


def test_model(visit: Visit) -> None:
    page = visit()
    page.get_by_role("tab", name="Model").click()
    expect(page.get_by_role("heading", name="cnn-cp-trl")).to_be_visible()
    expect(page.get_by_alt_text("Confusion matrix")).to_have_js_property("complete", True)
    expect(page.get_by_text("32 × (256 + 3 + 3 + 7) = 8,608 parameters")).to_be_visible()

    page.get_by_label("range slider for Rank").press("ArrowRight")
    expect(page.get_by_text("33 × (256 + 3 + 3 + 7) = 8,877 parameters")).to_be_visible()
    tiles = page.locator(".fer-tiles")
    before = tiles.inner_html()
    page.get_by_role("button", name="Next step").press("Enter")
    expect(tiles).not_to_have_js_property("innerHTML", before)

    choice = page.get_by_role("combobox", name="Checkpoint").locator("visible=true")
    choice.press("ArrowUp")
    page.get_by_role("option", name="guide-cnn").click()
    expect(page.get_by_role("heading", name="guide-cnn")).to_be_visible()
    expect(page.get_by_text("100 × (64 + 13 + 13 + 7) = 9,700 parameters")).to_be_visible()
