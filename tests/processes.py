"""Processes that a test starts, and that do not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def group_of(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process group of its own; whatever is left of the group dies at the end."""
    started = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
