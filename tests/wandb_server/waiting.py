"""Waits on a condition, never for a time: a test that uses it is as fast as the machine.

Invariant: it returns only when the condition holds, and otherwise fails with a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.01


def wait_for(condition: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
    """Return once `condition()` is true; fail, naming `what`, when it is not within `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {limit_s:g} s"
        time.sleep(POLL_S)
