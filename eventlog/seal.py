"""Seals what will not change any more, and removes what is then not needed.  FORMAT.md, "Sealed segments".

    closed segments ──seal──▶ one sealed segment ──merge──▶ fewer, larger ones
    closed segments, sealed and acknowledged ──clean──▶ gone

Invariants
----------
* At every moment each record is in a file that readers find: a segment goes only after what replaces it is durable.
* A sealed segment was proven equal to what it was made of, and its bytes are checked again before that goes.
* A damaged segment is never sealed and never removed: it is the only evidence of what it held.
* What a sink has not acknowledged stays as its writer wrote it, although a sealed segment would do as well.
* Killed at any moment, the next call goes on; what was left half done is removed.

What is closed, and what is acknowledged, is decided by names, locks and cursors; nothing here waits for anybody.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from eventlog.cursor import Cursor, cursors, unreadable
from eventlog.parquet import BRIEF_MAX_BYTES, TEMPORARY, Brief, Unreadable, Writing, is_intact
from eventlog.piece import (
    closed,
    hold,
    lock_text,
    primaries,
    ran_here,
    sync_directory,
)
from eventlog.reader import (
    CHUNK_BYTES,
    OPEN_FLAGS,
    Damage,
    StreamReader,
    end_of_segment,
    newest_first,
    writers,
)
from eventlog.record import BadLine
from eventlog.segment import (
    STREAMS,
    Header,
    Sealed,
    Segment,
    primary_number,
    rank_of_writer,
    sealed_in,
    segments_in,
)

# So much of a log makes one row group: some 50,000 values, and 20 MB while it is made.
ROW_GROUP_BYTES = 2 * 1024 * 1024
# So much of a log goes into one sealed segment at most.
SEALED_FROM_BYTES = 1024 * 1024 * 1024
# Sealed segments are merged up to this size; those of a writer that goes on only when there are some of them, since
# each merge writes all of them again.
MERGED_MAX_BYTES = 256 * 1024 * 1024
MERGED_AT_ONCE = 8
# A header has some 250 bytes.
_HEADER_MAX_BYTES = 4096
_LOCK_FILE = "seal.lock"
_GAP = "the records are missing"


@dataclass(slots=True)
class Outcome:
    """What became of one run's segments."""

    sealed: list[Path] = field(default_factory=list)
    """The sealed segments that were made and are still there."""
    records: int = 0
    size_before: int = 0
    """Bytes of the segments that were sealed."""
    size_after: int = 0
    damage: list[Damage] = field(default_factory=list)
    """Why some segments were not sealed."""
    is_busy: bool = False
    """Another process is at it."""


def seal(run_dir: Path, progress: Callable[[int], object] = lambda size: None) -> Outcome:
    """Seal all closed segments of a run that are not sealed yet; `progress` is told of their bytes.

    Raises `OSError` if the disk refuses, after which nothing is lost, and `Unreadable` if what was written does not
    come back as it was.
    """
    outcome = Outcome()
    for writer in writers(run_dir):
        with _alone(run_dir / writer) as is_alone, _without_collector():
            if not is_alone:
                outcome.is_busy = True
                continue
            _tidy(run_dir / writer)
            is_closed = _is_closed(run_dir, writer)
            for stream in STREAMS:
                _seal_stream(run_dir / writer, stream, is_closed, outcome, progress)
                _merge(run_dir / writer, stream, is_closed, outcome)
    return outcome


def to_seal(run_dir: Path) -> int:
    """Return how many bytes of segments `seal` would seal; none where that cannot be seen."""
    with suppress(OSError):
        return sum(
            _size(run_dir / writer / segment.name)
            for writer in writers(run_dir)
            for is_closed in [_is_closed(run_dir, writer)]
            for stream in STREAMS
            for segment in _unsealed(run_dir / writer, stream, is_closed)
        )
    return 0


def _is_closed(run_dir: Path, writer: str) -> bool:
    return closed(run_dir, writer) or _has_exit(run_dir / writer)


def _has_exit(piece_dir: Path) -> bool:
    last = next(newest_first(piece_dir), None)
    return last is not None and last.kind == "exit"


# ── sealing ──────────────────────────────────────────────────────────────────────────────────────────────────


def _seal_stream(
    piece_dir: Path, stream: str, is_closed: bool, outcome: Outcome, progress: Callable[[int], object]
) -> None:
    segments = _unsealed(piece_dir, stream, is_closed)
    for batch in _batches(piece_dir, segments):
        _seal_batch(piece_dir, batch, outcome)
        progress(sum(_size(piece_dir / segment.name) for segment in batch))


def _unsealed(piece_dir: Path, stream: str, is_closed: bool) -> list[Segment]:
    """Return the segments that will not change any more, and of which no sealed one has all."""
    names = os.listdir(piece_dir)
    segments = segments_in(names, stream)
    sealed = sealed_in(names, stream)
    if not is_closed:
        segments = segments[:-1]
    return [
        segment
        for segment, next_seq in zip(segments, _ends(piece_dir, segments), strict=True)
        if segment.first_seq != next_seq and not any(_holds(each, segment, next_seq) for each in sealed)
    ]


def _ends(piece_dir: Path, segments: list[Segment]) -> list[int | None]:
    """Return the seq after the last record of each segment, and None where that is not known.

    What follows may begin further on, where some are missing.
    """
    ends = [end_of_segment(piece_dir, segment) for segment in segments]
    return [
        segment.first_seq if end is None and _is_without_records(piece_dir / segment.name) else end
        for segment, end in zip(segments, ends, strict=True)
    ]


def _is_without_records(path: Path) -> bool:
    """Whether nothing was ever committed there but a header; False where that cannot be seen."""
    with suppress(OSError, BadLine), open(os.open(path, OPEN_FLAGS), "rb") as file:
        beginning = file.read(_HEADER_MAX_BYTES)
        if not beginning:
            return True
        Header.decode(beginning.partition(b"\n")[0])
        file.seek(0)
        return sum(part.count(b"\n") for part in iter(partial(file.read, CHUNK_BYTES), b"")) == 1
    return False


def _holds(sealed: Sealed, segment: Segment, next_seq: int | None) -> bool:
    # Of what cannot be read nobody knows whether anything else holds it.
    return next_seq is not None and sealed.first_seq <= segment.first_seq and next_seq <= sealed.next_seq


def _batches(piece_dir: Path, segments: list[Segment]) -> Iterator[list[Segment]]:
    """Yield what goes into one sealed segment each: segments that follow one another."""
    following = segments_in(os.listdir(piece_dir), segments[0].stream) if segments else []
    batch: list[Segment] = []
    size = 0
    for segment in segments:
        adds = _size(piece_dir / segment.name)
        is_next = bool(batch) and following.index(segment) == following.index(batch[-1]) + 1
        if batch and (not is_next or size + adds > SEALED_FROM_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(segment)
        size += adds
    if batch:
        yield batch


def _seal_batch(piece_dir: Path, batch: list[Segment], outcome: Outcome) -> None:
    """Seal segments that follow one another; where there is damage, what lies before and behind it."""
    while batch:
        following = [s for s in segments_in(os.listdir(piece_dir), batch[0].stream) if s > batch[-1]]
        limit_seq = following[0].first_seq if following else None
        found = _write(piece_dir, batch[0].stream, batch[0].first_seq, limit_seq)
        if not isinstance(found, Damage):
            _note(outcome, piece_dir, found, batch)
            return
        at = next((i for i, segment in enumerate(batch) if segment.name == found.path.name), len(batch) - 1)
        # Where records are missing between two segments, both are whole.
        is_between = at > 0 and found.cause == _GAP and found.last_seq + 1 == batch[at].first_seq
        if at > 0:
            before = _write(
                piece_dir,
                batch[0].stream,
                batch[0].first_seq,
                found.first_seq if is_between else batch[at].first_seq,
            )
            if not isinstance(before, Damage):
                _note(outcome, piece_dir, before, batch[:at])
        if not is_between:
            outcome.damage.append(found)
        batch = batch[at if is_between else at + 1 :]


def _write(piece_dir: Path, stream: str, first_seq: int, limit_seq: int | None) -> Sealed | Damage | None:
    """Write the records from one seq to before another as a sealed segment; return it, or what is in the way."""
    reader = StreamReader(piece_dir, stream, first_seq)
    writing: Writing | None = None
    try:
        while True:
            chunk = reader.read(ROW_GROUP_BYTES)
            if chunk.blocked is not None:
                assert reader.place is not None
                at = reader.next_seq
                return Damage(piece_dir / reader.place[0], 0, at, at - 1, chunk.blocked)
            damage = [d for d in chunk.damage if limit_seq is None or d.first_seq < limit_seq]
            has_all = not chunk.more or (limit_seq is not None and reader.next_seq >= limit_seq)
            if has_all and limit_seq is None:
                damage += reader.end()
            if damage:
                return damage[0]
            records = [r for r in chunk.records if limit_seq is None or r.seq < limit_seq]
            if records:
                if writing is None:
                    assert reader.header is not None
                    writing = Writing(piece_dir, replace(reader.header, first_seq=first_seq))
                writing.add(records)
            if has_all:
                return writing.commit() if writing is not None else None
    finally:
        if writing is not None:
            writing.close()


def _note(outcome: Outcome, piece_dir: Path, sealed: Sealed | None, batch: list[Segment]) -> None:
    if sealed is not None:
        outcome.sealed.append(piece_dir / sealed.name)
        outcome.records += sealed.next_seq - sealed.first_seq
        outcome.size_before += sum(_size(piece_dir / segment.name) for segment in batch)
        outcome.size_after += _size(piece_dir / sealed.name)


# ── merging ──────────────────────────────────────────────────────────────────────────────────────────────────


def _merge(piece_dir: Path, stream: str, is_closed: bool, outcome: Outcome) -> None:
    sealed = sealed_in(os.listdir(piece_dir), stream)
    sizes = {each: _weight(piece_dir, each) for each in sealed}
    for group in mergeable(sealed, sizes, 2 if is_closed else MERGED_AT_ONCE):
        merged = _write(piece_dir, stream, group[0].first_seq, group[-1].next_seq)
        if not isinstance(merged, Sealed):
            # One of them is damaged: they stay as they are.
            continue
        _remove_covered(piece_dir)
        before = {piece_dir / each.name for each in group}
        outcome.sealed = [path for path in outcome.sealed if path not in before] + [piece_dir / merged.name]


def _weight(piece_dir: Path, sealed: Sealed) -> int:
    """Return how much of `MERGED_MAX_BYTES` it takes up: their briefs become one as well, which may not become too long."""
    brief = _size(piece_dir / sealed.brief_name) * MERGED_MAX_BYTES // BRIEF_MAX_BYTES
    return max(_size(piece_dir / sealed.name), brief)


def mergeable(sealed: list[Sealed], sizes: dict[Sealed, int], at_least: int) -> list[list[Sealed]]:
    """Return which sealed segments become one: those that follow one another and are small enough together.

    >>> a, b, c = Sealed("events", 0, 10), Sealed("events", 10, 20), Sealed("events", 25, 30)
    >>> mergeable([a, b, c], {a: 1000, b: 1000, c: 1000}, at_least=2) == [[a, b]]
    True
    """
    groups: list[list[Sealed]] = []
    size = 0
    for each in sealed:
        follows = bool(groups) and groups[-1][-1].next_seq == each.first_seq
        if not follows or size + sizes[each] > MERGED_MAX_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(each)
        size += sizes[each]
    return [group for group in groups if len(group) >= at_least]


def _tidy(piece_dir: Path) -> None:
    """Remove what a killed process left: temporary files, briefs without their segment, what a merge replaced."""
    names = set(os.listdir(piece_dir))
    for name in names:
        sealed = Sealed.parse(f"{name.removesuffix('.json')}.parquet") if name.endswith(".json") else None
        if name.startswith(TEMPORARY) or (sealed is not None and sealed.name not in names):
            (piece_dir / name).unlink(missing_ok=True)
    _remove_covered(piece_dir)


def _remove_covered(piece_dir: Path) -> None:
    names = os.listdir(piece_dir)
    for stream in STREAMS:
        kept = sealed_in(names, stream)
        for sealed in (each for name in names if (each := Sealed.parse(name)) and each.stream == stream):
            if sealed not in kept and any(_is_whole(piece_dir, each) for each in kept if each.covers(sealed)):
                (piece_dir / sealed.name).unlink(missing_ok=True)
                (piece_dir / sealed.brief_name).unlink(missing_ok=True)


def _is_whole(piece_dir: Path, sealed: Sealed) -> bool:
    try:
        return is_intact(piece_dir, Brief.load(piece_dir, sealed))
    except (Unreadable, FileNotFoundError):
        return False


# ── removing ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `clean` does with one segment."""

    path: Path
    size: int
    kept_because: str | None
    """Why it stays, for people; None if it goes."""


def clean(run_dir: Path, dry_run: bool = False) -> list[Verdict]:
    """Remove the segments that are sealed and that no sink waits for; return what became of each.

    With `dry_run` nothing is touched, and another process may be sealing.
    """
    verdicts: list[Verdict] = []
    bound = list(cursors(run_dir))
    for writer in writers(run_dir):
        with nullcontext(True) if dry_run else _alone(run_dir / writer) as is_alone:
            found = list(_verdicts(run_dir, writer, bound))
            if not is_alone:
                found = [replace(verdict, kept_because="another process is sealing it") for verdict in found]
            verdicts += found
            # The oldest first: a reader that finds the first of them counts on the others.
            going = [verdict.path for verdict in found if verdict.kept_because is None]
            for path in [] if dry_run else going:
                path.unlink(missing_ok=True)
            if going and not dry_run:
                sync_directory(run_dir / writer)
    return verdicts


def _verdicts(run_dir: Path, writer: str, bound: list[Cursor]) -> Iterator[Verdict]:
    piece_dir = run_dir / writer
    names = os.listdir(piece_dir)
    is_closed = closed(run_dir, writer)
    has_exit = _has_exit(piece_dir)
    # Whether somebody may hold the last segment open, where neither an `exit` nor the lock tells us.
    may_come_back = not has_exit and not ran_here(lock_text(piece_dir))
    lost_cursor = unreadable(run_dir)
    for stream in STREAMS:
        segments, sealed = segments_in(names, stream), sealed_in(names, stream)
        intact: dict[Sealed, bool] = {}
        for segment, next_seq in zip(segments, _ends(piece_dir, segments), strict=True):
            holder = next((each for each in sealed if _holds(each, segment, next_seq)), None)
            is_last = segment == segments[-1]
            reason: str | None = None
            if is_last and not (is_closed or has_exit):
                reason = "it is being written"
            elif next_seq is None:
                reason = "no record of it can be read: `eventlog verify` says why"
            elif holder is None:
                reason = "it is not sealed: `eventlog seal` seals it, or says why not"
            elif is_last and may_come_back:
                reason = "its writer on another machine never said that it ended"
            elif lost_cursor is not None and stream != "trajectories":
                reason = f"{lost_cursor.name} cannot be read: nobody knows what its sink has acknowledged"
            elif (sink := _who_waits(run_dir, writer, stream, next_seq, bound)) is not None:
                reason = f"{sink} has not acknowledged all of it"
            else:
                if holder not in intact:
                    intact[holder] = _is_whole(piece_dir, holder)
                if not intact[holder]:
                    reason = f"{holder.name} is damaged: remove that one, and `eventlog seal` makes it anew"
            yield Verdict(piece_dir / segment.name, _size(piece_dir / segment.name), reason)


def _who_waits(run_dir: Path, writer: str, stream: str, next_seq: int, bound: list[Cursor]) -> str | None:
    """Return the sink that does not have everything before `next_seq`, if there is one."""
    if stream == "trajectories":
        # They are not uploaded; what is shown of them there are files.
        return None
    rank = 0 if primary_number(writer) is not None else rank_of_writer(writer)
    order = primaries(run_dir) if rank == 0 else [writer]
    begun = {cursor.sink.base_url for cursor in bound if cursor.rank == rank}
    others = {cursor.sink.base_url for cursor in bound} - begun
    if others and (rank == 0 or (rank is not None and _has_ranks_uploaded(run_dir))):
        # Other ranks are on their way there, and this one will be.
        return min(others)
    for cursor in bound:
        if cursor.rank != rank:
            continue
        place = {"events": cursor.next, "console": cursor.console, "files": cursor.files}[stream]
        has_writer = place is not None and place["writer"] in order
        if place is None or not has_writer:
            return cursor.sink.base_url
        here, there = order.index(writer), order.index(place["writer"])
        if (there, place["seq"]) < (here, next_seq):
            return cursor.sink.base_url
    return None


def _has_ranks_uploaded(run_dir: Path) -> bool:
    """Whether each rank is a run of its own at the sinks: the run's first `start` says so."""
    names = primaries(run_dir)
    start = StreamReader(run_dir / names[0]).first() if names else None
    return start is not None and start.data.get("upload_ranks") == "all"


# ── shared ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _alone(piece_dir: Path) -> Iterator[bool]:
    """Keep other processes from sealing this piece; False if one is at it."""
    fd = hold(piece_dir / _LOCK_FILE)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from looking through the records again and again: it would find no cycle in them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0
