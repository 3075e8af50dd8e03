"""One sealed segment on the disk: written once, proven, read a row group at a time.  FORMAT.md, "Sealed segments".

    records ──Writing──▶ temporary file ──prove──▶ rename: the segment      beside it, and first: its brief

Invariants
----------
* Under its own name a sealed segment is whole, durable, and was read back and found equal to what went in.
* Its brief is there before it is: whoever wants to know where a stream ends need not read Parquet.
* A file that cannot be read raises `Unreadable`, whatever is wrong with it; that pyarrow is missing is nothing wrong with it.
* Memory is one row group.

pyarrow is imported by what reads or writes columns; a brief needs none.
"""

from __future__ import annotations

import hashlib
import marshal
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from eventlog.errors import PyarrowMissing
from eventlog.piece import sync_directory
from eventlog.record import LINE_MAX_BYTES, BadLine, Record, encode_data, frame_object, unframe_object
from eventlog.sealed import Rollup, records_of, rollups_of, schema, table_of
from eventlog.segment import Header, Sealed

TEMPORARY = ".sealing-"
_METADATA_KEY = b"tidelog"
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# As long as a line may be; some 400,000 metrics.
BRIEF_MAX_BYTES = LINE_MAX_BYTES
# So much of one record's data may stand in a brief, as JSON.
_BRIEF_DATA_MAX_BYTES = 1024 * 1024
_HASH_BYTES = 1024 * 1024
# Higher levels take twice the time for 1 % less.
_ZSTD_LEVEL = 3
_ENCODINGS = {
    **dict.fromkeys(("seq", "time", "step", "nth", "int"), "DELTA_BINARY_PACKED"),
    "value": "BYTE_STREAM_SPLIT",
}
NO_PYARROW = "what is sealed is Parquet, and that needs pyarrow: pip install 'tidelog[sync]'"


class Unreadable(Exception):
    """A sealed segment that is damaged."""


@dataclass(slots=True)
class Brief:
    """What is in a sealed segment, in short."""

    header: Header
    next_seq: int
    records: int
    first: Record
    """Like `last`, with its data in the stream `events` only, and only where they are short."""
    last: Record
    size: int = 0
    sha256: str = ""
    last_step: int | None = None
    """Of its last metrics."""
    metrics: dict[str, Rollup] = field(default_factory=dict)

    @property
    def sealed(self) -> Sealed:
        return Sealed(self.header.stream, self.header.first_seq, self.next_seq)

    @classmethod
    def load(cls, piece_dir: Path, sealed: Sealed) -> Brief:
        """Return the brief of a sealed segment, or raise `Unreadable`; `FileNotFoundError` if the segment is gone."""
        path = piece_dir / sealed.brief_name
        try:
            fd = os.open(path, _OPEN_FLAGS)
            with open(fd, "rb") as file:
                content = unframe_object(file.read(BRIEF_MAX_BYTES).rstrip(b"\n"))
            return cls(
                Header.of(content | {"format": content["format"]}),
                content["next_seq"],
                content["records"],
                _record_of(content["first"]),
                _record_of(content["last"]),
                content["size"],
                content["sha256"],
                content["last_step"],
                {key: Rollup(**rollup) for key, rollup in content["metrics"].items()},
            )
        except (OSError, BadLine, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not (piece_dir / sealed.name).exists():
                raise
            raise Unreadable(f"{path.name} cannot be read: {error}") from None

    def encode(self) -> bytes:
        header = orjson.loads(self.header.encode())
        del header["crc"]
        return frame_object(
            header
            | {
                "next_seq": self.next_seq,
                "records": self.records,
                "size": self.size,
                "sha256": self.sha256,
                "last_step": self.last_step,
                "first": asdict(self.first),
                "last": asdict(self.last),
                "metrics": {key: asdict(rollup) for key, rollup in self.metrics.items()},
            }
        )


def _record_of(content: dict[str, Any]) -> Record:
    return Record(**content | {"lossy": tuple(tuple(path) for path in content["lossy"])})


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────


def records_in(
    piece_dir: Path, sealed: Sealed, seq: int = 0, newest_first: bool = False
) -> Iterator[list[Record]]:
    """Yield the records from `seq` on, a row group at a time, or raise `Unreadable`; `FileNotFoundError` if it is gone.

    `PyarrowMissing` if that is what is missing. All its bytes are checked first: Parquet's own checksums leave out what
    says where, and how many, the values are.
    """
    path = piece_dir / sealed.name
    if _sha256(path) != Brief.load(piece_dir, sealed).sha256:
        raise Unreadable(f"{sealed.name} cannot be read: its bytes are not what was sealed")
    for records in groups_of(path, sealed.stream, seq, newest_first):
        yield [record for record in records if record.seq >= seq]


def groups_of(
    path: Path, stream: str, seq: int = 0, newest_first: bool = False, skip: int = 0
) -> Iterator[list[Record]]:
    """Yield the records of each row group that reaches `seq`, but for the first `skip` of them; raise as `records_in` does."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise PyarrowMissing(f"{str(path)!r} cannot be read here: {NO_PYARROW}") from None
    try:
        fd = os.open(path, _OPEN_FLAGS)
        with open(fd, "rb") as source, pq.ParquetFile(source) as file:
            groups = range(file.num_row_groups)
            for group in reversed(groups) if newest_first else groups:
                statistics = file.metadata.row_group(group).column(0).statistics
                if statistics is not None and statistics.has_min_max and statistics.max < seq:
                    continue
                if skip > 0:
                    skip -= 1
                    continue
                yield records_of(file.read_row_group(group, use_threads=False), stream)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, BadLine, KeyError, ValueError, TypeError, IndexError) as error:
        raise Unreadable(f"{path.name} cannot be read: {error}") from None


def is_intact(piece_dir: Path, brief: Brief) -> bool:
    """Whether the sealed segment is byte for byte what it was when it was proven."""
    try:
        return _sha256(piece_dir / brief.sealed.name) == brief.sha256
    except (FileNotFoundError, Unreadable):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(os.open(path, _OPEN_FLAGS), "rb", buffering=0) as file:
            while data := file.read(_HASH_BYTES):
                digest.update(data)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────


class Writing:
    """A sealed segment that is being written; it has its name when `commit` returns, and not before."""

    def __init__(self, piece_dir: Path, header: Header) -> None:
        """`header` is that of a segment whose records are taken, with the first seq of this one."""
        import pyarrow.parquet as pq

        self._dir = piece_dir
        self._header = header
        self._columns = schema(header.stream).names
        self._path = piece_dir / f"{TEMPORARY}{os.urandom(4).hex()}"
        self._file = _create(self._path)
        self._writer = pq.ParquetWriter(
            self._file,
            schema(header.stream).with_metadata({_METADATA_KEY: header.encode()[:-1]}),
            compression="zstd",
            compression_level=_ZSTD_LEVEL,
            use_dictionary=[name for name in ("kind", "key") if name in self._columns],
            column_encoding={name: how for name, how in _ENCODINGS.items() if name in self._columns},
        )
        self._digests: list[bytes] = []
        self._records = 0
        self._first: Record | None = None
        self._last: Record | None = None
        self._last_step: int | None = None
        self._metrics: dict[str, Rollup] = {}

    def close(self) -> None:
        """Leave nothing but what was committed."""
        # Its footer is of no use any more, and may be what the disk has no room for.
        with suppress(OSError):
            self._writer.close()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, records: Sequence[Record]) -> None:
        """Take the next records, as one row group."""
        table = table_of(records, self._header.stream)
        self._writer.write_table(table, row_group_size=len(table))
        self._digests.append(_digest(records))
        self._records += len(records)
        self._first, self._last = self._first or records[0], records[-1]
        steps = (record.step for record in reversed(records) if record.kind == "metrics")
        self._last_step = next(steps, self._last_step)
        if self._header.stream == "events":
            for key, rollup in rollups_of(table).items():
                self._metrics.setdefault(key, Rollup()).add(rollup)

    def commit(self) -> Sealed:
        """Prove what was written, and give it its name; from then on a power cut cannot take it back."""
        assert self._first is not None, "a segment without records"
        assert self._last is not None
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._prove()
        sealed = Sealed(self._header.stream, self._header.first_seq, self._last.seq + 1)
        brief = Brief(
            self._header,
            sealed.next_seq,
            self._records,
            self._in_brief(self._first),
            self._in_brief(self._last),
            os.stat(self._path).st_size,
            _sha256(self._path),
            self._last_step,
            self._metrics,
        ).encode()
        if len(brief) > BRIEF_MAX_BYTES:
            raise Unreadable(
                f"{sealed.name} has {len(self._metrics):,} metrics, too many to be read back in short"
            )
        temporary = self._path.with_name(f"{self._path.name}-brief")
        with _create(temporary) as file:
            file.write(brief)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._dir / sealed.brief_name)
        # The brief is found beside its segment also after a power cut between the two.
        sync_directory(self._dir)
        os.replace(self._path, self._dir / sealed.name)
        sync_directory(self._dir)
        return sealed

    def _prove(self) -> None:
        """Read it back from the disk; what comes out is to the byte what went in."""
        found = [_digest(records) for records in groups_of(self._path, self._header.stream)]
        if found != self._digests:
            raise Unreadable(
                f"{self._header.stream} from seq {self._header.first_seq} on is not what was written"
            )

    def _in_brief(self, record: Record) -> Record:
        is_short = (
            self._header.stream == "events" and len(encode_data(record.data)[0]) <= _BRIEF_DATA_MAX_BYTES
        )
        return record if is_short else replace(record, data={}, lossy=())


def _create(path: Path) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return open(fd, "wb")


def _digest(records: Sequence[Record]) -> bytes:
    """Return what only these records in this order have."""
    # The names of the keys once for all records that have them: they are most of the bytes, and of the time.
    shapes: dict[tuple[str, ...], list[Any]] = {}
    for r in records:
        shape = r.kind, *r.data
        if shape not in shapes:
            shapes[shape] = []
        lossy = sorted(r.lossy, key=repr) if r.lossy else None
        shapes[shape] += r.seq, r.time_us, r.step, r.commit, lossy, *r.data.values()
    # Unlike JSON it tells all values apart: NaN and None, 1 and 1.0, 0.0 and -0.0. Version 2 has no references, so that
    # equal values are equal bytes.
    rows = [[record.seq for record in records], list(shapes.items())]
    return hashlib.blake2b(marshal.dumps(rows, 2), digest_size=16).digest()
