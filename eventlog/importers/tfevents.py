"""Imports TensorBoard's event files: each directory with such files becomes a run, and what grew since is added.

    logs/exp1/events.out.tfevents.… ──tfrecord, summaries──▶ <root>/<project>/exp1/main-0001/
                                                                  └── source.json   how far each file is read

Invariants
----------
* TensorBoard's files are only read.
* What was imported is not imported again: before a round of reading begins, `source.json` says up to which byte it
  goes, and once its records are durable, that it is over. A killed round is read again, and gives the same records.
* A damaged event costs itself, and is a `gap` in the log; what is not whole at the end of a file is waited for.
* A run whose files nobody wrote to for `STALE_S` is over and gets an `exit`; if they grow all the same, it is resumed.
* Memory is bounded by one event, whatever the size of a file.

Nothing is printed here: `Imported` holds what there is to say.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from eventlog.errors import NotARun, RunExists
from eventlog.imported import ImportedPiece
from eventlog.importers.summaries import Row, Settings, Translator, event_of, time_us_of
from eventlog.importers.tfrecord import Damage, Deframer, Payload
from eventlog.media import Value, many_in_history
from eventlog.piece import RUN_FILE, RunIdentity, primaries, sync_directory
from eventlog.reader import end_of
from eventlog.redact import redacted
from eventlog.run import VERSION
from eventlog.segment import STREAMS, primary_name, primary_number, segments_in
from eventlog.store import Content, Store, Stored

SOURCE_FILE = "source.json"
# A writer is believed to live for so long after its last byte; TensorBoard's writers flush every two minutes.
STALE_S = 600.0
READ_BYTES = 1024 * 1024
NO_PROJECT = "uncategorized"
_LOST = "a run whose log lost what was imported: delete its directory, and import it anew"
# Longer names end in a digest; W&B takes run ids of up to 128.
_ID_MAX_CHARS = 100
_UNFIT_IN_ID = re.compile(r"[^A-Za-z0-9._-]+")
# `events.out.tfevents.<seconds>.<host>` and what distinguishes the files of a host.
_FILE_NAME = re.compile(r"tfevents\.\d+\.(?P<host>.+?)(?:\.\d+)*(?:\.v2)?$")

Progress = Callable[[int, int], object]
"""Told of the bytes that are read by now, and of those to be read in all."""


@dataclass(frozen=True, slots=True)
class Source:
    """A directory's event files: what TensorBoard calls a run."""

    name: str
    """The directory, relative to where it was looked for."""
    directory: Path
    files: tuple[Path, ...]
    """In the order in which TensorBoard reads them."""

    @property
    def size(self) -> int:
        return sum(status.st_size for status in _statuses(self).values())


@dataclass(slots=True)
class ImportedRun:
    """What was made of one directory; the counts are what this import added."""

    name: str
    source: str
    run_dir: str | None = None
    """None if there is nothing yet of which a run could be made."""
    is_new: bool = False
    records: int = 0
    rows: int = 0
    past_steps: int = 0
    """How many of the rows are of a step below one that was there already: kept here, and not shown by W&B."""
    damaged: int = 0
    """Places where an event or more could not be read."""
    torn_bytes: int = 0
    """What stands behind the last whole event: a write under way, or one that a crash cut short."""
    not_taken: Counter[str] = field(default_factory=Counter)
    """What has no counterpart in a log, by reason."""

    def as_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(slots=True)
class Imported:
    """What one import came to."""

    runs: list[ImportedRun] = field(default_factory=list)

    @property
    def records(self) -> int:
        return sum(run.records for run in self.runs)

    @property
    def is_whole(self) -> bool:
        """Whether all that this import read is in the log."""
        return not any(run.damaged or run.not_taken for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        return {"runs": [run.as_json() for run in self.runs], "records": self.records, "whole": self.is_whole}


def sources_at(path: str | os.PathLike[str]) -> list[Source]:
    """Return the directories at and below `path` that hold event files, or the one that holds the file it names."""
    given = Path(path)
    if given.is_file():
        return [Source(_own_name(given.parent), given.parent, (given,))] if _is_event_file(given) else []
    found = []
    for directory, below, names in os.walk(given):
        below.sort()
        here = Path(directory)
        files = tuple(here / name for name in sorted(names) if _is_event_file(here / name))
        if files:
            relative = os.path.relpath(here, given)
            found.append(Source(_own_name(here) if relative == "." else relative, here, files))
    return found


def import_tfevents(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str],
    project: str | None = None,
    run_id: str | None = None,
    *,
    mode: str = "offline",
    progress: Progress = lambda done_bytes, all_bytes: None,
) -> Imported:
    """Bring the runs of `root` up to date with the event files at `path`: a file, a directory, or a parent of some.

    A run's id comes from its directory's name unless `run_id` is given, which names one run only. Of a new run, mode
    "offline" says that `syncd` uploads it when asked for by name, and "online" that it does so like any other.
    """
    if mode not in ("offline", "online"):
        raise ValueError(f'mode is "offline" or "online", not {mode!r}.')
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file or directory {os.fspath(path)!r}.")
    sources = sources_at(path)
    if run_id is not None and len(sources) > 1:
        raise ValueError(
            f"{os.fspath(path)!r} holds {len(sources)} runs, and run_id={run_id!r} names one. "
            "Leave it out, or import them one by one."
        )
    runs = _Runs(Path(root), project or os.environ.get("WANDB_PROJECT") or NO_PROJECT)
    reading = _Reading(sum(source.size for source in sources), progress)
    imported = Imported()
    for source in sources:
        outcome = ImportedRun(source.name, str(source.directory))
        imported.runs.append(outcome)
        size = source.size
        run_dir, identity = runs.of(source, run_id)
        # A directory of which nothing can be read makes no run, until there is something.
        if (run_dir / RUN_FILE).exists() or _holds_an_event(source):
            _bring_up_to_date(source, run_dir, identity, mode, outcome, reading)
        else:
            outcome.torn_bytes = size
        reading.has_done(size)
    return imported


def _is_event_file(path: Path) -> bool:
    return "tfevents" in path.name and path.is_file()


def _own_name(directory: Path) -> str:
    return directory.resolve().name or "tfevents"


def _holds_an_event(source: Source) -> bool:
    return any(
        isinstance(found, Payload) for file in source.files for found in _contents(file, 0, Deframer())
    )


def _contents(
    path: Path,
    begin: int,
    deframer: Deframer,
    end: int | None = None,
    read: Callable[[int], object] = lambda size: None,
) -> Iterator[Payload | Damage]:
    """Yield what stands in the file between two bytes; none if it is gone."""
    with suppress(FileNotFoundError), open(path, "rb", buffering=0) as stream:
        stream.seek(begin)
        while end is None or begin < end:
            data = stream.read(READ_BYTES if end is None else min(READ_BYTES, end - begin))
            if not data:
                return
            begin += len(data)
            yield from deframer.feed(data)
            read(len(data))


class _Reading:
    """How much of all files is done."""

    def __init__(self, all_bytes: int, progress: Progress) -> None:
        self._all_bytes = all_bytes
        self._done_bytes = self._read_bytes = 0
        self._progress = progress

    def has_read(self, size: int) -> None:
        self._read_bytes += size
        # A file may grow while it is read.
        self._progress(min(self._done_bytes + self._read_bytes, self._all_bytes), self._all_bytes)

    def has_done(self, size: int) -> None:
        """Go on to the next run: what was read before, and not again, is done as well."""
        self._done_bytes, self._read_bytes = self._done_bytes + size, 0
        self.has_read(0)


# ── which run is whose ───────────────────────────────────────────────────────────────────────────────────────


class _Runs:
    """The runs of one project, and of what they were imported."""

    def __init__(self, root: Path, project: str) -> None:
        self._root = root
        self._project = project
        self._known: dict[Path, _State] = {}
        self._given: set[Path] = set()
        project_dir = RunIdentity.new(project, "any", None).directory(root).parent
        for run_dir in sorted(project_dir.iterdir()) if project_dir.is_dir() else ():
            found = _newest(run_dir)
            if found is not None:
                self._known[run_dir] = found[1]

    def of(self, source: Source, run_id: str | None) -> tuple[Path, RunIdentity]:
        """Return where the run of that directory is, or shall be, and who it is.

        A directory is known again by its name and its files' names, which hold time, host and process, wherever it was
        moved to; of two copies, each keeps the run that it had.
        """
        names = {file.name for file in source.files}
        known = [
            run_dir
            for run_dir, state in self._known.items()
            if state.directory == _own_name(source.directory)
            and names & state.files.keys()
            and run_dir not in self._given
        ]
        known.sort(key=lambda run_dir: self._known[run_dir].name != source.name)
        for run_dir in known:
            identity = RunIdentity.load(run_dir)
            if run_id in (None, identity.run_id):
                self._given.add(run_dir)
                return run_dir, identity
        for candidate in _family(source.name) if run_id is None else [run_id]:
            identity = self._new(source, candidate)
            run_dir = identity.directory(self._root)
            if run_dir not in self._given and _is_free_for(identity, run_dir):
                self._given.add(run_dir)
                return run_dir, identity
        raise RunExists(
            f"there is a run {run_id!r} in project {self._project!r} already, and it is not that of "
            f"{str(source.directory)!r}. Use another id, or none."
        )

    def _new(self, source: Source, run_id: str) -> RunIdentity:
        # Imported anew into an empty root, it is the same log: whoever has uploaded it goes on with it.
        text = "\n".join(
            ["tfevents", self._project, run_id, _own_name(source.directory), source.files[0].name]
        )
        log_id = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return RunIdentity(log_id, self._project, run_id, None, time.time_ns() // 1000)


def _is_free_for(identity: RunIdentity, run_dir: Path) -> bool:
    try:
        return RunIdentity.load(run_dir).log_id == identity.log_id
    except NotARun:
        return not (run_dir / RUN_FILE).exists()


def _family(name: str) -> Iterator[str]:
    """Yield the ids that a directory's run may have.

    >>> family = _family("lightning_logs/version 0")
    >>> next(family), next(family)
    ('lightning_logs-version-0', 'lightning_logs-version-0-2')
    """
    plain = _UNFIT_IN_ID.sub("-", name).strip("-.") or "tfevents"
    if len(plain) > _ID_MAX_CHARS:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        plain = f"{plain[: _ID_MAX_CHARS - 9]}-{digest}"
    yield plain
    number = 2
    while True:
        yield f"{plain}-{number}"
        number += 1


# ── how far it is ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _FileState:
    """How far one file is read."""

    consumed: int = 0
    """Where the first event begins that is not in the log."""
    size: int = 0
    """How long the file was then."""
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Round:
    """What is being read, once."""

    ends: dict[str, int]
    """Up to which byte of each file."""
    is_last: bool
    """Whether nothing more is expected after it."""


@dataclass(slots=True)
class _State:
    """What `source.json` says: of what the piece is made, and how far."""

    name: str
    directory: str
    mode: str
    files: dict[str, _FileState] = field(default_factory=dict)
    events: int = 0
    """How many records of the piece the finished rounds made, by stream."""
    file_records: int = 0
    step: int | None = None
    """The highest step so far."""
    began_us: int = 0
    last_us: int = 0
    is_resumed: bool = False
    runtime_s: float = 0.0
    """How long the earlier pieces ran."""
    has_ended: bool = False
    round: _Round | None = None
    """The round that may have been killed."""

    def resumed(self) -> _State:
        """Return the state with which the next piece begins."""
        runtime_s = self.runtime_s + max(0, self.last_us - self.began_us) / 1e6
        return _State(
            self.name,
            self.directory,
            self.mode,
            self.files,
            step=self.step,
            is_resumed=True,
            runtime_s=runtime_s,
        )

    @classmethod
    def load(cls, piece_dir: Path) -> _State | None:
        try:
            said = orjson.loads((piece_dir / SOURCE_FILE).read_bytes())
            if said.pop("of") != "tfevents":
                return None
            files = {name: _FileState(**found) for name, found in said.pop("files").items()}
            round_ = said.pop("round")
            return cls(files=files, round=_Round(**round_) if round_ else None, **said)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, piece_dir: Path) -> None:
        """Make it what `source.json` says, also after a power cut."""
        temporary = piece_dir / f".{SOURCE_FILE}.new"
        with open(temporary, "wb") as file:
            file.write(orjson.dumps({"of": "tfevents", **asdict(self)}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, piece_dir / SOURCE_FILE)
        sync_directory(piece_dir)


def _newest(run_dir: Path) -> tuple[str, _State] | None:
    """Return the last piece that was imported, and what its `source.json` says."""
    for name in reversed(primaries(run_dir)):
        state = _State.load(run_dir / name)
        if state is not None:
            return name, state
    return None


def _next_piece(run_dir: Path) -> str:
    names = primaries(run_dir)
    # A killed import may have made the last directory, and nothing in it.
    if names and not _has_records(run_dir / names[-1]) and _State.load(run_dir / names[-1]) is None:
        return names[-1]
    return primary_name(1 + max((primary_number(name) or 0 for name in names), default=0))


def _has_records(piece_dir: Path) -> bool:
    return any(segments_in(os.listdir(piece_dir), stream) for stream in STREAMS)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────


def _bring_up_to_date(
    source: Source, run_dir: Path, identity: RunIdentity, mode: str, outcome: ImportedRun, reading: _Reading
) -> None:
    found = _statuses(source)
    known = _newest(run_dir)
    writer = known[0] if known else _next_piece(run_dir)
    if not found:
        return
    if known is None and writer != primary_name(1):
        outcome.not_taken[_LOST] += 1
        return
    identity = identity.publish(run_dir)
    outcome.run_dir, outcome.is_new = str(run_dir), known is None
    piece = _opened(run_dir, identity, writer)
    try:
        # Only now is it certain that nobody else changes it.
        state = _State.load(run_dir / writer) or _State(source.name, _own_name(source.directory), mode)
        if piece is not None and end_of(run_dir / writer)[0] < state.events:
            outcome.not_taken[_LOST] += 1
            return
        if piece is not None and state.round is not None:
            _read_round(source, state, piece, run_dir, identity, outcome, reading)
        has_grown = any(
            name not in state.files or state.files[name].size != found[name].st_size for name in found
        )
        is_over = time.time() - max(status.st_mtime for status in found.values()) > STALE_S
        if not has_grown and (state.has_ended or not is_over):
            return
        if piece is not None and (state.has_ended or writer != primaries(run_dir)[-1]):
            piece.close()
            writer, state = _next_piece(run_dir), state.resumed()
            piece = _opened(run_dir, identity, writer)
        if piece is None:
            outcome.not_taken["a run that another import is reading"] += 1
            return
        state.round = _Round({name: status.st_size for name, status in found.items()}, is_over)
        _read_round(source, state, piece, run_dir, identity, outcome, reading)
    finally:
        if piece is not None:
            piece.close()
        states = [state.files[name] for name in found if name in state.files]
        outcome.torn_bytes = sum(max(0, each.size - each.consumed) for each in states)


def _statuses(source: Source) -> dict[str, os.stat_result]:
    found = {}
    for file in source.files:
        # It may be gone since it was listed.
        with suppress(FileNotFoundError):
            found[file.name] = file.stat()
    return found


def _opened(run_dir: Path, identity: RunIdentity, name: str) -> ImportedPiece | None:
    token = hashlib.sha256(f"{identity.log_id}/{name}".encode()).hexdigest()[:8]
    piece = ImportedPiece.open(run_dir, identity, name)
    if piece is not None:
        piece.begin(token)
    return piece


def _read_round(
    source: Source,
    state: _State,
    piece: ImportedPiece,
    run_dir: Path,
    identity: RunIdentity,
    outcome: ImportedRun,
    reading: _Reading,
) -> None:
    """Bring what the state's round spans into the piece, whatever of it is there already."""
    planned = state.round
    assert planned is not None
    state.save(piece.dir)
    events_before = end_of(piece.dir)[0]
    writing = _Writing(state, piece, run_dir, identity.run_id, outcome)
    paths = {file.name: file for file in source.files}
    for name in sorted(planned.ends):
        file = state.files.setdefault(name, _FileState())
        end = planned.ends[name]
        if end < file.consumed:
            outcome.not_taken["the rest of a file that became shorter"] += 1
        deframer, translator = Deframer(file.consumed), Translator(file.plugins)
        path = paths.get(name, source.directory / name)
        for found in _contents(path, file.consumed, deframer, end, reading.has_read):
            if isinstance(found, Damage):
                outcome.damaged += 1
                writing.take(translator.end())
                writing.note(found, name)
            else:
                writing.begin(found, name)
                writing.take(translator.feed(found.data))
        writing.take(translator.end())
        outcome.not_taken.update(translator.not_taken)
        file.consumed, file.size = deframer.consumed, end
    if planned.is_last:
        writing.end()
    piece.flush()
    state.events, state.file_records, state.round = writing.events, writing.file_records, None
    state.save(piece.dir)
    outcome.records += max(0, state.events - events_before)


class _Writing:
    """Gives a round's records to the piece.  What `media` calls a keeper."""

    def __init__(
        self, state: _State, piece: ImportedPiece, run_dir: Path, run_id: str, outcome: ImportedRun
    ) -> None:
        self.run_id = run_id
        self.events = state.events
        self.file_records = state.file_records
        self._state = state
        self._piece = piece
        self._store = Store(run_dir, is_durable=True)
        self._outcome = outcome
        self._time_us = state.last_us
        # A killed round may have written more of them than the state says.
        self._files_there = end_of(piece.dir, "files")[0]
        for _ in range(state.events):
            # The piece counts what it is given; these it has.
            piece.append("events", "metrics", {}, 0)

    def begin(self, payload: Payload, file_name: str) -> None:
        """Write the `start` of the piece, if this is the first event in it."""
        if self.events:
            return
        state = self._state
        event = event_of(payload.data)
        self._time_us = state.began_us = (time_us_of(event) if event is not None else 0) or state.last_us
        host = _FILE_NAME.search(file_name)
        start: dict[str, Any] = {
            "config": {},
            "name": state.name,
            **dict.fromkeys(("notes", "tags", "group", "job_type")),
            "mode": state.mode,
            "upload_ranks": "primary",
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(state.began_us / 1e6)),
            "resumed": state.is_resumed,
            "step": 0 if state.step is None else state.step + 1,
            "runtime_s": state.runtime_s,
            "host": host["host"] if host else None,
            "rank": 0,
            "version": VERSION,
        }
        self._append("start", start)

    def take(self, things: Iterator[Row] | Iterator[Row | Settings]) -> None:
        for thing in things:
            self._time_us = thing.time_us or self._time_us
            if isinstance(thing, Settings):
                self._append("config", redacted(thing.config))
                continue
            self._outcome.rows += 1
            step = self._state.step
            self._outcome.past_steps += step is not None and thing.step < step
            self._state.step = thing.step if step is None else max(step, thing.step)
            data = {tag: self._shown(value, tag, thing.step) for tag, value in thing.data.items()}
            self._append("metrics", data, thing.step)

    def note(self, damage: Damage, file_name: str) -> None:
        """Say in the log what is missing there; how many events it was is known only where their lengths hold."""
        if self.events:
            reason = f"{damage.cause}, at byte {damage.offset} of {file_name}"
            self._append("gap", {"dropped": 1, "reason": reason})

    def end(self) -> None:
        """Write the `exit`: the files do not say more of how it ended."""
        if self.events:
            self._append("exit", {"exitcode": 0})
            self._state.has_ended = True

    def keep(self, content: Content, name: Callable[[Stored], str]) -> tuple[str, Stored]:
        stored = self._store.put(content)
        path = name(stored)
        if self.file_records >= self._files_there:
            record = {"path": path, "sha256": stored.sha256, "size": stored.size}
            self._piece.append("files", "file", record, self._time_us)
        self.file_records += 1
        return path, stored

    def keep_artifact(self, artifact: Any, aliases: Sequence[str], tags: Sequence[str], step: int) -> None:
        raise AssertionError("no value of an event is an artifact")

    def _shown(self, value: Any, tag: str, step: int) -> Any:
        if isinstance(value, Value):
            return value.in_history(tag, step, self)
        if isinstance(value, list) and value and isinstance(value[0], Value):
            return many_in_history(value, tag, step, self)
        return value

    def _append(self, kind: str, data: dict[str, Any], step: int | None = None) -> None:
        self._piece.append("events", kind, data, self._time_us, step)
        self._state.last_us = max(self._state.last_us, self._time_us)
        self.events += 1
