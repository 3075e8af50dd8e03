"""What a server must show of a log: W&B's step rule and the log's rules of damage, written a second time.

    lines of the pieces, as they lie on the disk ──shown──▶ Shown(rows, samples, config, summary, what is missing)

From PROTOCOL § 6 and FORMAT.md alone: nothing of `eventlog` or `syncd` is used here, so that an error of theirs is not
repeated.  Slow and short on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class LoggedLine:
    """One committed line of a segment; `seq` is -1 for what never was a record."""

    path: Path
    offset: int
    text: bytes
    seq: int = -1
    kind: str = ""
    step: int = 0
    commit: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = True


@dataclass
class StepRule:
    """W&B's: calls of one step make one row, which closes when a later step, a commit or the end is seen."""

    first_free: int = 0
    """The first step that is free on the server; a row below it is moved up."""
    current: int = 0
    row: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0

    def log(self, data: dict[str, Any], step: int, commit: bool) -> None:
        if step < self.current:
            self.repeated += 1
            return
        if step > self.current:
            self.close()
        self.current = step
        self.row = {**(self.row or {}), **data}
        if commit:
            self.close()
            self.current += 1

    def close(self) -> None:
        if self.row is not None:
            self.first_free = max(self.first_free, self.current) + 1
            self.rows.append({**self.row, "_step": self.first_free - 1})
            self.row = None

    def end(self) -> None:
        is_open = self.row is not None
        self.close()
        self.current += is_open


@dataclass
class Shown:
    """What the server has when all is acknowledged."""

    rows: list[dict[str, Any]]
    samples: list[Any]
    config: dict[str, Any]
    summary: dict[str, Any]
    """The last value of each key that no definition keeps out of it."""
    exitcode: int | None
    next_step: int
    repeated: int
    lost: int
    lost_at_an_end: int
    """Bad lines after which no good one came: nobody can tell what they were."""


def kept(piece: list[LoggedLine]) -> tuple[list[LoggedLine], int, bool]:
    """Return the records that a reader of the piece gets, how many are missing among them, and whether it ends badly."""
    found: list[LoggedLine] = []
    lost, expected, is_suspect = 0, 0, False
    for line in piece:
        if not line.is_whole:
            is_suspect = True
        elif line.seq >= expected:
            lost += line.seq - expected
            found.append(line)
            expected, is_suspect = line.seq + 1, False
    return found, lost, is_suspect


def shown(pieces: list[list[LoggedLine]], first_free: int = 0, is_written: bool = False) -> Shown:
    """Return what a server must show; `is_written` says that the last piece may still grow."""
    rule = StepRule(first_free)
    samples: list[Any] = []
    config: dict[str, Any] = {}
    hidden: set[str] = set()
    exitcode: int | None = None
    lost = lost_at_an_end = 0
    for number, piece in enumerate(pieces, start=1):
        records, lost_here, ends_badly = kept(piece)
        may_grow = is_written and number == len(pieces)
        if not records and (may_grow or not ends_badly):
            # A piece without a record may never have one: nobody waits for it.
            continue
        lost += lost_here
        lost_at_an_end += ends_badly
        exitcode = None
        for record in records:
            if record.kind == "metrics":
                rule.log(record.data, record.step, record.commit)
            elif record.kind == "system":
                samples.append(record.data["cpu"])
            elif record.kind == "define_metric":
                hidden.add(record.data["name"])
            elif record.kind == "exit":
                exitcode = record.data["exitcode"]
            elif record.kind in ("start", "config"):
                config |= record.data["config"] if record.kind == "start" else record.data
        if not may_grow or exitcode is not None:
            rule.end()
    summary = {key: value for row in rule.rows for key, value in row.items() if key not in {"_step", *hidden}}
    return Shown(
        rule.rows, samples, config, summary, exitcode, rule.current, rule.repeated, lost, lost_at_an_end
    )
