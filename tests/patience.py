"""The machine that runs the tests may be slow and shared: they wait for what must happen, and for long."""

import time
from collections.abc import Callable

#: Seconds after which a test gives up.
PATIENCE = 180.0


def wait_for(condition: Callable[[], object], what: Callable[[], object] = lambda: "it has not happened") -> None:
    """Until a condition holds; fails with what is so instead."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.02)
