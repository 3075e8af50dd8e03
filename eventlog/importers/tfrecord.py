"""TensorFlow's record framing, in both directions: what a tfevents file is made of.

    payload ──frame──▶ length (8 bytes), its CRC (4), payload, its CRC (4)
    bytes of a file, as they come ──Deframer.feed──▶ Payload(offset, data), Damage(offset, size, cause), …

Invariants
----------
* Payloads come in the order of the file, each once, however the bytes were cut into portions.
* A record whose end is not there yet is waited for; one that is wrong is passed over and said. Where even its length is
  wrong, the next whole record that proves itself is where it goes on.
* `consumed` is where a later `Deframer` may begin, and find what this one has not given yet.
* Whatever the bytes, nothing is raised; memory is one portion and one record of at most `RECORD_MAX_BYTES`.

What a payload says is another module's business.  There is no file here.
"""

from __future__ import annotations

import importlib
import struct
from functools import cache
from typing import Any, NamedTuple

# A scalar has 50 bytes and an image a megabyte; the graph of a very large model may be larger, and is not wanted.
RECORD_MAX_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEAD_BYTES, _FOOT_BYTES = _LENGTH.size + _CRC.size, _CRC.size
_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
# Below this, a loop over the bytes is faster than starting NumPy's.
_LONG_BYTES = 4 * 1024
_LANE_BYTES = 64


class Payload(NamedTuple):
    """One record's bytes, and where the record begins."""

    offset: int
    data: bytes


class Damage(NamedTuple):
    """Bytes of which nothing could be made."""

    offset: int
    size: int
    cause: str


def frame(payload: bytes) -> bytes:
    """Return the record that holds `payload`."""
    length = _LENGTH.pack(len(payload))
    return b"%b%b%b%b" % (length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload)))


class Deframer:
    """Takes a file's bytes from `offset` on; gives what is in them."""

    def __init__(self, offset: int = 0) -> None:
        self.consumed = offset
        """Where the first record begins that was neither given nor said to be damaged."""
        self._rest = bytearray()
        self._rest_at = offset
        """Where in the file `_rest` begins; beyond `consumed` only inside of damage or of a record that is too long."""
        self._is_searching = False
        self._skip_to = 0

    def feed(self, data: bytes) -> list[Payload | Damage]:
        """Take the next bytes of the file; return what is whole by now."""
        self._rest += data
        given: list[Payload | Damage] = []
        at = 0
        while True:
            found, next_at = self._next(at)
            if found is None and next_at == at:
                break
            at = next_at
            if found is not None:
                given.append(found)
        del self._rest[:at]
        self._rest_at += at
        return given

    def _next(self, at: int) -> tuple[Payload | Damage | None, int]:
        """Return what stands at `at` of `_rest`, and where to go on; nothing, and `at` itself, if more bytes are needed."""
        if self._rest_at + at < self._skip_to:
            return self._pass_over(at)
        if self._is_searching:
            return self._search(at)
        if len(self._rest) - at < _HEAD_BYTES:
            return None, at
        length = self._length_at(at)
        if length is None:
            self._is_searching = True
            return self._search(at)
        end = at + _HEAD_BYTES + length + _FOOT_BYTES
        if length > RECORD_MAX_BYTES:
            self._skip_to = self._rest_at + end
            return self._pass_over(at)
        if len(self._rest) < end:
            return None, at
        offset = self._rest_at + at
        data = bytes(memoryview(self._rest)[at + _HEAD_BYTES : end - _FOOT_BYTES])
        self.consumed = self._rest_at + end
        if _CRC.unpack_from(self._rest, end - _FOOT_BYTES)[0] != masked_crc(data):
            return Damage(offset, end - at, "the checksum does not match"), end
        return Payload(offset, data), end

    def _length_at(self, at: int) -> int | None:
        """Return the length of the record that begins at `at`, if it proves itself."""
        if masked_crc(bytes(self._rest[at : at + 8])) != _CRC.unpack_from(self._rest, at + 8)[0]:
            return None
        length: int = _LENGTH.unpack_from(self._rest, at)[0]
        return length

    def _pass_over(self, at: int) -> tuple[Damage | None, int]:
        """Drop what is there of a record that is too long; say so once it is passed."""
        end = min(len(self._rest), self._skip_to - self._rest_at)
        if self._rest_at + end < self._skip_to:
            return None, end
        damage = Damage(self.consumed, self._skip_to - self.consumed, "the record is too long")
        self.consumed = self._skip_to
        return damage, end

    def _search(self, at: int) -> tuple[Damage | None, int]:
        """Look for the next record that proves itself; what lies before it is damaged."""
        waiting = None
        for head in _heads(self._rest, at):
            proven = self._proves_itself(head)
            if proven:
                self._is_searching = False
                offset = self._rest_at + head
                damage = Damage(
                    self.consumed, offset - self.consumed, "the length of a record is not what was written"
                )
                self.consumed = offset
                return damage, head
            if proven is None and waiting is None:
                waiting = head
        # The last bytes may be the beginning of a head.
        return None, waiting if waiting is not None else max(at, len(self._rest) - _HEAD_BYTES + 1)

    def _proves_itself(self, at: int) -> bool | None:
        """Say whether a whole record stands behind that head: eight bytes and their checksum may be a payload too."""
        length: int = _LENGTH.unpack_from(self._rest, at)[0]
        end = at + _HEAD_BYTES + length
        if length > RECORD_MAX_BYTES:
            return False
        if len(self._rest) < end + _FOOT_BYTES:
            return None
        data = bytes(memoryview(self._rest)[at + _HEAD_BYTES : end])
        return bool(_CRC.unpack_from(self._rest, end)[0] == masked_crc(data))


# ── checksums ────────────────────────────────────────────────────────────────────────────────────────────────


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of `data`, masked as TensorFlow does.

    >>> hex(masked_crc(b"123456789"))
    '0xc78ab0e5'
    """
    crc = _crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
    if len(data) >= _LONG_BYTES:
        return _crc32c_of_long(data)
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


@cache
def _numpy() -> tuple[Any, Any]:
    """Return NumPy, which comes with the `tensorboard` package, and the table as an array."""
    numpy = importlib.import_module("numpy")
    return numpy, numpy.array(_table(), dtype=numpy.uint32)


def _crc32c_of_long(data: bytes) -> int:
    """Compute all lanes of 64 bytes at once, then join them two by two: a CRC is linear."""
    numpy, table = _numpy()
    lanes = 1 << (-(-len(data) // _LANE_BYTES) - 1).bit_length()
    padded = numpy.zeros(lanes * _LANE_BYTES, dtype=numpy.uint8)
    # Zeros before the beginning change nothing, as long as the register is zero too.
    padded[-len(data) :] = numpy.frombuffer(data, dtype=numpy.uint8)
    first = len(padded) - len(data)
    # The register begins with ones: that is the same as the first four bytes inverted.
    padded[first : first + 4] ^= 0xFF
    columns = padded.reshape(lanes, _LANE_BYTES)
    crcs = numpy.zeros(lanes, dtype=numpy.uint32)
    for at in range(_LANE_BYTES):
        crcs = table[(crcs ^ columns[:, at]) & 0xFF] ^ (crcs >> 8)
    level = 0
    while len(crcs) > 1:
        crcs = _moved(crcs[0::2], level) ^ crcs[1::2]
        level += 1
    return int(crcs[0]) ^ 0xFFFFFFFF


def _moved(crcs: Any, level: int) -> Any:
    """Return what the registers are after `64 << level` bytes of zeros."""
    tables = _moves(level)
    moved = tables[0][crcs & 0xFF]
    for place in (1, 2, 3):
        moved = moved ^ tables[place][(crcs >> (8 * place)) & 0xFF]
    return moved


@cache
def _moves(level: int) -> Any:
    """Return, for each byte of a register and each of its values, what becomes of it."""
    numpy, table = _numpy()
    if level == 0:
        values = numpy.arange(256, dtype=numpy.uint32)
        crcs = numpy.stack([values << numpy.uint32(8 * place) for place in range(4)])
        for _ in range(_LANE_BYTES):
            crcs = table[crcs & 0xFF] ^ (crcs >> 8)
        return crcs
    return numpy.stack([_moved(half, level - 1) for half in _moves(level - 1)])


def _heads(data: bytearray, begin: int) -> list[int]:
    """Return where, from `begin` on, eight bytes stand that the next four confirm."""
    numpy, table = _numpy()
    window = numpy.frombuffer(bytes(memoryview(data)[begin:]), dtype=numpy.uint8)
    count = len(window) - _HEAD_BYTES + 1
    if count <= 0:
        return []
    crcs = numpy.full(count, 0xFFFFFFFF, dtype=numpy.uint32)
    for at in range(8):
        crcs = table[(crcs ^ window[at : at + count]) & 0xFF] ^ (crcs >> 8)
    crcs ^= numpy.uint32(0xFFFFFFFF)
    masked = (crcs >> 15 | crcs << 17) + numpy.uint32(_MASK_DELTA)
    written = sum(window[8 + i : 8 + i + count].astype(numpy.uint32) << numpy.uint32(8 * i) for i in range(4))
    return [begin + int(hit) for hit in numpy.flatnonzero(masked == written)]
