"""Gradio's page as a browser talks to it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
from patience import PATIENCE

from fer.web_common import gr

get, post = partial(httpx.get, timeout=PATIENCE), partial(httpx.post, timeout=PATIENCE)

Message = dict[str, Any]


@contextmanager
def launched(app: gr.Blocks) -> Iterator[str]:
    """Serve a page of its own; gives its address. Left to find a port, Gradio leaks a socket for each that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    app.launch(
        server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False
    )
    try:
        yield app.local_url
    finally:
        app.close(verbose=False)


@contextmanager
def asking(
    url: str, event: int, data: list[Any], visitor: str = "visitor"
) -> Iterator[tuple[Message, Iterator[Message]]]:
    """Trigger an event of the page; what names the request, and the messages that come until the visitor leaves."""
    visit = {"session_hash": visitor, "fn_index": event}
    joined = post(f"{url}gradio_api/queue/join", json=visit | {"data": data}).raise_for_status()
    address = f"{url}gradio_api/queue/data?session_hash={visitor}"
    with httpx.stream("GET", address, timeout=PATIENCE) as stream:
        lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: "))
        yield visit | joined.json(), map(json.loads, lines)


def answer(url: str, event: int, data: list[Any], visitor: str = "visitor") -> Message:
    """What the event's completion tells: ``success``, and ``output`` with ``data`` or ``error``."""
    with asking(url, event, data, visitor) as (_, messages):
        return next(message for message in messages if message["msg"] == "process_completed")
