"""How far one destination has come, on disk.  FORMAT.md, "`sync/<sink>.json`".

Invariants
----------
* A cursor is replaced whole, and the last generation that was made durable stays beside it: whatever is killed or
  loses its power, one of the two can be read.
* What is read back is what was written, or nothing: both generations carry a checksum.
* An older generation is safe to go on from: it only means lines sent again at the place where they already are.

What the numbers mean is decided by `syncd`; here they are kept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eventlog.piece import (
    LOCK_TEXT_MAX_BYTES,
    ask_lock,
    lock_text,
    may_live,
    open_lock,
    ran_here,
    sync_directory,
    text_of,
    this_boot_id,
    try_lock,
    write_all,
    write_lock_text,
)
from eventlog.record import BadLine, frame_object, unframe_object

FORMAT = 1
SYNC_DIR = "sync"
# What a person may choose for a run that is parked or waiting: the cursor's `choice`.
APPEND = "append"
CONTINUE = "continue"
_RUN_ID_FILE = "run-id"
# After a crash another host waits so long before it takes a run over; and a host that holds one says so that often.
LEASE_S, RENEW_S = 180.0, 30.0


@dataclass(frozen=True, slots=True)
class Sink:
    """A destination, as the user asked for it: the server may name the default entity later."""

    base_url: str
    entity: str | None
    project: str
    run_id: str

    @property
    def name(self) -> str:
        """
        >>> Sink("https://api.wandb.ai", None, "demo", "baseline").name
        'api.wandb.ai-1a8cc939f812'
        """
        text = "\n".join((self.base_url, self.entity or "", self.project, self.run_id))
        host = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(self.base_url).hostname or "sink")
        return f"{host}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Cursor:
    """One generation.  Field by field as FORMAT.md has it."""

    sink: Sink
    rank: int = 0
    attach: dict[str, Any] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    acked: dict[str, int] = field(default_factory=dict)
    next: dict[str, Any] | None = None
    fold: dict[str, Any] | None = None
    console: dict[str, Any] | None = None
    files: dict[str, Any] | None = None
    made: dict[str, str] = field(default_factory=dict)
    alerted: dict[str, Any] | None = None
    stubs: list[list[Any]] = field(default_factory=list)
    finished: bool = False
    stopped: str | None = None
    choice: str | None = None
    state: str = "waiting"
    error: str | None = None
    not_shown: dict[str, int] = field(default_factory=dict)
    generation: int = 0
    time: int = 0


def load(run_dir: Path, sink: Sink) -> Cursor | None:
    """Return the newest readable generation for `sink`, or None if there is none."""
    path = run_dir / SYNC_DIR / f"{sink.name}.json"
    found = [cursor for cursor in (_read(path), _read(_previous(path))) if cursor and cursor.sink == sink]
    return max(found, key=lambda cursor: cursor.generation, default=None)


def save(run_dir: Path, cursor: Cursor, now_us: int, durable: bool = False) -> Cursor:
    """Write the next generation of `cursor` and return it; with `durable`, a power cut leaves it too."""
    directory = run_dir / SYNC_DIR
    directory.mkdir(mode=0o700, exist_ok=True)
    written = replace(cursor, generation=cursor.generation + 1, time=now_us)
    path = directory / f"{cursor.sink.name}.json"
    # Another host's uploader may write at this moment: see `Lease`.
    temporary = path.with_suffix(new_suffix())
    # A kill between the two renames below leaves it as another name of the durable generation.
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, _line_of(written))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    if durable:
        # One file under both names: what comes after it takes the one, and leaves the other until it is durable too.
        linked = temporary.with_name(f"{temporary.name}.durable")
        linked.unlink(missing_ok=True)
        os.link(temporary, linked)
        os.replace(linked, _previous(path))
    os.replace(temporary, path)
    if durable:
        sync_directory(directory)
    return written


def new_suffix() -> str:
    """Return how a cursor ends that is being written on this kernel, on which one process at a time does."""
    return f".json.new-{this_boot_id()[:8]}"


def forget(run_dir: Path, sink: Sink) -> None:
    """Delete what is known of one destination."""
    path = run_dir / SYNC_DIR / f"{sink.name}.json"
    for generation in (path, _previous(path)):
        generation.unlink(missing_ok=True)


class Lease:
    """Holds a run for one uploader to one sink: on this kernel by `flock`, between hosts by what the lock file says.

    Not every network file system carries locks from host to host, and clocks differ.  So the second part only saves work:
    two that upload one run at once send the same lines to the same places.  Where there are no locks at all, what the
    file says counts on this host as well, as long as the process that said it lives.
    """

    def __init__(self, fd: int, now_us: int, is_locked: bool) -> None:
        self._fd = fd
        self._is_locked = is_locked
        self._said = b""
        self._said_us = 0
        self._say(now_us)

    @classmethod
    def take(cls, run_dir: Path, sink: Sink, now_us: int) -> Lease | None:
        """Hold the run, or return None if another process has it, or one on another host said so a short while ago."""
        directory = run_dir / SYNC_DIR
        directory.mkdir(mode=0o700, exist_ok=True)
        fd = open_lock(directory / f"{sink.name}.lock")
        is_locked = try_lock(fd)
        if is_leased(is_locked, os.pread(fd, LOCK_TEXT_MAX_BYTES, 0), now_us):
            os.close(fd)
            return None
        return cls(fd, now_us, is_locked is True)

    def keep(self, now_us: int) -> bool:
        """Say now and then that the run is held; return False if another process may have taken it since."""
        # What was removed holds nobody off who makes it anew.
        is_there = os.fstat(self._fd).st_nlink > 0
        if not is_there or os.pread(self._fd, LOCK_TEXT_MAX_BYTES, 0) != self._said:
            return False
        if abs(now_us - self._said_us) > RENEW_S * 1e6:
            self._say(now_us)
        return True

    def release(self) -> None:
        # A disk that became read-only, or went: the lock goes all the same, and the text is not believed for long.
        with suppress(OSError):
            if os.pread(self._fd, LOCK_TEXT_MAX_BYTES, 0) == self._said:
                os.ftruncate(self._fd, 0)
        with suppress(OSError):
            os.close(self._fd)

    def _say(self, now_us: int) -> None:
        self._said_us = now_us
        # A disk that refuses it costs nothing.
        with suppress(OSError):
            write_lock_text(self._fd, now_us, self._is_locked)
        self._said = os.pread(self._fd, LOCK_TEXT_MAX_BYTES, 0)


def is_leased(is_locked: bool | None, line: bytes, now_us: int) -> bool:
    """Say whether another process holds the run, by what `try_lock` said of its lock file, and by the text of that."""
    if is_locked is False:
        return True
    text = text_of(line)
    # A clock that is far ahead would hold the run for as long after a crash.
    if not text or abs(now_us - text["heartbeat"]) >= LEASE_S * 1e6:
        return False
    # Where the lock speaks for who wrote it, it has spoken.
    return not (is_locked and ran_here(text)) and may_live(text)


def is_held(run_dir: Path, now_us: int) -> bool:
    """Say whether an uploader, on whatever host, holds the run for any of its destinations."""
    with suppress(OSError):
        for path in lease_files(run_dir):
            # One that went meanwhile, or may not be opened, says nothing.
            with suppress(OSError):
                if is_leased(*ask_lock(path), now_us):
                    return True
    return False


def lease_files(run_dir: Path) -> list[Path]:
    """Return the lock files of the run's destinations, or raise `OSError`."""
    directory = run_dir / SYNC_DIR
    return [directory / name for name in os.listdir(directory) if name.endswith(".lock")]


def run_id_there(run_dir: Path) -> str | None:
    """Return the run id under which a person wants the run uploaded, if it is not its own."""
    return _text_of(run_dir / SYNC_DIR / _RUN_ID_FILE)


def vouch_for_end(run_dir: Path, writer: str) -> None:
    """Take a person's word that a writer on another host, whose lock says nothing here, is gone for good."""
    directory = run_dir / SYNC_DIR
    directory.mkdir(mode=0o700, exist_ok=True)
    heartbeat = lock_text(run_dir / writer).get("heartbeat")
    (directory / f"ended.{writer}").write_text(f"{heartbeat}\n")


def is_vouched_for(run_dir: Path, writer: str) -> bool:
    """Whether a person said that the writer is gone, and nothing was heard from it since."""
    said = _text_of(run_dir / SYNC_DIR / f"ended.{writer}")
    return said is not None and said == str(lock_text(run_dir / writer).get("heartbeat"))


def upload_as(run_dir: Path, run_id: str) -> None:
    """Let the run be uploaded under another run id from now on."""
    directory = run_dir / SYNC_DIR
    directory.mkdir(mode=0o700, exist_ok=True)
    temporary = directory / f"{_RUN_ID_FILE}.new"
    temporary.write_text(run_id + "\n")
    os.replace(temporary, directory / _RUN_ID_FILE)
    sync_directory(directory)


def cursors(run_dir: Path) -> Iterator[Cursor]:
    """Yield the newest readable cursor of every destination of the run, by name."""
    for path in _paths(run_dir):
        cursor = _newest_at(path)
        if cursor is not None:
            yield cursor


def unreadable(run_dir: Path) -> Path | None:
    """Return a cursor of the run of which no generation can be read: how far that destination is, nobody knows."""
    return next((path for path in _paths(run_dir) if _newest_at(path) is None), None)


def _paths(run_dir: Path) -> list[Path]:
    try:
        names = os.listdir(run_dir / SYNC_DIR)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = {name.removesuffix(".previous") for name in names}
    return sorted(run_dir / SYNC_DIR / name for name in found if name.endswith(".json"))


def _newest_at(path: Path) -> Cursor | None:
    found = [cursor for cursor in (_read(path), _read(_previous(path))) if cursor]
    return max(found, key=lambda cursor: cursor.generation, default=None)


def _text_of(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.read(fd, 4096).decode().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _read(path: Path) -> Cursor | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as file:
        line = file.read()
    try:
        content = unframe_object(line.rstrip(b"\n"))
        if content.pop("format") != FORMAT:
            return None
        return Cursor(**{**content, "sink": Sink(**content["sink"])})
    except (BadLine, KeyError, TypeError):
        # Garbage, or of another version: as good as lost, and a lost cursor is rebuilt from log and server.
        return None


def _line_of(cursor: Cursor) -> bytes:
    # Not `asdict(cursor)`, which copies the whole fold before it is written.
    content = {part.name: getattr(cursor, part.name) for part in fields(cursor)}
    return frame_object({"format": FORMAT, **content, "sink": asdict(cursor.sink)})
