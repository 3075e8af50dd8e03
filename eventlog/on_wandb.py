"""What a run knows of itself on W&B: where it is shown, how much of it is there, whether somebody pressed Stop.

All of it is in the cursors that `syncd` writes beside the log.

Invariants
----------
* Nothing is asked of a server; what no cursor says is None, zero or False.
* A cursor of a rank that is a run of its own says nothing of this run.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eventlog.cursor import Cursor, cursors
from eventlog.piece import primaries


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far the upload of this process's events is, under W&B's names."""

    sync_items_total: int = 0
    sync_items_pending: int = 0
    sync_time: datetime.datetime | None = None


def url(run_dir: Path) -> str | None:
    """Return the address of the run's page; None as long as it has none."""
    return next((cursor.attach["url"] for cursor in _attached(run_dir) if cursor.attach["url"]), None)  # type: ignore[index]


def project_url(run_dir: Path) -> str | None:
    """Return the address of the page of the run's project; None as long as it has none."""
    page, separator, _ = (url(run_dir) or "").partition("/runs/")
    return page if separator else None


def entity(run_dir: Path) -> str | None:
    """Return whose project the server put the run in."""
    return next((cursor.attach["entity"] for cursor in _attached(run_dir)), None)  # type: ignore[index]


def is_stopped(run_dir: Path, pieces: list[str]) -> bool:
    """Whether somebody pressed Stop on the run's page while one of these pieces was written."""
    return any(cursor.stopped in pieces for cursor in cursors(run_dir))


def is_complete(run_dir: Path, writer: str) -> bool:
    """Whether every server that has the run was told that it is complete, the piece of `writer` included."""
    found = list(cursors(run_dir))
    names = primaries(run_dir)
    # Of a piece that was resumed, the cursor says for a while what was true before.
    since = names[names.index(writer) :] if writer in names else [*names, ""]
    return bool(found) and all(
        cursor.finished and (cursor.rank > 0 or (cursor.next or {}).get("writer", "") in since)
        for cursor in found
    )


def status(run_dir: Path, writer: str, events: int) -> RunStatus:
    """Return how many of a writer's `events` are on their way; with several servers, to the slowest."""
    found = _attached(run_dir)
    pending, time_us = 0, 0
    for cursor in found:
        done = cursor.next["seq"] if cursor.next and cursor.next["writer"] == writer else 0
        pending, time_us = max(pending, events - done), max(time_us, cursor.time)
    if not time_us:
        return RunStatus(events, events)
    return RunStatus(events, pending, datetime.datetime.fromtimestamp(time_us / 1e6))


def _attached(run_dir: Path) -> Iterator[Cursor]:
    return (cursor for cursor in cursors(run_dir) if cursor.attach is not None and cursor.rank == 0)
