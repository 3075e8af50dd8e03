"""What is uploaded and what is not, read from the logs and the cursors alone: it works without a daemon.

Invariants
----------
* Every run that is there has a line: one that this user cannot read or write has the reason, and the way out.
* `syncing` and `live` are said only where a daemon is at it: it is online, and looks at that root.
* Nothing is changed here, and no server is asked.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from eventlog import cursor as cursors
from eventlog import piece as pieces
from eventlog.cursor import Cursor, Sink
from eventlog.errors import NotARun
from eventlog.piece import RUN_FILE, RunIdentity
from eventlog.reader import StreamReader, end_of, find_runs, pieces_of, span_of
from syncd.fold import LINE_TOO_LONG, REPEATED_STEP

# So often a look says how far it is.
_PROGRESS_RUNS = 100
# How the error of a run begins whose writer, on another host, gave no sign of life.
A_COPY = "a copy of "
NOTHING_HEARD = "nothing was heard"
ALERT_TOO_OLD = "alert older than an hour, not sent"
ALERT_UNCERTAIN = "alert that may not have arrived; it is not sent twice"
TAKEN_FOR_THERE = "taken for one of the rows that are there, by `--force continue`"
# Nothing failed: W&B's own client shows no such row either, nobody wants yesterday's alert, or one twice, and a person
# has chosen.
_ON_PURPOSE = frozenset((REPEATED_STEP, LINE_TOO_LONG, ALERT_TOO_OLD, ALERT_UNCERTAIN, TAKEN_FOR_THERE))
# States in which there is nothing to be done for a run, or nothing but by a person.
_AT_REST = ("synced", "crashed", "parked")


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
        # Of a run that is being written there is always more to come; whether a sync got it as far as it was, that says.
        is_on_its_way = bool(self.backlog or self.files_left) and self.state != "live"
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


@dataclass(slots=True)
class Trend:
    """How fast runs get on, from one look to the next.  Pure: the caller says what time it is."""

    window_s: float = 30.0
    _looks: deque[tuple[float, dict[str, int]]] = field(default_factory=deque)

    def note(self, now_s: float, runs: Iterable[RunStatus]) -> None:
        """Remember how far each run is; of looks that are older than the window the newest stays."""
        self._looks.append((now_s, {run.run: run.acked for run in runs}))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - self.window_s:
            self._looks.popleft()

    def rate(self, run: str) -> float | None:
        """Return how many records a second are acknowledged; None if it is not known for a second yet.

        >>> from types import SimpleNamespace as Run
        >>> trend = Trend()
        >>> for second, acked in enumerate((100, 400, 700)):
        ...     trend.note(second, [Run(run="demo/a", acked=acked)])
        >>> trend.rate("demo/a"), trend.rate("demo/b")
        (300.0, None)
        """
        known = [(at_s, acked[run]) for at_s, acked in self._looks if run in acked]
        if not known or known[-1][0] - known[0][0] < 1.0:
            return None
        (first_s, first), (last_s, last) = known[0], known[-1]
        return max(0, last - first) / (last_s - first_s)

    def left_s(self, run: RunStatus) -> float | None:
        """Return how long its backlog takes at that rate; None if that is not known, or if it stands still."""
        rate = self.rate(run.run)
        return run.backlog / rate if rate and run.backlog else None


class Looking:
    """Looks at runs again and again; one in which nothing has changed since it was synced is not read again."""

    def __init__(self) -> None:
        self._synced: dict[Path, tuple[tuple[int, ...], list[RunStatus]]] = {}

    def look(
        self,
        roots: Iterable[Path],
        now_us: int,
        online: bool,
        progress: Callable[[int, int], object] = lambda done, of: None,
        unwatched: Container[Path] = (),
    ) -> list[RunStatus]:
        """Return one line per run and sink, or one for a run that no sink has heard of.

        The daemon that runs does not look at roots that are `unwatched`.
        """
        run_dirs = [(root, run_dir) for root in roots for run_dir in find_runs(root)]
        found: list[RunStatus] = []
        synced = {}
        for done, (root, run_dir) in enumerate(run_dirs):
            if done % _PROGRESS_RUNS == 0:
                progress(done, len(run_dirs))
            # Before it is read: what changes meanwhile is read again.
            times = _times_of(run_dir)
            known = self._synced.get(run_dir)
            if known and known[0] == times:
                lines = known[1]
            elif root in unwatched:
                lines = [_as_unwatched(line, root, run_dir) for line in lines_of(run_dir, now_us)]
            else:
                lines = lines_of(run_dir, now_us, online)
            found += lines
            if times and lines and all(line.state == "synced" for line in lines):
                synced[run_dir] = (times, lines)
        self._synced = synced
        return found


def progress(run_dir: Path, names: list[str], cursor: Cursor | None, with_age: bool = True) -> Progress:
    """Compare pieces of a log with a cursor.  Reads the ends of segments; for the age, one place in the middle."""
    spans = {name: span_of(run_dir / name) for name in names}
    records = sum(end for end, _ in spans.values())
    at = cursor.next if cursor is not None else None
    done = names[: names.index(at["writer"])] if at is not None and at["writer"] in names else []
    acked = 0
    oldest_us: int | None = None
    for name, (end, first_us) in spans.items():
        if name in done or (at is not None and name == at["writer"] and at["seq"] >= end):
            acked += end
            continue
        if at is not None and name == at["writer"]:
            acked += at["seq"]
        if with_age and oldest_us is None and end:
            seq = at["seq"] if at and name == at["writer"] else 0
            oldest_us = first_us if seq == 0 else None
            # Nearly all of many runs are over and sealed: their briefs say it already.
            if oldest_us is None:
                oldest_us = _time_of(run_dir / name, cursor, seq)
    return Progress(records, acked, oldest_us)


def lines_of(run_dir: Path, now_us: int, online: bool = False) -> list[RunStatus]:
    """Return a run's way to each of its sinks, or to none; without any if the run is gone."""
    try:
        identity = RunIdentity.load(run_dir)
        known: list[Cursor | None] = [*cursors.cursors(run_dir)]
        return [_status(run_dir, identity, cursor, now_us, online) for cursor in known or [None]]
    except (NotARun, OSError) as error:
        if not os.path.isfile(run_dir / RUN_FILE):
            # It was deleted, or moved, while we looked.
            return []
        name = f"{run_dir.parent.name}/{run_dir.name}"
        reason = obstacle(run_dir) or f"it cannot be read: {error}"
        return [RunStatus(name, 0, 0, 0, 0.0, "waiting", reason, None, {}, 0)]


def _as_unwatched(line: RunStatus, root: Path, run_dir: Path) -> RunStatus:
    if line.error is not None or line.state != "waiting":
        return line
    return replace(
        line,
        error=f"the syncd that runs was started for other roots than {str(root)!r}. `syncd sync {shlex.quote(str(run_dir))}` "
        "uploads it now; `syncd stop`, then `syncd start` without --root, looks at every root that a run was logged to.",
    )


def obstacle(run_dir: Path) -> str | None:
    """Say what of a run's files keeps this user from uploading it, and the way out; None if nothing does."""
    try:
        for path in _to_be_read(run_dir):
            is_open = os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
            # A segment may have been sealed meanwhile.
            if not is_open and os.path.lexists(path):
                return _closed(path, "read")
        RunIdentity.load(run_dir)
    except (NotARun, OSError) as error:
        return str(error)
    return _not_writable(run_dir)


def _to_be_read(run_dir: Path) -> Iterator[Path]:
    yield run_dir
    yield run_dir / RUN_FILE
    for name in pieces.primaries(run_dir):
        yield run_dir / name
        for file in os.listdir(run_dir / name):
            yield run_dir / name / file


def _not_writable(run_dir: Path) -> str | None:
    sync_dir = run_dir / cursors.SYNC_DIR
    for path in (sync_dir, run_dir):
        if os.access(path, os.F_OK):
            return None if os.access(path, os.R_OK | os.W_OK | os.X_OK) else _closed(path, "written")
    return None


def _closed(path: Path, what: str) -> str:
    return (
        f"{str(path)!r} may not be {what} by this user. Let the one who trains upload it, or open it: "
        f"`chmod u+rwX {shlex.quote(str(path))}`, or chown."
    )


def _times_of(run_dir: Path) -> tuple[int, ...]:
    """Return what changes when a run that is over is resumed, sealed or uploaded: each makes or renames a file."""
    try:
        with os.scandir(run_dir) as entries:
            inner = [entry.stat().st_mtime_ns for entry in entries if entry.is_dir(follow_symlinks=False)]
        return (os.stat(run_dir).st_mtime_ns, *inner)
    except OSError:
        return ()


def run_status(run_dir: Path, sink: Sink, now_us: int, online: bool) -> RunStatus:
    """Return one run's way to one sink."""
    return _status(run_dir, RunIdentity.load(run_dir), cursors.load(run_dir, sink), now_us, online)


def as_json(daemon: dict[str, Any], runs: list[RunStatus], error: str | None = None) -> dict[str, Any]:
    """Return what `syncd status --json` prints: stable, scripts rely on it.

    `error` is why these may not be all the runs.
    """
    return {
        "daemon": {
            "state": daemon.get("state", "stopped"),
            "pid": daemon.get("pid"),
            "since": daemon.get("since"),
            "next_try_s": daemon.get("next_try_s"),
            "error": daemon.get("error"),
            "degraded": daemon.get("degraded"),
        },
        "runs": [asdict(run) for run in runs],
        "error": error,
    }


def _status(
    run_dir: Path, identity: RunIdentity, cursor: Cursor | None, now_us: int, online: bool
) -> RunStatus:
    names = pieces_of(run_dir, cursor.rank, cursor.pieces) if cursor is not None else pieces_of(run_dir, 0)
    so_far = progress(run_dir, names, cursor)
    backlog = so_far.records - so_far.acked
    age_us = now_us - so_far.oldest_us if so_far.oldest_us is not None and backlog else 0
    state = _state(run_dir, names, cursor, backlog, online)
    error = cursor.error if cursor is not None else None
    if error is None and state not in _AT_REST and not cursors.is_held(run_dir, now_us):
        # Where nothing was found, it may be that nothing could be read.
        error = _not_writable(run_dir) if so_far.records else obstacle(run_dir)
        state = state if error is None else "waiting"
    return RunStatus(
        # As it is there: two destinations of one run are two names, unless only the host differs.
        run=f"{cursor.sink.project}/{cursor.sink.run_id}"
        if cursor
        else f"{identity.project}/{identity.run_id}",
        records=so_far.records,
        acked=so_far.acked,
        backlog=backlog,
        lag_s=max(0.0, round(age_us / 1e6, 1)),
        state=state,
        error=error,
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
    if cursor.state != "synced":
        return "crashed"
    # Its rows are there; `complete` waits for its files.
    return "syncing" if online else "waiting"


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
