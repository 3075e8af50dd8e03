"""Event files by hand, by TensorBoard's own writer and by torch's, and a vocabulary of what can happen to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eventlog.importers.tfrecord import frame
from eventlog.reader import read
from eventlog.record import Record

TIME_S = 1_763_712_000.0
FILE = "events.out.tfevents.1763712000.host.7.0"


def scalar_event(tag: str, value: float, step: int, time_s: float = TIME_S) -> bytes:
    """Return the record of one scalar, as torch's writer gives it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return frame(Event(wall_time=time_s, step=step, summary=summary).SerializeToString())


def first_event(time_s: float = TIME_S) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return frame(Event(wall_time=time_s, file_version="brain.Event:2").SerializeToString())


def losses(steps: Sequence[int]) -> list[bytes]:
    """Return an event for each step: the loss is one half of it."""
    return [scalar_event("loss", step / 2, step, TIME_S + 10 * step) for step in steps]


def write(directory: Path, records: Sequence[bytes], name: str = FILE) -> Path:
    """Make an event file of the records; add to it if it is there."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    with open(path, "ab") as file:
        file.write(b"".join(records))
    return path


def grow_old(*paths: Path) -> None:
    """Let the files look as if nobody had written to them for a day."""
    for path in paths:
        then_s = path.stat().st_mtime - 86_400
        os.utime(path, (then_s, then_s))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def records_of(run_dir: str | Path | None, kind: str | None = None) -> list[Record]:
    assert run_dir is not None
    return [record for record in read(run_dir) if kind in (None, record.kind)]


def rows_of(run_dir: str | Path | None) -> list[tuple[int | None, dict[str, Any]]]:
    return [(record.step, record.data) for record in records_of(run_dir, "metrics")]


def bytes_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
