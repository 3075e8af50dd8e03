"""Decides where on the server a run's lines begin, once, before the first of them is sent.

    ServerRun (what W&B says of the run id) + our pieces ──decide──▶ Attach | Wait | Park

Invariants
----------
* Nothing is ever sent below a base: lines that were there before us are never touched.
* The bases of a run are chosen once.  They stand in the config's `_tidelog` mark before the first line is sent,
  so a lost cursor finds them again.
* Two logs never share a run: who finds another log's mark, or another piece at the number of its own, stops.

Counts on the service may lag, so they are believed only after they stood still.  There is no clock here: the
caller says for how long they did.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from syncd.fold import CONSOLE, EVENTS, HISTORY, Bases
from syncd.metadata import MARK

# Stands for the token of a piece whose headers cannot be read; it contradicts nothing.
UNKNOWN = "unknown "
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

    @property
    def is_empty(self) -> bool:
        return not self.started and not any(self.counts.values())

    @property
    def mark(self) -> dict[str, Any] | None:
        found = self.config.get(MARK)
        value = found.get("value") if isinstance(found, dict) else None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class Attach:
    """Go ahead: lines count from `bases`, and those below `acked` are there already."""

    bases: Bases
    acked: dict[str, int]


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
    log_id: str, pieces: list[str], server: ServerRun | None, steady_for_s: float
) -> Attach | Wait | Park:
    """Say how a run without a cursor begins on this server.

    `pieces` are the tokens of our primary pieces, in order. `steady_for_s` is for how long the server's counts
    have been seen unchanged.
    """
    if server is None or (server.is_empty and server.mark is None):
        bases = Bases()
        return Attach(bases, _at(bases))
    if server.mark is not None:
        conflict = conflict_with(log_id, pieces, server)
        if conflict is not None:
            return Park(conflict)
        bases_found = _bases_of(server.mark)
        if bases_found is None:
            return Park(
                f"the run's {MARK} mark on the server cannot be read: {json.dumps(server.mark)[:200]}"
            )
        if steady_for_s < STEADY_S:
            return Wait()
        # Ours, with the cursor lost. A count that lags still costs nothing: the same lines go to the same places.
        begin = _at(bases_found)
        return Attach(bases_found, {file: max(begin[file], server.counts[file]) for file in begin})
    if steady_for_s < STEADY_S:
        return Wait()
    bases = Bases(
        server.counts[HISTORY],
        server.counts[EVENTS],
        server.counts[CONSOLE],
        server.next_step,
        server.runtime_s,
    )
    return Attach(bases, _at(bases))


def conflict_with(log_id: str, pieces: list[str], server: ServerRun | None) -> str | None:
    """Say why this log must not write to that run, or None if it may."""
    mark = server.mark if server is not None else None
    if mark is None:
        return None
    if mark.get("log_id") != log_id:
        return (
            "another log already writes to this run id. Log under another run id; what is here stays here and can be "
            "queried."
        )
    theirs = mark.get("pieces")
    if not isinstance(theirs, list):
        return None
    for number, (their, our) in enumerate(zip(theirs, pieces, strict=False), start=1):
        if their != our and not our.startswith(UNKNOWN):
            return (
                f"piece {number} of this run was uploaded from another copy of this directory. Sync that copy; what is "
                "here stays here and can be queried."
            )
    return None


def _at(bases: Bases) -> dict[str, int]:
    return {HISTORY: bases.history, EVENTS: bases.events, CONSOLE: bases.console}


def _bases_of(mark: dict[str, Any]) -> Bases | None:
    try:
        history, events, console = (int(n) for n in mark["bases"])
        return Bases(history, events, console, int(mark["first_step"]), float(mark["runtime_s"]))
    except (KeyError, TypeError, ValueError):
        return None


def _count(bucket: dict[str, Any], key: str) -> int:
    value = bucket.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} is no count: {value!r:.50}")
    return value


def _number(value: Any, default: float) -> float:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else default


def _object(value: Any) -> dict[str, Any]:
    """W&B sends most objects as JSON text; NaN in it is legal there."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
            # A lone surrogate would come back to us in a body that cannot be encoded.
            if isinstance(value, dict):
                value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _last_object(value: Any) -> dict[str, Any]:
    """A tail is a JSON list of JSON texts."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return _object(value[-1]) if isinstance(value, list) and value else {}
