"""Removes W&B's run directories once W&B has everything that is in them.

    directories ──confirmed──▶ Candidate(objection?) ──remove──▶ gone

Invariants
----------
* Without an objection means: all of it was read and is whole, every line and file of it is acknowledged, no process
  writes it, and W&B says at this moment that it has the run with as many rows.
* What cannot be made sure of is an objection.
* The log that was made of a run stays, with its cursor: it can be queried, and the run be resumed.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eventlog import cursor as cursors
from eventlog.cursor import Cursor
from eventlog.store import FILES_DIR
from syncd import wandb_runs
from syncd.attach import parse_server_run
from syncd.fold import HISTORY
from syncd.http import dig
from syncd.shipper import Verdict
from syncd.status import run_status
from syncd.transfer import outcome_of_answer
from syncd.wandb_api import WandbApi
from syncd.wandb_runs import Taken


@dataclass(slots=True)
class Candidate:
    """A run directory of W&B's, and why it is not to be removed (None: it may be)."""

    directory: Path
    run_dir: Path | None = None
    objection: str | None = None


def confirmed(
    paths: Iterable[str], older_than_hours: float, base_url: str, key: Callable[[], str | None]
) -> list[Candidate]:
    """Look at the run directories below `paths`, and ask W&B about those that seem to be done with."""
    written = wandb_runs.being_written()
    files = {
        file for given in paths for path in wandb_runs.expand(given) for file in wandb_runs.files_at(path)[0]
    }
    taken_files = {
        shadow: wandb_runs.taken_below(shadow, written) for shadow in {file.shadow for file in files}
    }
    candidates, to_ask = [], []
    for file in sorted(files, key=lambda file: str(file.path)):
        candidate = Candidate(file.directory)
        candidates.append(candidate)
        if not file.directory.name.startswith(("run-", "offline-run-")):
            candidate.objection = "it is no run directory of W&B's, but a directory with a file in it"
            continue
        taken = taken_files[file.shadow].get(file)
        if taken is None:
            candidate.objection = "not all of it was uploaded by `syncd sync`"
            continue
        candidate.run_dir = taken.run_dir
        cursor = _done_cursor(taken, base_url)
        age_hours = (time.time() - file.path.stat().st_mtime) / 3600
        if not taken.is_whole:
            candidate.objection = "something of it is damaged or missing"
        elif cursor is None:
            candidate.objection = "W&B does not have all of it yet: `syncd sync` uploads the rest"
        elif age_hours < older_than_hours:
            candidate.objection = f"it was written to {age_hours:.1f} h ago"
        else:
            to_ask.append((candidate, cursor))
    asyncio.run(_ask(to_ask, base_url, key))
    return candidates


def remove(candidate: Candidate) -> None:
    """Remove the directory, and the contents that its log refers to: W&B has them."""
    assert candidate.objection is None
    assert candidate.run_dir is not None
    shutil.rmtree(candidate.directory)
    shutil.rmtree(candidate.run_dir / FILES_DIR, ignore_errors=True)


def _done_cursor(taken: Taken, base_url: str) -> Cursor | None:
    """Return the cursor of a destination at `base_url` that has all of the run."""
    now_us = time.time_ns() // 1000
    for cursor in cursors.cursors(taken.run_dir):
        status = run_status(taken.run_dir, cursor.sink, now_us, online=True)
        is_over = status.state in ("synced", "crashed")
        if cursor.sink.base_url == base_url and is_over and not status.lacks_something:
            return cursor
    return None


async def _ask(to_ask: list[tuple[Candidate, Cursor]], base_url: str, key: Callable[[], str | None]) -> None:
    """Object to those that W&B does not have, or may not have."""
    api = WandbApi(base_url, key)
    try:
        for candidate, cursor in to_ask:
            candidate.objection = await _objection(api, cursor)
    finally:
        await api.close()


async def _objection(api: WandbApi, cursor: Cursor) -> str | None:
    attached = cursor.attach
    assert attached is not None
    answer = await api.resume_status(attached["entity"], attached["project"], attached["run_id"])
    outcome = outcome_of_answer(answer)
    if outcome.verdict is not Verdict.ACK or "model" not in answer.data:
        return f"W&B cannot be asked whether it has it: {outcome.reason or 'its answer makes no sense'}"
    try:
        server = parse_server_run(dig(answer.data, "model").get("bucket"))
    except ValueError as error:
        return f"W&B's answer makes no sense: {error}"
    if server is None:
        return "W&B does not have this run any more"
    if server.counts[HISTORY] < cursor.acked[HISTORY]:
        return f"W&B says that it has {server.counts[HISTORY]} rows of {cursor.acked[HISTORY]}"
    return None
