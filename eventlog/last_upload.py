"""Waits until W&B has a finished run, and uploads it where nobody else does.

    cursors ◀── whoever uploads it, on whatever host
       └─ complete? ── no, and no daemon here takes it ──▶ child: `syncd sync RUN`, and again, until the time is over

Invariants
----------
* What counts is what the cursors say, whoever wrote them.
* A daemon here takes the run if it holds it: that one runs, and that it once had an earlier piece, says nothing.
* The child is gone when `wait` returns. If this process is killed, it goes on without it to its own end.
* Between two children the run is nobody's: a syncd on another host that reaches the server can take it.
* Nothing that the child does raises or prints; the last line of one that gave up is returned as the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from eventlog import cursor, on_wandb, roots
from eventlog.child import command, environment

_POLL_S = 0.1
# A daemon that hangs, or that has no key, only looks as if it would take this run.
_DAEMON_S = 10.0
# While nothing gets on, a child gives up after so long; the next one comes so much later, and later each time.
_PATIENCE_S = 30.0
_AGAIN_FIRST_S, _AGAIN_S = 5.0, 60.0
# What is in flight may land; what does not is sent again later, to the same place.
_END_S = 2.0
_WRONG_USAGE = 2
_HELD = "syncd has taken it up; `syncd status` says what it waits for"
_NOT_INSTALLED = "syncd's packages are not installed here: pip install 'tidelog[sync]'"


def obstacle() -> str | None:
    """Return why nothing can be uploaded from here, or None."""
    # What a training node need not have; without an interpreter's name, as where Python is embedded, none can be started.
    return None if sys.executable and find_spec("httpx") is not None else _NOT_INSTALLED


def wait(run_dir: Path, writer: str, timeout_s: float, is_offline: bool) -> str | None:
    """Return None once W&B has all of the run; when `timeout_s` is over, why it has not, empty if nobody knows.

    `writer` is the piece that has just ended: what was complete before it does not count.

    With `is_offline`, no daemon takes the run: W&B's mode "offline".
    """
    deadline_s = time.monotonic() + timeout_s
    trusted_until_s = time.monotonic() + _DAEMON_S
    uploads = _Uploads(run_dir, deadline_s)
    try:
        while not _is(lambda: on_wandb.is_complete(run_dir, writer)):
            now_s = time.monotonic()
            if now_s >= deadline_s:
                return uploads.reason
            # From the first child on it is the child that holds the run.
            if is_offline or not roots.daemon_is_watching(run_dir.parent.parent) or now_s >= trusted_until_s:
                uploads.keep_going(now_s)
            elif cursor.is_held(run_dir, time.time_ns() // 1000):
                trusted_until_s, uploads.reason = now_s + _DAEMON_S, _HELD
            time.sleep(min(_POLL_S, deadline_s - now_s))
        return None
    finally:
        uploads.end()


def _is(question: Callable[[], bool]) -> bool:
    # A cursor that cannot be read just now says nothing yet.
    with suppress(OSError):
        return question()
    return False


class _Uploads:
    """One child after the other, until the run is there or a person has to do something."""

    def __init__(self, run_dir: Path, deadline_s: float) -> None:
        self.reason = ""
        """What the last child that gave up said, or what is known without one."""
        self._run_dir = os.path.abspath(run_dir)
        self._deadline_s = deadline_s
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._not_before_s = float("-inf")
        self._again_s = _AGAIN_FIRST_S

    def keep_going(self, now_s: float) -> None:
        """See to it that a child is uploading, unless one just gave up."""
        if self._child is not None and self._child.poll() is not None:
            code = self._child.returncode
            self._take_its_word()
            self.end()
            self._not_before_s = float("inf") if code == _WRONG_USAGE else now_s + self._again_s
            self._again_s = min(2 * self._again_s, _AGAIN_S)
        if self._child is None and now_s >= self._not_before_s:
            self._begin(now_s)

    def end(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        said, self._said = self._said, None
        if said is not None:
            said.close()
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _take_its_word(self) -> None:
        assert self._said is not None
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), self.reason)
        self.reason = last.removeprefix("Error: ").removeprefix("Not everything is uploaded: ").rstrip(".")

    def _begin(self, now_s: float) -> None:
        missing = obstacle()
        if missing is not None:
            self.reason, self._not_before_s = missing, float("inf")
            return
        patience_s = max(1.0, min(_PATIENCE_S, (self._deadline_s - now_s) / 2))
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
            self._child = subprocess.Popen(
                command("syncd", "sync", f"--patience={patience_s:.1f}", self._run_dir),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
            )
        except OSError as error:
            # No memory or no process left: it may be so in a moment.
            self.reason = f"no process could be started that uploads it: {error.strerror}"
            self._not_before_s = now_s + self._again_s
