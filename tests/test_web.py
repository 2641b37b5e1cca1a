"""A user would lose the page, the endpoint for programs, or the privacy that the page promises."""

import base64
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from fer import EmotionRecognizer, create_model
from fer.checkpoint import save_checkpoint, update_checkpoint
from fer.config import Config, ModelConfig, TrainConfig
from fer.emotions import EMOTIONS
from fer.errors import CheckpointError, ConfigError
from fer.faces import RetinaFace
from fer.web import launch, start

PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face
EYES = ((205, 101), (247, 103))


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> EmotionRecognizer:
    """A small untrained network, made to answer decidedly."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = Config("tiny", ModelConfig(trunk="cnn", rank=4), TrainConfig())
    save_checkpoint(folder, create_model(config.model), config)
    metrics = {"data": "FER2013", "split": "val", "accuracy": 0.71, "leak_free_accuracy": 0.7}
    update_checkpoint(folder, temperature=0.002, metrics=metrics)
    return EmotionRecognizer.load(folder, device="cpu", detector=RetinaFace(threads=1))


@pytest.fixture(scope="module")
def client(recognizer: EmotionRecognizer) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the client calls home, which is not us
        patch.setenv("no_proxy", "")
        app = start(recognizer, port=0)
        yield Client(app.local_url, verbose=False)
        app.close(verbose=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(PHOTO).save(file)
    return file


def test_predict_gives_each_face(client: Client, photo: Path, recognizer: EmotionRecognizer) -> None:
    (face,) = client.predict(handle_file(photo), api_name="/predict")
    x, y, width, height = face["box"]
    assert all(x < u < x + width and y < v < y + height for u, v in EYES)
    assert 0.6 <= face["score"] <= 1
    assert not face["whole_image"]
    assert list(face["probabilities"]) == [emotion.label for emotion in EMOTIONS]
    (expected,) = recognizer.analyze(PHOTO)
    assert face["emotion"] == expected.emotion.label
    assert face["confidence"] == pytest.approx(expected.confidence)
    assert list(face["probabilities"].values()) == pytest.approx(list(expected.probabilities.values()))


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


def test_files_of_the_server_stay_private(client: Client, photo: Path) -> None:
    with pytest.raises(AppError, match="was not uploaded"):
        client.predict({"path": str(photo)}, api_name="/predict")


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
    app = start(recognizer, port=0)
    assert "It agrees with 70% of the labels" in httpx.get(app.local_url).text
    data = [{"path": None, "url": f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}"}]
    call = f"{app.local_url}gradio_api/call/predict"
    event = httpx.post(call, json={"data": data}).json()["event_id"]
    assert '"emotion"' in httpx.get(f"{call}/{event}").text
    assert set(asked) == {"127.0.0.1"}
    app.close(verbose=False)


def test_pictures_are_deleted(
    recognizer: EmotionRecognizer, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("fer.web.CLEAN_EVERY", 1)
    monkeypatch.setattr("fer.web.KEEP", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("no_proxy", "")
    app = start(recognizer, port=0)
    Client(app.local_url, verbose=False).predict(handle_file(photo), api_name="/predict")
    end = time.monotonic() + 10
    while left := [file for file in tmp_path.rglob("*") if file.is_file()]:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    app.close(verbose=False)


def test_address_is_checked_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {port}:.* choose another"):
            launch(checkpoint="there is none", port=port)
    for host in ("nowhere.invalid", "192.0.2.1"):
        with pytest.raises(ConfigError, match=f"cannot listen on {host} port 0"):
            launch(checkpoint="there is none", host=host, port=0)
    with pytest.raises(ConfigError, match="port must be 0 to 65535"):
        launch(checkpoint="there is none", port=70_000)


def test_checkpoint_is_missing() -> None:
    with pytest.raises(CheckpointError, match="there is none"):
        launch(checkpoint="there is none", port=0)
