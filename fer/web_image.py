"""The Image tab, and ``/predict`` for programs and, where asked for, assistants."""

import asyncio
import base64
import binascii
import csv
import importlib.util
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fer.drawing import draw_predictions
from fer.emotions import EMOTIONS
from fer.errors import ConfigError, ImageError
from fer.faces import crop_face
from fer.images import read_image
from fer.predict import COLUMNS, count, legible, record
from fer.preprocessing import resize_face
from fer.recognizer import EmotionRecognizer, FacePrediction
from fer.records import Record
from fer.web_common import HEIGHT, gr, status

__all__ = ["CSS", "cards", "image_tab", "read_upload", "require_mcp"]

#: Pictures that are analysed at once, and the longest side at which they are shown, pixels.
PICTURES, LONGEST = 24, 1600
#: Largest picture, pixels: a file of 100 KB may hold so many that it takes 12 bytes of memory for each.
MAX_PIXELS = 50_000_000
#: Requests of programs that are answered at a time.
REQUESTS = 2
#: Side of the picture of a face beside its probabilities, pixels.
THUMBNAIL = 112

_EXPECTED = "expected an uploaded file or a data URL (data:image/jpeg;base64,...)"
_HINT = "Choose, drop or paste pictures, or take them with the webcam."
_NO_FACE = "No face found. Faces should be larger than about 20 pixels and not turned away."

CSS = """
.fer-summary { display: flex; flex-wrap: wrap; gap: .75rem 1.5rem; align-items: center; margin-bottom: 1rem; }
.fer-summary h2 { margin: 0; font-size: 1.15rem; font-weight: 600; color: var(--body-text-color); }
.fer-download { padding: .4rem .9rem; border-radius: var(--button-large-radius); font-size: .9rem; font-weight: 600;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color) !important;
  text-decoration: none; }
.fer-download:hover { background: var(--button-secondary-background-fill-hover); }
.fer-notes { display: grid; gap: .5rem; margin-bottom: 1rem; }
.fer-faces { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.fer-face { padding: 1rem; border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
  background: var(--block-background-fill); color: var(--body-text-color); }
.fer-face header { display: flex; align-items: center; gap: .75rem; margin-bottom: .75rem; }
.fer-face header img { width: 3.5rem; height: 3.5rem; border-radius: .5rem; }
.fer-face h3 { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.3; color: inherit; }
.fer-face p { margin: 0; font-size: .85rem; line-height: 1.35; color: inherit; opacity: .85; overflow-wrap: anywhere; }
.fer-face table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.fer-face th, .fer-face td { padding: .15rem 0; line-height: 1.3; }
.fer-face th { width: 5rem; font-weight: 400; text-align: left; }
.fer-face td:last-child { width: 4rem; text-align: right; font-variant-numeric: tabular-nums; }
.fer-face tr.fer-best > * { font-weight: 600; }
.fer-bar { height: .7rem; border-radius: .35rem; overflow: hidden; background: var(--border-color-primary); }
.fer-bar > div { height: 100%; border-radius: inherit; box-shadow: inset 0 0 0 1px rgb(0 0 0 / .2); }
.fer-more { margin-top: 1rem; }
.fer-more summary { cursor: pointer; font-weight: 600; color: var(--body-text-color); }
.fer-scroll { margin-top: .75rem; overflow-x: auto; contain: inline-size; border: 1px solid var(--border-color-primary);
  border-radius: var(--block-radius); }
.fer-scroll table { border-collapse: collapse; width: 100%; font-size: .85rem; color: var(--body-text-color);
  font-variant-numeric: tabular-nums; }
.fer-scroll th, .fer-scroll td { padding: .35rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--border-color-primary); }
.fer-scroll tbody tr:last-child > * { border-bottom: 0; }
.fer-scroll .fer-text { text-align: left; }
.fer-scroll thead th { font-weight: 600; background: var(--background-fill-secondary); }
.fer-api pre, .fer-api pre code { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.fer-api table { margin-top: 1rem; }
.fer-api .token { color: inherit !important; }  /* Gradio's colours for code are too pale to read */
.fer-api table, .fer-api th, .fer-api td { border-color: var(--border-color-primary) !important; }
/* Gradio 6.31 lets a fixed height push the choice of upload, webcam and clipboard out of sight */
.fer-gallery:has(> .source-selection) { display: flex; flex-direction: column; }
.fer-gallery:has(> .source-selection) > :not(.source-selection, [data-testid="status-tracker"]) {
  flex: 1; min-height: 0; }
@media (max-width: 640px) { .fer-gallery { height: 17rem !important; } }
"""

_API = """\
`/predict` takes one image and gives its faces, the most certainly found first. It is the page's only public endpoint.

In Python, with `pip install gradio_client`:

```python
from gradio_client import Client, handle_file

faces = Client("ADDRESS/").predict(handle_file("photo.jpg"), api_name="/predict")
```

With curl: upload the file, ask, fetch the answer.

```bash
FILE=$(curl -s -F files=@photo.jpg ADDRESS/gradio_api/upload | cut -d'"' -f2)
ID=$(curl -s ADDRESS/gradio_api/call/predict -H "Content-Type: application/json" \\
  -d '{"data": [{"path": "'"$FILE"'"}]}' | cut -d'"' -f4)
curl -sN ADDRESS/gradio_api/call/predict/$ID
```

Or without the upload, the image as a data URL:

```bash
IMAGE=data:image/jpeg\\;base64,$(base64 < photo.jpg | tr -d '\\n')
ID=$(echo '{"data": [{"url": "'"$IMAGE"'"}]}' | curl -s ADDRESS/gradio_api/call/predict \\
  -H "Content-Type: application/json" -d @- | cut -d'"' -f4)
curl -sN ADDRESS/gradio_api/call/predict/$ID
```

| field of a face | what it holds |
| --- | --- |
| `box` | x, y, width and height in whole pixels of the image as it is seen; may reach beyond its borders |
| `score` | how sure the detector is, 0 to 1; 0 where the whole image was taken |
| `whole_image` | true where no face was found and the image looks like one that was cut out already |
| `emotion` | the most probable one |
| `confidence` | its probability, 0 to 1 |
| `probabilities` | of angry, disgust, fear, happy, sad, surprise and neutral, each 0 to 1, together 1 |

What cannot be read answers with an error that says why.
"""

_API_MCP = """
Assistants reach the same as a tool, `recognize_facial_expressions`, by the Model Context Protocol (streamable HTTP) at
`ADDRESS/gradio_api/mcp/`; the image is a data URL or an http(s) URL.
"""

#: The page knows best where it was found.
_FILL_IN = "(text) => text.replaceAll('ADDRESS', new URL('.', location.href).href.replace(/\\/$/, ''))"


class _Upload(gr.data_classes.ImageData):
    """What a request gives for an image. Of anything else Gradio itself would not say what is wrong."""

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise gr.Error(_EXPECTED, print_exception=False) from error


def image_tab(recognizer: EmotionRecognizer, uploads: Path, *, mcp: bool = False) -> None:
    """Build the tab inside the open ``gr.Blocks``, and ``/predict``.

    Args:
        recognizer: answers every request; several at once, from several threads.
        uploads: the folder of uploaded files; no other file is read.
        mcp: the server will offer ``/predict`` as a tool too: say so.
    """
    places = asyncio.Semaphore(REQUESTS)

    # The name, the docstring's beginning, and the line on the image are what an assistant is told.
    async def recognize_facial_expressions(image: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Find the faces in a photograph and estimate which facial expression each one shows: angry, disgust, fear,
        happy, sad, surprise or neutral, with a probability for each of the seven. Use it for questions about how the
        people in a picture look or how many faces there are. It judges appearance, not what somebody feels, and is
        right about two times in three. The answer is a list with an object for each face, the most certainly found
        first, empty where there is none: box ([x, y, width, height] in pixels), score (the detector's certainty, 0 to
        1), whole_image (true: the picture was taken for a face that is cut out already), emotion, confidence (its
        probability, 0 to 1) and probabilities (by emotion).

        Args:
            image: the photograph: a data URL ("data:image/jpeg;base64,...") or an http or https URL
        """
        if image is None:
            raise gr.Error("expected an image", print_exception=False)
        try:
            async with places:
                return await asyncio.to_thread(answer, image)
        except ImageError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def answer(image: dict[str, Any]) -> list[dict[str, Any]]:
        return [_face(face) for face in recognizer.analyze(read_upload(image, uploads))]

    def show(
        pictures: list[dict[str, Any]] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is told that it is wanted
    ) -> tuple[dict[str, Any], str]:
        copies, answer = _analyze(recognizer, pictures, uploads, progress) if pictures else ([], status(_HINT))
        return gr.update(value=copies, selected_index=0 if copies else None), answer

    with gr.Tab("Image"):
        with gr.Row():
            pictures = gr.Gallery(
                label="Pictures",
                sources=["upload", "clipboard", "webcam"],
                file_types=["image"],
                height=HEIGHT,
                columns=3,
                fit_columns=False,
                object_fit="contain",
                interactive=True,
                buttons=[],
                elem_classes="fer-gallery",
            )
            annotated = gr.Gallery(
                label="Faces",
                height=HEIGHT,
                columns=3,
                object_fit="contain",
                interactive=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_classes="fer-gallery",
            )
        result = gr.HTML(status(_HINT), apply_default_css=False, elem_classes="fer-result")
        # preprocess=False here and below: read_upload takes more kinds of images than Gradio, and only uploaded ones.
        # postprocess=False: annotated pictures go straight to the browser, never to the disk.
        pictures.change(
            show, pictures, [annotated, result], preprocess=False, postprocess=False, api_visibility="private"
        )
        with gr.Accordion("Use it from a program", open=False) as programs:
            manual = gr.Markdown(_API + _API_MCP * mcp, elem_classes="fer-api")
        programs.expand(None, manual, manual, js=_FILL_IN, api_visibility="private")
        with gr.Column(visible=False):
            image, faces = gr.Image(label="image"), gr.JSON(label="faces")
            image.data_model = _Upload
            gr.Button().click(
                recognize_facial_expressions,
                image,
                faces,
                preprocess=False,
                postprocess=False,
                api_name="predict",
                queue=False,  # else MCP would keep a copy of each image on the disk for ever
            )


def require_mcp() -> None:
    """Check that what MCP needs is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("mcp") is None:
        raise ConfigError('--mcp needs the mcp package: pip install "fer-trl[mcp]"')


def read_upload(image: dict[str, Any], uploads: Path) -> NDArray[np.uint8]:
    """The pixels of an image as Gradio hands it over: an uploaded file, or a data URL.

    Raises:
        ImageError: it is neither, or cannot be read; the message gives its own name, not the server's.
    """
    source = _source(image, uploads)
    try:
        return read_image(source, max_pixels=MAX_PIXELS)
    except ImageError as error:
        if isinstance(source, bytes):
            raise
        raise ImageError(str(error).replace(str(source), _name(image))) from error


def cards(predictions: Sequence[FacePrediction]) -> str:
    """Each face's probabilities in a live frame: from left to right, and the emotions in an order that stays."""
    return _grid(_cards(predictions, None)) if predictions else status(_NO_FACE)


# -- uploads ----------------------------------------------------------------------------------------------------------


def _source(image: dict[str, Any], uploads: Path) -> Path | bytes:
    """The uploaded file, or the bytes of a data URL.

    Gradio 6.31 itself would open whatever path a request names, be it uploaded or not.
    """
    if image["path"] is None:
        head, _, content = (image["url"] or "").partition(";base64,")
        try:
            if head.startswith("data:"):
                return base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ImageError(f"cannot read the data URL: {error}") from error
        raise ImageError(_EXPECTED)
    if "\0" in image["path"] or not (path := Path(image["path"]).resolve()).is_relative_to(uploads):
        raise ImageError("the image was not uploaded")
    if not path.exists():
        raise ImageError(f"{_name(image)} is no longer there: uploads are deleted after a while; choose it again")
    return path


def _name(image: dict[str, Any]) -> str:
    return image["orig_name"] or "the image"


# -- many pictures ----------------------------------------------------------------------------------------------------


def _analyze(
    recognizer: EmotionRecognizer, pictures: Sequence[dict[str, Any]], uploads: Path, progress: gr.Progress
) -> tuple[list[dict[str, Any]], str]:
    """What the gallery and the page below it show of pictures: annotated copies, and cards, table and CSV file.

    Args:
        recognizer: answers.
        pictures: a gallery's, as Gradio hands them over.
        uploads: the folder of uploaded files.
        progress: is told how many are done.
    """
    files = [item.get("image") or item["video"] for item in pictures[:PICTURES]]
    copies: list[dict[str, Any]] = []
    faces: list[str] = []
    rows: list[Record] = []
    notes: list[str] = []
    for number, (file, answer) in enumerate(zip(files, _answers(recognizer, files, uploads), strict=True), start=1):
        progress((number, len(files)), unit="pictures")
        if isinstance(answer, ImageError):
            notes.append(status(str(answer), failed=True))
            continue
        image, predictions = answer
        name = _name(file)
        copies.append(_copy(image, predictions, name))
        faces += _cards(predictions, image, name if len(files) > 1 else "")
        rows += [record(Path(name), i, prediction) for i, prediction in enumerate(predictions, start=1)]
        if not predictions:
            notes.append(status(f"{name}: {_NO_FACE}" if len(files) > 1 else _NO_FACE))
    if left := len(pictures) - len(files):
        notes.append(status(f"{count(left, 'picture')} left out: at most {PICTURES} are analysed at once", failed=True))
    summary = _summary(rows, len(copies)) if rows else ""
    said = f'<div class="fer-notes">{"".join(notes)}</div>' if notes else ""
    return copies, f"{summary}{said}{_grid(faces)}{_table(rows)}"


def _answers(
    recognizer: EmotionRecognizer, files: Sequence[dict[str, Any]], uploads: Path
) -> Iterator[tuple[NDArray[np.uint8], list[FacePrediction]] | ImageError]:
    """For each file, in order: its pixels and faces, or what is wrong with it."""
    for file in files:
        try:
            pixels = read_upload(file, uploads)
        except ImageError as error:
            yield error
        else:
            yield pixels, recognizer.analyze(pixels)


def _copy(image: NDArray[np.uint8], faces: Sequence[FacePrediction], name: str) -> dict[str, Any]:
    """A picture with boxes and labels, as Gradio's gallery wants it."""
    picture = draw_predictions(*legible(image, faces, LONGEST), bars=False)
    labels = [face.emotion.label for face in sorted(faces, key=lambda face: face.face.x)]
    caption = f"{name}: {', '.join(labels) if len(labels) <= 4 else count(len(labels), 'face')}" if labels else name
    return {"image": {"path": None, "url": _jpeg(picture), "orig_name": f"{Path(name).stem}.jpg"}, "caption": caption}


def _summary(rows: Sequence[Record], pictures: int) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    content = base64.b64encode(stream.getvalue().encode()).decode()
    title = f"<h2>{count(len(rows), 'face')} in {count(pictures, 'picture')}</h2>"
    link = f'<a class="fer-download" download="faces.csv" href="data:text/csv;base64,{content}">Download CSV</a>'
    return f'<div class="fer-summary"><div role="status">{title}</div>{link}</div>'


def _table(rows: Sequence[Record]) -> str:
    """All faces, with the columns of the CSV file."""
    if not rows:
        return ""
    kinds = {name: "fer-text" if name in ("file", "emotion") else "" for name in COLUMNS}
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in kinds.items())
    cells = ("".join(f'<td class="{kind}">{_cell(row[name])}</td>' for name, kind in kinds.items()) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        '<details class="fer-more"><summary>All faces as a table</summary>'
        '<div class="fer-scroll" role="region" aria-label="All faces" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _cell(value: str | float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else escape(str(value))


# -- one face ---------------------------------------------------------------------------------------------------------


def _face(prediction: FacePrediction) -> dict[str, Any]:
    return {
        "box": prediction.box,
        "score": round(prediction.face.score, 4),
        "whole_image": prediction.face.whole_image,
        "emotion": prediction.emotion.label,
        "confidence": round(prediction.confidence, 6),
        "probabilities": {emotion.label: round(p, 6) for emotion, p in prediction.probabilities.items()},
    }


def _cards(faces: Sequence[FacePrediction], image: NDArray[np.uint8] | None, name: str = "") -> list[str]:
    """A card for each face, from left to right: of a picture with the face, and the best emotion first."""
    return [_card(face, image, name) for face in sorted(faces, key=lambda face: face.face.x)]


def _grid(articles: Sequence[str]) -> str:
    return f'<div class="fer-faces">{"".join(articles)}</div>' if articles else ""


def _card(prediction: FacePrediction, image: NDArray[np.uint8] | None, name: str) -> str:
    face, best = prediction.face, prediction.emotion
    thumbnail = ""
    if image is not None:
        thumbnail = f'<img alt="" src="{_jpeg(resize_face(crop_face(image, face), THUMBNAIL))}">'
    found = "the whole picture, taken for a face" if face.whole_image else f"found with a score of {face.score:.0%}"
    emotions = EMOTIONS if image is None else sorted(EMOTIONS, key=prediction.probabilities.__getitem__, reverse=True)
    bars = "".join(
        f'<tr class="{"fer-best" if emotion is best else ""}"><th scope="row">{emotion.label}</th>'
        f'<td><div class="fer-bar" aria-hidden="true"><div style="width: {share:.1%}; background: rgb{emotion.color}">'
        f"</div></div></td><td>{share:.1%}</td></tr>"
        for emotion in emotions
        for share in [prediction.probabilities[emotion]]
    )
    return (
        f'<article class="fer-face" aria-label="{escape(f"{best.label} {name}".strip())}"><header>{thumbnail}<div>'
        f"<h3>{best.label.capitalize()} {prediction.confidence:.0%}</h3>{f'<p>{escape(name)}</p>' if name else ''}"
        f"<p>{found}</p></div></header>"
        f"<table><tbody>{bars}</tbody></table></article>"
    )


def _jpeg(image: NDArray[np.uint8]) -> str:
    """An image, RGB or grey, as a data URL."""
    _, jpeg = cv2.imencode(".jpg", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
