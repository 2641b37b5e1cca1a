"""The Video tab: a film in; the film with boxes and labels, a plot of each person's emotions, and a table out."""

import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

from fer.config import TrackingConfig
from fer.errors import CameraError, FerError
from fer.recognizer import EmotionRecognizer
from fer.sources import VideoFile
from fer.timeline import Person, Timeline, clock_time
from fer.video import annotate
from fer.web_common import gr, status

__all__ = ["CSS", "MAX_SIZE", "video_tab"]

#: The largest file that may be uploaded, as Gradio's launch takes it, and how much of a film is analysed, seconds.
MAX_SIZE, LIMIT = "500mb", 600
#: Films that are analysed at once, for all visitors together; others wait for their turn.
AT_ONCE = 1
#: Seconds between two signs of progress.
REPORT = 0.25
#: Persons in the table.
PERSONS = 20

CAMERA = gr.WebcamOptions(mirror=False, constraints={"video": {"width": 640, "height": 480}})
CSS = """
.fer-progress { padding: 1rem; border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
  color: var(--body-text-color); }
.fer-progress progress { display: block; width: 100%; height: .8rem; margin-bottom: .5rem;
  accent-color: var(--color-accent); }
.fer-film video { max-height: 24rem; }
.fer-film button[aria-label="Trim video to selection"] { display: none; }  /* it would fetch FFmpeg from elsewhere */
.fer-people { width: 100%; border-collapse: collapse; color: var(--body-text-color); }
.fer-people caption { padding: .5rem; text-align: left; }
.fer-people th, .fer-people td { padding: .35rem .5rem; border-top: 1px solid var(--border-color-primary);
  text-align: left; font-variant-numeric: tabular-nums; }
"""

_HINT = "Choose or record a video, then press Analyse."
_LIMITS = (
    f"Up to {MAX_SIZE[:-2]} MB, of which the first {LIMIT // 60} minutes are analysed, one video at a time; "
    "`fer video` on the command line has no such limits. Closing the page or pressing Cancel ends the work, and what "
    "was written until then is deleted at once."
)

Page = tuple[Any, ...]  # what the outputs of the tab shall show, in their order


def video_tab(recognizer: EmotionRecognizer, config: TrackingConfig, uploads: Path) -> None:
    """Build the tab inside the open ``gr.Blocks``.

    Args:
        recognizer: follows the faces; shared with the other tabs.
        config: how faces are followed.
        uploads: the folder of uploaded files; no other file is read.
    """
    # Not Gradio's `cancels`: it stops the work and answers the click at once, and a late progress may win.
    cancelled: dict[str | None, Event] = {}  # of each session whose video is being analysed

    def analyse(upload: dict[str, Any] | None, request: gr.Request) -> Iterator[Page]:
        if upload is None:
            yield _page(status(_HINT))
            return
        path = Path(upload["path"]).resolve()
        stop = cancelled[request.session_hash] = Event()
        try:
            if not path.is_relative_to(uploads):
                raise CameraError("the video was not uploaded")
            # Gradio closes this generator when the visitor leaves: then files are closed and deleted.
            with VideoFile(path) as film, tempfile.TemporaryDirectory(prefix="fer-video-") as folder:
                yield from _analyse(recognizer, config, film, Path(folder), stop)
        except FerError as error:
            message = str(error).replace(str(path), upload.get("orig_name") or "the video")
            yield _page(status(message, failed=True))
        except OSError as error:  # the disk is full
            yield _page(status(f"The result cannot be written: {error.strerror or error}", failed=True))
        finally:
            cancelled.pop(request.session_hash, None)

    def stop_analysing(request: gr.Request) -> None:
        if (stop := cancelled.get(request.session_hash)) is not None:
            stop.set()

    with gr.Tab("Video"):
        gr.Markdown(_LIMITS)
        with gr.Row():
            chosen = gr.Video(
                label="Video",
                sources=["upload", "webcam"],
                webcam_options=CAMERA,
                include_audio=False,  # of recordings: nothing listens to it, and it would take a permission more
                elem_classes="fer-film",
            )
            annotated = gr.Video(
                label="Video with faces", interactive=False, buttons=["download"], elem_classes="fer-film"
            )
        with gr.Row():
            start = gr.Button("Analyse", variant="primary")
            cancel = gr.Button("Cancel", interactive=False)
            table = gr.DownloadButton("Download all faces as CSV", interactive=False)
        state = gr.HTML(status(_HINT), apply_default_css=False)
        plot = gr.Image(
            label="Emotions over time",
            show_label=False,  # it would lie over the legend
            alt_text="How probable each emotion was over time, a panel for each person; the table above tells the sums",
            format="png",
            interactive=False,
            visible=False,
            buttons=["download", "fullscreen"],
        )
        outputs = [state, annotated, plot, table, start, cancel]
        start.click(
            analyse,
            chosen,
            outputs,
            preprocess=False,  # Gradio would open whatever path a request names, and convert the film
            concurrency_limit=AT_ONCE,
            show_progress_on=state,
            api_visibility="private",
        )
        cancel.click(stop_analysing, show_progress="hidden", queue=False, api_visibility="private")


def _analyse(
    recognizer: EmotionRecognizer, config: TrackingConfig, film: VideoFile, folder: Path, stop: Event
) -> Generator[Page, None, None]:
    video, csv, plot = folder / "faces.mp4", folder / "faces.csv", folder / "timeline.png"
    timeline, trouble = Timeline(), ""
    begin = told = time.monotonic()
    yield _page(_progress(0, film.duration, 0), busy=True)
    results = annotate(recognizer, film, out=video, csv=csv, tracking=config, limit=LIMIT)
    try:
        with closing(results):
            for image, result in results:
                if stop.is_set():
                    break
                timeline.add(result, image)
                if (now := time.monotonic()) - told >= REPORT:
                    told = now
                    yield _progress(timeline.end, film.duration, now - begin), *[gr.skip()] * 5
    except CameraError as error:
        if not timeline.end:
            raise
        trouble = str(error).replace(film.name, "The video")
    if stop.is_set():
        yield _page(status("Cancelled."))
        return
    if timeline.end >= LIMIT:
        trouble = f"Only the first {LIMIT // 60} minutes were analysed."
    timeline.plot(plot)
    said = status(trouble, failed=True) if trouble else ""
    yield _page(said + _people(timeline), results=(video, plot, csv))


def _page(said: str, *, busy: bool = False, results: tuple[Path | None, ...] = (None, None, None)) -> Page:
    video, plot, csv = results
    return (
        *(said, video, gr.Image(value=None if plot is None else str(plot), visible=plot is not None)),
        gr.DownloadButton(value=csv, interactive=csv is not None),
        *(gr.Button(interactive=not busy), gr.Button(interactive=busy)),
    )


def _progress(done: float, duration: float | None, passed: float) -> str:
    """How far the work is, seconds of the video and of the clock."""
    whole = min(duration, LIMIT) if duration else None
    bar = f'max="{whole:.2f}" value="{min(done, whole):.2f}"' if whole else ""  # without a value it moves to and fro
    text = clock_time(int(done)) + (f" of {clock_time(int(whole))}" if whole else "")
    if done and passed:
        text += f", {done / passed:.1f} times as fast as it plays"
        if whole:
            text += f", {clock_time(int((whole - done) * passed / done))} left"
    return f'<div class="fer-progress"><progress aria-label="Analysing" {bar}></progress>{escape(text)}</div>'


def _people(timeline: Timeline) -> str:
    """Who was seen, as a table that a screen reader can read."""
    persons, left_out = timeline.longest_seen(PERSONS)
    if not persons:
        return status("No face was seen.")
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Person", "From", "To", "Seen", "Of that time"))
    rows = "".join(
        f'<tr><th scope="row">{person.track}</th><td>{clock_time(person.start)}</td><td>{clock_time(person.end)}</td>'
        f"<td>{person.seconds:.1f} s</td><td>{_shares(person)}</td></tr>"
        for person in persons
    )
    caption = f"Numbers are those beside the faces. {left_out}".strip()
    return (
        f'<div role="status"><table class="fer-people"><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _shares(person: Person) -> str:
    return ", ".join(f"{emotion.label} {share:.0%}" for emotion, share in person.shares.items())
