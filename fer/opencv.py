"""OpenCV's chatter, silenced."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2

__all__ = ["quiet_opencv"]

_logging = threading.Lock()


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Without the warnings that OpenCV writes to stderr, while this lasts."""
    with _logging:
        log: Any = getattr(cv2.utils, "logging", cv2)  # where OpenCV 5 and OpenCV 4 have it
        level = log.getLogLevel()
        log.setLogLevel(0)
        try:
            yield
        finally:
            log.setLogLevel(level)
