"""Names, headers and order: which file holds which records.  FORMAT.md, "Streams and segments".

Invariants
----------
* A name says the first seq, so the segment of a seq is found by looking at names alone.
* Segments sort by (first seq, attempt); pieces by number. Order never comes from a clock or an inode.
* A sealed segment's name says where it ends as well: which files hold a stream is decided without opening one.
* A directory name made here holds no separator, is never hidden, and is never `.` or `..`.

There is no file here: names come in, names go out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from eventlog.record import BadLine, frame, unframe

FORMAT = 1
STREAMS = ("events", "trajectories", "console", "files")
# Small enough to seal in one go, large enough that a month of training is hundreds of files, not thousands.
ROTATE_BYTES = 64 * 1024 * 1024
ROTATE_AGE_S = 15 * 60.0

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SEGMENT = re.compile(r"(events|trajectories|console|files)-(\d{12})(?:\.(\d+))?\.jsonl")
_SEALED = re.compile(r"(events|trajectories|console|files)-(\d{12})-(\d{12})\.parquet")
_PRIMARY = re.compile(r"main-(\d{4,})")
_SECONDARY = re.compile(r"(rank\d+|fork|second)-[0-9a-f]{8}")


class UnknownFormat(BadLine):
    """A segment of a version that this one cannot read."""


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A segment's name, taken apart."""

    stream: str
    first_seq: int
    attempt: int = 0

    @property
    def name(self) -> str:
        """
        >>> Segment("events", 41877).name, Segment("events", 0, attempt=1).name
        ('events-000000041877.jsonl', 'events-000000000000.1.jsonl')
        """
        again = f".{self.attempt}" if self.attempt else ""
        return f"{self.stream}-{self.first_seq:012d}{again}.jsonl"

    @classmethod
    def parse(cls, name: str) -> Segment | None:
        """Return the segment of that name, or None: every other file is left alone."""
        match = _SEGMENT.fullmatch(name)
        return cls(match[1], int(match[2]), int(match[3] or 0)) if match else None


def next_attempt(names: Iterable[str], stream: str, first_seq: int) -> int:
    """Return the attempt after all that `names` hold for this seq: a reader that is in one of them goes forward.

    >>> next_attempt(["events-000000000007.1.jsonl", "lock"], "events", 7)
    2
    """
    taken = (
        s.attempt for s in map(Segment.parse, names) if s and (s.stream, s.first_seq) == (stream, first_seq)
    )
    return max(taken, default=-1) + 1


@dataclass(frozen=True, slots=True, order=True)
class Sealed:
    """A sealed segment's name, taken apart: it holds the records from `first_seq` to before `next_seq`."""

    stream: str
    first_seq: int
    next_seq: int

    @property
    def name(self) -> str:
        """
        >>> Sealed("events", 0, 41877).name
        'events-000000000000-000000041877.parquet'
        """
        return f"{self._stem}.parquet"

    @property
    def brief_name(self) -> str:
        """The file beside it that says what is in it in short.

        >>> Sealed("events", 0, 41877).brief_name
        'events-000000000000-000000041877.json'
        """
        return f"{self._stem}.json"

    @property
    def _stem(self) -> str:
        return f"{self.stream}-{self.first_seq:012d}-{self.next_seq:012d}"

    @classmethod
    def parse(cls, name: str) -> Sealed | None:
        """Return the sealed segment of that name, or None."""
        match = _SEALED.fullmatch(name)
        return cls(match[1], int(match[2]), int(match[3])) if match and match[2] < match[3] else None

    def covers(self, other: Sealed) -> bool:
        return self.first_seq <= other.first_seq and other.next_seq <= self.next_seq


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a segment: its identity."""

    log_id: str
    writer: str
    token: str
    stream: str
    first_seq: int
    time_us: int

    def encode(self) -> bytes:
        content = orjson.dumps(
            {
                "format": FORMAT,
                "log_id": self.log_id,
                "writer": self.writer,
                "token": self.token,
                "stream": self.stream,
                "first_seq": self.first_seq,
                "time": self.time_us,
            }
        )
        return frame(content[1:])

    @classmethod
    def decode(cls, line: bytes) -> Header:
        """Return the header in `line` (without its newline), or raise `BadLine`."""
        return cls.of(unframe(line))

    @classmethod
    def of(cls, content: dict[str, Any]) -> Header:
        """Return the header that an unframed line holds, or raise `BadLine`."""
        if content.get("format") != FORMAT:
            raise UnknownFormat(
                f"the segment has format {content.get('format')!r}, and this version reads format {FORMAT}. "
                "Update tidelog to read it; the log itself is intact."
            )
        try:
            return cls(
                content["log_id"],
                content["writer"],
                content["token"],
                content["stream"],
                content["first_seq"],
                content["time"],
            )
        except KeyError as error:
            raise BadLine(f"the segment's header lacks {error}") from None


def segments_in(names: Iterable[str], stream: str) -> list[Segment]:
    """Return the stream's segments among `names`, in the order in which they are read."""
    found = (Segment.parse(name) for name in names)
    return sorted(segment for segment in found if segment is not None and segment.stream == stream)


def sealed_in(names: Iterable[str], stream: str) -> list[Sealed]:
    """Return the stream's sealed segments among `names` in their order, without those that another one covers.

    >>> sealed_in(["events-000000000000-000000000100.parquet", "events-000000000000-000000000300.parquet"], "events")
    [Sealed(stream='events', first_seq=0, next_seq=300)]
    """
    parsed = (Sealed.parse(name) for name in names)
    found = [sealed for sealed in parsed if sealed is not None and sealed.stream == stream]
    widest: list[Sealed] = []
    for sealed in sorted(found, key=lambda each: (each.first_seq, -each.next_seq)):
        if not widest or not widest[-1].covers(sealed):
            widest.append(sealed)
    return widest


def files_of(names: Iterable[str], stream: str) -> list[Segment | Sealed]:
    """Return the files that hold the stream's records, in the order in which they are read.

    While a segment is there in both forms, the one that its writer wrote counts: it needs nothing to be read. They are
    removed from the oldest on, so where the first that a sealed segment was made of is there, the others are.

    >>> [each.name for each in files_of(["events-000000000000-000000000100.parquet", "events-000000000050.jsonl"], "events")]
    ['events-000000000000-000000000100.parquet', 'events-000000000050.jsonl']
    """
    names = list(names)
    segments = segments_in(names, stream)
    begun = {segment.first_seq for segment in segments}
    sealed = [each for each in sealed_in(names, stream) if each.first_seq not in begun]
    return sorted([*segments, *sealed], key=place_in_stream)


def place_in_stream(file: Segment | Sealed) -> tuple[int, int]:
    """Return the sort key of a stream's files."""
    return file.first_seq, file.attempt if isinstance(file, Segment) else -1


def primary_name(number: int) -> str:
    """
    >>> primary_name(2)
    'main-0002'
    """
    return f"main-{number:04d}"


def primary_number(name: str) -> int | None:
    """Return the number of a primary piece, or None if `name` is not one's."""
    match = _PRIMARY.fullmatch(name)
    return int(match[1]) if match else None


def rank_of_writer(name: str) -> int | None:
    """Return the rank of a secondary writer, or None if `name` is not one's.

    >>> rank_of_writer("rank3-9c1d4e07")
    3
    """
    match = _SECONDARY.fullmatch(name)
    return int(match[1][4:]) if match and match[1].startswith("rank") else None


def is_writer_name(name: str) -> bool:
    """Say whether a directory of that name belongs to a writer."""
    return _PRIMARY.fullmatch(name) is not None or _SECONDARY.fullmatch(name) is not None


def directory_name(raw: str) -> str:
    """Return the directory name for a project or run id; different ids get different names.

    >>> directory_name("qwen3-14b-lr1e5")
    'qwen3-14b-lr1e5'
    >>> directory_name("../../x")
    '_._.._x-9cdf6a50'
    """
    if _PLAIN_NAME.fullmatch(raw):
        return raw
    encoded = raw.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    kept = re.sub(rb"[^A-Za-z0-9._-]", b"_", encoded[:96]).decode()
    return f"_{kept[1:]}-{digest}" if kept.startswith(".") else f"{kept}-{digest}"
