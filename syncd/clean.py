"""Removes W&B's run directories once W&B has everything that is in them.

    directories ──confirmed──▶ Candidate(objection?) ──remove──▶ gone

Invariants
----------
* Without an objection means: of every `.wandb` file in it, all was read and is whole, every line and file is
  acknowledged, no process writes it, and W&B says at this moment that it has the run with as many rows.
* Rows that were taken for a run's by a person's word alone are not taken for it here.
* What cannot be made sure of is an objection.
* The log that was made of a run stays, with its cursor: it can be queried, and the run be resumed.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from eventlog import cursor as cursors
from eventlog.cursor import Cursor
from eventlog.store import FILES_DIR
from syncd import wandb_files, wandb_sources
from syncd.attach import parse_server_run
from syncd.fold import HISTORY
from syncd.http import dig
from syncd.shipper import Verdict
from syncd.status import run_status
from syncd.transfer import outcome_of_answer
from syncd.wandb_api import WandbApi
from syncd.wandb_files import WandbFile, Writers, text_of
from syncd.wandb_runs import Taken, known
from syncd.wandb_sources import Source


@dataclass(slots=True)
class Candidate:
    """A run directory of W&B's, and why it is not to be removed (None: it may be)."""

    directory: Path
    run_dirs: list[Path] = field(default_factory=list)
    objection: str | None = None


def confirmed(
    paths: Iterable[str], older_than_hours: float, base_url: str, key: Callable[[], str | None]
) -> list[Candidate]:
    """Look at the run directories below `paths`, and ask W&B about those that seem to be done with."""
    writers = wandb_files.being_written()
    named = {
        file
        for given in paths
        for path in wandb_files.expand(given)
        for file in wandb_files.files_at(path)[0]
    }
    remembered = {shadow: wandb_sources.remembered(shadow) for shadow in {file.shadow for file in named}}
    candidates, to_ask = [], []
    for directory in sorted({file.directory for file in named}):
        candidate = Candidate(directory)
        candidates.append(candidate)
        # It is the directory that is removed: whatever was named, each file in it has a say.
        for file in sorted(map(WandbFile, directory.glob("*.wandb")), key=lambda file: str(file.path)):
            found = _looked_at(file, remembered[file.shadow], writers, older_than_hours, base_url)
            if isinstance(found, str):
                candidate.objection = candidate.objection or found
            else:
                run_dir, cursor = found
                candidate.run_dirs.append(run_dir)
                to_ask.append((candidate, cursor))
    asyncio.run(_ask(to_ask, base_url, key))
    return candidates


def remove(candidate: Candidate) -> None:
    """Remove the directory, and the contents that its logs refer to: W&B has them."""
    assert candidate.objection is None
    assert candidate.run_dirs
    shutil.rmtree(candidate.directory)
    for run_dir in candidate.run_dirs:
        shutil.rmtree(run_dir / FILES_DIR, ignore_errors=True)


def _looked_at(
    file: WandbFile,
    remembered: dict[str, list[tuple[Path, Source]]],
    writers: Writers,
    older_than_hours: float,
    base_url: str,
) -> tuple[Path, Cursor] | str:
    """Return the log that has all of the file, and the cursor by whose word W&B has that; or what speaks against it."""
    if not file.is_in_a_run_directory:
        return "it is no run directory of W&B's, but a directory with a file in it"
    objection = f"not all of {text_of(file.path.name)} was uploaded by `syncd sync`"
    for run_dir, source in remembered.get(file.source, []):
        taken = Taken(file, run_dir)
        try:
            status = file.path.stat()
        except OSError:
            continue
        if writers.have(file) or not source.is_of(status) or not known(taken, source):
            continue
        cursor = _done_cursor(run_dir, base_url)
        age_hours = (time.time() - status.st_mtime) / 3600
        if not taken.is_whole:
            objection = "something of it is damaged or missing"
        elif cursor is None:
            objection = "W&B does not have all of it yet: `syncd sync` uploads the rest"
        elif age_hours < older_than_hours:
            objection = f"it was written to {age_hours:.1f} h ago"
        else:
            return run_dir, cursor
    return objection


def _done_cursor(run_dir: Path, base_url: str) -> Cursor | None:
    """Return the cursor of a destination at `base_url` that has all of the run."""
    now_us = time.time_ns() // 1000
    for cursor in cursors.cursors(run_dir):
        status = run_status(run_dir, cursor.sink, now_us, online=True)
        is_over = status.state in ("synced", "crashed")
        if cursor.sink.base_url == base_url and is_over and not status.lacks_something:
            return cursor
    return None


async def _ask(to_ask: list[tuple[Candidate, Cursor]], base_url: str, key: Callable[[], str | None]) -> None:
    """Object to those that W&B does not have, or may not have."""
    api = WandbApi(base_url, key)
    try:
        for candidate, cursor in to_ask:
            candidate.objection = candidate.objection or await _objection(api, cursor)
    finally:
        await api.close()


async def _objection(api: WandbApi, cursor: Cursor) -> str | None:
    attached = cursor.attach
    assert attached is not None
    if attached.get("forced") == cursors.CONTINUE:
        return "what W&B has was taken for this run's by `--force continue`: rows of it may be here only"
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
