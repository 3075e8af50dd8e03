r"""All that a process and its children print, C libraries included: `WANDB_CONSOLE=redirect`.

    print, printf, a child ──▶ fd 1, 2 ──▶ pty or pipe ──▶ tee ──▶ the terminal, as before
                                                            └──▶ a file ──flush──▶ write(source, text)

Invariants
----------
* The terminal gets everything, also when this process is killed: `tee` ends when the last writer of its input has.
* Nothing here stands between the program and its terminal.  A thread of this process would: a C library that prints more
  than a pipe holds while it has Python's lock would wait for that thread for ever.
* What was a terminal stays one to whoever asks, of the same size, so that progress bars and colours stay.
* What cannot be set up is undone, and printing goes on as before.

What is not passed on yet when the process is killed is in the file, `.printed-stdout` or `.printed-stderr`.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import shutil
import subprocess
import sys
import termios
import tty
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventlog.console import SOURCES, TEXT_MAX_CHARS

# A child that goes on printing keeps `tee` running; what it prints from now on is only for the terminal.
_STOP_WAIT_S = 1.0
_WINDOW_SIZE_BYTES = 8


@dataclass
class _Stream:
    """One of the two, on its way through `tee`."""

    source: str
    fd: int
    terminal_fd: int
    """Where it went before."""
    tee: subprocess.Popen[bytes]
    master_fd: int | None
    """The other end, if it is a terminal."""
    path: Path
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    offset: int = 0


class Redirect:
    """Passes to `write` the source and the text of all that comes out of this process between `start` and `stop`."""

    def __init__(self, write: Callable[[str, str], None], directory: Path) -> None:
        self._write = write
        self._directory = directory
        self._streams: list[_Stream] = []
        self._pid = 0

    def start(self) -> list[str]:
        """Begin; return which of stdout and stderr cannot be captured."""
        self._pid = os.getpid()
        failed = []
        for fd, source in enumerate(SOURCES, start=1):
            _flush(source)
            try:
                self._streams.append(_redirected(source, fd, self._directory / f".printed-{source}"))
            except (OSError, termios.error):
                failed.append(source)
        return failed

    def flush(self) -> None:
        """Pass on what was printed since; to be called every second."""
        if self._pid == os.getpid():
            for stream in self._streams:
                self._pass_on(stream)
                _take_over_size(stream)

    def stop(self) -> None:
        """Pass on the rest, and let everything go where it went before."""
        if self._pid != os.getpid():
            return
        streams, self._streams = self._streams, []
        for stream in streams:
            _flush(stream.source)
            os.dup2(stream.terminal_fd, stream.fd)
            if stream.master_fd is not None:
                os.close(stream.master_fd)
        # Each of them, also if Ctrl-C ends the waiting for one.
        with ExitStack() as ends:
            for stream in reversed(streams):
                ends.callback(self._end, stream)

    def _end(self, stream: _Stream) -> None:
        try:
            with suppress(subprocess.TimeoutExpired):
                stream.tee.wait(_STOP_WAIT_S)
        finally:
            self._pass_on(stream, is_last=True)
            os.close(stream.terminal_fd)
            stream.path.unlink(missing_ok=True)

    def _pass_on(self, stream: _Stream, is_last: bool = False) -> None:
        with suppress(OSError), open(stream.path, "rb") as file:
            file.seek(stream.offset)
            while data := file.read(TEXT_MAX_CHARS):
                stream.offset += len(data)
                text = stream.decoder.decode(data)
                if text:
                    self._write(stream.source, text)
        rest = stream.decoder.decode(b"", final=True) if is_last else ""
        if rest:
            self._write(stream.source, rest)


def _redirected(source: str, fd: int, path: Path) -> _Stream:
    """Lead what is written to `fd` through `tee`; raise `OSError` with nothing changed if that cannot be."""
    program = shutil.which("tee")
    if program is None:
        raise FileNotFoundError("there is no `tee`")
    terminal_fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    opened = [terminal_fd]
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        is_terminal = os.isatty(fd)
        out_fd, in_fd = pty.openpty() if is_terminal else os.pipe()
        opened += [out_fd, in_fd]
        if is_terminal:
            # What comes out of the program is for the real terminal to make something of, and only for it.
            tty.setraw(in_fd)
        # `tee` outlives an interrupt from the keyboard, and whoever is killed together with us.
        tee = subprocess.Popen(
            [program, "-a", str(path)],
            stdin=out_fd,
            stdout=terminal_fd,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.dup2(in_fd, fd)
    except BaseException:
        for each in opened:
            os.close(each)
        path.unlink(missing_ok=True)
        raise
    os.close(in_fd)
    if not is_terminal:
        os.close(out_fd)
    stream = _Stream(source, fd, terminal_fd, tee, out_fd if is_terminal else None, path)
    _take_over_size(stream)
    return stream


def _take_over_size(stream: _Stream) -> None:
    """Tell whoever asks how large the window is: it may have changed."""
    if stream.master_fd is not None:
        with suppress(OSError):
            size = fcntl.ioctl(stream.terminal_fd, termios.TIOCGWINSZ, b"\0" * _WINDOW_SIZE_BYTES)
            if size != fcntl.ioctl(stream.master_fd, termios.TIOCGWINSZ, b"\0" * _WINDOW_SIZE_BYTES):
                fcntl.ioctl(stream.master_fd, termios.TIOCSWINSZ, size)


def _flush(source: str) -> None:
    with suppress(OSError, ValueError, AttributeError):
        getattr(sys, source).flush()
