"""Reads a run back from W&B and compares it with the log, row for row.

    log ──Fold──▶ expected rows ──┐
                                  ├─ compare ──▶ Verification
    W&B ──read_back────▶ rows ────┘

Invariants
----------
* Nothing is changed, here or there.
* No difference means: every row that was acknowledged is there once with the log's values, and from the run's first
  step on there is no other.
* Memory is one window of rows, however long the run is.

What the API cannot show is not compared: it sorts rows by step, so their order is that of their steps; of rows with
the same step it may show one, and then the number of lines tells of the other.  System metrics and the console are
not read back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from eventlog import cursor as cursors
from eventlog import piece as pieces
from eventlog.cursor import Cursor
from eventlog.piece import RunIdentity
from eventlog.reader import StreamReader, pieces_of, read
from eventlog.store import FILES_DIR
from syncd.attach import Attached, mark_of
from syncd.fold import HISTORY, REPEATED_STEP, Fold, Line, stub_of
from syncd.metadata import MARK, config_json
from syncd.read_back import ABSENT, PAGE_ROWS, CannotRead, Change, ReadBack, changes_between, read_back

# Rows can be large: then fewer than a page make a window.
WINDOW_BYTES = 8 * 1024 * 1024
# So many differences are listed one by one; all are counted.
SHOWN_MAX = 100


class CannotVerify(CannotRead):
    """There is nothing to compare, or no way to read it: a sentence for a person."""


class ExpectedRow(NamedTuple):
    """A row that the log makes, and where it comes from: the line's number, and the first of its records."""

    number: int
    row: dict[str, Any]
    size: int
    writer: str
    seq: int

    @property
    def step(self) -> int:
        return int(self.row["_step"])


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which W&B does not hold what the log says."""

    kind: str
    """`missing`, `extra`, `doubled` or `different`."""
    of: str
    """`run`, `row`, `summary`, `config`, `state`, `count`, or `file` and the file's path."""
    number: int | None = None
    step: int | None = None
    writer: str | None = None
    seq: int | None = None
    changes: tuple[Change, ...] = ()

    def __str__(self) -> str:
        name = self.of
        if self.number is not None:
            name = f"line {self.number} (step {self.step}, {self.writer} seq {self.seq})"
        elif self.step is not None:
            name = f"a row of step {self.step}"
        changes = "; ".join(map(str, self.changes))
        said = {
            "missing": f"{name} is missing there",
            "extra": f"{name} is there and not in the log",
            "doubled": f"{name} is there more than once",
            "different": f"{name} differs",
        }[self.kind]
        return f"{said}: {changes}" if changes else said


@dataclass(slots=True)
class Verification:
    """What a comparison found.  It is a good one if `differences` is empty."""

    run: str
    url: str
    rows: int = 0
    """What the log makes; of these `there` are as they should be, and `not_yet` are still in the backlog."""
    there: int = 0
    not_yet: int = 0
    stubs: int = 0
    """Rows that were too long or refused: a stub is there in their place."""
    files: int = 0
    files_not_yet: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """How many differences of each kind."""
    differences: list[Difference] = field(default_factory=list)
    """The first of them."""
    not_shown: dict[str, int] = field(default_factory=dict)
    """Records that stay here, by reason: no errors."""
    damaged: int = 0
    """Records that cannot be read in the log any more."""
    not_compared: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.counts

    def found(self, difference: Difference) -> None:
        self.counts[difference.kind] = self.counts.get(difference.kind, 0) + 1
        if len(self.differences) < SHOWN_MAX:
            self.differences.append(difference)

    def describe(self) -> str:
        """Return it in words, for people."""
        lines = [f"{self.run} at {self.url}"]
        due = self.rows - self.not_yet
        if self.there == due:
            lines.append(
                f"all {due:,} rows are there" if self.is_good else f"all {due:,} rows of the log are there"
            )
        else:
            lines.append(f"{self.there:,} of {due:,} rows are there as they should be")
        if self.files:
            lines.append(f"{self.files:,} files are there")
        if self.not_yet or self.files_not_yet:
            lines.append(
                f"not there yet, and in the backlog: {self.not_yet:,} rows, {self.files_not_yet:,} files"
            )
        if self.stubs:
            lines.append(f"{self.stubs:,} of the rows are stubs: too long for W&B, or refused by it")
        lines += [f"{count:,} not shown there: {reason}" for reason, count in self.not_shown.items()]
        if self.damaged:
            lines.append(f"{self.damaged:,} records of the log are damaged (`eventlog verify` says where)")
        lines += [f"not compared: {what}" for what in self.not_compared]
        lines += [f"WRONG: {difference}" for difference in self.differences]
        left_out = sum(self.counts.values()) - len(self.differences)
        if left_out:
            lines.append(f"WRONG: and {left_out:,} more")
        if self.counts.get("missing"):
            lines.append(
                "W&B can be some seconds behind: verify again before you believe that a row is missing."
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {**asdict(self), "is_good": self.is_good}


def verify(run_dir: Path, base_url: str, key: str) -> list[Verification]:
    """Compare a run with each place at `base_url` that it was uploaded to, or raise `CannotVerify` or `CannotRead`."""
    identity = RunIdentity.load(run_dir)
    return [_verify(run_dir, identity, cursor, key) for cursor in _uploaded(run_dir, identity, base_url)]


# -- what to compare -------------------------------------------------------------------------------------------


def _uploaded(run_dir: Path, identity: RunIdentity, base_url: str) -> list[Cursor]:
    """Return the cursors of the run's destinations there, or say why there is nothing to compare."""
    name = f"{identity.project}/{identity.run_id}"
    known = list(cursors.cursors(run_dir))
    if not known:
        raise CannotVerify(
            f"there is no cursor for {name}: nothing of it is known to be uploaded. `syncd sync {run_dir}` uploads it; "
            "it finds what is there already."
        )
    here = [cursor for cursor in known if cursor.sink.base_url == base_url]
    if not here:
        others = ", ".join(sorted({cursor.sink.base_url for cursor in known}))
        raise CannotVerify(
            f"{name} goes to {others}, not to {base_url}. Set WANDB_BASE_URL to verify it there."
        )
    attached = [cursor for cursor in here if cursor.attach is not None]
    if not attached:
        why = here[0].error or "nothing of it was sent"
        raise CannotVerify(f"{name} was never begun at {base_url}: {why}. There is nothing to compare.")
    if any(cursor.attach and cursor.attach.get("log_id") != identity.log_id for cursor in attached):
        raise CannotVerify(
            f"the cursor of {name} belongs to another log: this directory, or its sync/, is a copy. Verify the original."
        )
    return attached


def _verify(run_dir: Path, identity: RunIdentity, cursor: Cursor, key: str) -> Verification:
    try:
        assert cursor.attach is not None
        attached = Attached.of(cursor.attach)
        url = str(cursor.attach["url"])
        acked = cursor.acked[HISTORY]
        log = _Log(run_dir, identity, cursor, attached)
    except (KeyError, TypeError, ValueError) as error:
        raise CannotVerify(
            f"the cursor of {identity.run_id!r} is of another version of tidelog ({error!r}). "
            f"`syncd sync {run_dir}` makes it anew; then verify."
        ) from None
    found = Verification(f"{identity.project}/{identity.run_id}", url, not_shown=dict(cursor.not_shown))
    run = "/".join((attached.entity, attached.project, attached.run_id))
    with read_back(cursor.sink.base_url, key, run) as api:
        held = api.description()
        if held is None:
            found.found(Difference("missing", "run"))
            return found
        _compare_history(log, api, held, acked, found)
        _compare_description(log, held, acked, found)
        _compare_files(run_dir, cursor, api.files(), found)
    return found


class _Told(NamedTuple):
    """What W&B was told about the run besides its rows, when all of the log up to some record was acknowledged."""

    summary: dict[str, Any]
    config: dict[str, Any]
    exitcode: int | None
    next_line: int


class _Log:
    """The log of one run, folded anew."""

    def __init__(self, run_dir: Path, identity: RunIdentity, cursor: Cursor, attached: Attached) -> None:
        self.told: _Told | None = None
        """Known once all rows were read, if the log reaches as far as the cursor."""
        self.repeated = 0
        self.damaged = 0
        self.cursor = cursor
        self.bases = attached.bases
        self._run_dir = run_dir
        self._log_id = identity.log_id
        self._attached = attached
        self._stubs = {int(number): str(reason) for file, number, reason in cursor.stubs if file == HISTORY}

    def rows(self) -> Iterator[ExpectedRow]:
        """Yield every row that the log makes, in order."""
        fold = Fold(self.bases)
        place = (self.cursor.fold["writer"], self.cursor.fold["seq"]) if self.cursor.fold else None
        began = ("", 0)
        has_passed = False
        for name in pieces_of(self._run_dir, self.cursor.rank, self.cursor.pieces):
            # Asked first: what is read after a yes is all there will ever be.
            is_closed = pieces.closed(self._run_dir, name)
            reader = StreamReader(self._run_dir / name, log_id=self._log_id)
            more, is_begun = True, False
            while more:
                chunk = reader.read()
                if chunk.records and not is_begun:
                    fold.begin_piece()
                    is_begun = True
                more = chunk.more
                self.damaged += sum(damage.lost for damage in chunk.damage)
                for record in chunk.records:
                    here = (name, record.seq)
                    if place is not None and not has_passed and name == place[0] and record.seq >= place[1]:
                        has_passed = True
                        self._remember(fold)
                    of_row = began if fold.row_seq is not None else here
                    for line in fold.feed(record):
                        if line.file == HISTORY:
                            yield self._expected(line, *of_row)
                            # A second line of the same record is a row that began with it.
                            of_row = here
                    began = of_row
            self.damaged += sum(damage.lost for damage in reader.end())
            if is_closed:
                for line in fold.end_piece():
                    yield self._expected(line, *began)
            if (name, reader.next_seq) == place:
                self._remember(fold)
        self.repeated = fold.not_shown.get(REPEATED_STEP, 0)

    @property
    def has_moved(self) -> bool:
        """Whether anything was acknowledged since the comparison began."""
        now = cursors.load(self._run_dir, self.cursor.sink)
        return now is None or now.generation != self.cursor.generation

    def _expected(self, line: Line, writer: str, seq: int) -> ExpectedRow:
        reason = self._stubs.get(line.number)
        if reason is not None:
            line = stub_of(line, reason)
        return ExpectedRow(line.number, json.loads(line.text), len(line.text), writer, seq)

    def _remember(self, fold: Fold) -> None:
        if self.told is not None:
            return
        attached = self._attached
        if fold.next_line[HISTORY] < attached.summary_from:
            summary = attached.others_summary
        else:
            others = {k: v for k, v in attached.others_summary.items() if k not in fold.deleted}
            summary = others | fold.summary()
        mark = mark_of(self.cursor.attach["log_id"], self.cursor.pieces, self.bases)  # type: ignore[index]
        config = config_json(fold.config, fold.definitions, fold.start, mark, self._attached.others_config)
        unwrapped = {key: entry["value"] for key, entry in json.loads(config).items()}
        self.told = _Told(summary, unwrapped, fold.exitcode, fold.next_line[HISTORY])


# -- comparing -------------------------------------------------------------------------------------------------


def _compare_history(log: _Log, api: ReadBack, held: dict[str, Any], acked: int, found: Verification) -> None:
    """Compare window by window: the rows of the log, and what W&B has of the same steps."""
    from_step = log.bases.first_step
    seen = log.bases.history
    for window in _windows(log.rows()):
        to_step = window[-1].step + 1
        rows = list(api.rows(from_step, to_step))
        compare_rows(window, rows, acked, found)
        seen += len(rows)
        from_step = to_step
    behind = list(api.rows(from_step, None))
    compare_rows([], behind, acked, found)
    seen += len(behind)
    if log.repeated:
        found.not_shown[REPEATED_STEP] = log.repeated
    found.damaged = log.damaged
    counted = held["lines"]
    if counted is not None and counted > seen:
        # Of equal steps the API may show one row: the count still knows of the others.
        found.found(Difference("extra", "count", changes=(Change("history lines", seen, counted),)))


def _windows(rows: Iterator[ExpectedRow]) -> Iterator[list[ExpectedRow]]:
    window: list[ExpectedRow] = []
    size = 0
    for row in rows:
        window.append(row)
        size += row.size
        if len(window) == PAGE_ROWS or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def compare_rows(
    expected: Sequence[ExpectedRow], rows: Sequence[Mapping[str, Any]], acked: int, found: Verification
) -> None:
    """Compare rows of the log with all the rows that W&B has of the same steps, and add what is found.

    Lines below `acked` must be there; of the others, those that are not there are in the backlog.
    """
    by_step: dict[int | None, list[Mapping[str, Any]]] = {}
    for row in rows:
        step = row.get("_step")
        by_step.setdefault(step if isinstance(step, int) else None, []).append(row)
    for wanted in expected:
        found.rows += 1
        found.stubs += "_tidelog_stub" in wanted.row
        there = by_step.pop(wanted.step, [])
        source = (wanted.number, wanted.step, wanted.writer, wanted.seq)
        if not there:
            if wanted.number >= acked:
                found.not_yet += 1
            else:
                found.found(Difference("missing", "row", *source))
            continue
        changes = [changes_between(wanted.row, row) for row in there]
        if [] in changes:
            found.there += 1
            changes.remove([])
        else:
            found.found(Difference("different", "row", *source, changes=tuple(changes.pop(0))))
        for other in changes:
            if other:
                found.found(Difference("extra", "row", step=wanted.step, changes=tuple(other)))
            else:
                found.found(Difference("doubled", "row", *source))
    for step, there in by_step.items():
        for row in there:
            changes_ = tuple(changes_between({"_step": step}, row))
            found.found(Difference("extra", "row", step=step, changes=changes_))


def _compare_description(log: _Log, held: dict[str, Any], acked: int, found: Verification) -> None:
    """Compare summary, config and state, if what the log says of them was acknowledged and nothing moves."""
    told = log.told
    if told is None or told.next_line != acked:
        found.not_compared.append("summary, config and state: part of the log is still in the backlog")
        return
    if log.has_moved:
        found.not_compared.append("summary, config and state: the run is being uploaded right now")
        return
    refused = [reason for reason in found.not_shown if reason.startswith("summary refused")]
    if refused:
        found.not_compared.append(refused[0])
    else:
        _compare_object("summary", told.summary, held["summary"], found)
    _compare_object("config", told.config, held["config"], found)
    ends = ("finished",) if told.exitcode == 0 else ("failed",)
    expected = ends if log.cursor.finished else ("running", "crashed")
    if held["state"] not in expected:
        change = Change("state", " or ".join(expected), held["state"])
        found.found(Difference("different", "state", changes=(change,)))


def _compare_object(of: str, here: dict[str, Any], there: dict[str, Any], found: Verification) -> None:
    # What W&B keeps for itself, and our own mark.
    ignored = ("_wandb", MARK)
    mine, theirs = ({k: v for k, v in side.items() if k not in ignored} for side in (here, there))
    changes = changes_between(mine, theirs)
    if changes:
        found.found(Difference("different", of, changes=tuple(changes)))


def _compare_files(
    run_dir: Path, cursor: Cursor, held: Iterator[dict[str, Any]], found: Verification
) -> None:
    """Compare the files that the log names with those that W&B lists: sizes, and MD5 where it tells."""
    names = pieces_of(run_dir, cursor.rank, cursor.pieces)
    at = cursor.files or {}
    due = (names.index(at["writer"]), at["seq"]) if at.get("writer") in names else (0, 0)
    newest = {}
    for number, name in enumerate(names):
        for record in read(run_dir, "files", name):
            if record.kind == "file":
                is_due = (number, record.seq) < due
                newest[str(record.data["path"])] = (record.data, is_due)
    listed = {file["name"]: file for file in held} if newest else {}
    for path, (data, is_due) in newest.items():
        if not is_due:
            found.files_not_yet += 1
            continue
        md5 = _md5_of(run_dir / FILES_DIR / data["sha256"], data["sha256"])
        if path not in listed:
            # A content that is gone or damaged here was never sent, and stands in `not_shown`.
            if md5 is not None:
                found.found(Difference("missing", f"file {path}"))
            continue
        here = {"size": data["size"], "md5": md5}
        there = {"size": listed[path]["size"], "md5": _hex(listed[path]["md5"])}
        changes = [c for c in changes_between(here, there) if ABSENT not in (c.here, c.there)]
        if changes:
            found.found(Difference("different", f"file {path}", changes=tuple(changes)))
        else:
            found.files += 1


def _md5_of(path: Path, sha256: str) -> str | None:
    """Return the MD5 of a content that is what its name says, or None."""
    md5, sha = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(1024 * 1024):
                md5.update(part)
                sha.update(part)
    except OSError:
        return None
    return md5.hexdigest() if sha.hexdigest() == sha256 else None


def _hex(md5: str | None) -> str | None:
    """W&B gives an MD5 in base64, as its storage does."""
    if md5 is None or re.fullmatch("[0-9a-f]{32}", md5):
        return md5
    try:
        return base64.b64decode(md5, validate=True).hex()
    except ValueError:
        return md5
