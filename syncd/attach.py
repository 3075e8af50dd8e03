"""Decides where on the server a run's lines begin, once, before the first of them is sent.

    ServerRun (what W&B says of the run id) + our pieces ──decide──▶ Attach | Wait | Park

Invariants
----------
* Nothing is ever sent below a base: lines that were there before us are never touched.
* The bases of a run are chosen once.  They stand in the config's `_tidelog` mark before the first line is sent,
  so a lost cursor finds them again.
* Two logs never share a run: who finds another log's mark, or another piece at the number of its own, stops.
* The log of a run that W&B's SDK recorded may be made anew from its files, and its pieces then have other tokens:
  of such a log nothing is believed that only a count says. Its rows are compared with those that are there.

Counts on the service may lag, so they are believed only after they stood still.  There is no clock here: the
caller says for how long they did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from eventlog.cursor import APPEND, CONTINUE
from syncd.console import SCREEN_LINES
from syncd.fold import CONSOLE, EVENTS, HISTORY, STUB, Bases
from syncd.metadata import MARK
from syncd.read_back import changes_between

# Stands for the token of a piece whose headers cannot be read; it contradicts nothing.
UNKNOWN = "unknown "
_CHANGED = "have been uploaded from W&B's files as they were before those were completed or repaired."
# The service's counts were seen to lag by 2-4 s.
STEADY_S = 10.0


@dataclass(frozen=True, slots=True)
class ServerRun:
    """What the server holds under our run id."""

    storage_id: str
    config: dict[str, Any]
    """Wrapped, as W&B keeps it: `{key: {"value": …}}`."""
    started: bool
    counts: dict[str, int]
    """Per server file, how many lines it says it has."""
    next_step: int
    runtime_s: float
    summary: dict[str, Any]
    last_event_s: float | None = None
    """When the last system metrics that are there were taken."""

    @property
    def is_empty(self) -> bool:
        return not self.started and not any(self.counts.values())

    @property
    def mark(self) -> dict[str, Any] | None:
        found = self.config.get(MARK)
        value = found.get("value") if isinstance(found, dict) else None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class Attached:
    """Where the run is on the server, as agreed: the attach record."""

    entity: str
    project: str
    run_id: str
    storage_id: str
    bases: Bases
    others_config: dict[str, Any]
    """What another client had put there before us; so with the summary."""
    others_summary: dict[str, Any]
    summary_from: int = 0
    """Before this history line, the summary there is newer than ours."""
    forced: str | None = None
    """A person's choice, where it decided what is taken for ours there."""
    unsent: int = 0
    """How many of our rows were not found there, and are taken for there by that choice."""

    def record(self, log_id: str, url: str) -> dict[str, Any]:
        """Return this as the cursor keeps it."""
        return {
            "log_id": log_id,
            "entity": self.entity,
            "project": self.project,
            "run_id": self.run_id,
            "storage_id": self.storage_id,
            "url": url,
            "history_base": self.bases.history,
            "events_base": self.bases.events,
            "console_base": self.bases.console,
            "first_step": self.bases.first_step,
            "runtime_base_s": self.bases.runtime_s,
            "others_config": self.others_config,
            "others_summary": self.others_summary,
            "summary_from": self.summary_from,
            "forced": self.forced,
            "unsent": self.unsent,
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> Attached:
        """Return what `record` made."""
        bases = Bases(
            record["history_base"],
            record["events_base"],
            record["console_base"],
            record["first_step"],
            record["runtime_base_s"],
        )
        return cls(
            record["entity"],
            record["project"],
            record["run_id"],
            record["storage_id"],
            bases,
            record["others_config"],
            record["others_summary"],
            record.get("summary_from", 0),
            record.get("forced"),
            record.get("unsent", 0),
        )


@dataclass(frozen=True, slots=True)
class Attach:
    """Go ahead: lines count from `bases`, and those below `acked` are there already."""

    bases: Bases
    acked: dict[str, int]
    is_known: bool = False
    """The server has our mark already: the cursor was lost, or is of an earlier log."""
    is_compared: bool = False
    """What is there was compared with the log, since the mark is an earlier log's."""
    summary_from: int = 0
    """Before this history line, the server's summary is newer than ours."""
    is_continued: bool = False
    """The server was told of this very run, names and all: by another client, or by an earlier log of it."""
    forced: str | None = None
    unsent: int = 0
    """As the attach record has them."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Find out which of the log's rows are there: a count would not say that they are the same."""

    bases: Bases | None = None
    """Where an earlier log of this run began; None if it is to be found out what is there of it, and from where on."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again: the counts have not stood still for long enough."""


@dataclass(frozen=True, slots=True)
class Park:
    """Stop: going on could damage what is there."""

    error: str


def parse_server_run(bucket: Any) -> ServerRun | None:
    """Return what `RunResumeStatus` says, or None if there is no such run.

    The answer is untrusted: what does not fit counts as absent, and a count that is no number raises `ValueError`.
    """
    if bucket is None:
        return None
    if not isinstance(bucket, dict):
        raise ValueError(f"a run that is no object: {bucket!r:.200}")
    history_tail = _last_object(bucket.get("historyTail"))
    events_tail = _last_object(bucket.get("eventsTail"))
    summary = _object(bucket.get("summaryMetrics"))
    counts = {
        HISTORY: _count(bucket, "historyLineCount"),
        EVENTS: _count(bucket, "eventsLineCount"),
        CONSOLE: _count(bucket, "logLineCount"),
    }
    steps = [_number(summary.get("_step"), -1), _number(history_tail.get("_step"), -1), counts[HISTORY] - 1]
    runtimes = [
        _number(history_tail.get("_runtime"), 0),
        _number(events_tail.get("_runtime"), 0),
        _number(_object(summary.get("_wandb")).get("runtime"), 0),
    ]
    return ServerRun(
        storage_id=str(bucket.get("id") or ""),
        config=_object(bucket.get("config")),
        started="t" in _object(bucket.get("wandbConfig")),
        counts=counts,
        next_step=int(max(steps)) + 1,
        runtime_s=float(max(runtimes)),
        summary=summary,
        last_event_s=events_tail.get("_timestamp"),
    )


def mark_of(log_id: str, pieces: list[str], bases: Bases) -> dict[str, Any]:
    """Return the `_tidelog` mark: whose lines these are, and where they begin."""
    return {
        "log_id": log_id,
        "pieces": pieces,
        "bases": [bases.history, bases.events, bases.console],
        "first_step": bases.first_step,
        "runtime_s": bases.runtime_s,
    }


def decide(
    log_id: str,
    pieces: list[str],
    server: ServerRun | None,
    steady_for_s: float,
    append: bool = False,
    is_imported: bool = False,
    is_made_anew: bool = False,
) -> Attach | Compare | Wait | Park:
    """Say how a run without a cursor begins on this server.

    `pieces` are the tokens of our primary pieces, in order. `steady_for_s` is for how long the server's counts
    have been seen unchanged. With `append`, a person wants our lines behind another log's. `is_imported`: W&B's SDK
    logged the run, so that its own client may have sent rows of it; `is_made_anew`: the log that was uploaded is not
    the one that is here now.
    """
    if server is None or (server.is_empty and server.mark is None):
        bases = Bases()
        return Attach(bases, _at(bases))
    mark, conflict = server.mark, conflict_with(log_id, pieces, server)
    is_another = is_made_anew or conflict is not None
    compares = is_imported and is_another and is_of_log(log_id, server)
    if mark is not None and (compares or not (append and conflict)):
        if conflict is not None and not compares:
            return Park(conflict)
        bases_found = _bases_of(mark)
        if bases_found is None:
            return Park(f"the run's {MARK} mark on the server cannot be read: {json.dumps(mark)[:200]}")
        if steady_for_s < STEADY_S:
            return Wait()
        if compares:
            return Compare(bases_found)
        # Ours, with the cursor lost. A count that lags still costs nothing: the same lines go to the same places.
        begin = _at(bases_found)
        # Console lines that may still change are shown there before they count: the last may not be final.
        there = {**server.counts, CONSOLE: server.counts[CONSOLE] - SCREEN_LINES}
        return Attach(bases_found, {file: max(begin[file], there[file]) for file in begin}, is_known=True)
    if steady_for_s < STEADY_S:
        return Wait()
    if is_imported and mark is None and any(server.counts.values()):
        return Compare()
    bases = _behind(server)
    return Attach(bases, _at(bases))


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of what a log makes was on the server before we were, and what lies around it."""

    rows: int
    """What the log makes."""
    before: int = 0
    """Rows that are there of steps before our first."""
    there: int = 0
    """Our first rows, which are there as well, behind those."""
    behind: int = 0
    """Rows that are there behind them."""
    behind_is_later: bool = True
    """Those were logged after all of ours: our file's end was lost when its writer was killed."""
    events_there: int = 0
    """Our first system metrics that are there as well."""
    difference: str | None = None
    """What is wrong with the first row that should be ours and is not."""


def compare(ours: Iterable[dict[str, Any]], theirs: Iterable[dict[str, Any]]) -> Overlap:
    """Say how the rows of a log lie on those that the server has; both in order.

    >>> compare([{"_step": 5, "x": 1}, {"_step": 6, "x": 2}], [{"_step": 4, "y": 0}, {"_step": 5, "x": 1}])
    Overlap(rows=2, before=1, there=1, behind=0, behind_is_later=True, events_there=0, difference=None)
    """
    before = there = rows = behind = 0
    difference = None
    is_later = True
    last_s = -math.inf
    mine = iter(ours)
    wanted = next(mine, None)
    rows += wanted is not None
    for row in theirs:
        if wanted is None or difference is not None:
            behind += 1
            is_later = is_later and _number(row.get("_timestamp"), -math.inf) >= last_s
        elif there == 0 and _number(row.get("_step"), -1) < wanted["_step"]:
            before += 1
        elif not _stands_for(row, wanted) and (changes := changes_between(wanted, row)):
            difference = f"row {there} of this run (step {wanted['_step']}): {changes[0]}"
            behind += 1
        else:
            there += 1
            last_s = _number(wanted.get("_timestamp"), math.inf)
            wanted = next(mine, None)
            rows += wanted is not None
    rows += sum(1 for _ in mine)
    return Overlap(rows, before, there, behind, is_later, difference=difference)


def _stands_for(stub: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether that is the stub of a row that the server once refused."""
    return STUB in stub and stub.get("_step") == row["_step"]


def decide_by(
    overlap: Overlap, server: ServerRun, choice: str | None = None, bases: Bases | None = None
) -> Attach | Park:
    """Say where the lines of a run begin of which there may be a part already.

    `bases` is where an earlier log of the run began. `choice` is what a person wants where it cannot be told what is
    there: `APPEND` sends all of the run behind what is there, `CONTINUE` takes what is there for its beginning.
    """
    counts = server.counts
    begin = bases or Bases()
    doubt = _doubt(overlap, server, bases)
    if doubt is not None and choice == CONTINUE:
        rows = min(max(0, counts[HISTORY] - begin.history), overlap.rows)
        until = begin.history + rows
        acked = {**counts, HISTORY: until, CONSOLE: begin.console}
        unsent = rows - min(rows, overlap.there)
        is_earlier = bases is not None
        return Attach(begin, acked, is_earlier, is_earlier, until, True, CONTINUE, unsent)
    if doubt is not None and choice == APPEND:
        bases = _behind(server)
        return Attach(bases, _at(bases))
    if doubt is not None:
        return Park(
            f"{doubt} `--force append` sends all of this run behind them, `--force continue` takes them for its "
            "beginning, `--force new-id` uploads it as a run of its own."
        )
    ours_until = overlap.before + overlap.there
    # With all of our rows there, and more, the summary there is newer than any of ours.
    summary_from = ours_until + bool(overlap.behind)
    if bases is not None:
        # What was printed is not compared: it is said again, each line in its place.
        acked = {**counts, HISTORY: ours_until, CONSOLE: bases.console}
        return Attach(bases, acked, True, True, summary_from, True)
    if overlap.before == 0:
        # The first line is ours, so all of them are, the system metrics and the console as well.
        acked = {**counts, HISTORY: ours_until, CONSOLE: max(0, counts[CONSOLE] - SCREEN_LINES)}
        return Attach(begin, acked, summary_from=summary_from, is_continued=True)
    bases = Bases(
        overlap.before,
        counts[EVENTS] - overlap.events_there,
        counts[CONSOLE],
        # As in a run that was resumed, steps go on from those before.
        0 if overlap.there else server.next_step,
        server.runtime_s,
    )
    return Attach(
        bases, {**counts, HISTORY: ours_until}, summary_from=summary_from, is_continued=bool(overlap.there)
    )


def _doubt(overlap: Overlap, server: ServerRun, bases: Bases | None) -> str | None:
    """Return why what is there may not be what it should be, or None."""
    counted, events = server.counts[HISTORY], server.counts[EVENTS]
    difference = overlap.difference
    if difference is None and overlap.behind and not overlap.behind_is_later:
        difference = f"{overlap.behind} rows behind all of this run's {overlap.rows}"
    if difference is None and bases is not None and overlap.before != bases.history:
        difference = f"{overlap.before} rows before the first of this run, where {bases.history} are expected"
    if difference is not None:
        return (
            f"W&B has {counted} rows under this run id, and they are not the beginning of this run: {difference}. It may "
            + ("have been uploaded twice." if bases is None else _CHANGED)
        )
    shown = overlap.before + overlap.there + overlap.behind
    if shown != counted:
        return (
            f"W&B says that it has {counted} rows under this run id, and shows {shown}: what is there cannot be told "
            "for certain. Try again later, or choose:"
        )
    if bases is not None and events - bases.events != overlap.events_there:
        return (
            f"W&B has {events} samples of system metrics under this run id, and they are not the first of this run. They "
            f"may {_CHANGED}"
        )
    return None


def conflict_with(log_id: str, pieces: list[str], server: ServerRun | None) -> str | None:
    """Say why this log must not write to that run, or None if it may."""
    mark = server.mark if server is not None else None
    if mark is None:
        return None
    if not is_of_log(log_id, server):
        return (
            "another log already writes to this run id. What is here stays here and can be queried. "
            "`syncd retry RUN --new-id` uploads it as a run of its own, `--append` behind the other's rows."
        )
    theirs = mark.get("pieces")
    if not isinstance(theirs, list):
        return None
    for number, (their, our) in enumerate(zip(theirs, pieces, strict=False), start=1):
        if their != our and not our.startswith(UNKNOWN):
            return (
                f"piece {number} of this run was uploaded from another copy of this directory. Sync that copy; what is "
                "here stays here and can be queried. `syncd retry RUN --new-id` uploads it as a run of its own."
            )
    return None


def is_of_log(log_id: str, server: ServerRun | None) -> bool:
    """Whether the run's mark says that this log was uploaded there."""
    mark = server.mark if server is not None else None
    return mark is not None and mark.get("log_id") == log_id


def _behind(server: ServerRun) -> Bases:
    """Return the bases behind everything that is there."""
    counts = server.counts
    return Bases(counts[HISTORY], counts[EVENTS], counts[CONSOLE], server.next_step, server.runtime_s)


def _at(bases: Bases) -> dict[str, int]:
    return {HISTORY: bases.history, EVENTS: bases.events, CONSOLE: bases.console}


def _bases_of(mark: dict[str, Any]) -> Bases | None:
    try:
        history, events, console = (int(n) for n in mark["bases"])
        found = Bases(history, events, console, int(mark["first_step"]), float(mark["runtime_s"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return found if min(history, events, console) >= 0 else None


def _count(bucket: dict[str, Any], key: str) -> int:
    value = bucket.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} is no count: {value!r:.50}")
    return value


def _number(value: Any, default: float) -> float:
    # A longer integer is no step and no time, and is more than a float can hold.
    is_sane = isinstance(value, (int, float)) and abs(value) < 2**63
    return value if is_sane and math.isfinite(value) else default


def _object(value: Any) -> dict[str, Any]:
    """W&B sends most objects as JSON text; NaN in it is legal there."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
            # A lone surrogate would come back to us in a body that cannot be encoded.
            if isinstance(value, dict):
                value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _last_object(value: Any) -> dict[str, Any]:
    """A tail is a JSON list of JSON texts."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return _object(value[-1]) if isinstance(value, list) and value else {}
