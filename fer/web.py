"""The web page: its frame, its looks, and how it is served. Nothing on it asks another machine."""

import os
import signal
import socket
import ssl
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

from rich.console import Console

from fer import web_image, web_live, web_model, web_video
from fer.config import AppConfig
from fer.emotions import EMOTIONS
from fer.errors import ConfigError
from fer.recognizer import EmotionRecognizer
from fer.web_common import KEEP, VIEWS, gr
from fer.web_image import image_tab, require_mcp
from fer.web_live import live_tab
from fer.web_model import model_tab
from fer.web_video import video_tab

__all__ = ["build_app", "launch", "private_folder", "start"]

TITLE = "Facial expressions"

#: Seconds between two looks for files that are older than KEEP.
CLEAN_EVERY = 60

THEME = gr.themes.Default(  # system fonts: nothing to fetch
    primary_hue="sky",
    neutral_hue="slate",
    radius_size="lg",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
).set(  # Gradio's own colours are too pale for WCAG AA
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    color_accent="*primary_600",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)
CSS = """
.gradio-container { width: 100%; min-width: 0 !important; max-width: 76rem !important; margin: 0 auto !important; }
.gradio-container .tabitem { padding: 1rem 0 0; border: 0; }
.gradio-container .html-container.html-container { padding: 0; }
@media (max-width: 40rem) { .gradio-container > .main.main { padding: .5rem 1rem; } }
.fer-head h1 { margin: .5rem 0 .25rem; font-size: 1.6rem; }
.fer-head p { margin: 0; color: var(--body-text-color-subdued); }
.fer-foot p { margin: .5rem 0 0; font-size: .875rem; color: var(--body-text-color-subdued); text-align: center; }
.fer-status { margin: 0; padding: 1rem; border: 1px dashed var(--border-color-primary);
  border-radius: var(--block-radius); color: var(--body-text-color); text-align: center; }
.fer-status.fer-error { border: 1px solid var(--error-border-color); color: var(--error-text-color);
  background: var(--error-background-fill); }
"""


def build_app(recognizer: EmotionRecognizer, config: AppConfig) -> gr.Blocks:
    """The page; :func:`start` serves it with its looks, and :func:`private_folder` deletes what is uploaded to it.

    Args:
        recognizer: answers every request; several at once, from several threads.
        config: how faces are followed, and what else the tabs offer.
    """
    app = gr.Blocks(title=TITLE)
    uploads = Path(app.GRADIO_CACHE).resolve()

    def forget(request: gr.Request) -> None:
        app.state_holder.session_data.pop(request.session_hash or "", None)

    with app:
        gr.Markdown(_head(), elem_classes="fer-head")
        with gr.Tabs():
            live_tab(recognizer, config, uploads)
            image_tab(recognizer, uploads, mcp=config.mcp)
            video_tab(recognizer, config, uploads)
            model_tab(config.checkpoint)
        gr.Markdown(_foot(recognizer), elem_classes="fer-foot")
        app.unload(forget)  # Gradio itself would keep what a visitor saw last, faces and all
    return app


def start(recognizer: EmotionRecognizer, config: AppConfig) -> gr.Blocks:
    """Serve the page from a thread of its own; ``local_url`` of the result is its address, ``close()`` ends it.

    Args:
        recognizer: see :func:`build_app`.
        config: where the page is served and how.

    Raises:
        ConfigError: the address is not this machine's, the port is taken, or the certificate cannot be used.
    """
    _check_certificate(config)
    host, port = config.host, _free_port(config.host, config.port)
    # Gradio calls its own server once; that call must not go to a proxy.
    no_proxy = urllib.request.getproxies().get("no", "")
    os.environ["no_proxy"] = ",".join(filter(None, (no_proxy, "127.0.0.1", "localhost", host)))
    app = build_app(recognizer, config)
    app.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        inbrowser=config.open_browser,
        ssl_certfile=str(config.ssl_certfile) if config.ssl_certfile else None,
        ssl_keyfile=str(config.ssl_keyfile) if config.ssl_keyfile else None,
        ssl_verify=False,  # only of Gradio's calls to itself
        max_file_size=web_video.MAX_SIZE,
        theme=THEME,
        css="".join(part.CSS for part in (web_image, web_live, web_model, web_video)) + CSS,
        footer_links=["api", "settings"],
        mcp_server=config.mcp,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
    )
    return app


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for what pages that are built from now on are sent and make; other users cannot read it.

    It lies in $GRADIO_TEMP_DIR or among the temporary files. A file in it lives for ``KEEP`` seconds, and none longer
    than the context. Gradio's own ``delete_cache`` may end for good when a file comes while it deletes others.
    """
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fer-app-", dir=parent, ignore_cleanup_errors=True) as name:
        os.environ["GRADIO_TEMP_DIR"] = name
        for module in (gr.mcp, gr.routes, gr.screen_recording_utils):
            vars(module)["DEFAULT_TEMP_DIR"] = name  # they read it when they were imported
        threading.Thread(target=_clean, args=(Path(name),), daemon=True).start()
        yield Path(name)


def launch(config: AppConfig) -> int:
    """Serve the web page until Ctrl+C or SIGTERM.

    Returns:
        0, the exit status.

    Raises:
        FerError: the checkpoint or the detector cannot be used, or the address cannot be served.
    """
    _check_certificate(config)  # this and what follows before the model is loaded
    _free_port(config.host, config.port)
    if config.mcp:
        require_mcp()
    recognizer = EmotionRecognizer.from_config(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else nothing would delete the folder
    with private_folder():
        app = start(recognizer, config)
        Console().print(f"{TITLE} at {app.local_url} (Ctrl+C ends it)", soft_wrap=True)
        if config.ssl_certfile is None and config.host not in ("127.0.0.1", "::1", "localhost"):
            Console().print("Elsewhere, browsers give the camera to https pages only: --ssl-certfile and --ssl-keyfile")
        app.block_thread()
    return 0


def _clean(folder: Path) -> None:
    """Delete what is older than ``KEEP`` from a folder, again and again until the folder has gone."""
    while folder.exists():
        for parent, folders, files in os.walk(folder, topdown=False):
            for name in (*files, *folders):
                path = Path(parent, name)
                with suppress(OSError):  # it has gone meanwhile, or is a folder that still holds something
                    if time.time() - path.lstat().st_ctime > KEEP:
                        path.rmdir() if path.is_dir() else path.unlink()
        time.sleep(CLEAN_EVERY)


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0."""
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        with socket.create_server((host, port), family=family) as server:
            return int(server.getsockname()[1])
    except (OSError, UnicodeError) as error:  # UnicodeError: a name with an empty or an endless part
        reason = str(getattr(error, "strerror", "it is no name of a host")).partition(" (")[0]  # it repeats the address
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another --host or --port (0: any free one)"
        ) from error


def _check_certificate(config: AppConfig) -> None:
    if config.ssl_certfile is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except OSError as error:  # an SSLError too
        files = f"{config.ssl_certfile} with {config.ssl_keyfile}"
        raise ConfigError(f"cannot serve https by {files}: {error.strerror or error}; give a .pem of each") from error


def _head() -> str:
    names = [emotion.label for emotion in EMOTIONS]
    return (
        f"# {TITLE}\n"
        f"Finds faces and guesses what each one shows: {', '.join(names[:-1])} or {names[-1]}. "
        "A guess about a face is not knowledge of a feeling: do not judge people by it."
    )


def _foot(recognizer: EmotionRecognizer) -> str:
    checkpoint = recognizer.checkpoint
    right = ""
    if metrics := checkpoint.metrics:
        accuracy = metrics.get("leak_free_accuracy", metrics["accuracy"])
        tta = metrics.get("tta", "none")
        views = VIEWS.get(tta, "")
        if views and tta != recognizer.tta:
            views += ", unlike here"
        right = f" It agrees with {accuracy:.0%} of the labels of {metrics['data']}'s {metrics['split']} split{views}."
    return (
        "Everything is analysed by the computer that serves this page and sent nowhere else; uploads are deleted "
        f"after {KEEP // 60} minutes. Model {escape(checkpoint.name)}, faces by {recognizer.detector.name}.{right}"
    )
