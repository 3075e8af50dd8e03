"""What a run is: from the ends of its files, in one pass through them, as it grows, and whether it is whole.

Invariants
----------
* Nothing is written, repaired or deleted.
* Memory is bounded whatever the size of a log: each function goes through it once, or reads its ends only.
* Sealed or not makes no difference to what is said.

How it is printed is `cli`'s business.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eventlog.errors import NotARun, RunNotFound
from eventlog.parquet import Brief, Unreadable, is_intact
from eventlog.piece import (
    LOCK_FILE,
    RUN_FILE,
    STALE_S,
    RunIdentity,
    closed,
    lock_text,
    primaries,
    ran_here,
)
from eventlog.reader import Chunk, Damage, StreamReader, end_of, last_step_of, newest_first, writers
from eventlog.record import Record
from eventlog.segment import STREAMS, files_of, primary_name, primary_number, sealed_in
from eventlog.store import FILES_DIR

_POLL_S = 0.2


def name_of(run_dir: Path) -> str:
    """Return `project/id`, or the directory's name where nothing says it."""
    try:
        identity = RunIdentity.load(run_dir)
    except NotARun:
        return run_dir.name
    return f"{identity.project}/{identity.run_id}"


# ── what a run is, from its ends ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Overview:
    """One run in one line."""

    run: str
    state: str
    """`live`, `finished`, `failed`, `crashed`; `stale` if its writer is silent and cannot be asked."""
    pieces: int
    records: int
    """Events of the run's history by their seqs: one that is damaged or missing counts too."""
    last_step: int | None
    size_bytes: int
    started_us: int | None


def overview_of(run_dir: Path) -> Overview:
    """Return a run's overview; reads the beginning and the end of its pieces."""
    names = primaries(run_dir)
    first = StreamReader(run_dir / names[0]).first() if names else None
    last_step = next(
        (step for name in reversed(names) if (step := last_step_of(run_dir / name)) is not None), None
    )
    return Overview(
        run=name_of(run_dir),
        state=state_of(run_dir, names[-1]) if names else _state_of_unborn(run_dir),
        pieces=len(names),
        records=sum(end_of(run_dir / name)[0] for name in names),
        last_step=last_step,
        size_bytes=_size_of(run_dir),
        started_us=first.time_us if first else None,
    )


def state_of(run_dir: Path, writer: str) -> str:
    """Return the state of one piece."""
    # Asked before the end is read: a writer may write its exit in between.
    is_closed = closed(run_dir, writer)
    newest = next(newest_first(run_dir / writer), None)
    if newest is not None and newest.kind == "exit":
        return "failed" if newest.data.get("exitcode") else "finished"
    if is_closed:
        return "crashed"
    text = lock_text(run_dir / writer)
    if not text or ran_here(text):
        return _state_of_unborn(run_dir / writer)
    heard_us = max(text.get("heartbeat", 0), newest.time_us if newest else 0)
    return "stale" if time.time() - heard_us / 1e6 > STALE_S else "live"


def _state_of_unborn(directory: Path) -> str:
    """Return the state of a run without a piece, or of a piece whose lock tells nothing: its writer is being born."""
    try:
        is_old = time.time() - os.stat(directory).st_mtime > STALE_S
    except OSError:
        return "live"
    # A lock without a text is one that a full disk did not take: whoever holds it may live.
    return "stale" if is_old and not (directory / LOCK_FILE).exists() else "live"


def _size_of(run_dir: Path) -> int:
    size_bytes = 0
    for directory, _, names in os.walk(run_dir):
        for name in names:
            # A cursor is replaced all the time.
            with suppress(FileNotFoundError):
                size_bytes += os.lstat(os.path.join(directory, name)).st_size
    return size_bytes


# ── what a run holds, in one pass ────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Contents:
    """What a run came to."""

    config: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """The last value of each metric."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What was set on `run.summary`."""
    pieces: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0
    damaged_places: int = 0

    def take(self, record: Record) -> None:
        """Go on by one record of the run's history."""
        if record.kind == "metrics":
            self.last.update(record.data)
        elif record.kind == "start":
            self.config.update(record.data.get("config") or {})
        elif record.kind == "config":
            self.config.update(record.data)
        elif record.kind == "summary":
            for path, value in record.data.get("set", ()):
                _set_in(self.summary, path, value)
            for path in record.data.get("delete", ()):
                _delete_in(self.summary, path)
        elif record.kind == "gap":
            self.dropped += record.data.get("dropped", 0)


def contents_of(run_dir: Path) -> Contents:
    """Read a run's events once."""
    contents = Contents()
    history = set(primaries(run_dir))
    for writer in writers(run_dir):
        state = state_of(run_dir, writer)
        reader = StreamReader(run_dir / writer)
        for chunk in _chunks(reader):
            contents.damaged_places += len(chunk.damage) + (chunk.blocked is not None)
            for record in chunk.records if writer in history else ():
                contents.take(record)
        if state != "live":
            contents.damaged_places += len(reader.end())
        text = lock_text(run_dir / writer)
        contents.pieces.append(
            {
                "writer": writer,
                "state": state,
                "events": reader.next_seq,
                "trajectories": end_of(run_dir / writer, "trajectories")[0],
                "host": text.get("host"),
                "pid": text.get("pid"),
            }
        )
    return contents


def _set_in(mapping: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for key in parents:
        inner = mapping.get(key)
        mapping[key] = mapping = inner if isinstance(inner, dict) else {}
    mapping[last] = value


def _delete_in(mapping: Any, path: list[str]) -> None:
    *parents, last = path
    for key in parents:
        mapping = mapping.get(key) if isinstance(mapping, dict) else None
    if isinstance(mapping, dict):
        mapping.pop(last, None)


def _chunks(reader: StreamReader) -> Iterator[Chunk]:
    while True:
        chunk = reader.read()
        yield chunk
        if not chunk.more:
            return


# ── following ────────────────────────────────────────────────────────────────────────────────────────────────


def newest(run_dir: Path, stream: str, count: int) -> list[tuple[str, Record]]:
    """Return the last `count` records of the run's history, with their writers."""
    found: list[tuple[str, Record]] = []
    for writer in reversed(primaries(run_dir)):
        missing = count - len(found)
        if missing <= 0:
            break
        end_seq, _ = end_of(run_dir / writer, stream)
        reader = StreamReader(run_dir / writer, stream, max(0, end_seq - missing))
        records = [record for chunk in _chunks(reader) for record in chunk.records][-missing:]
        found = [(writer, record) for record in records] + found
    return found


def follow_run(run_dir: Path, stream: str, after: tuple[str, Record] | None) -> Iterator[Record]:
    """Yield what comes after that record, piece after piece, until the run is closed.

    Raises `RunNotFound` if it is deleted or moved meanwhile.
    """
    names = primaries(run_dir)
    writer = after[0] if after else names[0] if names else None
    next_seq = after[1].seq + 1 if after else 0
    if after is None and names:
        # Nothing is to be repeated: from the end on.
        writer = names[-1]
        next_seq, _ = end_of(run_dir / writer, stream)
    while writer is None:
        if _is_over(run_dir, _state_of_unborn(run_dir)):
            return
        time.sleep(_POLL_S)
        writer = next(iter(primaries(run_dir)), None)
    while True:
        yield from _follow_piece(run_dir, writer, stream, next_seq)
        names = primaries(run_dir)
        later = names[names.index(writer) + 1 :] if writer in names else []
        if not later:
            return
        writer, next_seq = later[0], 0


def _follow_piece(run_dir: Path, writer: str, stream: str, seq: int) -> Iterator[Record]:
    reader = StreamReader(run_dir / writer, stream, seq)
    while True:
        # Asked before the last read: a writer may append between a read and its death.
        is_over = _is_over(run_dir / writer, state_of(run_dir, writer))
        for chunk in _chunks(reader):
            yield from chunk.records
        if is_over:
            return
        # At least once: what cannot be read just now seems to grow all the time.
        time.sleep(_POLL_S)
        while not reader.has_grown() and not _is_over(run_dir / writer, state_of(run_dir, writer)):
            time.sleep(_POLL_S)


def _is_over(directory: Path, state: str) -> bool:
    if not directory.is_dir():
        raise RunNotFound(f"{str(directory)!r} is not there any more: it was deleted or moved.")
    return state != "live"


# ── proving ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Proof:
    """What reading one stream of one writer to its end has shown."""

    run: str
    writer: str
    """Empty, as the stream, for what is wrong with the run itself."""
    stream: str
    records: int = 0
    lost: int = 0
    dropped: int = 0
    """What the writer itself could not write, and said so."""
    torn_bytes: int = 0
    damage: list[dict[str, Any]] = field(default_factory=list)


def proofs_of(run_dir: Path) -> Iterator[Proof]:
    """Read all streams of all writers of a run, and look whether what they speak of is there."""
    run = name_of(run_dir)
    log_id: str | None = None
    of_run = Proof(run, "", "")
    try:
        log_id = RunIdentity.load(run_dir).log_id
    except NotARun as error:
        _note_damage(of_run, [Damage(run_dir / RUN_FILE, 0, 0, -1, str(error))])
    numbers = [primary_number(name) or 0 for name in primaries(run_dir)]
    missing = [primary_name(number) for number in range(1, max(numbers, default=0)) if number not in numbers]
    _note_damage(
        of_run, [Damage(run_dir / name, 0, 0, 0, "there are later pieces, but not this") for name in missing]
    )
    if of_run.damage:
        yield of_run
    for writer in writers(run_dir):
        is_closed = state_of(run_dir, writer) != "live"
        names = os.listdir(run_dir / writer)
        there = [stream for stream in STREAMS if files_of(names, stream)]
        if is_closed and there and "events" not in there:
            proof = Proof(run, writer, "events")
            _note_damage(
                proof, [Damage(run_dir / writer, 0, 0, 0, "it has no events, with which each writer begins")]
            )
            yield proof
        for stream in there:
            yield _proof_of(run, run_dir, writer, stream, log_id)


def _proof_of(run: str, run_dir: Path, writer: str, stream: str, log_id: str | None) -> Proof:
    proof = Proof(run, writer, stream)
    is_closed = state_of(run_dir, writer) != "live"
    reader = StreamReader(run_dir / writer, stream, log_id=log_id)
    for chunk in _chunks(reader):
        proof.records += len(chunk.records)
        _note_damage(proof, _contents_missing(run_dir, chunk.records))
        proof.dropped += sum(r.data.get("dropped", 0) for r in chunk.records if r.kind == "gap")
        _note_damage(proof, chunk.damage)
        if chunk.blocked is not None:
            # Nothing is known to be lost, but nothing from here on is known to be there either.
            at = reader.next_seq
            _note_damage(proof, [Damage(run_dir / writer, 0, at, at - 1, chunk.blocked)])
    if is_closed:
        _note_damage(proof, reader.end())
    proof.torn_bytes = reader.torn_bytes()
    _prove_sealed(proof, run_dir / writer, stream)
    return proof


def _contents_missing(run_dir: Path, records: list[Record]) -> list[Damage]:
    """Return which of the files that the records name are not there, or not as long as they were."""
    missing = []
    for record in records:
        if record.kind == "file":
            path = run_dir / FILES_DIR / str(record.data.get("sha256"))
            try:
                is_there = os.stat(path).st_size == record.data.get("size")
            except FileNotFoundError:
                is_there = False
            if not is_there:
                cause = f"the content of {record.data.get('path')!r} is missing, or not all of it is there"
                missing.append(Damage(path, 0, record.seq, record.seq - 1, cause))
    # `syncd clean` takes all content of a run of W&B's SDK that W&B has.
    return missing if not missing or not _gave_its_contents_up(run_dir) else []


def _gave_its_contents_up(run_dir: Path) -> bool:
    if (run_dir / FILES_DIR).exists():
        return False
    start = StreamReader(run_dir / primary_name(1)).first()
    return start is not None and start.data.get("rows") == "complete"


def _prove_sealed(proof: Proof, piece_dir: Path, stream: str) -> None:
    """Look at every byte of what is sealed: the reader needs none of it while what it was made of is there."""
    said = {each["path"] for each in proof.damage}
    for sealed in sealed_in(os.listdir(piece_dir), stream):
        path = piece_dir / sealed.name
        cause = "its bytes are not what was sealed"
        try:
            if is_intact(piece_dir, Brief.load(piece_dir, sealed)):
                continue
        except FileNotFoundError:
            # Merged since it was listed.
            continue
        except Unreadable as error:
            cause = str(error)
        if str(path) not in said:
            _note_damage(proof, [Damage(path, 0, sealed.first_seq, sealed.first_seq - 1, cause)])


def _note_damage(proof: Proof, damage: list[Damage]) -> None:
    for each in damage:
        proof.lost += each.lost
        proof.damage.append(asdict(each) | {"path": str(each.path), "lost": each.lost})
