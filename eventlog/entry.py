"""Which run a starting process enters, and as what: the first to write it, its next piece, or a writer beside it.

    enter(project, id, resume, rank) ──▶ Entry(identity, piece, earlier)

Invariants
----------
* Two processes never believe both that they write a run's history: the choice and the claim are one step, under a lock
  on the run's directory, and the claim itself is a `mkdir`.
* A run that lives is never continued, and one that is dead never loses its continuation to a doubt: where a lock cannot
  be seen (another machine's, on a file system that keeps locks to itself), the heartbeat is watched until it tells.
* What an earlier piece came to is read from the log, by W&B's step rule.
* No run is written where nobody looks: whoever finds runs follows no symlink below the root.

Nothing is written here but directories, `run.json` and the lock of the piece.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventlog.errors import RootNotWritable, RunExists, RunNotFound
from eventlog.outcome import SummaryState
from eventlog.piece import (
    HEARTBEAT_S,
    LOCK_FILE,
    Piece,
    RunIdentity,
    ask_lock,
    claim_primary,
    claim_secondary,
    lock_text,
    primaries,
    ran_here,
    text_of,
)
from eventlog.reader import read
from eventlog.record import Record
from eventlog.roots import make_way

# Four missed heartbeats: the clocks of two machines differ by less.
_SURELY_DEAD_S = 4 * HEARTBEAT_S
# Watched for longer than one heartbeat and a slow disk, a live writer shows itself.
_WATCH_S = 1.5 * HEARTBEAT_S
# How long a rank waits for rank 0 to begin a run anew whose id is taken.
_RANK_WAIT_S = 10.0
_POLL_S = 0.1
_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(slots=True)
class Earlier:
    """What the pieces of a run came to so far."""

    config: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    step: int = 0
    """The first step that the next piece may use."""
    runtime_s: float = 0.0
    has_exited: bool = False
    """Whether the newest piece ends in an `exit`."""
    summary: SummaryState = field(default_factory=SummaryState)
    about: dict[str, Any] = field(default_factory=dict)
    """Notes, tags, group and job type, where there are any."""
    wandb: dict[str, Any] = field(default_factory=dict)
    """What W&B was told in the `_wandb` block of the config."""
    _row_is_open: bool = False
    _piece_began_us: int | None = None
    _piece_runtime_s: float = 0.0

    def end_piece(self) -> Earlier:
        """Close the row that is open and count the time, as the end of a process does."""
        self.step += self._row_is_open
        self.runtime_s += self._piece_runtime_s
        self._row_is_open, self._piece_runtime_s, self._piece_began_us = False, 0.0, None
        return self

    def take(self, record: Record) -> None:
        """Go on by one record."""
        self.has_exited = record.kind == "exit"
        self.summary.take(record)
        if record.kind == "start":
            self.config.update(record.data.get("config") or {})
            self.step = max(self.step, record.data.get("step") or 0)
            self._take_facts(record.data)
        elif record.kind == "facts":
            self._take_facts(record.data)
        elif record.kind == "config":
            self.config.update(record.data)
        elif record.kind == "metrics" and record.step is not None and record.step >= self.step:
            self.step = record.step + 1 if record.commit else record.step
            self._row_is_open = not record.commit
        if self._piece_began_us is None:
            self._piece_began_us = record.time_us
        self._piece_runtime_s = max(0.0, (record.time_us - self._piece_began_us) / 1e6)

    def _take_facts(self, facts: dict[str, Any]) -> None:
        self.name = facts.get("name") or self.name
        self.wandb.update(facts.get("wandb") or {})
        told = ("notes", "tags", "group", "job_type")
        self.about.update({name: facts[name] for name in told if facts.get(name) is not None})


@dataclass(frozen=True, slots=True)
class Entry:
    """A run entered: a piece of it is this process's."""

    identity: RunIdentity
    run_dir: Path
    piece: Piece
    is_primary: bool
    earlier: Earlier | None = None
    asked_id: str | None = None
    """The id that was asked for, if this is another one: what the run is still called."""
    notice: str | None = None
    """What a person should know about how it came out."""


def random_id() -> str:
    """Return a run id as W&B makes them."""
    return "".join(_ID_ALPHABET[byte % len(_ID_ALPHABET)] for byte in os.urandom(8))


def enter(
    root: Path,
    project: str,
    entity: str | None,
    run_id: str,
    resume: str | None,
    rank: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> Entry:
    """Enter the run, or raise `RunExists`, `RunNotFound`, `RootNotWritable` or `OSError`.

    `resume` is None, "allow", "must" or "never". `tell` gets a sentence if this has to wait.
    """
    run_dir = RunIdentity.new(project, run_id, entity).directory(root)
    make_way(root, run_dir)
    _refuse_symlinks(run_dir)
    if resume == "must" and not primaries(run_dir):
        raise RunNotFound(
            f"there is no run {run_id!r} in project {project!r} under {str(root)!r}. "
            'Check the id and the root, or use resume="allow" to begin it.'
        )
    if resume == "never" and primaries(run_dir):
        raise RunExists(
            f'there is a run {run_id!r} in project {project!r} already. Use another id, or resume="allow" to continue it.'
        )
    if rank > 0:
        return _enter_beside_rank_0(root, project, entity, run_id, resume, rank)
    for candidate in _family(run_id):
        identity = RunIdentity.new(project, candidate, entity)
        run_dir = identity.directory(root)
        _refuse_symlinks(run_dir)
        _make_private(run_dir)
        with _alone_in(run_dir):
            if not primaries(run_dir):
                identity = identity.publish(run_dir)
                piece = claim_primary(run_dir)
                if candidate == run_id:
                    return Entry(identity, run_dir, piece, True)
                notice = f'run {run_id!r} exists: this is {candidate!r}. Use resume="allow" to continue {run_id!r}.'
                return Entry(identity, run_dir, piece, True, asked_id=run_id, notice=notice)
            if resume is not None:
                return _continue(run_dir, resume, tell)
    raise AssertionError("the family of an id has no end")


def read_earlier(run_dir: Path) -> Earlier:
    """Return what the primary pieces of a run came to."""
    earlier = Earlier()
    for writer in primaries(run_dir):
        # A piece that was just claimed has no record yet: the exit before it is not its own.
        earlier.has_exited = False
        for record in read(run_dir, writer=writer):
            earlier.take(record)
        earlier.end_piece()
    return earlier


def _continue(run_dir: Path, resume: str, tell: Callable[[str], None]) -> Entry:
    identity = RunIdentity.load(run_dir)
    if resume == "never":
        raise RunExists(f"run {identity.run_id!r} was begun by another process just now. Use another id.")
    newest = primaries(run_dir)[-1]
    is_alive = _is_alive(run_dir / newest, tell)
    earlier = read_earlier(run_dir)
    if is_alive and not earlier.has_exited:
        notice = (
            f"run {identity.run_id!r} is being written by {_owner(run_dir / newest)}: this process writes beside it. "
            "Its records are kept and can be queried, and are not part of the run's history."
        )
        return Entry(identity, run_dir, claim_secondary(run_dir, "second"), False, earlier, notice=notice)
    return Entry(identity, run_dir, claim_primary(run_dir), True, earlier)


def _enter_beside_rank_0(
    root: Path, project: str, entity: str | None, run_id: str, resume: str | None, rank: int
) -> Entry:
    """Join the run that rank 0 writes, has still to begin, or, after a while, has ended."""
    deadline_s = time.monotonic() + _RANK_WAIT_S
    while True:
        run_dir, identity = (
            _newest_of_family(root, project, entity, run_id) if resume is None else (None, None)
        )
        if run_dir is None or identity is None:
            identity = RunIdentity.new(project, run_id, entity)
            run_dir = identity.directory(root)
        names = primaries(run_dir)
        if (
            not names
            or resume is not None
            or _looks_alive(run_dir / names[-1])
            or time.monotonic() > deadline_s
        ):
            _refuse_symlinks(run_dir)
            _make_private(run_dir)
            identity = identity.publish(run_dir)
            return Entry(identity, run_dir, claim_secondary(run_dir, f"rank{rank}"), False)
        time.sleep(_POLL_S)


def _newest_of_family(
    root: Path, project: str, entity: str | None, run_id: str
) -> tuple[Path | None, RunIdentity | None]:
    newest: tuple[Path | None, RunIdentity | None] = (None, None)
    for candidate in _family(run_id):
        identity = RunIdentity.new(project, candidate, entity)
        if not primaries(identity.directory(root)):
            return newest
        newest = (identity.directory(root), identity)
    return newest


def _family(run_id: str) -> Iterator[str]:
    """Yield the id, and those that stand in for it where it is taken: `baseline`, `baseline-2`, `baseline-3`, …"""
    yield run_id
    number = 2
    while True:
        yield f"{run_id}-{number}"
        number += 1


def _refuse_symlinks(run_dir: Path) -> None:
    for directory in (run_dir.parent, run_dir):
        if directory.is_symlink():
            raise RootNotWritable(
                f"{str(directory)!r} is a symlink, and a run in it would not be found: `eventlog ls` and syncd follow none "
                f"below the root. Put the directory itself ({os.path.realpath(directory)!r}) in its place, or let the root "
                "be the link, or be elsewhere (root=…, or EVENTLOG_ROOT)."
            )


def _make_private(directory: Path) -> None:
    """Make `directory` and what is missing above it, each for this user alone (`parents=True` would use the umask)."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(each, 0o700)


@contextmanager
def _alone_in(run_dir: Path) -> Iterator[None]:
    """Keep other starting processes of this machine out of `run_dir` for a moment."""
    fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # NFS locks no directory; there the claim by `mkdir` stands alone.
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_alive(piece_dir: Path, tell: Callable[[str], None]) -> bool:
    """Say whether the piece's writer lives; where its lock cannot tell, watch its heartbeat."""
    if (seen := _seen_by_lock(piece_dir)) is not None:
        return seen
    text = lock_text(piece_dir)
    if time.time() - text.get("heartbeat", 0) / 1e6 > _SURELY_DEAD_S:
        return False
    tell(
        f"the last process of this run was on {text.get('host')!r}, whose lock cannot be seen from here: "
        f"waiting up to {_WATCH_S:.0f} s for a sign of life."
    )
    deadline_s = time.monotonic() + _WATCH_S
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        if lock_text(piece_dir) != text:
            return True
    return False


def _looks_alive(piece_dir: Path) -> bool:
    """Like `_is_alive`, without a wait."""
    seen = _seen_by_lock(piece_dir)
    return (
        time.time() - lock_text(piece_dir).get("heartbeat", 0) / 1e6 < _SURELY_DEAD_S
        if seen is None
        else seen
    )


def _seen_by_lock(piece_dir: Path) -> bool | None:
    """Say what the lock says: held, free for good, or (None) that it cannot be known from here."""
    try:
        is_free, line = ask_lock(piece_dir / LOCK_FILE)
    except FileNotFoundError:
        # Claimed and not locked: killed in between, or right now in between. Nobody has written anything.
        return None
    if not is_free:
        return True if is_free is False else None
    return False if ran_here(text_of(line)) else None


def _owner(piece_dir: Path) -> str:
    text = lock_text(piece_dir)
    return f"process {text.get('pid')} on {text.get('host')}"
