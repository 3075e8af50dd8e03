"""Reads W&B's `.wandb` files: every record whose bytes are whole, whatever lies around it.

    bytes of the file, as they come ──feed──▶ Payload(offset, data), Damage(offset, size, cause), …
                                      end()──▶ Damage, Torn at the end of a file that does not grow any more

Invariants
----------
* Payloads come in the order of the file, each once, however the bytes were cut into portions.
* A record that lies in undamaged chunks is found: after a wrong chunk the next one that proves itself counts, and at
  the latest the next block.
* A chunk whose end is not there yet is waited for; a chunk that is wrong is passed over and said.
* Torn is what a writer began and did not come to finish, and nothing else: bytes that are wrong are damage at the end
  of a file as well.
* Whatever the bytes, nothing is raised, and memory is one block and one record.

The framing is LevelDB's log, as W&B's SDK writes it (0.12 … 0.31, read back from its files): a header of 7 bytes, then
blocks of 32 KiB, counted from the start of the file; in them chunks of `CRC-32, length, type` and data.  Unlike
LevelDB's, the CRC is the plain CRC-32 of type and data, not masked.  What a payload says is another module's business.

There is no file here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

BLOCK_BYTES = 32 * 1024
HEADER = struct.Struct("<4sHB")
IDENT, MAGIC, VERSION = b":W&B", 0xBEE1, 0
_HEADER = HEADER.pack(IDENT, MAGIC, VERSION)
_WRONG_HEADER = "the file's header is wrong, or of a later version"
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_CRC_FULL = zlib.crc32(bytes([_FULL]))


class Payload(NamedTuple):
    """One record's bytes, and where its first chunk begins."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of which nothing could be made."""

    offset: int
    size: int
    cause: str


class Torn(Damage):
    """The last bytes of a file: the beginning of what its writer was writing when it was killed."""


class Deframer:
    """Takes a file's bytes from its first on; gives what is in them."""

    def __init__(self) -> None:
        self._rest = b""
        self._offset = 0
        """Where in the file `_rest` begins."""
        self._skip_to = 0
        """The block after the one that is given up."""
        self._begun: list[bytes] = []
        """The chunks so far of a record whose last is not here yet."""
        self._begun_at = 0
        self._wrong_at: int | None = None
        self._cause = ""
        self._found: list[Payload | Damage] = []

    @property
    def is_within_a_record(self) -> bool:
        """Whether a record was begun, of which all that came so far is right."""
        return bool(self._begun)

    @property
    def is_in_damage(self) -> bool:
        """Whether no good record came since something was wrong."""
        return self._wrong_at is not None

    def feed(self, data: bytes) -> list[Payload | Damage]:
        """Take the next bytes; return what is complete now."""
        self._rest += data
        at = 0
        while True:
            at = self._take_whole(at)
            taken = self._take(memoryview(self._rest)[at:])
            if not taken:
                break
            at += taken
            self._offset += taken
        self._rest = self._rest[at:]
        found, self._found = self._found, []
        return found

    def end(self) -> list[Damage]:
        """Return what is wrong at the end, and what is `Torn`: no byte will follow."""
        end = self._offset + len(self._rest)
        at = self._begun_at if self._begun else self._offset
        if self._offset == 0 and not _HEADER.startswith(self._rest):
            self._lose(0, _WRONG_HEADER)
        elif not self._is_cut():
            self._lose_begun("the length of a chunk is wrong")
            self._lose(at, "the length of a chunk is wrong")
        if (self._begun or self._wrong_at is None) and at < end:
            # What was wrong before it ends here: a record was begun, or all is right up to here.
            self._settle(at)
            self._found.append(Torn(at, end - at, "the file ends in the middle of a record"))
        self._settle(end)
        self._rest, self._begun, self._offset = b"", [], end
        found, self._found = self._found, []
        return [damage for damage in found if isinstance(damage, Damage)]

    def _is_cut(self) -> bool:
        """Whether the rest is less than its chunk: no beginning of it is all that the checksum is of."""
        if len(self._rest) < _CHUNK.size:
            return True
        wanted, _, kind = _CHUNK.unpack(self._rest[: _CHUNK.size])
        crc = zlib.crc32(bytes([kind]))
        for byte in self._rest[_CHUNK.size :]:
            if crc == wanted:
                return False
            crc = zlib.crc32(bytes([byte]), crc)
        return bool(crc != wanted)

    def _take_whole(self, at: int) -> int:
        """Take the records that lie in one good chunk each, which nearly all do; return where the first other is."""
        rest, found, unpack = self._rest, self._found, _CHUNK.unpack_from
        if self._begun or self._wrong_at is not None or self._offset < max(self._skip_to, 1):
            return at
        first, end = at, len(rest) - _CHUNK.size
        left = BLOCK_BYTES - self._offset % BLOCK_BYTES
        while at <= end and left >= _CHUNK.size:
            crc, size, kind = unpack(rest, at)
            size += _CHUNK.size
            data = rest[at + _CHUNK.size : at + size]
            # The checksum is of the type and the data.
            if kind != _FULL or size > left or at + size > len(rest) or zlib.crc32(data, _CRC_FULL) != crc:
                break
            found.append(Payload(self._offset + at - first, data))
            at += size
            left = left - size or BLOCK_BYTES
        self._offset += at - first
        return at

    def _take(self, rest: memoryview) -> int:
        """Take what comes next, and return how many bytes it had; 0 if its end is not there yet."""
        if self._offset == 0:
            return self._take_header(rest)
        if self._offset < self._skip_to:
            return min(self._skip_to - self._offset, len(rest))
        left = BLOCK_BYTES - self._offset % BLOCK_BYTES
        if left < _CHUNK.size:
            # Too little for a chunk: padding.
            return left if len(rest) >= left else 0
        if len(rest) < _CHUNK.size:
            return 0
        crc, size, kind = _CHUNK.unpack(rest[: _CHUNK.size])
        end: int = _CHUNK.size + size
        if end > left or not _FULL <= kind <= _LAST:
            self._lose_begun("no chunk begins here")
            self._lose(self._offset, "no chunk begins here")
            self._skip_to = self._offset + left
            return min(left, len(rest))
        if len(rest) < end:
            return 0
        if zlib.crc32(rest[_CHUNK.size - 1 : end]) != crc:
            self._lose_begun("the checksum is wrong")
            self._lose(self._offset, "the checksum is wrong")
        else:
            self._take_chunk(kind, bytes(rest[_CHUNK.size : end]))
        return end

    def _take_header(self, rest: memoryview) -> int:
        if len(rest) < HEADER.size:
            return 0
        if rest[: HEADER.size] != _HEADER:
            self._lose(0, _WRONG_HEADER)
        return HEADER.size

    def _take_chunk(self, kind: int, data: bytes) -> None:
        if kind in (_FULL, _FIRST):
            self._lose_begun("the record was never finished")
            self._begun, self._begun_at = [data], self._offset
        elif self._begun:
            self._begun.append(data)
        else:
            self._lose(self._offset, "the beginning of the record is missing")
            return
        if kind in (_FULL, _LAST):
            self._settle(self._begun_at)
            self._found.append(Payload(self._begun_at, b"".join(self._begun)))
            self._begun = []

    def _lose_begun(self, cause: str) -> None:
        if self._begun:
            self._lose(self._begun_at, cause)
            self._begun = []

    def _lose(self, offset: int, cause: str) -> None:
        if self._wrong_at is None:
            self._wrong_at, self._cause = offset, cause

    def _settle(self, offset: int) -> None:
        """What was wrong ends where the next good record begins."""
        if self._wrong_at is not None:
            self._found.append(Damage(self._wrong_at, offset - self._wrong_at, self._cause))
            self._wrong_at = None
