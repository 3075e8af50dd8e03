"""What `syncd sync` does: finds what some paths mean, brings it to W&B, and says what became of it.

    paths ──plan──▶ our runs ──────────────────────────┐
               └──▶ W&B's files ──take (wandb_runs)──▶ logs ──upload (Daemon)──▶ Outcome ──mark──▶ .synced

Invariants
----------
* A marker is written only for a run of which everything is acknowledged and nothing was damaged; and one is believed
  only as long as nothing came to the file since.
* What a process of W&B's uploads itself, or may do so for all we can see, is left to it.
* Of several copies of one file, one is taken.
* What is wrong with one run stops no other.
* Whenever it is killed, the same command goes on from there.

What is printed is `cli`'s business.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from eventlog import cursor as cursors
from eventlog.cursor import Sink
from eventlog.errors import NotARun
from eventlog.piece import RUN_FILE, RunIdentity
from eventlog.reader import find_runs
from eventlog.roots import LATEST
from syncd import credentials, wandb_files, wandb_runs, wandb_sources
from syncd.metadata import NO_EDITS, Edits
from syncd.status import Progress, RunStatus, run_status
from syncd.wandb_files import Head, WandbFile, Writers
from syncd.wandb_runs import Taken
from syncd.wandb_sources import Source

LOOK_S = 0.5
NEW_ID = "new-id"
FORCE = (cursors.APPEND, cursors.CONTINUE, NEW_ID)


class NothingThere(Exception):
    """A path that means no run: a sentence for a person."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a person wants it done."""

    project: str | None = None
    entity: str | None = None
    run_id: str | None = None
    """Upload W&B's files as this run, in the order in which they were begun."""
    edits: Edits = NO_EDITS
    force: str | None = None
    """What to do with a run that the server has in part, where that cannot be told for certain: one of `FORCE`."""
    includes_online: bool = False
    includes_synced: bool = False
    marks_synced: bool = True
    patience_s: float = 30.0
    parallel: int | None = None
    """How many runs may have a request in flight; None is the daemon's own number."""


@dataclass(slots=True)
class Plan:
    """What some paths mean."""

    run_dirs: list[Path] = field(default_factory=list)
    files: list[WandbFile] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """How many of W&B's runs are left out, by reason."""
    errors: list[str] = field(default_factory=list)
    """What was meant and cannot be synced: a sentence each."""

    @property
    def is_empty(self) -> bool:
        return not self.run_dirs and not self.files and not self.errors

    def skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


@dataclass(slots=True)
class Outcome:
    """What became of it."""

    runs: list[RunStatus] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What is worth to be known, and no reason to complain: a sentence each."""
    open: list[str] = field(default_factory=list)
    """Runs that are being written, and of which all is there but the open row: a sentence each."""
    copies: dict[WandbFile, list[WandbFile]] = field(default_factory=dict)
    """Files that are copies of one that was taken."""

    @property
    def error(self) -> str | None:
        return " ".join(self.errors) or None

    @property
    def why_not(self) -> str:
        """Why it is not good, in a line."""
        reasons = [self.error] if self.error is not None else []
        reasons += [f"{run.run}: {run.error or run.state}" for run in self.runs if run.lacks_something]
        reasons += [
            f"{taken.file.name}: {what}"
            for taken in self.taken
            for what in (*taken.not_taken, *(damage.cause for damage in taken.damage))
        ]
        return "; ".join(reasons)

    @property
    def is_good(self) -> bool:
        """Whether everything that there was is acknowledged; of a run that is being written, but its open row."""
        lacks = any(run.lacks_something for run in self.runs)
        return self.error is None and not lacks and all(taken.is_whole for taken in self.taken)


class Watcher:
    """Is told how far it is, and makes nothing of it."""

    looks = False
    """Whether it wants to know how far the upload is: to find that out, every run is looked at."""

    def reading(self, total_bytes: int) -> None:
        """W&B's files of so many bytes are going to be read."""

    def has_read(self, size_bytes: int) -> None:
        """So many more bytes were read."""

    def uploading(self, total: int, done: int, sent_bytes: int, trouble: str | None) -> None:
        """So many records are there, and so many acknowledged, by so many bytes; `trouble` is what is waited for."""


# -- what is meant ---------------------------------------------------------------------------------------------


def plan(paths: Iterable[str], roots: Iterable[Path], wishes: Wishes) -> Plan:
    """Say what `paths` mean; without any, what is not synced in the known roots and of what W&B's SDK left here."""
    found = Plan()
    paths = list(paths)
    if not paths:
        found.run_dirs = [run_dir for root in roots for run_dir in find_runs(root)]
        if wishes.project is None and wishes.entity is None:
            found.run_dirs = [run_dir for run_dir in found.run_dirs if not _is_synced(run_dir)]
        directory = wandb_files.default_directory()
        if directory is not None:
            _add_files(found, directory, wishes)
    for given in paths:
        meant = wandb_files.expand(given)
        if not meant:
            raise NothingThere(f"nothing matches {given!r}.")
        for path in meant:
            _add(found, Path(os.path.realpath(path)), wishes)
    found.run_dirs = _without_second_ways(sorted(set(found.run_dirs)))
    found.files = sorted(set(found.files), key=lambda file: str(file.path))
    return found


def _without_second_ways(run_dirs: list[Path]) -> list[Path]:
    """Return each directory once, also where two ways lead to it, as of a bind mount."""
    found: dict[object, Path] = {}
    for run_dir in run_dirs:
        try:
            facts = os.stat(run_dir)
            found.setdefault((facts.st_dev, facts.st_ino), run_dir)
        except OSError:
            # What is wrong with it is found out when it is its turn.
            found.setdefault(run_dir, run_dir)
    return list(found.values())


def _is_synced(run_dir: Path) -> bool:
    """Whether W&B has all of a run of ours that is over, by the word of its cursors."""
    now_us = time.time_ns() // 1000
    try:
        identity = RunIdentity.load(run_dir)
    except NotARun:
        return False
    run_id = cursors.run_id_there(run_dir) or identity.run_id
    # What another project or entity has of it was asked for once, and is no word about its own.
    its_own = Sink(credentials.base_url(), identity.entity, identity.project, run_id)
    statuses = [
        run_status(run_dir, cursor.sink, now_us, online=True)
        for cursor in cursors.cursors(run_dir)
        if replace(cursor.sink, run_id=cursor.sink.run_id.removesuffix(f"-rank{cursor.rank}")) == its_own
    ]
    return bool(statuses) and all(s.state == "synced" and not s.lacks_something for s in statuses)


def _add(found: Plan, path: Path, wishes: Wishes) -> None:
    if (closed := _closed_to_us(path)) is not None:
        raise NothingThere(
            f"cannot sync {str(path)!r}: {closed} may not be looked into by this user. Run syncd as who trains, or chmod u+rx."
        )
    if os.path.isfile(path / RUN_FILE):
        found.run_dirs.append(path)
        return
    below = list(find_runs(path))
    # Not by way of links, as that to the latest run.
    entries = (entry for entry in sorted(path.glob("*")) if not entry.is_symlink())
    below += [
        entry for entry in entries if os.path.isfile(entry / RUN_FILE) and not _was_a_link(entry, below)
    ]
    found.run_dirs += below
    has_files = _add_files(found, path, wishes)
    if not below and not has_files:
        if not os.path.exists(path):
            raise NothingThere(f"cannot sync {str(path)!r}: there is no such path.")
        inner = [each for project in _below(path) for each in (project, *_below(project))]
        if closed := next(filter(None, map(_closed_to_us, inner)), None):
            raise NothingThere(
                f"cannot sync {str(path)!r}: {closed} may not be looked into by this user, and nothing else is there."
            )
        raise NothingThere(
            f"cannot sync {str(path)!r}: it is neither a run, nor a root with runs in it, nor a directory of W&B's."
        )


def _was_a_link(entry: Path, runs: list[Path]) -> bool:
    """Whether it was the link to the latest of these runs: what copies a root may follow it, as `scp -r` does."""
    with suppress(NotARun):
        return entry.name == LATEST and RunIdentity.load(entry).directory(entry.parent) in runs
    return False


def _closed_to_us(path: Path) -> str | None:
    """Return the directory on the way there, or the one there, that this user may not look into."""
    for directory in (*reversed(path.parents), path):
        if os.path.isdir(directory) and not os.access(
            directory, os.X_OK | (os.R_OK if directory == path else 0)
        ):
            return repr(str(directory))
    return None


def _below(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _add_files(found: Plan, path: Path, wishes: Wishes) -> bool:
    """Add W&B's files at `path`; return whether there are any, wanted or not."""
    files, is_run = wandb_files.files_at(path)
    closed = wandb_files.closed_to_us(path)
    found.errors += [f"{directory}: it may not be looked into." for directory in closed]
    shadows = {file.shadow for file in files} if not is_run else set()
    remembered = {shadow: wandb_sources.remembered(shadow) for shadow in shadows}
    for file in files:
        # What was named by itself is meant, whatever it is.
        if is_run or wishes.includes_synced:
            is_synced = False
        else:
            is_synced = _is_marked(
                file, [source for _, source in remembered[file.shadow].get(file.source, [])]
            )
        if is_synced:
            found.skip("synced already (`--include-synced` looks at them again: nothing is sent twice)")
        elif not file.is_offline and not wishes.includes_online and not is_run:
            found.skip("logged online (`--include-online` completes those that were killed)")
        else:
            found.files.append(file)
    return bool(files or closed)


def _is_marked(file: WandbFile, sources: list[Source]) -> bool:
    """Whether the file is marked as synced, and nothing came to it since."""
    try:
        marked, now = file.marker.stat(), file.path.stat()
    except OSError:
        return False
    ends = [source.ended_at[0] for source in sources if source.ended_at is not None]
    # Without a word of ours the marker is W&B's, which was written behind all that it says.
    return now.st_size in ends if ends else now.st_mtime_ns <= marked.st_mtime_ns


# -- doing it --------------------------------------------------------------------------------------------------


def sync(planned: Plan, wishes: Wishes, watcher: Watcher) -> Outcome:
    """Bring everything that is planned to W&B; return what became of it."""
    outcome = Outcome(errors=list(planned.errors))
    with ExitStack() as open_runs:
        run_dirs = list(planned.run_dirs)
        for taken in _take_all(planned.files, wishes, watcher, outcome):
            open_runs.callback(taken.close)
            if taken.run_dir is not None and not taken.is_empty:
                run_dirs.append(taken.run_dir)
        run_dirs = sorted(set(run_dirs))
        if not run_dirs:
            return outcome
        # While the runs are open, so that those that live are seen to.
        error, sinks, statuses = _uploaded(run_dirs, wishes, watcher)
        parked = [run_dir for (run_dir, _), status in statuses.items() if status.state == "parked"]
        if wishes.force == NEW_ID and parked:
            for run_dir in parked:
                upload_as_new(run_dir)
            error, others, said = _uploaded(parked, wishes, watcher)
            sinks, statuses = sinks | others, statuses | said
    left_out = [run_dir for run_dir in run_dirs if (run_dir, 0) not in statuses]
    if left_out and error is None:
        error = " ".join(f"{run_dir}: {_why_left_out(run_dir)}" for run_dir in left_out)
    outcome.runs = list(statuses.values())
    # What came since the last look is no reason to complain, nor is the row that a later call may still add to.
    outcome.open = [
        f"{status.run}: it is still being written: its open row follows."
        for status in outcome.runs
        if status.state == "live" and status.backlog
    ]
    if error is not None:
        outcome.errors.append(error)
    for taken in outcome.taken if wishes.marks_synced else ():
        its_own = [status for (run_dir, _), status in statuses.items() if run_dir == taken.run_dir]
        if _is_done(taken, its_own):
            _mark(taken.file, outcome)
    return outcome


_Statuses = dict[tuple[Path, int], RunStatus]


def _uploaded(
    run_dirs: list[Path], wishes: Wishes, watcher: Watcher
) -> tuple[str | None, dict[tuple[Path, int], Sink], _Statuses]:
    """Upload the runs; return why not everything got there (or None), where each went, and how far it is."""
    error, sinks = asyncio.run(_upload(run_dirs, credentials.base_url(), wishes, watcher))
    now_us = time.time_ns() // 1000
    statuses = {}
    for key, sink in sinks.items():
        # One that was deleted at the last moment is named as any other that is gone.
        with suppress(NotARun):
            statuses[key] = run_status(key[0], sink, now_us, error is None)
    return error, sinks, statuses


def _why_left_out(run_dir: Path) -> str:
    if not os.path.exists(run_dir):
        return "it is gone: it was deleted or moved meanwhile."
    try:
        RunIdentity.load(run_dir)
    except NotARun as error:
        return str(error)
    return "it is a copy of another run's directory that is uploaded, or cannot be read."


def upload_as_new(run_dir: Path) -> str:
    """Give up the id under which a run stands still; return the new one."""
    there = f"{RunIdentity.load(run_dir).run_id}-{secrets.token_hex(2)}"
    standing = [
        cursor.sink for cursor in cursors.cursors(run_dir) if cursor.state == "parked" or cursor.error
    ]
    cursors.upload_as(run_dir, there)
    for sink in standing:
        cursors.forget(run_dir, sink)
    return there


def _take_all(files: list[WandbFile], wishes: Wishes, watcher: Watcher, outcome: Outcome) -> Iterable[Taken]:
    """Write the logs of W&B's runs; of those of one run, in the order in which they were begun."""
    writers = wandb_files.being_written() if files else Writers()
    heads = []
    for file in files:
        try:
            heads.append((wandb_files.head(file), file))
        except OSError as error:
            outcome.errors.append(f"{file.path} cannot be read: {error.strerror}.")
    heads = _without_copies(heads, outcome)
    watcher.reading(sum(head.size for head, _ in heads))
    for head, file in heads:
        if not file.is_offline and writers.have(file):
            outcome.errors.append(
                f"{file.directory}: it is being written, and uploaded, by W&B's own process."
            )
            continue
        try:
            taken = _take(file, head, writers, wishes, watcher, outcome)
        except OSError as error:
            outcome.errors.append(
                f"{file.directory}: its log could not be made in {file.shadow}: {error.strerror}. "
                "W&B's file is intact."
            )
            continue
        except Exception as error:  # noqa: BLE001 - what one run's files do to us concerns no other
            outcome.errors.append(
                f"{file.directory}: its log could not be made ({type(error).__name__}: {error}). "
                "W&B's file is intact."
            )
            continue
        if taken.is_live and not file.is_offline:
            outcome.errors.append(
                f"{file.directory}: it may be being written, and uploaded, by a process of W&B's that cannot be seen "
                f"from here. It is taken when nothing came to it for {wandb_files.STALE_S / 60:.0f} minutes."
            )
            taken.close()
            continue
        outcome.taken.append(taken)
        yield taken


def _take(
    file: WandbFile, head: Head, writers: Writers, wishes: Wishes, watcher: Watcher, outcome: Outcome
) -> Taken:
    """Write the log of one run, if it can be told whose it is."""
    facts = head.facts
    if head.digest is None:
        project, entity = wandb_sources.project_of(file) or (wishes.project or "", wishes.entity or "")
        facts = replace(facts, project=project, entity=entity)
    if head.digest is None and not facts.project:
        taken = wandb_runs.look_through(file, writers, watcher.has_read)
        if taken.records and taken.damage and not taken.is_live:
            outcome.errors.append(
                f"{file.directory}: its beginning is damaged, so that its project is not known, and nothing of it is "
                "uploaded. `--project NAME` uploads what is left of it."
            )
        return taken
    return wandb_runs.take(file, replace(head, facts=facts), writers, wishes.run_id, watcher.has_read)


def _without_copies(heads: list[tuple[Head, WandbFile]], outcome: Outcome) -> list[tuple[Head, WandbFile]]:
    """Return the files in the order in which they were begun; of those that begin alike, the longest."""
    kept: dict[str, tuple[Head, WandbFile]] = {}
    by_size = sorted(
        heads, key=lambda found: (-found[0].size, not found[1].is_in_a_run_directory, str(found[1].directory))
    )
    for head, file in by_size:
        _, first = kept.setdefault(head.digest or str(file.path), (head, file))
        if first != file:
            outcome.copies.setdefault(first, []).append(file)
            outcome.remarks.append(f"{file.name}: a copy of {first.name}; only the latter is taken.")
    return sorted(kept.values(), key=lambda found: (found[0].began_us, str(found[1].path)))


def _is_done(taken: Taken, statuses: list[RunStatus]) -> bool:
    """Whether W&B has all that there is in the file, and all that there will be."""
    is_over = all(status.state in ("synced", "crashed") for status in statuses)
    return bool(statuses) and is_over and taken.is_whole and not any(s.lacks_something for s in statuses)


def _mark(file: WandbFile, outcome: Outcome) -> None:
    """Say as W&B does that a run is uploaded, so that `wandb clean` knows."""
    copies = outcome.copies.get(file, [])
    for one in (file, *copies):
        try:
            if one == file or one.is_the_beginning_of(file):
                one.marker.touch()
        except OSError as error:
            outcome.remarks.append(f"{one.name}: it could not be marked as synced ({error.strerror}).")


async def _upload(
    run_dirs: list[Path], url: str, wishes: Wishes, watcher: Watcher
) -> tuple[str | None, dict[tuple[Path, int], Sink]]:
    """Upload the runs with a daemon of their own, that ends when all is there."""
    from syncd.daemon import MAX_TURNS, Daemon
    from syncd.wandb_api import WandbApi

    daemon = Daemon(
        roots=list,
        api=WandbApi(url, lambda: credentials.api_key(url)),
        asked_for=run_dirs,
        entity=wishes.entity,
        project=wishes.project,
        choice=wishes.force if wishes.force != NEW_ID else None,
        edits=wishes.edits,
        max_turns=wishes.parallel or MAX_TURNS,
        until_synced=True,
        # A run that is being logged is brought as far as it is: there is nothing to wait for.
        flush_s=0.0,
        # Who presses Ctrl-C waits for it.
        linger_s=1.0,
    )
    work = asyncio.ensure_future(daemon.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    error: str | None = None
    runs: dict[tuple[Path, int], Progress] = {}
    there: set[tuple[Path, int]] = set()
    while not (await asyncio.wait([work], timeout=LOOK_S))[0]:
        gate = daemon.gate
        if watcher.looks:
            for key, entry in daemon.entries.items():
                # What is all there is looked at once more, and not for ever.
                if key not in there:
                    # One that was deleted this moment is said to be gone at the end.
                    with suppress(NotARun, OSError):
                        runs[key] = daemon.progress_of(entry)
                    there.update([key] if entry.caught_up else [])
            trouble = None if gate.is_open else gate.reason
            records = sum(run.records for run in runs.values())
            watcher.uploading(records, sum(run.acked for run in runs.values()), daemon.api.sent[1], trouble)
        if gate.needs_a_person or time.monotonic() - daemon.last_good_s > wishes.patience_s:
            error = daemon.complaint()
            daemon.stop()
    work.result()
    if error is None and not daemon.finished:
        error = "interrupted. Run it again to go on from here."
    return error, {key: entry.sink for key, entry in daemon.entries.items()}
