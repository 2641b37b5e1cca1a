"""A user would lose the page, the endpoint for programs, or the privacy that the page promises."""

import base64
import csv
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import skimage.data
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_page import answer, get, post
from patience import PATIENCE, wait_for
from PIL import Image

from fer import EmotionRecognizer
from fer.config import AppConfig
from fer.emotions import EMOTIONS
from fer.errors import CheckpointError, ConfigError
from fer.predict import COLUMNS, record
from fer.web import launch, private_folder, start
from fer.web_image import PICTURES

PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face
EYES = ((205, 101), (247, 103))


@pytest.fixture(scope="module")
def recognizer(recognizer: EmotionRecognizer) -> EmotionRecognizer:
    """One that was evaluated."""
    metrics = {"data": "FER2013", "split": "val", "tta": "flip", "accuracy": 0.71, "leak_free_accuracy": 0.7}
    return EmotionRecognizer(replace(recognizer.checkpoint, metrics=metrics), recognizer.detector)


@pytest.fixture(scope="module")
def client(recognizer: EmotionRecognizer) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the client calls home, which is not us
        patch.setenv("no_proxy", "")
        app = start(recognizer, AppConfig(port=0))
        yield talk_to(app.local_url)
        app.close(verbose=False)


def talk_to(url: str) -> Client:
    return Client(url, verbose=False, httpx_kwargs={"timeout": PATIENCE})


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(PHOTO).save(file)
    return file


def upload(url: str, *files: tuple[str, bytes]) -> list[dict[str, Any]]:
    """Files in the page's gallery, as a browser sends them."""
    paths = post(f"{url}gradio_api/upload", files=[("files", file) for file in files]).json()
    kind = {"_type": "gradio.FileData"}
    return [
        {"image": {"path": path, "orig_name": name, "meta": kind}, "caption": None}
        for path, (name, _) in zip(paths, files, strict=True)
    ]


def show(url: str, pictures: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """What the page answers to pictures in its gallery: annotated copies, and HTML."""
    config = get(f"{url}config").json()
    (gallery,) = (c["id"] for c in config["components"] if c["props"].get("label") == "Pictures")
    (event,) = (d["id"] for d in config["dependencies"] if [gallery, "change"] in d["targets"])
    copies, html = answer(url, event, [pictures])["output"]["data"]
    return copies["value"], html


def png(image: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def data_url(image: Any) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def test_predict_gives_each_face(client: Client, photo: Path, recognizer: EmotionRecognizer) -> None:
    (face,) = client.predict(handle_file(photo), api_name="/predict")
    x, y, width, height = face["box"]
    assert all(x < u < x + width and y < v < y + height for u, v in EYES)
    assert 0.6 <= face["score"] <= 1
    assert not face["whole_image"]
    assert list(face["probabilities"]) == [emotion.label for emotion in EMOTIONS]
    (expected,) = recognizer.analyze(PHOTO)
    assert face["emotion"] == expected.emotion.label
    assert face["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    assert list(face["probabilities"].values()) == pytest.approx(list(expected.probabilities.values()), abs=1e-6)


def test_predict_without_a_face(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    Image.fromarray(np.full((200, 300), 128, np.uint8)).save(file)
    assert client.predict(handle_file(file), api_name="/predict") == []


def test_predict_says_what_is_wrong(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "notes.jpg"
    file.write_text("no pixels")
    with pytest.raises(AppError, match=r"cannot read notes\.jpg: it is not an image"):
        client.predict(handle_file(file), api_name="/predict")
    with pytest.raises(AppError, match="expected an image"):
        client.predict(None, api_name="/predict")
    with pytest.raises(AppError, match="expected an uploaded file or a data URL"):
        client.predict({"url": "http://127.0.0.1/photo.jpg"}, api_name="/predict")
    for nonsense in ("a string", {"path": 5}, {"path": None}, {"path": "a.png", "orig_name": 5}):
        with pytest.raises(AppError, match="expected an uploaded file or a data URL"):
            client.predict(nonsense, api_name="/predict")
    with pytest.raises(AppError, match="the image was not uploaded"):
        client.predict({"path": "a\0b"}, api_name="/predict")
    with pytest.raises(AppError, match="30000 x 2000 pixels are too many, at most 50 million"):
        client.predict({"url": data_url(np.zeros((2000, 30_000), bool))}, api_name="/predict")
    with pytest.raises(AppError, match="cannot read the data URL"):
        client.predict({"url": "data:image/png;base64,?"}, api_name="/predict")


def test_files_of_the_server_stay_private(client: Client, photo: Path) -> None:
    with pytest.raises(AppError, match="was not uploaded"):
        client.predict({"path": str(photo)}, api_name="/predict")
    uploaded = Path(upload(client.src, ("a.png", b""))[0]["image"]["path"]).parent
    for path in (photo, f"{uploaded}/{os.path.relpath(photo, uploaded)}"):
        copies, html = show(client.src, [{"image": {"path": str(path)}}])
        assert copies == []
        assert "was not uploaded" in html


def test_many_images_at_once(client: Client, recognizer: EmotionRecognizer) -> None:
    """The broken one is named, and the others are answered as `fer predict` would."""
    pair = np.hstack([PHOTO, PHOTO[:, ::-1]])
    files = {"one.png": PHOTO, "a pair.png": pair, "nobody.png": np.full((200, 300, 3), 128, np.uint8)}
    pictures = upload(client.src, *((name, png(image)) for name, image in files.items()), ("<i>.jpg", b"no pixels"))
    pictures[-1]["image"]["orig_name"] = "<i>.jpg"
    copies, html = show(client.src, pictures)
    assert [copy["caption"].partition(":")[0] for copy in copies] == list(files)
    copy = Image.open(io.BytesIO(base64.b64decode(copies[1]["image"]["url"].partition(",")[2])))
    assert copy.size == (1024, 512)
    assert np.abs(np.asarray(copy, int) - pair).max() > 150  # something is drawn
    assert "cannot read &lt;i&gt;.jpg: it is not an image" in html
    assert "nobody.png: No face found" in html
    assert "<h2>3 faces in 3 pictures</h2>" in html
    found = re.search(r'download="faces.csv" href="data:text/csv;base64,([^"]*)"', html)
    assert found
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))
    expected = [
        record(Path(name), number, face)
        for name, image in files.items()
        for number, face in enumerate(recognizer.analyze(image), start=1)
    ]
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["file"], row["face"], row["emotion"]) for row in rows] == [
        (row["file"], str(row["face"]), row["emotion"]) for row in expected
    ]
    for name in COLUMNS[2:7]:
        assert [float(row[name]) for row in rows] == pytest.approx([row[name] for row in expected])


def test_too_many_images(client: Client) -> None:
    (picture,) = upload(client.src, ("face.png", png(PHOTO[60:180:3, 170:290:3])))
    copies, html = show(client.src, [picture] * (PICTURES + 2))
    assert len(copies) == PICTURES
    assert f"2 pictures left out: at most {PICTURES} are analysed at once" in html


def test_gallery_says_what_is_missing(client: Client) -> None:
    assert "Choose, drop or paste" in show(client.src, [])[1]
    (picture,) = upload(client.src, ("gone.png", png(PHOTO)))
    Path(picture["image"]["path"]).unlink()
    copies, html = show(client.src, [picture])
    assert copies == []
    assert "gone.png is no longer there" in html
    (picture,) = upload(client.src, ("nobody.png", png(np.full((200, 300, 3), 128, np.uint8))))
    assert unescape(show(client.src, [picture])[1]).count("No face found") == 1


def test_predict_is_the_only_endpoint(client: Client) -> None:
    """The page's own are not for programs: a client fails on a stream."""
    api = client.view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/predict"]
    assert not api["unnamed_endpoints"]


def test_nothing_is_asked_outside(recognizer: EmotionRecognizer, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def listen(host: Any, *args: Any, look_up: Any = socket.getaddrinfo, **kwargs: Any) -> Any:
        asked.append(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", listen)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there; this machine needs no proxy
    monkeypatch.setenv("no_proxy", "")
    app = start(recognizer, AppConfig(port=0))
    page = get(app.local_url).text
    assert "It agrees with 70% of the labels" in page
    assert "val split, the mirrored view averaged in, unlike here." in page
    data = [{"path": None, "url": f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}"}]
    call = f"{app.local_url}gradio_api/call/predict"
    event = post(call, json={"data": data}).json()["event_id"]
    assert '"emotion"' in get(f"{call}/{event}").text
    assert set(asked) == {"127.0.0.1"}
    app.close(verbose=False)


@pytest.fixture
def clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Pages keep uploads in ``tmp_path``, and from when this is called for a second only: a slow machine may take
    longer than that to read them."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("fer.web.CLEAN_EVERY", 0.1)
    with private_folder():
        yield lambda: monkeypatch.setattr("fer.web.KEEP", 1)


def test_pictures_are_deleted(
    recognizer: EmotionRecognizer,
    photo: Path,
    tmp_path: Path,
    clean_up: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("no_proxy", "")
    app = start(recognizer, AppConfig(port=0))
    talk_to(app.local_url).predict(handle_file(photo), api_name="/predict")
    show(app.local_url, upload(app.local_url, ("a.png", png(PHOTO))))
    assert {file.name for file in files_in(tmp_path)} == {photo.name, "a.png"}  # answers are not written at all
    clean_up()
    wait_for(lambda: not left_in(tmp_path), lambda: left_in(tmp_path))
    upload(app.local_url, ("b.png", png(PHOTO)))
    wait_for(lambda: not left_in(tmp_path), lambda: left_in(tmp_path))  # not only once
    app.close(verbose=False)


def files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def left_in(folder: Path) -> list[Path]:
    """Files and folders that pages keep; a folder's name tells, as a hash, which picture it held."""
    return list(folder.glob("*/*"))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])  # Ctrl+C, and what systemd and Docker send
def test_nothing_is_left_when_the_server_ends(ending: signal.Signals, tmp_path: Path) -> None:
    """And no other user of the machine can read what is there until then."""
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # CI may start jobs that do not
    command = [sys.executable, "-c", f"{hear}; from fer.cli import main; raise SystemExit(main())", "app"]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "new")}
    with subprocess.Popen(
        [*command, "--checkpoint", "guide-cnn", "--device", "cpu", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as app:
        try:
            assert app.stdout is not None
            (url,) = re.findall(r"http://\S+", app.stdout.readline())
            upload(url, ("a.png", png(PHOTO)))
            (folder,) = (tmp_path / "new").iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            assert [file.name for file in files_in(folder)] == ["a.png"]
            app.send_signal(ending)
            assert app.wait(PATIENCE) == 0
        finally:
            app.kill()
    assert not list((tmp_path / "new").iterdir())


def test_assistants_get_the_same_as_a_tool(
    recognizer: EmotionRecognizer, tmp_path: Path, clean_up: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real MCP client over HTTP; what it sends is deleted as well."""
    mcp = pytest.importorskip("mcp", reason="needs the extra mcp: pip install fer-trl[mcp]")
    http = pytest.importorskip("mcp.client.streamable_http")
    monkeypatch.setenv("no_proxy", "")
    app = start(recognizer, AppConfig(port=0, mcp=True))
    image = data_url(PHOTO)

    async def talk() -> tuple[Any, list[Any]]:
        async with (
            http.streamable_http_client(f"{app.local_url}gradio_api/mcp/") as (reading, writing, _),
            mcp.ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            (tool,) = (await session.list_tools()).tools
            sent = (image, "data:text/plain;base64,bm8=", "/etc/passwd", f"{app.local_url}photo.png")
            return tool, [await session.call_tool(tool.name, {"image": content}) for content in sent]

    tool, (answer, *refusals) = anyio.run(talk)
    assert tool.name == "recognize_facial_expressions"
    assert all(emotion.label in tool.description for emotion in EMOTIONS)
    assert "data URL" in tool.inputSchema["properties"]["image"]["description"]
    (expected,) = recognizer.analyze(PHOTO)
    assert not answer.isError
    assert f"'emotion': '{expected.emotion.label}'" in answer.content[0].text
    assert f"'box': [{expected.box[0]}, {expected.box[1]}" in answer.content[0].text
    assert all(refusal.isError for refusal in refusals)
    assert "is not an image" in refusals[0].content[0].text
    assert files_in(tmp_path)
    clean_up()
    wait_for(lambda: not left_in(tmp_path), lambda: left_in(tmp_path))
    app.close(verbose=False)


def test_mcp_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r'--mcp needs the mcp package: pip install "fer-trl\[mcp\]"'):
        launch(AppConfig("there is none", port=0, mcp=True))


def test_address_is_checked_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {port}:.* choose another"):
            launch(AppConfig("there is none", port=port))
    for host in ("nowhere.invalid", "192.0.2.1", "a..b"):
        with pytest.raises(ConfigError, match=f"cannot listen on {host} port 0"):
            launch(AppConfig("there is none", host=host, port=0))
    with pytest.raises(ConfigError, match="port must be 0 to 65535"):
        launch(AppConfig("there is none", port=70_000))


def test_checkpoint_is_missing() -> None:
    with pytest.raises(CheckpointError, match="there is none"):
        launch(AppConfig("there is none", port=0))


def test_certificate_is_checked_before_the_model_is_loaded(tmp_path: Path) -> None:
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    with pytest.raises(ConfigError, match=r"cannot serve https by .*certificate\.pem .* No such file"):
        launch(AppConfig("there is none", port=0, ssl_certfile=files[0], ssl_keyfile=files[1]))
    for file in files:
        file.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"cannot serve https by .*; give a \.pem of each"):
        launch(AppConfig("there is none", port=0, ssl_certfile=files[0], ssl_keyfile=files[1]))
    with pytest.raises(ConfigError, match="both --ssl-certfile and --ssl-keyfile"):
        AppConfig(ssl_certfile=files[0])
