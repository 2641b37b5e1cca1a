"""A user would lose the Live tab: the camera, and answers that are right, quick to follow and their own."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Visit, patient_page, shoot, tries
from numpy.typing import NDArray
from PIL import Image

from fer import EmotionRecognizer
from fer.emotions import EMOTIONS
from fer.faces import Face, RetinaFace
from fer.records import FACE_COLUMNS

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright").expect

#: Share of a face's size by which the box may be off.
NEAR = 0.1

#: In the page, at one instant: what the camera shows, and where the overlay's yellow box for "happy" begins and ends.
LOOK = """() => {
  const video = document.querySelector(".fer-video"), overlay = document.querySelector(".fer-overlay");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const {width, height} = overlay, pixels = overlay.getContext("2d").getImageData(0, 0, width, height).data;
  const found = {left: 1, right: 0, bottom: 0};
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i] < 200 || pixels[i + 1] < 190 || pixels[i + 2] > 120 || pixels[i + 3] < 250) continue;
    const x = (i / 4) % width / width, y = Math.floor(i / 4 / width) / height;
    found.left = Math.min(found.left, x); found.right = Math.max(found.right, x);
    found.bottom = Math.max(found.bottom, y);
  }
  return [canvas.toDataURL("image/jpeg", 0.95), found];
}"""


#: How many pixels of the overlay are not transparent.
DRAWN = """() => {
  const overlay = document.querySelector(".fer-overlay"), {width, height} = overlay;
  const pixels = overlay.getContext("2d").getImageData(0, 0, width, height).data;
  return pixels.filter((value, i) => i % 4 == 3 && value).length;
}"""


@pytest.fixture(scope="module")
def offline() -> EmotionRecognizer:
    """The page's recogniser, without the page."""
    return EmotionRecognizer.load("cnn-cp-trl", device="cpu", detector=RetinaFace(threads=1))


def begin(page: Any) -> None:
    page.get_by_role("button", name="Start the camera").click()
    page.locator(".fer-who", has_text="Person").wait_for()


def pixels(url: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def exchanges(page: Any, number: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The next frames that the page sends, each with its answer."""
    found = []
    for _ in range(number):
        with page.expect_response("**/component_server/") as waiting:
            pass
        found.append((json.loads(waiting.value.request.post_data)["data"], waiting.value.json()))
    return found


def test_answers_are_those_of_the_recogniser(visit: Visit, offline: EmotionRecognizer) -> None:
    page = visit()
    page.get_by_label("Smoothing").fill("0")
    begin(page)
    places = set()
    for _ in tries(page):
        ((sent, answer),) = exchanges(page, 1)
        image = pixels(sent["image"])
        assert image.shape == (480, 640, 3)
        (expected,) = offline.analyze(image)
        (face,) = answer["faces"]
        assert face["box"] == pytest.approx(expected.box, abs=NEAR * expected.face.height)
        assert face["emotion"] == expected.emotion
        assert face["probabilities"] == pytest.approx(list(expected.probabilities.values()), abs=0.02)
        places.add(face["box"][0])
        if len(places) == 4:
            break
    best = expected.emotion.label
    expect(page.locator(".fer-who")).to_have_text(re.compile(f": {best}$"))
    expect(page.locator(".fer-heard")).to_have_text(re.compile(f"Person \\d+: {best}"))
    expect(page.get_by_role("img", name=re.compile(f"picture. Person \\d+: {best}"))).to_be_visible()
    shares = page.locator(".fer-now td:last-child").all_text_contents()
    assert sum(int(share.rstrip(" %")) for share in shares) == pytest.approx(100, abs=4)


def look(page: Any, offline: EmotionRecognizer, *, mirrored: bool) -> tuple[Face, float]:
    """The face that the camera shows, and by how much of its size its box is off."""
    url, drawn = page.evaluate(LOOK)
    (face,) = offline.detector.detect(pixels(url))
    left = 640 - face.x - face.width if mirrored else face.x
    off = (
        abs(640 * drawn["left"] - left),
        abs(640 * drawn["right"] - left - face.width),
        abs(480 * drawn["bottom"] - face.y - face.height),
    )
    return face, max(off) / face.height


def test_overlay_lies_on_the_face(visit: Visit, offline: EmotionRecognizer) -> None:
    """The film is halted at several places, so that the answer to the very picture that is seen can come."""
    page = visit()
    page.get_by_label("Bars").uncheck()
    begin(page)
    place = 0.0
    for mirrored in (True, False, True):
        page.get_by_label("Mirror").set_checked(mirrored)
        for _ in tries(page):  # an old box would be off by more than may be
            face, _ = look(page, offline, mirrored=mirrored)
            if abs(face.x - place) > 2 * NEAR * face.height:
                break
        page.evaluate("document.querySelector('.fer-video').pause()")
        for _ in tries(page):
            face, off = look(page, offline, mirrored=mirrored)
            if off < NEAR:
                break
        place = face.x
        page.evaluate("document.querySelector('.fer-video').play()")


def test_two_visitors_are_answered_at_once(visit: Visit) -> None:
    pages = [visit(), visit()]
    for page in pages:
        begin(page)
    keys = [{sent["visitor"] for sent, answer in exchanges(page, 3) if answer["faces"]} for page in pages]
    assert all(len(key) == 1 for key in keys)
    assert keys[0] != keys[1]


def test_nothing_is_sent_while_nobody_looks(visit: Visit) -> None:
    page = visit()
    begin(page)
    page.get_by_role("tab", name="Model").click()
    falls_silent(page)
    page.get_by_role("tab", name="Live").click()
    exchanges(page, 1)
    page.evaluate(HIDE, True)
    falls_silent(page)
    page.evaluate(HIDE, False)
    exchanges(page, 1)
    page.get_by_role("button", name="Stop").click()
    falls_silent(page)
    assert page.evaluate("document.querySelector('.fer-video').srcObject") is None  # the camera is off


#: Headless Chromium takes every page for visible, so the browser's own signal is given by hand.
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def falls_silent(page: Any) -> None:
    """Wait until the page sends no frame for a while; some may still be on their way."""
    frames: list[str] = []
    listen = lambda asked: frames.append(asked.url) if "component_server" in asked.url else None  # noqa: E731
    page.on("request", listen)
    for _ in tries(page):
        frames.clear()
        page.wait_for_timeout(1500)
        if not frames:
            break
    page.remove_listener("request", listen)


def test_controls(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    start = page.get_by_role("button", name="Start the camera")
    start.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.locator(".fer-who", has_text="Person").wait_for()

    with page.expect_download() as waiting:
        page.get_by_role("button", name="Snapshot").click()
    assert re.fullmatch(r"fer-[\d-]+T[\d-]+\.png", waiting.value.suggested_filename)
    waiting.value.save_as(tmp_path / "snapshot.png")
    with Image.open(tmp_path / "snapshot.png") as picture:
        assert picture.size == (640, 480)
        colors = {color for _, color in picture.convert("RGB").getcolors(1_000_000) or []}
    assert any(emotion.color in colors for emotion in EMOTIONS), "no box in the snapshot"

    page.get_by_label("Smoothing").focus()
    page.keyboard.press("End")
    assert exchanges(page, 2)[1][0]["smoothing"] == 2
    page.get_by_label("Model").select_option("guide-cnn")
    assert exchanges(page, 2)[1][0]["checkpoint"] == "guide-cnn"
    page.get_by_label("Face detector").select_option("retinaface")
    page.locator(".fer-who", has_text="Person").wait_for()

    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save CSV").click()
    waiting.value.save_as(tmp_path / "faces.csv")
    with (tmp_path / "faces.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("time", "track", *FACE_COLUMNS)
    times = [float(row["time"]) for row in rows]
    assert times == sorted(times)
    for row in rows:
        assert sum(float(row[emotion.label]) for emotion in EMOTIONS) == pytest.approx(1, abs=0.002)
        assert row["confidence"] == row[row["emotion"]]
        assert 0 < int(row["width"]) < 640


def test_camera_refused(visit: Visit) -> None:
    page = visit(camera=False)
    page.get_by_role("button", name="Start the camera").click()
    expect(page.get_by_role("alert")).to_contain_text("The camera was refused. Allow it for this page")
    shoot(page, "refused")
    page.context.grant_permissions(["camera"])
    begin(page)


def test_camera_unplugged(visit: Visit) -> None:
    page = visit()
    begin(page)
    page.evaluate("document.querySelector('.fer-video').srcObject.getTracks()[0].dispatchEvent(new Event('ended'))")
    expect(page.get_by_role("alert")).to_contain_text("The camera has stopped")
    begin(page)


def test_another_camera_in_the_place_of_the_first(visit: Visit) -> None:
    """Else who plugs in another one would have to find out that only loading the page anew helps."""
    page = visit()
    begin(page)
    page.get_by_role("button", name="Stop").click()
    page.evaluate("document.querySelector('.fer-camera').add(new Option('gone', 'gone', true, true), 0)")
    begin(page)


def test_no_camera(launch: Any, url: str) -> None:
    browser = launch()
    page = patient_page(browser.new_context(permissions=["camera"]))
    page.goto(url)
    page.get_by_role("button", name="Start the camera").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no camera. Connect one")
    browser.close()


def test_page_from_another_machine_without_https(visit: Visit, url: str) -> None:
    page = visit(at=url.replace("127.0.0.1", "face.test"))
    page.get_by_role("button", name="Start the camera").click()
    expect(page.get_by_role("alert")).to_contain_text("--ssl-certfile and --ssl-keyfile")


def test_server_is_away_for_a_moment(visit: Visit) -> None:
    page = visit()
    begin(page)
    page.route("**/component_server/", lambda route: route.fulfill(status=200, json={"error": "it is too busy"}))
    expect(page.locator(".fer-pace")).to_have_text("it is too busy")
    expect(page.locator(".fer-heard")).to_have_text("it is too busy")
    expect(page.locator(".fer-who")).to_have_text("Nobody in view")
    assert page.evaluate(DRAWN) == 0  # an old box would stay over a picture that moves on
    page.unroute("**/component_server/")
    expect(page.locator(".fer-pace")).to_contain_text("behind")
    expect(page.locator(".fer-who")).to_contain_text("Person")
    page.route("**/component_server/", lambda _: None)  # it takes the frame and stays silent
    expect(page.locator(".fer-who")).to_have_text("Nobody in view")
    assert page.evaluate(DRAWN) == 0


def test_no_two_persons_have_one_number(visit: Visit) -> None:
    """The server forgets who is away for some seconds, and begins at 1 again; the CSV file goes on."""
    page = visit()
    begin(page)
    ((_, answer),) = exchanges(page, 1)
    highest = max(face["track"] for face in answer["faces"])
    page.route("**/component_server/", lambda route: route.fulfill(status=200, json=answer | {"anew": True}))
    expect(page.locator(".fer-who")).to_have_text(re.compile(rf"Person (?!{highest}:)[2-9]\d*:"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_plain_view_over_https(serve: Any, launch: Any, camera: Path, tmp_path: Path) -> None:
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    with serve("--stream", "--ssl-certfile", str(files[0]), "--ssl-keyfile", str(files[1])) as url:
        assert url.startswith("https://")
        browser = launch("--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}")
        page = patient_page(browser.new_context(permissions=["camera"], ignore_https_errors=True))
        page.goto(url)
        page.get_by_text("Click to Access Webcam").and_(page.locator(":visible")).click()
        page.locator("button:visible", has_text="Record").click()
        seen = page.get_by_alt_text("The camera's picture with a box")
        first = seen.get_attribute("src")
        expect(seen).not_to_have_attribute("src", first)  # the picture moves
        expect(page.locator(".fer-face")).to_have_count(1)
        browser.close()
