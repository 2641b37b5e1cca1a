"""What the tabs of the page share: Gradio, told to stay silent, and messages."""

import os
from html import escape

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: no calls home
import gradio as gr

__all__ = ["HEIGHT", "KEEP", "VIEWS", "gr", "status"]

#: Height of an image on the page, pixels.
HEIGHT = 380
#: Seconds for which is kept what was uploaded or made: a video is fetched piece by piece while it is watched.
KEEP = 3600
#: How the views of a test-time augmentation are told of behind a figure.
VIEWS = {"none": "", "flip": ", the mirrored view averaged in", "ten-crop": ", ten crops averaged"}


def status(message: str, *, failed: bool = False) -> str:
    """A message as HTML; a screen reader reads an error at once."""
    role, kind = ("alert", " fer-error") if failed else ("status", "")
    return f'<p class="fer-status{kind}" role="{role}">{escape(message)}</p>'
