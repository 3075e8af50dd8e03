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
from eventlog.reader import StreamReader, end_of, find_runs, pieces_of
from syncd.fold import LINE_TOO_LONG, REPEATED_STEP

# How the error of a run begins whose writer, on another host, gave no sign of life.
NOTHING_HEARD = "nothing was heard"
ALERT_TOO_OLD = "alert older than an hour, not sent"
ALERT_UNCERTAIN = "alert that may not have arrived; it is not sent twice"
TAKEN_FOR_THERE = "taken for one of the rows that are there, by `--force continue`"
# Nothing failed: W&B's own client shows no such row either, nobody wants yesterday's alert, or one twice, and a person
# has chosen.
_ON_PURPOSE = frozenset((REPEATED_STEP, LINE_TOO_LONG, ALERT_TOO_OLD, ALERT_UNCERTAIN, TAKEN_FOR_THERE))


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
    files_left: int
    """Files and artifacts that are neither stored there nor given up."""

    @property
    def lacks_something(self) -> bool:
        """Whether something of the run is not there that W&B's own client would have brought there."""
        is_on_its_way = bool(self.backlog or (self.files_left and self.state != "live"))
        never_attached = self.url is None and self.error is not None
        is_lost = not self.not_shown.keys() <= _ON_PURPOSE
        return is_on_its_way or never_attached or is_lost or self.state == "parked"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cursor stands behind its log."""

    records: int
    acked: int
    oldest_us: int | None
    """When the first record was logged that is not acknowledged."""


def progress(run_dir: Path, names: list[str], cursor: Cursor | None, with_age: bool = True) -> Progress:
    """Compare pieces of a log with a cursor.  Reads the ends of segments; for the age, one place in the middle."""
    ends = {name: end_of(run_dir / name)[0] for name in names}
    records = sum(ends.values())
    at = cursor.next if cursor is not None else None
    done = names[: names.index(at["writer"])] if at is not None and at["writer"] in names else []
    acked = 0
    oldest_us: int | None = None
    for name, end in ends.items():
        if name in done or (at is not None and name == at["writer"] and at["seq"] >= end):
            acked += end
            continue
        if at is not None and name == at["writer"]:
            acked += at["seq"]
        if with_age and oldest_us is None and end:
            oldest_us = _time_of(run_dir / name, cursor, at["seq"] if at and name == at["writer"] else 0)
    return Progress(records, acked, oldest_us)


def run_statuses(roots: Iterable[Path], now_us: int, online: bool) -> list[RunStatus]:
    """Return one line per run and sink, or one for a run that no sink has heard of."""
    found = []
    for root in roots:
        for run_dir in find_runs(root):
            try:
                identity = RunIdentity.load(run_dir)
                known: list[Cursor | None] = [*cursors.cursors(run_dir)]
                for cursor in known or [None]:
                    found.append(_status(run_dir, identity, cursor, now_us, online))
            except (NotARun, OSError):
                # Being born, or not ours to look into: the others have a status all the same.
                continue
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
    names = pieces_of(run_dir, cursor.rank, cursor.pieces) if cursor is not None else pieces_of(run_dir, 0)
    so_far = progress(run_dir, names, cursor)
    backlog = so_far.records - so_far.acked
    age_us = now_us - so_far.oldest_us if so_far.oldest_us is not None and backlog else 0
    return RunStatus(
        # As it is there: two destinations of one run are two names, unless only the host differs.
        run=f"{cursor.sink.project}/{cursor.sink.run_id}"
        if cursor
        else f"{identity.project}/{identity.run_id}",
        records=so_far.records,
        acked=so_far.acked,
        backlog=backlog,
        lag_s=max(0.0, round(age_us / 1e6, 1)),
        state=_state(run_dir, names, cursor, backlog, online),
        error=cursor.error if cursor is not None else None,
        url=cursor.attach["url"] if cursor is not None and cursor.attach else None,
        not_shown=cursor.not_shown if cursor is not None else {},
        files_left=files_left(run_dir, names, cursor),
    )


def files_left(run_dir: Path, names: list[str], cursor: Cursor | None) -> int:
    """Return how many files and artifacts are neither stored there nor given up."""
    at = (cursor.files if cursor is not None else None) or {}
    begin = names.index(at["writer"]) if at.get("writer") in names else 0
    ends = [end_of(run_dir / name, "files")[0] for name in names[begin:]]
    return sum(ends) - (at["seq"] if at.get("writer") in names else 0)


def _state(run_dir: Path, names: list[str], cursor: Cursor | None, backlog: int, online: bool) -> str:
    if cursor is not None and cursor.state == "parked":
        return "parked"
    if cursor is None or cursor.attach is None:
        return "waiting"
    writing = is_written(run_dir, names)
    if backlog and not writing:
        return "syncing" if online else "waiting"
    if writing:
        return "live" if online else "waiting"
    if cursor.finished:
        return "synced"
    # Its rows are there; `complete` waits for its files.
    return "syncing" if cursor.state == "synced" else "crashed"


def is_written(run_dir: Path, names: list[str]) -> bool:
    """Whether the last of these pieces has a writer, as far as can be known."""
    # A piece without a lock was never born: its process was killed on the way.
    born = [name for name in names if (run_dir / name / pieces.LOCK_FILE).exists()]
    return bool(born) and not pieces.closed(run_dir, born[-1])


def _time_of(piece_dir: Path, cursor: Cursor | None, seq: int) -> int | None:
    fold = cursor.fold if cursor is not None else None
    # The fold may be a row further than the first record that is not acknowledged; its age is as good.
    if fold is not None and fold["writer"] == piece_dir.name and fold["place"] and fold["seq"] >= seq:
        reader = StreamReader(piece_dir, seq=fold["seq"], hint=(fold["place"][0], fold["place"][1]))
    else:
        reader = StreamReader(piece_dir, seq=seq)
    record = reader.first()
    return record.time_us if record is not None else None
