"""Writes `.wandb` files, record by record, in W&B's framing."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from syncd.dotwandb import BLOCK_BYTES, HEADER, IDENT, MAGIC, VERSION
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


def logged(
    rows: int,
    *,
    is_over: bool = True,
    host: str = "",
    project: str = "p",
    entity: str = "",
    run_id: str = "r",
    began_s: int = 1_700_000_000,
    config: str = "{}",
) -> bytes:
    """Return the file of a run that logged `{"i": 0}, {"i": 1}, …`, as a process had written it."""
    made = [messages().Record(num=1, header={})]
    run = {
        "run_id": run_id,
        "project": project,
        "entity": entity,
        "host": host,
        "start_time": {"seconds": began_s},
    }
    made.append(
        messages().Record(num=2, run={**run, "config": {"update": [{"key": "c", "value_json": config}]}})
    )
    for i in range(rows):
        values = {"_step": i, "_timestamp": began_s + i, "_runtime": i, "i": i}
        items = [{"nested_key": [key], "value_json": json.dumps(value)} for key, value in values.items()]
        made.append(messages().Record(num=3 + i, history={"item": items, "step": {"num": i}}))
    if is_over:
        made.append(messages().Record(num=3 + rows, exit={"exit_code": 0}))
    return framed(record.SerializeToString() for record in made)


def placed(content: bytes) -> list[tuple[Any, int, int]]:
    """Return the records of a whole file, each with where its bytes begin and end."""
    found = []
    at, begin, payload = HEADER.size, HEADER.size, b""
    while at < len(content):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < _CHUNK.size:
            at += left
            continue
        _, length, kind = _CHUNK.unpack_from(content, at)
        if kind in (_FULL, _FIRST):
            begin, payload = at, b""
        at += _CHUNK.size + length
        payload += content[at - length : at]
        if kind in (_FULL, _LAST):
            found.append((messages().Record.FromString(payload), begin, at))
    return found
