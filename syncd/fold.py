"""Turns records into W&B's lines.  PROTOCOL facts: W&B SDK 0.31, its step rule and its summary rule.

    start, metrics, summary, define_metric, … ──feed──▶ Line(history, 0), Line(history, 1), …
                                  state() ⇄ Fold.resume(state)

Invariants
----------
* Lines are a pure function of the records and the bases: the same records give the same bytes, in any process.
* Going on from any saved state gives what feeding from record 0 would have given, byte for byte.
* Line numbers have no gaps: every row that W&B's step rule accepts becomes exactly one line, and a row that
  cannot be shown there (too long) becomes a stub in its place.

There is no clock, file or socket here: every time comes out of a record.

Left out: the console, which is a stream of its own (`console`), and files (`uploads`), which are no lines.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from eventlog.nested import Path as KeyPath
from eventlog.nested import as_sent, merge, path_of, set_at
from eventlog.nested import leaves as leaves_of
from eventlog.outcome import TRACKED, Statistics
from eventlog.record import Record, json_of

HISTORY = "wandb-history.jsonl"
SUMMARY = "wandb-summary.json"
EVENTS = "wandb-events.jsonl"
CONSOLE = "output.log"

# W&B's own client drops a longer line.
LINE_MAX_BYTES = 10 * 1024 * 1024 - 100 * 1024
REPEATED_STEP = "step repeated or in the past"
LINE_TOO_LONG = "line over W&B's limit"
# The SDK names what it adds to a row like this, and W&B keeps such keys for itself.
_STEP, _TIMESTAMP, _RUNTIME = "_step", "_timestamp", "_runtime"

# What `start.rows` says of a piece whose `metrics` records are whole rows, as W&B's own client closed them.
COMPLETE_ROWS = "complete"

# The key of a row that stands in for one that cannot be shown.
STUB = "_tidelog_stub"


class Line(NamedTuple):
    """One line of a server file; `number` counts from the file's own first line."""

    file: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Bases:
    """Where a run begins on the server, agreed once: its first free lines, its first step, its time so far."""

    history: int = 0
    events: int = 0
    console: int = 0
    first_step: int = 0
    runtime_s: float = 0.0


@dataclass(slots=True)
class Definition:
    """One `define_metric`, merged with earlier ones of the same name."""

    name: str
    step_metric: str | None = None
    step_sync: bool = False
    hidden: bool = False
    summary: list[str] = field(default_factory=list)
    goal: str | None = None
    from_glob: bool = False

    @property
    def is_glob(self) -> bool:
        return self.name.endswith("*")


@dataclass(slots=True)
class _Statistics(Statistics):
    """What the summary knows of one key.  `track` lists what is shown; if empty, the last value alone."""

    track: list[str] = field(default_factory=list)
    hidden: bool = False

    def update(self, value: Any) -> None:
        self.add(value, float(value) if type(value) is float or type(value) is int else None)

    def shown(self) -> Any:
        """Return the key's summary value; None means that it has none."""
        if self.hidden or not self.has_data:
            return None
        if not self.track:
            return self.latest
        return self.tracked(self.track)


# In the order in which a cursor keeps them.
_IN_STATE = ("latest", "first", "min", "max", "total", "count", "track", "hidden", "has_data")


class Fold:
    """The fold of one run's primary pieces, and its small state."""

    def __init__(self, bases: Bases) -> None:
        self.next_line = {HISTORY: bases.history, EVENTS: bases.events}
        self.step = 0
        self.config: dict[str, Any] = {}
        self.start: dict[str, Any] = {}
        self.start_time_us = 0
        self.exitcode: int | None = None
        self.not_shown: dict[str, int] = {}
        self.row_seq: int | None = None
        """The seq of the first record in the open row, if one is open: nothing from there on is complete."""
        self.definitions: dict[str, Definition] = {}
        self._next_free_step = bases.first_step
        self._row: dict[str, Any] | None = None
        self._runtime_s = bases.runtime_s
        self._piece_runtime_s = bases.runtime_s
        self.deleted: list[str] = []
        """Keys that were taken out of the summary: those of another client as well as ours."""
        self._latest_step: dict[str, float] = {}
        self._statistics: dict[KeyPath, _Statistics] = {}
        # Every path that some key of the summary lies below, now or earlier.
        self._inner: set[KeyPath] = set()

    def feed(self, record: Record) -> list[Line]:
        """Take the next record of the primary pieces; return the lines that are complete now."""
        lines: list[Line] = []
        if record.kind != "start":
            self._tick(record.time_us)
        if record.kind == "metrics":
            self._metrics(record, lines)
        elif record.kind == "start":
            self._start(record, lines)
        elif record.kind == "config":
            self.config.update(record.data)
        elif record.kind == "summary":
            self._summary_record(record)
        elif record.kind == "define_metric":
            self._define(record.data)
        elif record.kind == "facts":
            self.start.update(record.data)
        elif record.kind == "machine":
            self.start["machine"] = {**(self.start.get("machine") or {}), **record.data}
        elif record.kind == "system":
            lines.append(self._system(record))
        elif record.kind == "exit":
            lines += self.end_piece()
            self.exitcode = int(record.data.get("exitcode", 0))
        return lines

    def begin_piece(self) -> None:
        """Note that the next record is the first of another piece.

        Its `start` says so too, and this makes no difference then; but a `start` may be damaged.
        """
        self.start_time_us = 0
        self._piece_runtime_s = self._runtime_s
        self.exitcode = None

    def end_piece(self) -> list[Line]:
        """Close the open row: no further record of this piece will come.

        A later piece's `start` does the same, so it makes no difference whether this is called before it.
        """
        lines: list[Line] = []
        if self._row is not None:
            self._close_row(lines)
            self.step += 1
        return lines

    def summary_text(self) -> str:
        """Return the whole summary, as W&B wants it."""
        return json_of(self.summary())

    def summary(self) -> dict[str, Any]:
        """Return the summary, nested as it was logged."""
        nested: dict[str, Any] = {}
        for path, statistics in self._statistics.items():
            value = statistics.shown()
            if value is not None:
                set_at(nested, path, value)
        if self._has_complete_rows:
            # Whoever closed the rows also said this.
            return nested
        # The SDK keeps the run's age here too, in whole seconds, whatever the last row says.
        nested[_RUNTIME] = int(self._runtime_s)
        nested["_wandb"] = {"runtime": int(self._runtime_s)}
        return nested

    def state(self) -> dict[str, Any]:
        """Return all of this as JSON values (NaN included), for `resume`.  It stays as it is when the fold goes on."""
        shared = {
            "next_line": self.next_line,
            "step": self.step,
            "config": self.config,
            "start": self.start,
            "start_time_us": self.start_time_us,
            "exitcode": self.exitcode,
            "not_shown": self.not_shown,
            "definitions": [_values(definition) for definition in self.definitions.values()],
            "next_free_step": self._next_free_step,
            "row": self._row,
            "row_seq": self.row_seq,
            "runtime_s": self._runtime_s,
            "piece_runtime_s": self._piece_runtime_s,
            "deleted": self.deleted,
            "latest_step": self._latest_step,
            "statistics": [
                [list(path), *(getattr(s, name) for name in _IN_STATE)]
                for path, s in self._statistics.items()
            ],
        }
        return _dicts_copied(shared)

    @classmethod
    def resume(cls, state: dict[str, Any]) -> Fold:
        """Return the fold that had this state."""
        state = _dicts_copied(state)
        fold = cls(Bases())
        fold.next_line = state["next_line"]
        fold.step = state["step"]
        fold.config = state["config"]
        fold.start = state["start"]
        fold.start_time_us = state["start_time_us"]
        fold.exitcode = state["exitcode"]
        fold.not_shown = state["not_shown"]
        fold.definitions = {values[0]: Definition(*values) for values in state["definitions"]}
        fold._next_free_step = state["next_free_step"]
        fold._row = state["row"]
        fold.row_seq = state["row_seq"]
        fold._runtime_s = state["runtime_s"]
        fold._piece_runtime_s = state["piece_runtime_s"]
        fold.deleted = state["deleted"]
        fold._latest_step = state["latest_step"]
        fold._statistics = {
            tuple(path): _Statistics(**dict(zip(_IN_STATE, values, strict=True)))
            for path, *values in state["statistics"]
        }
        fold._inner = {path[:n] for path in fold._statistics for n in range(1, len(path))}
        return fold

    # -- the kinds ---------------------------------------------------------------------------------------------

    def _start(self, record: Record, lines: list[Line]) -> None:
        lines += self.end_piece()
        # Given anew by each piece; what a resumed piece leaves out stays.
        given = {key: value for key, value in record.data.items() if value is not None}
        self.config.update(given.pop("config", {}))
        self.start.update(given)
        self.begin_piece()
        self.start_time_us = record.time_us

    @property
    def _has_complete_rows(self) -> bool:
        return self.start.get("rows") == COMPLETE_ROWS

    def _metrics(self, record: Record, lines: list[Line]) -> None:
        if self._has_complete_rows:
            lines.append(self._line(HISTORY, self._complete_row(record)))
            return
        step = self.step if record.step is None else record.step
        if step < self.step:
            self._count(REPEATED_STEP)
            return
        if step > self.step:
            if self._row is not None:
                self._close_row(lines)
            self.step = step
        if self._row is None:
            self._row, self.row_seq = {}, record.seq
        merge(self._row, as_sent(record.data))
        if _TIMESTAMP not in record.data:
            self._row[_TIMESTAMP] = record.time_us / 1e6
        if record.commit:
            self._close_row(lines)
            self.step += 1

    def _complete_row(self, record: Record) -> dict[str, Any]:
        """Return a row that is as W&B's client closed it, moved up to the next free step as that client would."""
        plain = (float, str, bool)
        row = {k: v if type(v) in plain else as_sent(v) for k, v in record.data.items()}
        if STUB in row:
            # Too long for a record, and so for W&B: the values are left out already.
            self._count(LINE_TOO_LONG)
        row[_STEP] = max(self.step if record.step is None else record.step, self._next_free_step)
        self.step = self._next_free_step = row[_STEP] + 1
        return row

    def _system(self, record: Record) -> Line:
        # Without `_wandb` the line would not be taken for system metrics.
        row = {"_wandb": True, _TIMESTAMP: record.time_us / 1e6, _RUNTIME: self._runtime_s}
        # A sample that W&B's client took brings its own times.
        named = {name if name in row else f"system.{name}": as_sent(v) for name, v in record.data.items()}
        return self._line(EVENTS, row | named)

    def _summary_record(self, record: Record) -> None:
        for path, value in record.data.get("set", []):
            statistics = self._statistics_at(tuple(path))
            # An explicit value switches the statistics off.
            statistics.latest, statistics.track, statistics.has_data = as_sent(value), [], True
        for path in record.data.get("delete", []):
            self._delete(tuple(path))

    def _define(self, data: dict[str, Any]) -> None:
        name = data["name"]
        step_metric = data.get("step_metric") or None
        earlier = None if data.get("overwrite") else self.definitions.get(name)
        definition = earlier or Definition(name)
        definition.from_glob = False
        # Options can be switched on later, never off: so it is in the SDK.
        definition.step_sync |= bool(data.get("step_sync", step_metric is not None))
        definition.hidden |= bool(data.get("hidden", False))
        definition.step_metric = step_metric or definition.step_metric
        definition.goal = data.get("goal") or definition.goal
        asked = data.get("summary") or []
        if asked:
            kept = [s for s in definition.summary if s != "none"]
            definition.summary = kept + [s for s in asked if s not in kept]
        self.definitions[name] = definition
        if step_metric is not None:
            # The SDK counts a step metric from 0 until it is logged.
            self._latest_step.setdefault(step_metric, 0.0)
        if not definition.is_glob:
            self._configure_summary(definition)

    # -- rows --------------------------------------------------------------------------------------------------

    def _close_row(self, lines: list[Line]) -> None:
        row = self._row
        assert row is not None
        self._row = self.row_seq = None
        # A run that began on the server before us has taken the first steps: W&B's client moves rows up too.
        step = max(self.step, self._next_free_step)
        self._next_free_step = step + 1
        row[_RUNTIME] = self._runtime_s
        row[_STEP] = step
        leaves = list(leaves_of(row))
        if self.definitions:
            self._apply_definitions(row, leaves)
        for path, value in leaves:
            self._statistics_at(path).update(value)
        lines.append(self._line(HISTORY, row))

    def _line(self, file: str, row: dict[str, Any]) -> Line:
        line = Line(file, self.next_line[file], json_of(row))
        self.next_line[file] += 1
        # Most lines are far below the limit: only a long one is worth encoding to be counted.
        if len(line.text) * 4 > LINE_MAX_BYTES and len(line.text.encode()) > LINE_MAX_BYTES:
            self._count(LINE_TOO_LONG)
            line = stub_of(line, LINE_TOO_LONG)
        return line

    def _apply_definitions(self, row: dict[str, Any], leaves: list[tuple[KeyPath, Any]]) -> None:
        values = dict(leaves)
        for name in self._latest_step:
            latest = values.get(tuple(name.split(".")))
            if type(latest) is float or type(latest) is int:
                self._latest_step[name] = float(latest)
        for path, _ in list(leaves):
            definition = self._definition_of(".".join(path))
            if definition is None or not definition.step_metric or not definition.step_sync:
                continue
            step_path = tuple(definition.step_metric.split("."))
            if step_path not in values:
                values[step_path] = self._latest_step[definition.step_metric]
                leaves.append((step_path, values[step_path]))
                set_at(row, step_path, values[step_path])

    def _definition_of(self, key: str) -> Definition | None:
        known = self.definitions.get(key)
        if known is not None or key.startswith("_"):
            return known
        for glob in list(self.definitions.values()):
            if glob.is_glob and key.startswith(glob.name[:-1]):
                made = Definition(
                    key, glob.step_metric, glob.step_sync, glob.hidden, list(glob.summary), glob.goal, True
                )
                self.definitions[key] = made
                self._configure_summary(made)
                return made
        return None

    def _configure_summary(self, definition: Definition) -> None:
        statistics = self._statistics_at(path_of(definition.name))
        statistics.hidden = "none" in definition.summary
        statistics.track = [word for word in TRACKED if word in definition.summary]

    def _statistics_at(self, path: KeyPath) -> _Statistics:
        found = self._statistics.get(path)
        if found is None:
            above = [path[:n] for n in range(1, len(path))]
            if path in self._inner or any(prefix in self._statistics for prefix in above):
                # A value where a dict was, or a dict where a value was: the newer one holds.
                for other in list(self._statistics):
                    if other == path[: len(other)] or path == other[: len(path)]:
                        del self._statistics[other]
            self._inner.update(above)
            found = self._statistics[path] = _Statistics()
        return found

    def _delete(self, path: KeyPath) -> None:
        if len(path) == 1 and path[0] not in self.deleted:
            self.deleted = [*self.deleted, path[0]]
        if path in self._statistics:
            statistics = self._statistics[path]
            statistics.latest, statistics.has_data = None, False
            return
        for other in [other for other in self._statistics if other[: len(path)] == path]:
            del self._statistics[other]

    def _tick(self, time_us: int) -> None:
        # The first record that is there stands in for a damaged `start`.
        self.start_time_us = self.start_time_us or time_us
        # A clock set back must not make a run younger.
        elapsed_s = (time_us - self.start_time_us) / 1e6
        self._runtime_s = max(self._runtime_s, self._piece_runtime_s + elapsed_s)

    def _count(self, reason: str) -> None:
        self.not_shown[reason] = self.not_shown.get(reason, 0) + 1


def stub_of(line: Line, reason: str) -> Line:
    """Return the line that stands in for one that cannot be shown: its step and times, and why.

    >>> stub_of(Line(HISTORY, 7, '{"big":1,"_step":3,"_timestamp":1.5,"_runtime":0.5}'), "refused").text
    '{"_step":3,"_timestamp":1.5,"_runtime":0.5,"_tidelog_stub":"refused; the record is in the local log"}'
    >>> stub_of(Line(CONSOLE, 7, "ERROR 2026-01-02T03:04:05.764325 odd"), "refused").text
    'ERROR 2026-01-02T03:04:05.764325 [tidelog: refused; the record is in the local log]'
    """
    why = f"{reason}; the record is in the local log"
    if line.file == CONSOLE:
        error, time, _ = re.fullmatch(r"(ERROR )?(\S*)(.*)", line.text, re.DOTALL).groups(default="")  # type: ignore[union-attr]
        return line._replace(text=f"{error}{time} [tidelog: {why}]")
    row = json.loads(line.text)
    kept = {key: row[key] for key in ("_wandb", _STEP, _TIMESTAMP, _RUNTIME) if key in row}
    return line._replace(text=json_of({**kept, STUB: why}))


def _dicts_copied(tree: dict[str, Any]) -> dict[str, Any]:
    """Copy a tree as deep as a fold changes one: its dicts in place, its lists never."""
    return {key: _dicts_copied(item) if type(item) is dict else item for key, item in tree.items()}


def _values(instance: Any) -> list[Any]:
    return [getattr(instance, part.name) for part in fields(instance)]
