"""A world for a fault to happen in: one run written by hand, one server, one daemon, and a model of what must arrive.

    log ──▶ segments ──▶ daemon (a thread) ──▶ server
     └────▶ model  ◀───────── settled() ────────┘

Invariants
----------
* The model is what was logged; a test names each row that may be missing, and any other difference fails it.
* What happens to bytes happens on the disk, never in the daemon's memory.
* `settled` compares twice: with what the daemon brought there live, and with what another daemon makes of the rest.

Row x is `{"x": x}` at step x, and a row of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eventlog.cursor import SYNC_DIR, Cursor, cursors
from eventlog.record import encode
from syncd.daemon import Daemon
from syncd.fold import HISTORY
from syncd.run_sync import DAMAGED
from syncd.wandb_api import WandbApi
from syncd.watch import Watch
from tests.logs import TIME_US, HandmadePiece, handmade_run, resumed
from tests.syncd.syncing import DEADLINE_S, daemon_of, sync
from tests.wandb_server import API_KEY, StoredRun, WandbServer, differences, wait_for

NOBODY = 65534


class World:
    """One run and what becomes of it.  Use it as a context manager: the daemon ends with it."""

    def __init__(self, root: Path, server: WandbServer, is_watching: bool) -> None:
        self.root = root
        self.server = server
        self.run = handmade_run(root)
        self.rows: list[dict[str, Any]] = []
        self.base_url = server.base_url
        self.key = API_KEY
        self.jump_s = 0.0
        """How far the trainer's wall clock is off."""
        self._asleep_s = 0.0
        self._is_watching = is_watching
        self._rest = b""
        self._lines: dict[int, tuple[Path, int, int]] = {}
        self.daemon: Daemon
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None
        self._wake: Callable[[], object] = lambda: None

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # What the trainer does

    def log(self, *xs: int, **more: Any) -> None:
        for x in xs:
            before = self._size()
            line = self._next_line(x, more)
            self.run.append(line)
            self.run.lines.append(line)
            self._lines[x] = (self.run.segment, before, len(line))

    def log_half(self, x: int) -> None:
        """Write the first half of a row; `log_rest` writes the other."""
        line = self._next_line(x, {})
        self._rest = line[len(line) // 2 :]
        self.run.append(line[: len(line) // 2])

    def log_rest(self) -> None:
        self.run.append(self._rest)

    def rotate(self) -> Path:
        """Go on in a new segment; return the one before."""
        before = self.run.segment
        self.run.new_segment()
        return before

    def _next_line(self, x: int, more: dict[str, Any]) -> bytes:
        time_us = TIME_US + self.run.seq * 1000 + int(self.jump_s * 1e6)
        line = encode(self.run.seq, time_us, "metrics", {"x": x, **more}, x, True)
        self.run.seq += 1
        self.rows.append({"x": x, **more, "_step": x})
        return line

    def die(self) -> None:
        self.run.die()

    def finish(self) -> None:
        self.run.log("exit", exitcode=0)
        self.run.die()

    def resume(self) -> None:
        """Begin another piece, as the trainer's restart does."""
        self.run.die()
        self.run = resumed(self.run.identity, self.root)

    # What happens to the disk

    @property
    def run_dir(self) -> Path:
        return self.run.piece.dir.parent

    @property
    def sync_dir(self) -> Path:
        return self.run_dir / SYNC_DIR

    def flip(self, *xs: int) -> None:
        """Change a digit of each row, which leaves it JSON."""
        for x in xs:
            segment, at, _ = self._lines[x]
            line = self.bytes_of(x)
            digit = line.index(b'"x":') + 4
            changed = b"7" if line[digit : digit + 1] != b"7" else b"8"
            self._overwrite(segment, at + digit, changed)

    def zero(self, *xs: int) -> None:
        for x in xs:
            segment, at, size = self._lines[x]
            self._overwrite(segment, at, bytes(size))

    def size_of(self, x: int) -> int:
        return self._lines[x][2]

    def bytes_of(self, x: int) -> bytes:
        segment, at, size = self._lines[x]
        return segment.read_bytes()[at : at + size]

    def cut(self, x: int, into: int = 0) -> None:
        """Let the segment end where row x begins, or so many bytes into it."""
        segment, at, _ = self._lines[x]
        os.truncate(segment, at + into)

    def hole(self, x: int) -> None:
        """Cut the segment at row x under a writer that goes on at the old end: zeros between."""
        segment, at, _ = self._lines[x]
        size = segment.stat().st_size
        os.truncate(segment, at)
        os.truncate(segment, size)

    def move_run(self, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        segment, piece_dir = self.run.segment, self.run.piece.dir
        shutil.move(self.run_dir, to)
        self.run.piece.dir = to / piece_dir.name
        self.run.segment = self.run.piece.dir / segment.name

    def delete_run(self) -> None:
        # Out of the way first: the daemon may be about to write a cursor between its files.
        self.move_run(self.root.parent / "deleted")
        shutil.rmtree(self.root.parent / "deleted")

    def copy_run(self, to: Path) -> None:
        """Copy it while the daemon may be writing: all but the cursor's files that are there for an instant."""
        shutil.copytree(
            self.run_dir, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.new", "*.durable")
        )

    # What happens to the daemon

    def start(self) -> None:
        if self._thread is None:
            started = threading.Event()
            self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="syncd")
            self._thread.start()
            assert started.wait(DEADLINE_S)

    def stop(self) -> None:
        if self._thread is not None:
            self._stop()
            self._thread.join(DEADLINE_S)
            assert not self._thread.is_alive(), "the daemon does not end"
            self._thread = None

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextmanager
    def power_cut(self) -> Iterator[None]:
        """Let the daemon forget what it wrote to its cursor inside: that never reached the disk."""
        self.stop()
        kept = self.root.parent / "cursor-before"
        shutil.copytree(self.sync_dir, kept)
        yield
        self.stop()
        shutil.rmtree(self.sync_dir)
        shutil.move(kept, self.sync_dir)

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep: the daemon's clock goes on, and nothing else."""
        self._asleep_s += seconds
        self._wake()

    def waits_s(self) -> float:
        """Return for how long the daemon means to leave the run alone if it hears nothing."""
        return self.daemon.entries[self.run_dir, 0].due_s - self._clock()

    def sync(self, **options: Any) -> None:
        """Let another daemon upload what is left."""
        sync(self.server, self.root, **self._options(), **options)

    def _options(self) -> dict[str, Any]:
        return {"api": WandbApi(self.base_url, lambda: self.key), "clock": self._clock}

    def _clock(self) -> float:
        return time.monotonic() + self._asleep_s

    async def _serve(self, started: threading.Event) -> None:
        daemon = self.daemon = daemon_of(self.server, self.root, until_synced=False, **self._options())
        loop = asyncio.get_running_loop()
        # What is no run wakes the daemon, and is no hint.
        self._wake = lambda: loop.call_soon_threadsafe(daemon.hint, self.root)
        watch = Watch(daemon.hint, loop.call_soon_threadsafe)
        if self._is_watching:
            daemon.watch_roots = watch.look_after
        self._stop = lambda: loop.call_soon_threadsafe(daemon.stop)
        started.set()
        try:
            await daemon.run()
        finally:
            watch.stop()

    # What is to be seen in the end

    @property
    def there(self) -> StoredRun:
        return self.server.run(*self._key)

    @property
    def _key(self) -> tuple[str, str, str]:
        return "ent", "demo", self.run.identity.run_id

    def held(self) -> list[dict[str, Any]]:
        """Return the rows that the server holds."""
        with self.server.lock:
            return self.there.history if self._key in self.server.store.runs else []

    def cursor(self) -> Cursor:
        (cursor,) = cursors(self.run_dir)
        return cursor

    def arrived(self, lost: Sequence[int] = ()) -> None:
        """Return once the daemon has brought there all that was logged, less the rows that are lost."""
        self.start()
        wanted = self._wanted(lost)
        wait_for(lambda: len(self.held()) >= len(wanted), f"the arrival of {len(wanted)} rows", DEADLINE_S)
        assert differences(wanted, self.held()) == []
        # Between the server's word and the cursor there is an instant, in which a kill costs a batch sent again.
        wait_for(lambda: self.cursor().acked[HISTORY] == len(wanted), "the cursor's saving", DEADLINE_S)

    def settled(self, lost: Sequence[int] = (), counted: int | None = None, replayed: int = 0) -> None:
        """Assert that all arrives but what is lost, which is counted, and that nothing is sent again.

        `replayed` is how many lines may have been sent twice, to the same place.
        """
        self.arrived(lost)
        self.stop()
        self.sync()
        self.arrived_as_it_was(lost)
        assert self.cursor().not_shown.get(DAMAGED, 0) == (len(lost) if counted is None else counted)
        assert self.there.replayed_lines <= replayed

    def arrived_as_it_was(self, lost: Sequence[int] = ()) -> None:
        assert differences(self._wanted(lost), self.held()) == []
        assert self.server.violations == []

    def _wanted(self, lost: Sequence[int]) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("x") not in lost]

    def _size(self) -> int:
        return self.run.segment.stat().st_size

    @staticmethod
    def _overwrite(path: Path, offset: int, data: bytes) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)


def another_run(root: Path, run_id: str = "another", project: str = "demo") -> HandmadePiece:
    """Log a row in another run: once that is on the server, the daemon has looked at all."""
    piece = handmade_run(root, run_id, project)
    piece.log(x=0, step=0, commit=True)
    return piece


@contextmanager
def unprivileged(root: Path) -> Iterator[None]:
    """Be nobody in particular for a while, if we are root, to whom nothing is forbidden."""
    if os.geteuid() != 0:
        yield
        return
    for path in [root, *root.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
