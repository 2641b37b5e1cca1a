"""A visitor would lose the Live tab to other visitors, to whoever left, or to strangers who send nonsense."""

import asyncio
import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import skimage.data
from gradio_page import post
from numpy.typing import NDArray
from patience import PATIENCE, wait_for

from fer import EmotionRecognizer, web_live
from fer.config import AppConfig
from fer.errors import ImageError
from fer.faces import Face, RetinaFace, installed_yunet
from fer.web import start
from fer.web_common import gr
from fer.web_live import Recognizers, Visitors, decode_frame

PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face
CONFIG = AppConfig("guide-cnn", device="cpu", port=0)


def jpeg(image: NDArray[np.uint8]) -> str:
    content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


FRAME = {
    "visitor": "0123456789abcdef",
    "image": jpeg(PHOTO),
    "checkpoint": "guide-cnn",
    "detector": "retinaface",
    "smoothing": 0,
}


async def here() -> bool:
    return False


@pytest.fixture(scope="module")
def recognizer() -> EmotionRecognizer:
    return EmotionRecognizer.load("guide-cnn", device="cpu", detector=RetinaFace(threads=1))


@pytest.fixture
def visitors(recognizer: EmotionRecognizer) -> Visitors:
    return Visitors(Recognizers(recognizer, CONFIG), CONFIG)


def ask(visitors: Visitors, *frames: Any) -> list[dict[str, Any]]:
    """The answers to frames that are sent at once."""

    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(visitors.analyse(frame, here) for frame in frames))

    return asyncio.run(all_of_them())


def test_answer_is_the_recogniser_s(visitors: Visitors, recognizer: EmotionRecognizer) -> None:
    (first,), (second,) = ask(visitors, FRAME), ask(visitors, FRAME)
    (expected,) = recognizer.analyze(decode_frame(FRAME["image"]))
    (face,) = first["faces"]
    assert json.loads(json.dumps(face)) == {
        "track": 1,
        "box": list(expected.box),
        "score": pytest.approx(expected.face.score, abs=1e-4),
        "emotion": expected.emotion,
        "probabilities": pytest.approx(list(expected.probabilities.values()), abs=1e-4),
    }
    assert second["faces"] == first["faces"]  # the same track
    assert first["size"] == [512, 512]
    assert first["ms"].keys() == {"wait", "decode", "detect", "track", "recognise", "smooth"}


def test_visitors_have_pipelines_of_their_own(visitors: Visitors) -> None:
    empty = jpeg(np.full((480, 640, 3), 90, np.uint8))
    others = [FRAME | {"visitor": f"visitor {number}", "image": empty} for number in range(5)]
    mine, *theirs = ask(visitors, FRAME, *others)
    assert mine["faces"][0]["track"] == 1
    assert [answer["faces"] for answer in theirs] == [[]] * 5
    assert ask(visitors, others[0] | {"image": FRAME["image"]})[0]["faces"][0]["track"] == 1


def test_one_frame_of_a_visitor_at_a_time(visitors: Visitors) -> None:
    answers = ask(visitors, FRAME, FRAME, FRAME)
    assert ["error" in answer for answer in answers] == [False, True, True]
    assert "still in work" in answers[1]["error"]
    assert "faces" in ask(visitors, FRAME)[0]


def test_visitors_take_turns(recognizer: EmotionRecognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_live, "WORKERS", 1)
    visitors, served = Visitors(Recognizers(recognizer, CONFIG), CONFIG), []

    async def watch(visitor: str) -> None:
        for _ in range(5):
            await visitors.analyse(FRAME | {"visitor": visitor}, here)
            served.append(visitor)

    async def all_of_them() -> None:
        await asyncio.gather(*(watch(f"visitor {number}") for number in range(3)))

    asyncio.run(all_of_them())
    assert served == [f"visitor {number}" for number in range(3)] * 5


def test_visitors_are_remembered_and_bounded(visitors: Visitors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_live, "VISITORS", 2)
    elsewhere = FRAME | {"image": jpeg(np.roll(PHOTO, 256, axis=1))}
    assert [ask(visitors, frame)[0]["faces"][0]["track"] for frame in (FRAME, elsewhere, elsewhere)] == [1, 2, 2]
    ask(visitors, FRAME | {"visitor": "the second"})
    (again,) = ask(visitors, elsewhere)
    assert (again["faces"][0]["track"], again["anew"]) == (2, False)
    ask(visitors, FRAME | {"visitor": "the third"})  # in the place of the second, who has been away longer
    assert ask(visitors, elsewhere)[0]["faces"][0]["track"] == 2
    ask(visitors, FRAME | {"visitor": "the fourth"}, FRAME | {"visitor": "the fifth"})
    assert ask(visitors, elsewhere)[0]["faces"][0]["track"] == 1


def test_idle_visitors_are_forgotten(visitors: Visitors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says that no frame is kept; the last one would stay for as long as the server runs."""
    monkeypatch.setattr(web_live, "FORGET", 0.01)

    async def leave() -> None:
        assert (await visitors.analyse(FRAME, here))["anew"]
        end = time.monotonic() + PATIENCE
        while visitors._visitors and time.monotonic() < end:
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert not visitors._visitors


def test_detector_of_choice_keeps_to_the_settings(recognizer: EmotionRecognizer, gate: "Gate") -> None:
    served = EmotionRecognizer(recognizer.checkpoint, gate)
    detectors = [
        Recognizers(served, replace(CONFIG, max_side=side)).get("guide-cnn", "retinaface").detector
        for side in (512, 64)
    ]
    assert [len(detector.detect(PHOTO)) for detector in detectors] == [1, 0]


def test_only_exported_checkpoints_are_offered_without_pytorch(
    recognizer: EmotionRecognizer, exported: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a visitor would choose one and be told a path of the server."""
    monkeypatch.setattr(web_live, "available_checkpoints", lambda: [str(exported), str(checkpoint)])
    config = replace(CONFIG, runtime="onnx", device="auto")
    assert Recognizers(recognizer, config).checkpoints == ["guide-cnn", str(exported)]
    assert Recognizers(recognizer, CONFIG).checkpoints == ["guide-cnn", str(exported), str(checkpoint)]


def test_models_and_detectors_are_loaded_once(recognizer: EmotionRecognizer) -> None:
    recognizers = Recognizers(recognizer, CONFIG)
    assert recognizers.checkpoints[0] == "guide-cnn"
    assert {"vgg16-cp-trl", "cnn-cp-trl"} < set(recognizers.checkpoints)
    assert recognizers.detectors == ["retinaface", *(["yunet"] if installed_yunet() else [])]
    first, again = recognizers.get("cnn-cp-trl", "retinaface"), recognizers.get("cnn-cp-trl", "retinaface")
    assert first.checkpoint is again.checkpoint
    assert first.checkpoint.name == "cnn-cp-trl"
    assert first.detector is recognizer.detector
    assert recognizers.get("guide-cnn", "retinaface").checkpoint is recognizer.checkpoint


def test_choice_of_the_visitor(visitors: Visitors) -> None:
    (plain,), (other,) = ask(visitors, FRAME), ask(visitors, FRAME | {"checkpoint": "cnn-cp-trl"})
    assert plain["faces"][0]["probabilities"] != other["faces"][0]["probabilities"]
    assert "choose again" in ask(visitors, FRAME | {"checkpoint": "../../secret"})[0]["error"]
    assert "choose again" in ask(visitors, FRAME | {"detector": "yunet.onnx"})[0]["error"]
    assert "faces" in ask(visitors, FRAME)[0]


def bomb() -> str:
    """A small file that says that it holds 30,000 x 30,000 pixels."""
    content = bytearray(base64.b64decode(jpeg(PHOTO).partition(",")[2]))
    size = content.index(b"\xff\xc0") + 5
    content[size : size + 4] = (30_000).to_bytes(2) * 2
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file:///etc/passwd",
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/jpeg;base64,no base64",
        "data:image/jpeg;base64,aGVsbG8=",
        jpeg(PHOTO)[:200],
        jpeg(np.zeros((8, 1928, 3), np.uint8)),
        bomb(),
        jpeg(PHOTO) + "A" * 2_000_000,
    ],
)
def test_frames_are_checked(url: str) -> None:
    with pytest.raises(ImageError, match="expected a JPEG of at most 1920 pixels a side and 2,000,000 characters"):
        decode_frame(url)


@pytest.mark.parametrize(
    "frame",
    [None, [], "frame", {}, FRAME | {"smoothing": -1}, FRAME | {"smoothing": float("nan")}, FRAME | {"visitor": ""},
     FRAME | {"visitor": "x" * 65}, FRAME | {"image": None}, FRAME | {"checkpoint": ["guide-cnn"]}],
)  # fmt: skip
def test_nonsense_is_refused(visitors: Visitors, frame: Any) -> None:
    assert "expected" in ask(visitors, frame)[0]["error"]


class Gate:
    """A detector that waits until it is let through, and remembers the brightness of what it saw."""

    name = "gate"

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.opened = threading.Event()

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        self.seen.append(int(image.mean()))
        self.opened.wait(PATIENCE)
        return []


@pytest.fixture
def gate() -> Gate:
    return Gate()


@dataclass
class Served:
    """The page, and who has sent it frames."""

    app: gr.Blocks
    entered: list[str]

    def body(self, frame: Any) -> dict[str, Any]:
        blocks = self.app.blocks.items()
        number = next(key for key, block in blocks if hasattr(block, "server_fns") and block.server_fns)
        return {"data": frame, "component_id": number, "fn_name": "analyse", "session_hash": "anybody"}

    def send(self, visitor: str, shade: int) -> HTTPConnection:
        """A frame of one shade of grey, whose answer can be read later, or never."""
        image = jpeg(np.full((480, 640, 3), shade, np.uint8))
        content = json.dumps(self.body(FRAME | {"visitor": visitor, "image": image, "detector": "gate"}))
        address = urlsplit(self.app.local_url)
        connection = HTTPConnection(str(address.hostname), address.port or 0, timeout=PATIENCE)
        connection.request("POST", "/gradio_api/component_server/", content, {"Content-Type": "application/json"})
        return connection

    def knows(self, client: tuple[str, int]) -> bool:
        """Whether the server has not noticed yet that this connection was closed."""
        return client in {connection.client for connection in list(self.app.server.server_state.connections)}


@pytest.fixture
def served(recognizer: EmotionRecognizer, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    entered: list[str] = []

    class Watched(Visitors):
        def _enter(self, frame: Any) -> Any:
            visitor = super()._enter(frame)
            entered.append(frame["visitor"])
            return visitor

    monkeypatch.setattr(web_live, "Visitors", Watched)
    app = start(EmotionRecognizer(recognizer.checkpoint, gate), replace(CONFIG, port=0))
    yield Served(app, entered)
    gate.opened.set()
    app.close(verbose=False)


def test_frame_of_a_visitor_who_left_is_dropped(served: Served, gate: Gate) -> None:
    with ExitStack() as connections:
        working = [connections.enter_context(closing(served.send(f"at work {n}", 10))) for n in range(web_live.WORKERS)]
        wait_for(lambda: len(gate.seen) == len(working))
        leaving = served.send("leaves soon", 100)
        wait_for(lambda: "leaves soon" in served.entered)
        client = leaving.sock.getsockname()
        assert served.knows(client)
        leaving.close()
        wait_for(lambda: not served.knows(client))
        staying = connections.enter_context(closing(served.send("stays here", 200)))
        wait_for(lambda: "stays here" in served.entered)
        gate.opened.set()
        assert json.loads(staying.getresponse().read())["faces"] == []
    assert sorted(gate.seen) == [*(10 for _ in working), 200]


def test_nonsense_from_the_network_is_answered(served: Served) -> None:
    answer = post(f"{served.app.local_url}gradio_api/component_server/", json=served.body({"image": 3}))
    assert answer.status_code == 200
    assert "expected a frame with" in answer.json()["error"]


def test_page_is_ready_without_what_it_does_not_use() -> None:
    """Each of these takes a second or more of the five that a start may take."""
    heavy = "{'accelerate', 'albumentations', 'matplotlib', 'torchmetrics', 'torchvision'}"
    code = f"""if True:
        import sys
        from fer.config import AppConfig
        from fer.recognizer import EmotionRecognizer
        from fer.web import start
        config = AppConfig("guide-cnn", device="cpu", port=0)
        app = start(EmotionRecognizer.from_config(config), config)
        app.close(verbose=False)
        print(sorted({heavy} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
