r"""What the program prints, kept as it goes to the terminal.

    print ──▶ sys.stdout.write ──▶ the terminal, as before
                      └── fragments ──▶ whole lines ──▶ write(source, text)   (a `console` record)

Invariants
----------
* The terminal gets what it would get without us, when it would get it, and its errors reach the program as before.
* A line is passed on once, in the order printed, by the `print` that ends it; if another thread is just passing text
  on, that thread takes it along.  What has no newline yet (a progress bar) goes with the next `flush`.
* No lock is held, and none is waited for, while `write` runs: it may print, and so may a thread that it waits for.
* After `stop`, and in a forked child that has not called `start` itself, everything here is transparent.

What is printed is not looked at: control characters stay, and what is a line on a screen is decided by the reader.  Text
that a C library or a child process writes to the descriptor itself does not come by here.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

SOURCES = ("stdout", "stderr")
# One record: far below a line's limit, and still few records for a program that prints a file.
TEXT_MAX_CHARS = 64 * 1024
# So many fragments without a newline are put together at once: nobody might ever call `flush`.
_FRAGMENTS_MAX = 256
# Another thread may be in `write`; if it hangs there, the program still ends.
_STOP_WAIT_S = 1.0


class Console:
    """Passes to `write` the source and the text of all that this process prints between `start` and `stop`."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        self.error: Exception | None = None
        """What `write` raised, which it never should: nothing is captured since."""
        self._write = write
        self._wrapped: list[tuple[Any, Callable[..., Any], dict[str, Any]]] = []
        self._begin()
        self._pid = 0

    def start(self) -> list[str]:
        """Begin, or begin anew in a forked child; return which of stdout and stderr cannot be captured."""
        self._begin()
        if self._wrapped:
            return []
        return [source for source in SOURCES if not self._wrap(source, getattr(sys, source, None))]

    def flush(self) -> None:
        """Pass on what has no newline yet; to be called twice a second."""
        if self._pid == os.getpid():
            self._pass_on(unfinished=True)

    def stop(self) -> None:
        """Pass on the rest and put back what was there; whoever wrapped the streams after us stays in place."""
        for stream, write, before in self._wrapped:
            if vars(stream).get("write") is write:
                del stream.write
                vars(stream).update(before)
        self._wrapped = []
        if self._pid == os.getpid():
            self._pass_on(unfinished=True, wait_s=_STOP_WAIT_S)
        self._pid = 0

    def _begin(self) -> None:
        """Begin with free locks and no text: in a forked child, both are its parent's."""
        self._fragments: deque[tuple[str, str]] = deque()
        self._unfinished = dict.fromkeys(SOURCES, "")
        # Reentrant only because an interrupt may strike between acquiring it and noting that.
        self._passing = threading.RLock()
        self._passing_thread: int | None = None
        self._is_ready = False
        self._pid = os.getpid()

    # ── the streams ──────────────────────────────────────────────────────────────────────────────────────────

    def _wrap(self, source: str, stream: Any) -> bool:
        # One object may stand for both streams; its text comes once.
        if any(stream is other for other, _, _ in self._wrapped):
            return True
        try:
            before = {key: value for key, value in vars(stream).items() if key == "write"}
            original = stream.write
        except (AttributeError, TypeError):
            return False

        def write(*args: Any, **kwargs: Any) -> Any:
            written = original(*args, **kwargs)
            if self._pid == os.getpid() and args and isinstance(args[0], str):
                self._take(source, args[0])
            return written

        try:
            stream.write = write
        except (AttributeError, TypeError):
            return False
        self._wrapped.append((stream, write, before))
        return True

    # ── the text ─────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, source: str, text: str) -> None:
        # Appending to a deque is atomic: a signal handler or a finaliser may print in the middle of another print.
        self._fragments.append((source, text))
        if self._passing_thread == threading.get_ident():
            # `write` itself printed.  Were it passed on now, a `write` that always prints would never end.
            return
        if "\n" in text or len(text) >= TEXT_MAX_CHARS or len(self._fragments) >= _FRAGMENTS_MAX:
            self._is_ready = True
            self._pass_on()

    def _pass_on(self, unfinished: bool = False, wait_s: float = 0.0) -> None:
        """Pass on what is ready, unless another thread is doing so: it looks again before it is done."""
        if self._passing_thread == threading.get_ident():
            return
        self._is_ready = self._is_ready or unfinished
        while self._is_ready and self._passing.acquire(timeout=wait_s):
            try:
                self._passing_thread = threading.get_ident()
                self._is_ready = False
                self._put_together()
                self._write_lines(unfinished)
            except Exception as error:  # noqa: BLE001 - a print must not fail because of what we do with its text
                self.error = error
                self._pid = 0
            finally:
                self._passing_thread = None
                self._passing.release()
            unfinished = False

    def _put_together(self) -> None:
        parts: dict[str, list[str]] = {source: [text] for source, text in self._unfinished.items()}
        # Counted before: `write` and other threads may go on printing.
        for _ in range(len(self._fragments)):
            source, text = self._fragments.popleft()
            parts[source].append(text)
        self._unfinished = {source: "".join(texts) for source, texts in parts.items()}

    def _write_lines(self, unfinished: bool) -> None:
        for source in SOURCES:
            text = self._unfinished[source]
            is_long = len(text) >= TEXT_MAX_CHARS
            end = len(text) if unfinished or is_long else text.rfind("\n") + 1
            # Set before writing: a text is passed on once, even if an interrupt ends the writing.
            self._unfinished[source] = text[end:]
            for begin in range(0, end, TEXT_MAX_CHARS):
                self._write(source, text[begin : min(begin + TEXT_MAX_CHARS, end)])
