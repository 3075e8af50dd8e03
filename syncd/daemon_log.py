"""What the daemon says, for people: on stderr, which `syncd start` points at a file that is turned over.

    logging ──▶ stderr ──▶ syncd.log ──8 MiB──▶ syncd.log.1

Invariants
----------
* In the background two files of `MAX_BYTES` hold all that is kept, however long the daemon runs.
* Whatever ends the interpreter is said in the newest of them: stdout and stderr go along when the file is turned over.
* Where stderr is somebody else's, a terminal or systemd's journal, no file is made.
* A log that cannot be written or turned over, on a full disk say, costs what it would have said, and nothing else.
"""

from __future__ import annotations

import io
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 8 * 1024 * 1024
_FOLLOW_S = 0.2
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


def open_log(path: Path) -> int:
    """Return a descriptor that adds to the log; it is made if it is not there, for this user alone."""
    return os.open(path, _FLAGS, 0o600)


def begin(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Write what the daemon says to stderr; where that is the file at `path`, keep the file small."""
    ours = [fd for fd in (1, 2) if _is(fd, path)]
    handler = _TurnedOver(path, max_bytes, ours) if 2 in ours else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("syncd")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # watchdog puts its whole table of watches in it, and means only that it looked at a directory twice.
    warnings.filterwarnings("ignore", "Callback with id ", RuntimeWarning)


class _TurnedOver(RotatingFileHandler):
    """A log that some descriptors of this process lead to, also when it was turned over."""

    def __init__(self, path: Path, max_bytes: int, descriptors: list[int]) -> None:
        self._descriptors = descriptors
        super().__init__(path, maxBytes=max_bytes, backupCount=1, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        fd = open_log(Path(self.baseFilename))
        for descriptor in self._descriptors:
            os.dup2(fd, descriptor)
        return open(fd, "a", encoding="utf-8", errors="backslashreplace")

    def doRollover(self) -> None:
        try:
            super().doRollover()
        except OSError:
            # It goes on where it can: in the same file, until the directory or the disk takes another one.
            self.stream = None


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def tail(path: Path, lines: int, follow: bool = False) -> Iterator[str]:
    """Yield the last lines of a log, and with `follow` those to come, without an end, also when it is turned over."""
    file = _opened(path)
    text = _earlier(path, file) + _rest(file)
    *whole, rest = text.split("\n")
    if rest and not follow:
        whole.append(rest)
    yield from whole[-lines:] if lines else []
    while follow:
        time.sleep(_FOLLOW_S)
        # Asked first: what is read after it is all that came to the one before.
        newer = _opened(path)
        text = rest + _rest(file)
        if newer is not None and (file is None or not os.path.samestat(_stat_of(newer), _stat_of(file))):
            file, newer = newer, file
            text += _rest(file)
        if newer is not None:
            newer.close()
        *whole, rest = text.split("\n")
        yield from whole


def _earlier(path: Path, file: BinaryIO | None) -> str:
    """Return what was said before the log was turned over the last time."""
    with suppress(OSError), open(f"{path}.1", "rb") as earlier:
        if file is None or not os.path.samestat(_stat_of(earlier), _stat_of(file)):
            return _rest(earlier)
    return ""


def _opened(path: Path) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except OSError:
        # Not there yet, or between two names.
        return None


def _stat_of(file: BinaryIO) -> os.stat_result:
    return os.fstat(file.fileno())


def _rest(file: BinaryIO | None) -> str:
    """Return what was not read yet; of a file that was emptied meanwhile, all of it."""
    if file is None:
        return ""
    if _stat_of(file).st_size < file.tell():
        file.seek(0)
    return file.read().decode(errors="replace")


def said_since(path: Path, begin: int) -> list[str]:
    """Return the lines of the log behind that byte; none if it cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace").splitlines()
    return []
