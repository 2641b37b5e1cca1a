"""A user would lose the page: what each tab is for, for everybody, on any screen, without a word to another machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from conftest import Visit, shoot, tries
from films import write_film
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright").expect
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs axe: pip install axe-playwright-python"
)

PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face

#: What Gradio's own markup does wrong: a label on the <div> of an empty answer, and a button within a button.
GRADIO = {
    "aria-prohibited-attr": '<div aria-label="Empty value"',
    "nested-interactive": '<button class="icon-button',
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    Image.fromarray(np.hstack([PHOTO, PHOTO[:, ::-1]])).save(folder / "pair.jpg")
    Image.fromarray(PHOTO).save(folder / "one.jpg")
    write_film(folder / "film.mp4", range(0, 8 * 512, 512))
    return folder


def choose(page: Any, name: str) -> Any:
    """Open a tab; gives its panel."""
    page.get_by_role("tab", name=name, exact=True).click()
    return page.get_by_role("tabpanel").and_(page.locator(":visible"))


def audit(page: Any) -> list[str]:
    """What axe finds that keeps people out."""
    return [
        f"{violation['id']}: {node['html'][:200]} {json.dumps(node['any'])[:300]}"
        for violation in axe.Axe().run(page).response["violations"]
        for node in violation["nodes"]
        if violation["impact"] in ("serious", "critical")
        and not node["html"].startswith(GRADIO.get(violation["id"], "no such markup"))
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_every_tab_for_everybody(visit: Visit, files: Path, scheme: str, width: int) -> None:
    page = visit(scheme=scheme, width=width)
    wrong = []

    def check(name: str) -> None:
        found: list[str] = []
        for _ in tries(page):  # what is still fading in is too pale
            before, found = found, audit(page)
            if found == before:
                break
        shoot(page, name)
        wrong.extend(f"{name}: {violation}" for violation in found)
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong.append(f"{name} is wider than the screen")

    check("live-off")
    page.get_by_role("button", name="Start the camera").click()
    page.locator(".fer-who", has_text="Person").wait_for()
    page.wait_for_timeout(3000)
    check("live")

    panel = choose(page, "Image")
    panel.locator("input[type=file]").first.set_input_files([files / "pair.jpg", files / "one.jpg"])
    expect(panel.locator(".fer-face")).to_have_count(3)
    check("image")

    panel = choose(page, "Video")
    panel.locator("input[type=file]").first.set_input_files(files / "film.mp4")
    panel.get_by_role("button", name="Analyse").click()
    expect(panel.locator("video")).to_have_count(2)
    check("video")

    panel = choose(page, "Model")
    expect(panel.get_by_role("heading", name="cnn-cp-trl")).to_be_visible()
    check("model")
    assert not wrong, "\n".join(wrong)


def test_keyboard_reaches_every_control_of_the_live_tab(visit: Visit) -> None:
    page = visit()
    page.get_by_role("tab", name="Live").focus()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className"))
    wanted = {"start", "mirror", "bars", "smoothing", "checkpoint", "detector", "size"}
    assert {f"fer-{name}" for name in wanted} <= {name for names in reached for name in names.split()}
