"""Writes `.wandb` files, record by record, in W&B's framing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from syncd.dotwandb import BLOCK_BYTES, HEADER, IDENT, MAGIC, VERSION, Damage, Deframer
from syncd.wandb_records import messages

_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def framed(payloads: Iterable[bytes]) -> bytes:
    """Return the file that holds these records."""
    out = bytearray(HEADER.pack(IDENT, MAGIC, VERSION))
    for payload in payloads:
        rest, is_begun = payload, False
        while True:
            left = BLOCK_BYTES - len(out) % BLOCK_BYTES
            if left < _CHUNK.size:
                out += bytes(left)
                continue
            part, rest = rest[: left - _CHUNK.size], rest[left - _CHUNK.size :]
            kind = (_MIDDLE if rest else _LAST) if is_begun else (_FIRST if rest else _FULL)
            out += _CHUNK.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            is_begun = True
            if not rest:
                break
    return bytes(out)


def records_of(path: Path) -> list[Any]:
    """Return the records of a whole file, as W&B's messages."""
    deframer = Deframer()
    found = [*deframer.feed(path.read_bytes()), *deframer.end()]
    return [messages().Record.FromString(one.data) for one in found if not isinstance(one, Damage)]
