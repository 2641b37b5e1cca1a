"""The web page: pictures, the live webcam, and ``/predict`` for programs. Nothing on it asks another machine."""

import base64
import os
import socket
import urllib.request
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fer.drawing import draw_predictions
from fer.emotions import EMOTIONS
from fer.errors import ConfigError, ImageError
from fer.faces import DetectorName, crop_face
from fer.images import read_image
from fer.preprocessing import resize_face
from fer.recognizer import EmotionRecognizer, FacePrediction

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: no calls home
import gradio as gr

__all__ = ["build_app", "launch", "start"]

TITLE = "Facial expressions"

#: The browser would ask for 1920 x 1440, which takes five times as long.
CAMERA = gr.WebcamOptions(constraints={"video": {"width": 640, "height": 480}})
#: Seconds between the frames that the browser sends, seconds after which it must ask for the camera again, and how
#: many browsers may stream at once; without the limits one that never stops would lock out the others.
STREAM_EVERY, STREAM_TIME, STREAMS = 0.1, 600, 4
#: Gradio writes each picture and frame into a file: look for old ones every so many seconds, and what is old.
CLEAN_EVERY, KEEP = 60, 300
#: Height of each image, and side of the picture of a face beside its probabilities, pixels.
HEIGHT, THUMBNAIL = 380, 112

_HINT = "Choose, drop or paste a picture, or take one with the webcam."
_NO_FACE = "No face found. Faces should be larger than about 20 pixels and not turned away."
_LIVE_HINT = (
    "Allow the camera, then press Record. Browsers hand out the camera only to pages at http://127.0.0.1, "
    "http://localhost or https://; where they refuse, look for the camera's sign in the address bar."
)

THEME = gr.themes.Default(  # system fonts: nothing to fetch
    primary_hue="sky",
    neutral_hue="slate",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)
CSS = """
.gradio-container { max-width: 72rem !important; margin: 0 auto !important; }
.fer-result .html-container { padding: 0 !important; }
.fer-status { margin: 0; padding: 1rem; border: 1px dashed var(--border-color-primary);
  border-radius: var(--block-radius); color: var(--body-text-color); opacity: .75; text-align: center; }
.fer-status.fer-error { border: 1px solid var(--error-border-color); color: var(--error-text-color); opacity: 1;
  background: var(--error-background-fill); }
.fer-faces { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.fer-face { padding: 1rem; border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
  background: var(--block-background-fill); color: var(--body-text-color); }
.fer-face header { display: flex; align-items: center; gap: .75rem; margin-bottom: .75rem; }
.fer-face header img { width: 3.5rem; height: 3.5rem; border-radius: .5rem; }
.fer-face h3 { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.3; color: inherit; }
.fer-face p { margin: 0; font-size: .85rem; color: inherit; opacity: .75; }
.fer-face table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.fer-face th, .fer-face td { padding: .15rem 0; line-height: 1.3; }
.fer-face th { width: 5rem; font-weight: 400; text-align: left; }
.fer-face td:last-child { width: 4rem; text-align: right; font-variant-numeric: tabular-nums; }
.fer-face tr.fer-best > * { font-weight: 600; }
.fer-bar { height: .7rem; border-radius: .35rem; overflow: hidden; background: var(--border-color-primary); }
.fer-bar > div { height: 100%; border-radius: inherit; box-shadow: inset 0 0 0 1px rgb(0 0 0 / .2); }
"""


def build_app(recognizer: EmotionRecognizer) -> gr.Blocks:
    """The page; :func:`start` serves it with its looks.

    Args:
        recognizer: answers every request; several at once, from several threads.
    """
    app = gr.Blocks(title=TITLE, delete_cache=(CLEAN_EVERY, KEEP))
    uploads = Path(app.GRADIO_CACHE).resolve()

    def predict(image: dict[str, Any] | None) -> list[dict[str, Any]]:
        """The faces of an image: box (x, y, width, height), emotion, confidence and seven probabilities of each."""
        if image is None:
            raise gr.Error("expected an image", print_exception=False)
        try:
            return [_record(face) for face in recognizer.analyze(_read(image, uploads))]
        except ImageError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def show(picture: dict[str, Any] | None) -> tuple[NDArray[np.uint8] | None, str]:
        if picture is None:
            return None, _status(_HINT)
        try:
            image = _read(picture, uploads)
        except ImageError as error:
            return None, _status(str(error), failed=True)
        faces = recognizer.analyze(image)
        return draw_predictions(image, faces, bars=False), _cards(faces, image)

    def follow(frame: dict[str, Any] | None) -> tuple[NDArray[np.uint8] | None, str]:
        if frame is None:
            return None, _status(_LIVE_HINT)
        image = _read(frame, uploads)
        faces = recognizer.analyze(image)
        return draw_predictions(image, faces, bars=False), _cards(faces)

    with app:
        gr.Markdown(_introduction(recognizer))
        with gr.Tab("Picture"):
            with gr.Row():
                picture = gr.Image(label="Picture", sources=["upload", "clipboard", "webcam"], height=HEIGHT)
                annotated = _answer(["download", "fullscreen"])
            result = gr.HTML(_status(_HINT), apply_default_css=False, elem_classes="fer-result")
            # preprocess=False here and below: _read takes more kinds of images than Gradio, and only uploaded ones
            picture.change(show, picture, [annotated, result], preprocess=False, api_visibility="private")
        with gr.Tab("Live"):
            with gr.Row():
                camera = gr.Image(
                    label="Camera",
                    sources=["webcam"],
                    streaming=True,
                    format="jpeg",
                    webcam_options=CAMERA,
                    height=HEIGHT,
                )
                seen = _answer(["fullscreen"])
            live = gr.HTML(_status(_LIVE_HINT), apply_default_css=False, elem_classes="fer-result")
            camera.stream(
                follow,
                camera,
                [seen, live],
                stream_every=STREAM_EVERY,
                time_limit=STREAM_TIME,
                concurrency_limit=STREAMS,
                show_progress="hidden",
                preprocess=False,
                api_visibility="private",
            )
        with gr.Column(visible=False):
            image, faces = gr.Image(label="image"), gr.JSON(label="faces")
            gr.Button().click(predict, image, faces, preprocess=False, api_name="predict")
    return app


def start(
    recognizer: EmotionRecognizer, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False
) -> gr.Blocks:
    """Serve the page from a thread of its own; ``local_url`` of the result is its address, ``close()`` ends it.

    Args:
        recognizer: see :func:`build_app`.
        host: name or number of the address to listen on.
        port: 0 takes any free one.
        open_browser: open the page in the browser.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    port = _free_port(host, port)
    # Gradio calls its own server once; that call must not go to a proxy.
    no_proxy = urllib.request.getproxies().get("no", "")
    os.environ["no_proxy"] = ",".join(filter(None, (no_proxy, "127.0.0.1", "localhost", host)))
    app = build_app(recognizer)
    app.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        inbrowser=open_browser,
        theme=THEME,
        css=CSS,
        footer_links=["api", "settings"],
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
    )
    return app


def launch(
    *,
    checkpoint: str = "vgg16-cp-trl",
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    detector: DetectorName = "auto",
    detector_model: Path | None = None,
    threshold: float = 0.6,
    open_browser: bool = False,
) -> int:
    """Serve the web page: photographs and live webcam.

    Args:
        checkpoint: a shipped checkpoint or a folder
        host: address to listen on; 0.0.0.0 lets other machines in
        port: port to listen on; 0 takes any free one
        device: auto, cpu, cuda or mps
        detector: auto is yunet where its file is, else retinaface
        detector_model: a YuNet .onnx file
        threshold: smallest score of a face
        open_browser: open the page in the browser

    Returns:
        0, after Ctrl+C.

    Raises:
        FerError: the checkpoint or the detector cannot be used, or the address cannot be served.
    """
    _free_port(host, port)  # before the model is loaded
    recognizer = EmotionRecognizer.load(
        checkpoint,
        device=device,
        detector=detector,
        detector_model=detector_model,
        threshold=threshold,
    )
    app = start(recognizer, host=host, port=port, open_browser=open_browser)
    Console().print(f"{TITLE} at {app.local_url} (Ctrl+C ends it)", soft_wrap=True)
    app.block_thread()
    return 0


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must be 0 to 65535, not {port}")
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        with socket.create_server((host, port), family=family) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # socket repeats the address in brackets
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another --host or --port (0: any free one)"
        ) from error


def _read(image: dict[str, Any], uploads: Path) -> NDArray[np.uint8]:
    """The pixels of an image as Gradio hands it over: an uploaded file, or a data URL.

    Gradio 6.31 itself would open whatever path a request names, be it uploaded or not.
    """
    if image["path"] is None:
        _, _, content = (image["url"] or "").partition(",")
        return read_image(base64.b64decode(content))
    path = Path(image["path"]).resolve()
    if not path.is_relative_to(uploads):
        raise ImageError("the image was not uploaded")
    try:
        return read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), image["orig_name"] or "the image")) from error


def _answer(buttons: list[Any]) -> gr.Image:
    alt = "The image with a box and a label around each face"
    return gr.Image(label="Faces", alt_text=alt, format="jpeg", interactive=False, height=HEIGHT, buttons=buttons)


def _record(prediction: FacePrediction) -> dict[str, Any]:
    return {
        "box": prediction.box,
        "score": prediction.face.score,
        "whole_image": prediction.face.whole_image,
        "emotion": prediction.emotion.label,
        "confidence": prediction.confidence,
        "probabilities": {emotion.label: p for emotion, p in prediction.probabilities.items()},
    }


def _introduction(recognizer: EmotionRecognizer) -> str:
    checkpoint = recognizer.checkpoint
    names = [emotion.label for emotion in EMOTIONS]
    right = ""
    if metrics := checkpoint.metrics:
        accuracy = metrics.get("leak_free_accuracy", metrics["accuracy"])
        right = f" It agrees with {accuracy:.0%} of the labels of {metrics['data']}'s {metrics['split']} split."
    return (
        f"# {TITLE}\n"
        f"Finds faces and guesses what each one shows: {', '.join(names[:-1])} or {names[-1]}. Pictures are analysed "
        "by the computer that serves this page, sent nowhere else, and deleted after minutes.  \n"
        "A guess about a face is not knowledge of a feeling: do not judge people by it. Model "
        f"`{escape(checkpoint.name)}`, faces by `{recognizer.detector.name}`.{right}"
    )


def _status(message: str, *, failed: bool = False) -> str:
    role, kind = ("alert", " fer-error") if failed else ("status", "")
    return f'<p class="fer-status{kind}" role="{role}">{escape(message)}</p>'


def _cards(predictions: Sequence[FacePrediction], image: NDArray[np.uint8] | None = None) -> str:
    """Each face's probabilities, from left to right: of a picture the best first and with the face as the network
    gets it, of a live frame (without ``image``) in an order that stays.
    """
    if not predictions:
        return _status(_NO_FACE)
    cards = [_card(prediction, image) for prediction in sorted(predictions, key=lambda p: p.face.x)]
    role = "" if image is None else ' role="status"'  # a screen reader must not read every frame
    return f'<div class="fer-faces"{role}>{"".join(cards)}</div>'


def _card(prediction: FacePrediction, image: NDArray[np.uint8] | None) -> str:
    face, best = prediction.face, prediction.emotion
    thumbnail = "" if image is None else _thumbnail(resize_face(crop_face(image, face), THUMBNAIL))
    found = "the whole picture, taken for a face" if face.whole_image else f"found with a score of {face.score:.0%}"
    emotions = EMOTIONS if image is None else sorted(EMOTIONS, key=prediction.probabilities.__getitem__, reverse=True)
    rows = "".join(
        f'<tr class="{"fer-best" if emotion is best else ""}"><th scope="row">{emotion.label}</th>'
        f'<td><div class="fer-bar" aria-hidden="true"><div style="width: {share:.1%}; background: rgb{emotion.color}">'
        f"</div></div></td><td>{share:.1%}</td></tr>"
        for emotion in emotions
        for share in [prediction.probabilities[emotion]]
    )
    return (
        f'<article class="fer-face" aria-label="{best.label}"><header>{thumbnail}<div>'
        f"<h3>{best.label.capitalize()} {prediction.confidence:.0%}</h3><p>{found}</p></div></header>"
        f"<table><tbody>{rows}</tbody></table></article>"
    )


def _thumbnail(face: NDArray[np.uint8]) -> str:
    _, jpeg = cv2.imencode(".jpg", face)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}">'
