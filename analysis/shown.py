"""What W&B shows of a run, made of its log: the rows of its history, its system metrics, its summary and config.

    records ──feed──▶ rows, each when it closes ──▶ what the run came to

Invariants
----------
* A row is what W&B's server has of it once the run is uploaded: its step rule (calls of one step are one row, a step in
  the past is none), `_step`, `_timestamp` and `_runtime`, and the step metrics that `define_metric` puts in.
* The row that is still open is there too, as if it closed with the newest record.
* Memory is one row and the summary, however long the log is.

`syncd` makes the lines that it sends of the same records.  Neither room imports the other: the tests compare the two.
There is no file or clock here.  One thing differs on purpose: a row that is too long for W&B is here in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventlog.nested import Path, as_config, as_sent, leaves, merge, path_of, set_at
from eventlog.outcome import TRACKED, Statistics
from eventlog.record import Record

Row = dict[str, Any]

STEP, TIMESTAMP, RUNTIME = "_step", "_timestamp", "_runtime"
# What `start.rows` says of a run whose `metrics` records are whole rows, as W&B's own client closed them.
_COMPLETE_ROWS = "complete"


@dataclass(slots=True)
class _Definition:
    """One `define_metric`, merged with earlier ones of the same name."""

    step_metric: str | None = None
    step_sync: bool = False
    summary: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Statistics(Statistics):
    """What the summary knows of one key.  `track` lists what is shown; if empty, the last value alone."""

    track: list[str] = field(default_factory=list)
    is_hidden: bool = False

    @property
    def shown(self) -> Any:
        """The key's value in the summary; None is none."""
        if self.is_hidden or not self.has_data:
            return None
        return self.tracked(self.track) if self.track else self.latest


class CameTo:
    """The summary of a run, from the rows that closed and what was set and deleted by hand."""

    def __init__(self) -> None:
        self._statistics: dict[Path, _Statistics] = {}
        self._has_nested = False

    def take(self, row: Row) -> None:
        for path, value in leaves(row):
            is_number = type(value) is float or type(value) is int
            self._at(path).add(value, float(value) if is_number else None)

    def take_by_hand(self, data: Mapping[str, Any]) -> None:
        for path, value in data.get("set", []):
            statistics = self._at(tuple(path))
            # From here on no statistic is shown of this key.
            statistics.latest, statistics.track, statistics.has_data = as_sent(value), [], True
        for path in map(tuple, data.get("delete", [])):
            if path in self._statistics:
                self._statistics[path].latest, self._statistics[path].has_data = None, False
            else:
                for below in [known for known in self._statistics if known[: len(path)] == path]:
                    del self._statistics[below]

    def define(self, name: str, words: Sequence[str]) -> None:
        r"""Show these statistics of a metric; `\.` is a dot that belongs to its name."""
        statistics = self._at(path_of(name))
        statistics.is_hidden = "none" in words
        statistics.track = [word for word in TRACKED if word in words]

    def nested(self) -> dict[str, Any]:
        """Return the summary, nested as it was logged."""
        tree: dict[str, Any] = {}
        for path, statistics in self._statistics.items():
            if (value := statistics.shown) is not None:
                set_at(tree, path, value)
        return tree

    def _at(self, path: Path) -> _Statistics:
        found = self._statistics.get(path)
        if found is None:
            self._has_nested |= len(path) > 1
            if self._has_nested:
                # A value where a dict was, or a dict where a value was: the newer one holds.
                for other in list(self._statistics):
                    if other == path[: len(other)] or path == other[: len(path)]:
                        del self._statistics[other]
            found = self._statistics[path] = _Statistics()
        return found


class Rows:
    """The history of one run, one record after the other; with `came_to`, what it comes to is put in there."""

    def __init__(self, came_to: CameTo | None = None) -> None:
        self._came_to = came_to
        self.start: dict[str, Any] = {}
        """What the `start` records say, the config aside; a later one's null says nothing."""
        self.config: dict[str, Any] = {}
        self.runtime_s = 0.0
        self._row: Row | None = None
        self._step = 0
        self._start_us = 0
        self._piece_runtime_s = 0.0
        self._definitions: dict[str, _Definition] = {}
        self._latest_step: dict[str, float] = {}

    @property
    def has_complete_rows(self) -> bool:
        return self.start.get("rows") == _COMPLETE_ROWS

    def feed(self, record: Record) -> list[Row]:
        """Take the next record; return the rows that are complete now, of which there may be one."""
        if record.kind == "start":
            return self._begin(record)
        self._tick(record.time_us)
        if record.kind == "metrics":
            return [self._complete(record)] if self.has_complete_rows else self._metrics(record)
        if record.kind == "exit":
            return self.end_piece()
        if record.kind == "config":
            self.config.update(record.data)
        elif record.kind == "define_metric":
            self._define(record.data)
        elif record.kind == "summary" and self._came_to is not None:
            self._came_to.take_by_hand(record.data)
        elif record.kind == "facts":
            self.start.update(record.data)
        elif record.kind == "machine":
            self.start["machine"] = {**(self.start.get("machine") or {}), **record.data}
        return []

    def begin_piece(self) -> None:
        """Note that the next record is the first of another piece: its `start` says so too, but may be damaged."""
        self._start_us, self._piece_runtime_s = 0, self.runtime_s

    def end_piece(self) -> list[Row]:
        """Close the row that is open: no further record comes for now."""
        if self._row is None:
            return []
        closed = self._close()
        self._step += 1
        return [closed]

    def sample(self, record: Record) -> Row:
        """Return a `system` record that was fed as W&B's row of system metrics."""
        row = {"_wandb": True, TIMESTAMP: record.time_us / 1e6, RUNTIME: self.runtime_s}
        # A sample that W&B's own client took brings its times.
        named = {name if name in row else f"system.{name}": as_sent(v) for name, v in record.data.items()}
        return row | named

    def _begin(self, record: Record) -> list[Row]:
        closed = self.end_piece()
        given = {name: fact for name, fact in record.data.items() if fact is not None}
        self.config.update(given.pop("config", {}))
        self.start.update(given)
        self.begin_piece()
        self._start_us = record.time_us
        return closed

    def _metrics(self, record: Record) -> list[Row]:
        closed: list[Row] = []
        step = self._step if record.step is None else record.step
        if step < self._step:
            return closed
        if step > self._step:
            if self._row is not None:
                closed.append(self._close())
            self._step = step
        if self._row is None:
            self._row = {}
        merge(self._row, as_sent(record.data))
        if TIMESTAMP not in record.data:
            self._row[TIMESTAMP] = record.time_us / 1e6
        if record.commit:
            closed.append(self._close())
            self._step += 1
        return closed

    def _complete(self, record: Record) -> Row:
        row: Row = {key: as_sent(value) for key, value in record.data.items()}
        # Where the step goes back, W&B's client takes the next that is free.
        row[STEP] = self._step if record.step is None else max(record.step, self._step)
        self._step = row[STEP] + 1
        return row

    def _close(self) -> Row:
        row, self._row = self._row, None
        assert row is not None
        row[RUNTIME] = self.runtime_s
        row[STEP] = self._step
        if self._definitions:
            self._put_step_metrics_in(row)
        if self._came_to is not None:
            self._came_to.take(row)
        return row

    def _put_step_metrics_in(self, row: Row) -> None:
        values = dict(leaves(row))
        for name in self._latest_step:
            latest = values.get(tuple(name.split(".")))
            if type(latest) is float or type(latest) is int:
                self._latest_step[name] = float(latest)
        for path in list(values):
            definition = self._definition_of(".".join(path))
            if definition is not None and definition.step_metric and definition.step_sync:
                step_path = tuple(definition.step_metric.split("."))
                if step_path not in values:
                    values[step_path] = self._latest_step[definition.step_metric]
                    set_at(row, step_path, values[step_path])

    def _definition_of(self, key: str) -> _Definition | None:
        known = self._definitions.get(key)
        if known is not None or key.startswith("_"):
            return known
        for name, glob in list(self._definitions.items()):
            if name.endswith("*") and key.startswith(name[:-1]):
                # From now on a definition of its own: what is said of the glob later does not reach it.
                made = _Definition(glob.step_metric, glob.step_sync, list(glob.summary))
                self._definitions[key] = made
                if self._came_to is not None:
                    self._came_to.define(key, made.summary)
                return made
        return None

    def _define(self, data: Mapping[str, Any]) -> None:
        name, step_metric = data["name"], data.get("step_metric") or None
        definition = None if data.get("overwrite") else self._definitions.get(name)
        definition = definition or _Definition()
        # Switched on once, it stays on.
        definition.step_sync |= bool(data.get("step_sync", step_metric is not None))
        definition.step_metric = step_metric or definition.step_metric
        if asked := data.get("summary") or []:
            kept = [word for word in definition.summary if word != "none"]
            definition.summary = kept + [word for word in asked if word not in kept]
        self._definitions[name] = definition
        if step_metric is not None:
            # It counts from 0 until it is logged.
            self._latest_step.setdefault(step_metric, 0.0)
        if self._came_to is not None and not name.endswith("*"):
            self._came_to.define(name, definition.summary)

    def _tick(self, time_us: int) -> None:
        self._start_us = self._start_us or time_us
        # A clock that was set back makes no run younger.
        elapsed_s = (time_us - self._start_us) / 1e6
        self.runtime_s = max(self.runtime_s, self._piece_runtime_s + elapsed_s)


@dataclass(slots=True)
class Told:
    """What a whole log says of its run."""

    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    system: Row = field(default_factory=dict)
    """The newest row of system metrics."""
    last_step: int = -1
    started_us: int | None = None
    newest_us: int | None = None


def told(pieces: Iterable[Iterable[Record]]) -> Told:
    """Return what a run came to; `pieces` are its primary ones, in order."""
    came_to, found = CameTo(), Told()
    rows = Rows(came_to)
    for piece in pieces:
        rows.begin_piece()
        for record in piece:
            for row in rows.feed(record):
                found.last_step = row[STEP]
            if record.kind == "system":
                found.system = rows.sample(record)
            found.started_us = record.time_us if found.started_us is None else found.started_us
            found.newest_us = max(record.time_us, found.newest_us or 0)
        for row in rows.end_piece():
            found.last_step = row[STEP]
    found.config, found.start, found.summary = as_config(rows.config), rows.start, came_to.nested()
    if not rows.has_complete_rows:
        # Whoever closed whole rows also said this.
        found.summary |= ages(rows.runtime_s)
    return found


def ages(runtime_s: float) -> dict[str, Any]:
    """Return how W&B's summary says how long a run ran: in whole seconds, twice."""
    return {RUNTIME: int(runtime_s), "_wandb": {"runtime": int(runtime_s)}}


def history(pieces: Iterable[Iterable[Record]]) -> Iterator[Row]:
    """Yield the rows of a run's history, in order."""
    rows = Rows()
    for piece in pieces:
        rows.begin_piece()
        for record in piece:
            yield from rows.feed(record)
        yield from rows.end_piece()


def system(pieces: Iterable[Iterable[Record]]) -> Iterator[Row]:
    """Yield the rows of a run's system metrics."""
    rows = Rows()
    for piece in pieces:
        rows.begin_piece()
        for record in piece:
            rows.feed(record)
            if record.kind == "system":
                yield rows.sample(record)


def having(rows: Iterable[Row], keys: Sequence[str]) -> Iterator[Row]:
    """Yield the rows that have all the keys, with these alone; `outer.inner` is one that is in a dict.

    >>> list(having([{"a": 1, "b": {"c": 2}}, {"a": 3}], ["a", "b.c"]))
    [{'a': 1, 'b.c': 2}]
    """
    for row in rows:
        found = {key: at(row, key, _ABSENT) for key in keys}
        if _ABSENT not in found.values():
            yield found


def sampled(rows: Iterable[Row], samples: int) -> list[Row]:
    """Return at most so many of the rows, spread evenly, the first and the last among them.

    >>> [row["n"] for row in sampled(({"n": n} for n in range(1000)), 5)]
    [0, 250, 500, 749, 999]
    """
    kept: list[Row] = []
    every = 1
    last: Row | None = None
    for n, row in enumerate(rows):
        last = row
        if n % every == 0:
            kept.append(row)
            if len(kept) > max(4 * samples, _KEPT_MIN):
                kept, every = kept[::2], 2 * every
    if last is not None and kept[-1] is not last:
        kept.append(last)
    if len(kept) <= samples:
        return kept
    apart = (len(kept) - 1) / max(1, samples - 1)
    return [kept[round(n * apart)] for n in range(samples)]


# So many rows are no burden.
_KEPT_MIN = 4096
_ABSENT = object()


def at(tree: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return what is under a key; failing that, what `outer.inner` leads to through nested dicts.

    >>> tree = {"a.b": 1, "a": {"b": 2, "c.d": {"e": 3}}}
    >>> at(tree, "a.b"), at(tree, "a.c.d.e"), at(tree, "a.x")
    (1, 3, None)
    """
    if key in tree:
        return tree[key]
    cut = key.find(".")
    while cut > 0:
        below = tree.get(key[:cut])
        if isinstance(below, Mapping):
            found = at(below, key[cut + 1 :], _ABSENT)
            if found is not _ABSENT:
                return found
        cut = key.find(".", cut + 1)
    return default
