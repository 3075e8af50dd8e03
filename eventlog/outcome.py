"""What a run came to: the last value of each metric, or what `define_metric` makes of its values.  W&B's rules.

    rows, definitions, values set and deleted ──take──▶ items    (nested, as they were logged)

Invariants
----------
* A row counts once: of calls with one step, only the last value of a key does.
* The row that is still open is shown as if it were closed.
* Until a statistic is asked for, a row costs one `dict.update`.

There is no file, clock or lock here.  `SummaryState` is what the training script sees; what W&B gets is made of the log
by `syncd`'s fold, from the same `Statistics`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventlog.record import Record

Path = tuple[str, ...]
# The statistics of a key, in the order in which its summary has them.
TRACKED = ("last", "first", "max", "min", "mean")


@dataclass(slots=True)
class Statistics:
    """The values of one key so far, in what W&B's summary can show of them."""

    latest: Any = None
    first: Any = None
    min: float = 0.0
    max: float = 0.0
    total: float = 0.0
    count: int = 0
    has_data: bool = False

    def add(self, value: Any, number: float | None) -> None:
        """Take the next value, and the number that it is, if it is one."""
        self.latest = value
        if not self.has_data:
            self.first, self.has_data = value, True
        if number is None:
            return
        # As Go's min and max, which W&B's client uses: NaN wins.
        if self.count == 0 or number != number:
            self.min = self.max = number
        else:
            self.min = number if number < self.min else self.min
            self.max = number if number > self.max else self.max
        self.total += number
        self.count += 1

    def tracked(self, words: Sequence[str]) -> dict[str, Any]:
        """Return what these of `TRACKED` are."""
        values = {
            "last": self.latest,
            "first": self.first,
            "max": self.max,
            "min": self.min,
            "mean": self.total / self.count if self.count else float("nan"),
        }
        return {word: values[word] for word in words}


@dataclass(slots=True)
class _WithOpenRow(Statistics):
    """The same; `pending` is the value in the open row, which a later call of its step may replace."""

    pending: tuple[Any, ...] = ()

    def commit(self) -> None:
        if self.pending:
            (value,), self.pending = self.pending, ()
            self.add(value, _number(value))

    def shown(self, words: Sequence[str]) -> dict[str, Any]:
        known = self
        if self.pending:
            known = copy.copy(self)
            known.commit()
        return known.tracked(words)


class SummaryState:
    """The summary of one run.  Not safe to change from two threads at once."""

    __slots__ = (
        "_asked",
        "_by_hand",
        "_has_open_row",
        "_keeps_all",
        "_open_step",
        "_statistics",
        "_step",
        "_without_statistics",
        "_words",
        "items",
    )

    def __init__(self, keeps_all: bool = False) -> None:
        """With `keeps_all`, the statistics of every key are kept, for what is asked later."""
        self.items: dict[str, Any] = {}
        self._keeps_all = keeps_all
        # What `define_metric(summary=…)` asked for, by name or `prefix*`; the statistics that this needs.
        self._asked: dict[str, list[str]] = {}
        self._statistics: dict[Path, _WithOpenRow] = {}
        # The words of a key, looked up once.
        self._words: dict[Path, list[str]] = {}
        # Keys that were set by hand; of these, the ones whose value is a dict, which is one value.
        self._without_statistics: set[Path] = set()
        self._by_hand: set[Path] = set()
        self._open_step: int | None = None
        # Of a log: the step below which no row counts any more.
        self._step = 0
        self._has_open_row = False

    def become(self, other: SummaryState) -> None:
        """Take over the state of another one; views of this stay good."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))
        self._keeps_all = False

    def take(self, record: Record) -> None:
        """Go on by one record of the run's log."""
        if record.kind == "metrics":
            step = self._step if record.step is None else record.step
            if step >= self._step:
                self.take_row(record.data, False, step, record.commit)
                self._step, self._has_open_row = step + record.commit, not record.commit
        elif record.kind == "start":
            self._close_row()
            self._step, self._has_open_row = self._step + self._has_open_row, False
        elif record.kind == "summary":
            for path, value in record.data.get("set", []):
                self.set_at(tuple(path), value)
            for path in record.data.get("delete", []):
                self.delete(tuple(path))
        elif record.kind == "define_metric":
            self.define(
                record.data["name"], record.data.get("summary") or (), bool(record.data.get("overwrite"))
            )

    def take_row(self, row: Mapping[str, Any], is_flat: bool, step: int, closes: bool) -> None:
        """Take over the values of a logged row; a nested dict in it stays the caller's own."""
        if is_flat and not self._asked and not self._keeps_all:
            self.items.update(row)
            return
        if self._by_hand:
            for path, _ in _leaves(row):
                if above := self.set_by_hand_above(path):
                    self.delete(above)
        _merge(self.items, row)
        if not self._asked and not self._keeps_all:
            return
        if step != self._open_step:
            self._close_row()
            self._open_step = step
        for path, value in _leaves(row):
            words = self._words_of(path)
            if words or self._keeps_all:
                statistics = self._statistics.setdefault(path, _WithOpenRow())
                statistics.pending = (value,)
                self._show(path, words, statistics)
        if closes:
            self._close_row()

    def asks_for_more(self, name: str, words: Sequence[str], overwrite: bool) -> bool:
        """Whether a definition shows statistics, of values that are there, which were not kept so far."""
        known = [] if overwrite else self._asked.get(name, [])
        if set(words) <= set(known):
            return False
        if name.endswith("*"):
            return any(".".join(map(str, path)).startswith(name[:-1]) for path, _ in _leaves(self.items))
        return name in self.items or name.partition(".")[0] in self.items

    def define(self, name: str, words: Sequence[str], overwrite: bool) -> None:
        """Show these statistics of a metric from now on; those asked for earlier stay, unless this overwrites them."""
        earlier = [] if overwrite else [word for word in self._asked.get(name, []) if word != "none"]
        wanted = [*earlier, *(word for word in words if word not in earlier)]
        if wanted or name in self._asked:
            self._asked[name] = wanted
            self._words.clear()
            self._without_statistics.discard(tuple(name.split(".")))
            for path, statistics in self._statistics.items():
                self._show(path, self._words_of(path), statistics)

    def set_at(self, path: Path, value: Any) -> None:
        """Set a value by hand: no statistic is made of this key any more, until it is defined anew."""
        set_at(self.items, path, value)
        self._forget_below(path)
        self._without_statistics.add(path)
        self._words.clear()
        if isinstance(value, dict):
            self._by_hand.add(path)

    def set_by_hand_above(self, path: Path) -> Path | None:
        """Return the path of the dict, set by hand as one value, that `path` leads into."""
        prefixes = (path[:n] for n in range(1, len(path)))
        return next((prefix for prefix in prefixes if prefix in self._by_hand), None)

    def delete(self, path: Path) -> None:
        """Take a value out, or all below it; what is not there is no mistake."""
        self._forget_below(path)
        _pop(self.items, path)

    def _forget_below(self, path: Path) -> None:
        for below in [other for other in self._statistics if other[: len(path)] == path]:
            del self._statistics[below]
        if self._by_hand:
            self._by_hand = {other for other in self._by_hand if other[: len(path)] != path}

    def _show(self, path: Path, words: Sequence[str], statistics: _WithOpenRow) -> None:
        if "none" in words:
            _pop(self.items, path)
        elif tracked := [word for word in TRACKED if word in words]:
            set_at(self.items, path, statistics.shown(tracked))

    def _close_row(self) -> None:
        for statistics in self._statistics.values():
            statistics.commit()

    def _words_of(self, path: Path) -> list[str]:
        known = self._words.get(path)
        if known is None:
            name = ".".join(map(str, path))
            globs = (
                words
                for glob, words in self._asked.items()
                if glob[-1:] == "*" and name.startswith(glob[:-1])
            )
            known = [] if path in self._without_statistics else self._asked.get(name)
            known = self._words[path] = next(globs, []) if known is None else known
        return known


def _number(value: Any) -> float | None:
    if type(value) is float or type(value) is int:
        return float(value)
    if isinstance(value, (bool, str, bytes, dict, list, tuple)) or not hasattr(value, "__float__"):
        return None
    try:
        # A NumPy or torch scalar is in the log as the number that it holds.
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _leaves(
    row: Mapping[str, Any], path: Path = (), above: tuple[int, ...] = ()
) -> Iterator[tuple[Path, Any]]:
    above = (*above, id(row))
    for key, value in row.items():
        if isinstance(value, dict) and id(value) not in above:
            yield from _leaves(value, (*path, key), above)
        else:
            yield (*path, key), value


def _merge(items: dict[str, Any], row: Mapping[str, Any], above: tuple[int, ...] = ()) -> None:
    """Put `row` into `items` as W&B does: dicts grow together, and an empty dict is nothing."""
    above = (*above, id(row))
    for key, value in row.items():
        if isinstance(value, dict) and id(value) not in above:
            below = items.get(key)
            if type(below) is not dict:
                below = {}
            _merge(below, value, above)
            if below:
                items[key] = below
        else:
            items[key] = value


def _pop(tree: dict[str, Any], path: Path) -> None:
    for key in path[:-1]:
        below = tree.get(key)
        if type(below) is not dict:
            return
        tree = below
    tree.pop(path[-1], None)


def set_at(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value into nested dicts, which are made, or take the place of other values, on the way."""
    for key in path[:-1]:
        below = tree.get(key)
        if type(below) is not dict:
            below = tree[key] = {}
        tree = below
    tree[path[-1]] = value
