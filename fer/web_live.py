"""The Live tab: the browser shows its own camera, sends one frame at a time, and lays the answers over the picture.

The page's half is web_live.html, web_live.js and web_live.css, which lie beside this file.
"""

import asyncio
import base64
import binascii
import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer.classifier import Classifier
from fer.config import AppConfig
from fer.drawing import draw_predictions
from fer.emotions import EMOTIONS
from fer.errors import FerError, ImageError
from fer.faces import FaceDetector, create_detector, installed_yunet
from fer.live import LivePipeline, TrackedFace
from fer.recognizer import EmotionRecognizer, load_classifier
from fer.records import FACE_COLUMNS
from fer.shelf import available_checkpoints, find_checkpoint
from fer.web_common import HEIGHT, gr, status
from fer.web_image import cards, read_upload

__all__ = ["CSS", "live_tab"]

_HERE = Path(__file__).parent
CSS = (_HERE / "web_live.css").read_text(encoding="utf-8")

#: Frames in work at once: each uses several cores in part, the detector half of them.
WORKERS = max(1, min(4, (os.cpu_count() or 1) // 2))
#: Visitors whose faces are remembered; a new one takes the place of the one who has been away longest.
VISITORS = 64
#: Seconds after which who sends no frame is forgotten, with the last frame.
FORGET = 10
#: Largest frame: characters of its data URL, and pixels of its longer side.
MAX_CHARACTERS, MAX_SIDE = 2_000_000, 1920
#: Longest smoothing that a visitor may choose, seconds.
MAX_SMOOTHING = 5.0

#: Of the plain view. The browser would ask for 1920 x 1440, which takes five times as long.
CAMERA = gr.WebcamOptions(constraints={"video": {"width": 640, "height": 480}})
#: Seconds between the frames that the browser sends, seconds after which it must ask for the camera again, and how
#: many browsers may stream at once; without the limits one that never stops would lock out the others.
STREAM_EVERY, STREAM_TIME, STREAMS = 0.1, 600, 4

_STREAM_HINT = (
    "Allow the camera, then press Record. Browsers hand out the camera only to pages at http://127.0.0.1, "
    "http://localhost or https://; where they refuse, look for the camera's sign in the address bar."
)


def live_tab(recognizer: EmotionRecognizer, config: AppConfig, uploads: Path) -> None:
    """Build the tab inside the open ``gr.Blocks``.

    Args:
        recognizer: what the page begins with; used from several threads.
        config: how faces are followed, and whether the plain view is wanted.
        uploads: the folder of uploaded files, for the plain view; no other file is read.
    """
    with gr.Tab("Live"):
        if config.stream:
            _plain_view(recognizer, uploads)
        else:
            _camera_view(recognizer, config)


class Recognizers:
    """Every pair of a checkpoint and a detector that visitors may choose; each part is loaded once, when first wanted.

    Attributes:
        checkpoints: their names, the served one first.
        detectors: likewise.
    """

    def __init__(self, served: EmotionRecognizer, config: AppConfig) -> None:
        self._config, self._tta = config, served.tta
        self._loaded_checkpoints: dict[str, Classifier] = {served.checkpoint.name: served.checkpoint}
        self._loaded_detectors: dict[str, FaceDetector] = {served.detector.name: served.detector}
        self._loading = threading.Lock()
        usable = (name for name in available_checkpoints() if config.runtime == "torch" or _exported(name))
        self.checkpoints = list(dict.fromkeys([served.checkpoint.name, *usable]))
        to_be_had = ["retinaface", *(["yunet"] if config.detector_model or installed_yunet() else [])]
        self.detectors = list(dict.fromkeys([served.detector.name, *to_be_had]))

    def get(self, checkpoint: str, detector: str) -> EmotionRecognizer:
        """The recogniser made of the two.

        Raises:
            FerError: they are not among those offered, or cannot be loaded.
        """
        if checkpoint not in self.checkpoints or detector not in self.detectors:
            raise FerError(f"there is no {checkpoint!r} with {detector!r} here; choose again")
        with self._loading:
            if checkpoint not in self._loaded_checkpoints:
                self._loaded_checkpoints[checkpoint] = load_classifier(
                    checkpoint, runtime=self._config.runtime, device=self._config.device, threads=self._config.threads
                )
            if detector not in self._loaded_detectors:
                self._loaded_detectors[detector] = create_detector(
                    "yunet" if detector == "yunet" else "retinaface",
                    threshold=self._config.threshold,
                    model=self._config.detector_model if detector == "yunet" else None,
                    max_side=self._config.max_side,
                    threads=self._config.threads,
                )
            parts = self._loaded_checkpoints[checkpoint], self._loaded_detectors[detector]
        return EmotionRecognizer(*parts, tta=self._tta)


def _exported(checkpoint: str) -> bool:
    return any(find_checkpoint(checkpoint).glob("model*.onnx"))


@dataclass
class _Visitor:
    busy: bool = False
    pipeline: LivePipeline | None = None
    parting: asyncio.TimerHandle | None = None


class Visitors:
    """Those who are looking, each with a pipeline of their own and one frame in work at most."""

    def __init__(self, recognizers: Recognizers, config: AppConfig) -> None:
        self._recognizers, self._config = recognizers, config
        self._visitors: dict[str, _Visitor] = {}  # the one who has been away longest first
        # Gradio's concurrency_limit does not hold for server functions. The semaphore serves visitors in turn.
        self._turn = asyncio.Semaphore(WORKERS)
        self._pool = ThreadPoolExecutor(WORKERS, "fer-live")

    async def analyse(self, frame: Any, left: Any) -> dict[str, Any]:
        """The answer to a frame.

        Args:
            frame: from the page, or from anybody: ``visitor``, ``image`` (a data URL of a JPEG), ``checkpoint``,
                ``detector`` and ``smoothing``.
            left: coroutine function that tells whether the visitor has gone.

        Returns:
            ``size`` of the frame, ``faces``, ``anew`` (true: their numbers begin at 1 again) and ``ms``, the
            milliseconds of each stage; or ``error``, a message.
        """
        arrived = time.monotonic()
        try:
            visitor = self._enter(frame)
        except FerError as error:
            return {"error": str(error)}
        try:
            async with self._turn:
                if await left():
                    return {"error": "the visitor has left"}
                waited = time.monotonic() - arrived
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._pool, self._answer, visitor, frame, arrived, waited)
        finally:
            visitor.busy = False
            visitor.parting = asyncio.get_running_loop().call_later(FORGET, self._forget, frame["visitor"], visitor)

    def _forget(self, key: str, visitor: _Visitor) -> None:
        if self._visitors.get(key) is visitor:  # not another one who came after this one had lost the place
            del self._visitors[key]

    def _enter(self, frame: Any) -> _Visitor:
        """The visitor who sent a frame, marked as busy."""
        kinds = {"visitor": str, "image": str, "checkpoint": str, "detector": str, "smoothing": int | float}
        if not isinstance(frame, dict) or not all(isinstance(frame.get(key), kind) for key, kind in kinds.items()):
            raise ImageError(f"expected a frame with {', '.join(kinds)}")
        if not 8 <= len(frame["visitor"]) <= 64 or not 0 <= frame["smoothing"] <= MAX_SMOOTHING:
            raise ImageError(f"expected a visitor's key, and a smoothing of 0 to {MAX_SMOOTHING:g} seconds")
        visitor = self._visitors.pop(frame["visitor"], None) or _Visitor()
        while len(self._visitors) >= VISITORS:
            del self._visitors[next(iter(self._visitors))]
        self._visitors[frame["visitor"]] = visitor
        if visitor.busy:
            raise FerError("the frame before this one is still in work")
        visitor.busy = True
        if visitor.parting:
            visitor.parting.cancel()
        return visitor

    def _answer(self, visitor: _Visitor, frame: dict[str, Any], arrived: float, waited: float) -> dict[str, Any]:
        try:
            recognizer = self._recognizers.get(frame["checkpoint"], frame["detector"])
            start = time.perf_counter()
            image = decode_frame(frame["image"])
            decode = time.perf_counter() - start
        except FerError as error:
            return {"error": str(error)}
        if anew := visitor.pipeline is None:
            visitor.pipeline = LivePipeline.from_config(recognizer, self._config)
        pipeline = visitor.pipeline
        pipeline.recognizer = recognizer  # may change: faces keep their numbers
        pipeline.smoothing = float(frame["smoothing"])
        result = pipeline.process(image, arrived)
        height, width = image.shape[:2]
        seconds = {"wait": waited, "decode": decode, **pipeline.timings}
        return {
            "size": [width, height],
            "faces": [_face(face) for face in result.faces],
            "anew": anew,
            "ms": {stage: round(1000 * value, 1) for stage, value in seconds.items()},
        }


def decode_frame(url: str) -> NDArray[np.uint8]:
    """The pixels of a frame.

    Args:
        url: data URL of a JPEG, from anybody.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: it is not such a URL, not a JPEG, or too large.
    """
    wrong = ImageError(f"expected a JPEG of at most {MAX_SIDE} pixels a side and {MAX_CHARACTERS:,} characters")
    head, _, content = url.partition(",")
    if head != "data:image/jpeg;base64" or len(url) > MAX_CHARACTERS:
        raise wrong
    try:
        data = base64.b64decode(content, validate=True)
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as header:  # OpenCV would decode gigapixels first
            size = header.size
    except (binascii.Error, OSError, Image.DecompressionBombError) as error:
        raise wrong from error
    if max(size) > MAX_SIDE:
        raise wrong
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise wrong
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _face(face: TrackedFace) -> dict[str, Any]:
    prediction = face.prediction
    return {
        "track": face.track,
        "box": prediction.box,
        "score": round(prediction.face.score, 4),
        "emotion": int(prediction.emotion),
        "probabilities": [round(p, 4) for p in prediction.probabilities.values()],
    }


def _camera_view(recognizer: EmotionRecognizer, config: AppConfig) -> None:
    recognizers = Recognizers(recognizer, config)
    visitors = Visitors(recognizers, config)

    # Gradio lets anybody call it, with anything, as it does the page. It fills in a request by its annotation.
    async def analyse(frame: Any, request: gr.Request) -> dict[str, Any]:
        return await visitors.analyse(frame, request.is_disconnected)

    gr.HTML(
        html_template=(_HERE / "web_live.html").read_text(encoding="utf-8"),
        js_on_load=(_HERE / "web_live.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[analyse],
        settings={
            "emotions": [{"name": emotion.label, "color": emotion.color} for emotion in EMOTIONS],
            "columns": ["time", "track", *FACE_COLUMNS],
            "checkpoints": recognizers.checkpoints,
            "detectors": recognizers.detectors,
            "smoothing": min(config.smoothing, MAX_SMOOTHING),
        },
    )


def _plain_view(recognizer: EmotionRecognizer, uploads: Path) -> None:
    def follow(frame: dict[str, Any] | None) -> str:
        if frame is None:
            return status(_STREAM_HINT)
        image = read_upload(frame, uploads)
        if frame["path"]:
            Path(frame["path"]).unlink(missing_ok=True)  # Gradio writes each frame into a file
        faces = recognizer.analyze(image)
        pixels = cv2.cvtColor(draw_predictions(image, faces, bars=False), cv2.COLOR_RGB2BGR)
        content = base64.b64encode(cv2.imencode(".jpg", pixels)[1].tobytes()).decode()
        alt = "The camera's picture with a box and a label around each face"
        return f'<img class="fer-seen" alt="{alt}" src="data:image/jpeg;base64,{content}">{cards(faces)}'

    with gr.Row():
        camera = gr.Image(
            label="Camera",
            sources=["webcam"],
            streaming=True,
            format="jpeg",
            webcam_options=CAMERA,
            height=HEIGHT,
        )
        seen = gr.HTML(status(_STREAM_HINT), apply_default_css=False)
    camera.stream(
        follow,
        camera,
        seen,
        stream_every=STREAM_EVERY,
        time_limit=STREAM_TIME,
        concurrency_limit=STREAMS,
        show_progress="hidden",
        preprocess=False,
        api_visibility="private",
    )
