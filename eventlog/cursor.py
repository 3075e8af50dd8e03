"""How far one destination has come, on disk.  FORMAT.md, "`sync/<sink>.json`".

Invariants
----------
* A cursor is replaced whole; the generation before it stays until the next: one of the two can always be read.
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

from eventlog.piece import sync_directory
from eventlog.record import BadLine, frame_object, unframe_object

FORMAT = 1
SYNC_DIR = "sync"


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
    attach: dict[str, Any] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    acked: dict[str, int] = field(default_factory=dict)
    next: dict[str, Any] | None = None
    fold: dict[str, Any] | None = None
    stubs: list[list[Any]] = field(default_factory=list)
    finished: bool = False
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
    temporary = path.with_suffix(".json.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(fd, _line_of(written))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    # There is nothing to keep before the first generation.
    with suppress(FileNotFoundError):
        os.replace(path, _previous(path))
    # Killed right here, the previous generation is the newest one, and says so by its number.
    os.replace(temporary, path)
    if durable:
        sync_directory(directory)
    return written


def cursors(run_dir: Path) -> Iterator[Cursor]:
    """Yield the newest readable cursor of every destination of the run, by name."""
    try:
        names = sorted(os.listdir(run_dir / SYNC_DIR))
    except (FileNotFoundError, NotADirectoryError):
        return
    stems = sorted({re.sub(r"\.json(\.previous)?$", "", name) for name in names if ".json" in name})
    for stem in stems:
        path = run_dir / SYNC_DIR / f"{stem}.json"
        found = [cursor for cursor in (_read(path), _read(_previous(path))) if cursor]
        if found:
            yield max(found, key=lambda cursor: cursor.generation)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _read(path: Path) -> Cursor | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
