"""What is uploaded and what is not, read from the logs and the cursors alone: it works without a daemon.

Nothing is changed here, and no server is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eventlog import cursor as cursors
from eventlog import piece as pieces
from eventlog.cursor import Cursor, Sink
from eventlog.errors import NotARun
from eventlog.piece import RunIdentity
from eventlog.reader import StreamReader, end_of, find_runs


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run's way to one sink.  `records`, `acked` and `backlog` count events of the run's history."""

    run: str
    records: int
    acked: int
    backlog: int
    lag_s: float
    state: str
    error: str | None
    url: str | None
    not_shown: dict[str, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cursor stands behind its log."""

    records: int
    acked: int
    oldest_us: int | None
    """When the first record was logged that is not acknowledged."""


def progress(run_dir: Path, cursor: Cursor | None) -> Progress:
    """Compare the log with a cursor.  Reads the ends of segments, and one place in the middle."""
    ends = {name: end_of(run_dir / name)[0] for name in pieces.primaries(run_dir)}
    records = sum(ends.values())
    at = cursor.next if cursor is not None else None
    acked = 0
    oldest_us: int | None = None
    for name, end in ends.items():
        if at is not None and (name < at["writer"] or (name == at["writer"] and at["seq"] >= end)):
            acked += end
            continue
        if at is not None and name == at["writer"]:
            acked += at["seq"]
        if oldest_us is None and end:
            oldest_us = _time_of(run_dir / name, cursor, at["seq"] if at and name == at["writer"] else 0)
    return Progress(records, acked, oldest_us)


def run_statuses(roots: Iterable[Path], now_us: int, online: bool) -> list[RunStatus]:
    """Return one line per run and sink, or one for a run that no sink has heard of."""
    found = []
    for root in roots:
        for run_dir in find_runs(root):
            try:
                identity = RunIdentity.load(run_dir)
            except NotARun:
                continue
            known: list[Cursor | None] = [*cursors.cursors(run_dir)]
            for cursor in known or [None]:
                found.append(_status(run_dir, identity, cursor, now_us, online))
    return found


def run_status(run_dir: Path, sink: Sink, now_us: int, online: bool) -> RunStatus:
    """Return one run's way to one sink."""
    return _status(run_dir, RunIdentity.load(run_dir), cursors.load(run_dir, sink), now_us, online)


def as_json(daemon: dict[str, Any], runs: list[RunStatus]) -> dict[str, Any]:
    """Return what `syncd status --json` prints: stable, scripts rely on it."""
    return {
        "daemon": {
            "state": daemon.get("state", "stopped"),
            "pid": daemon.get("pid"),
            "since": daemon.get("since"),
            "next_try_s": daemon.get("next_try_s"),
            "error": daemon.get("error"),
        },
        "runs": [asdict(run) for run in runs],
    }


def _status(
    run_dir: Path, identity: RunIdentity, cursor: Cursor | None, now_us: int, online: bool
) -> RunStatus:
    so_far = progress(run_dir, cursor)
    backlog = so_far.records - so_far.acked
    age_us = now_us - so_far.oldest_us if so_far.oldest_us is not None and backlog else 0
    return RunStatus(
        run=f"{identity.project}/{identity.run_id}",
        records=so_far.records,
        acked=so_far.acked,
        backlog=backlog,
        lag_s=max(0.0, round(age_us / 1e6, 1)),
        state=_state(run_dir, cursor, backlog, online),
        error=cursor.error if cursor is not None else None,
        url=cursor.attach["url"] if cursor is not None and cursor.attach else None,
        not_shown=cursor.not_shown if cursor is not None else {},
    )


def _state(run_dir: Path, cursor: Cursor | None, backlog: int, online: bool) -> str:
    if cursor is not None and cursor.state == "parked":
        return "parked"
    if cursor is None or cursor.attach is None:
        return "waiting"
    writing = _is_written(run_dir)
    if backlog and not writing:
        return "syncing" if online else "waiting"
    if writing:
        return "live" if online else "waiting"
    return "synced" if cursor.finished else "crashed"


def _is_written(run_dir: Path) -> bool:
    # A piece without a lock was never born: its process was killed on the way.
    names = [name for name in pieces.primaries(run_dir) if (run_dir / name / pieces.LOCK_FILE).exists()]
    return bool(names) and not pieces.closed(run_dir, names[-1])


def _time_of(piece_dir: Path, cursor: Cursor | None, seq: int) -> int | None:
    fold = cursor.fold if cursor is not None else None
    # The fold may be a row further than the first record that is not acknowledged; its age is as good.
    if fold is not None and fold["writer"] == piece_dir.name and fold["place"] and fold["seq"] >= seq:
        reader = StreamReader(piece_dir, seq=fold["seq"], hint=(fold["place"][0], fold["place"][1]))
    else:
        reader = StreamReader(piece_dir, seq=seq)
    record = reader.first()
    return record.time_us if record is not None else None
