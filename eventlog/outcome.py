"""What a run came to: the last value of each metric, or what `define_metric` makes of its values.  W&B's rules.

    rows, definitions, values set and deleted ──take──▶ items    (nested, as they were logged)

Invariants
----------
* A row counts once: of calls with one step, only the last value of a key does.
* The row that is still open is shown as if it were closed.
* What is shown is what the log says, and nothing of what the caller logged is held: no tensor, no graph behind one.
* A row costs what its own keys do; until a statistic is asked for, a plain one costs one `dict.update`.
* A log is read again at most once, when somebody looks at statistics that were asked for late.

There is no file or clock here.  `SummaryState` is what the training script sees; what W&B gets is made of the log
by `syncd`'s fold, from the same `Statistics`.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventlog.nested import Path, leaves, merge, pop, set_at
from eventlog.record import ALL_PLAIN, Record, TextMark, as_logged, decode_data

# The statistics of a key, in the order in which its summary has them.
TRACKED = ("last", "first", "max", "min", "mean")
_BRACKET = ord("[")
# What a value that comes from a log can be.
_OF_A_LOG = frozenset({float, int, str, bool, type(None), list, dict})


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
        pending, self.pending = self.pending, ()
        for value in pending:
            self.add(value, _number(value))

    def shown(self, words: Sequence[str]) -> dict[str, Any]:
        known = self
        if self.pending:
            known = copy.copy(self)
            known.commit()
        return known.tracked(words)


class SummaryState:
    """The summary of one run.  Safe to use from threads and from signal handlers."""

    __slots__ = (
        "_asked",
        "_by_hand",
        "_has_given",
        "_has_open_row",
        "_is_due",
        "_is_simple",
        "_items",
        "_keeps_all",
        "_lock",
        "_meanwhile",
        "_open",
        "_open_step",
        "_statistics",
        "_step",
        "_unshown",
        "_without_statistics",
        "_words",
        "read_again",
    )

    def __init__(self, keeps_all: bool = False) -> None:
        """With `keeps_all`, the statistics of every key are kept, for what is asked later."""
        self._items: dict[str, Any] = {}
        self._keeps_all = keeps_all
        # Whether there is no statistic to be kept.
        self._is_simple = not keeps_all
        # Whether there may be values as they were given: an enum or a date becomes what the log has when somebody looks.
        self._has_given = False
        # What `define_metric(summary=…)` asked for, by name or `prefix*`; the statistics that this needs.
        self._asked: dict[str, list[str]] = {}
        self._statistics: dict[Path, _WithOpenRow] = {}
        # Of these, the ones that have a value in the open row; and those that have changed since somebody looked.
        self._open: list[_WithOpenRow] = []
        self._unshown: dict[Path, _WithOpenRow] = {}
        # The words of a key, looked up once.
        self._words: dict[Path, list[str]] = {}
        # Keys that were set by hand; of these, the ones whose value is a dict, which is one value.
        self._without_statistics: set[Path] = set()
        self._by_hand: set[Path] = set()
        self._open_step: int | None = None
        # Of a log: the step below which no row counts any more.
        self._step = 0
        self._has_open_row = False
        # Whether statistics were asked for of values that are in the log alone.
        self._is_due = False
        # What happened since the log is being read: a method of ours, and its arguments.
        self._meanwhile: list[tuple[str, tuple[Any, ...]]] | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin with a free lock, and without a log to read again: a forked child has no log yet."""
        # Reentrant: a signal handler may log in the middle of a call of its own thread.
        self._lock = threading.RLock()
        self.read_again: Callable[[], None] | None = None
        """Reads the log from its begin, and lets this `become` what it says."""

    @property
    def items(self) -> dict[str, Any]:
        """The summary, nested as it was logged.  Whoever looks at it beside other threads makes a `copy_of` it."""
        if self._is_due and self.read_again is not None:
            self._is_due = False
            # Outside of the lock: whoever logs must not wait for this.
            self.read_again()
        with self._lock:
            self._show()
            if self._has_given:
                self._has_given = False
                for key, value in list(self._items.items()):
                    if type(value) not in _OF_A_LOG:
                        self._items[key] = as_logged({"": value})[""]
            return self._items

    def at(self, path: Path) -> dict[str, Any]:
        """Return the dict at `path`; an empty one if there is none any more."""
        tree = self.items
        for key in path:
            below = tree.get(key)
            tree = below if isinstance(below, dict) else {}
        return tree

    def copy_of(self, path: Path) -> dict[str, Any]:
        """Return what is at `path`, if it is a dict, as plain dicts and lists of the caller's own."""
        there = self.at(path)
        with self._lock:
            # First of all a copy of its keys, which another thread may add to.
            return copy.deepcopy(there.copy())

    def remember_what_follows(self) -> None:
        """Remember what happens until this becomes what the log up to now says."""
        self._meanwhile = []

    def become(self, other: SummaryState | None) -> None:
        """Take over the state of another one, and what followed; views of this stay good.  None: nothing came of it."""
        with self._lock:
            meanwhile, self._meanwhile = self._meanwhile, None
            if other is not None:
                for name, arguments in meanwhile or ():
                    getattr(other, name)(*arguments)
                for slot in set(self.__slots__) - {"_lock", "read_again"}:
                    setattr(self, slot, getattr(other, slot))

    def take(self, record: Record) -> None:
        """Go on by one record of the run's log."""
        if record.kind == "metrics":
            step = self._step if record.step is None else record.step
            if step >= self._step:
                with self._lock:
                    self._take_values(record.data, step, record.commit)
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

    def take_row(
        self, row: Mapping[Any, Any], encoded: bytes, as_text: list[TextMark], step: int, closes: bool
    ) -> None:
        """Take over the values of a row, which `encode_data` made this of."""
        # Nothing in it can change, or holds on to anything: no list, no tensor, and no dict, which would grow together
        # with what is there. Nearly every row is such a one, and is not decoded.
        if (
            as_text is ALL_PLAIN
            and self._is_simple
            and _BRACKET not in encoded
            and encoded.rfind(b"{") == 0
            and type(row) is dict
        ):
            self._items.update(row)
            self._has_given = True
            return
        with self._lock:
            if self._meanwhile is not None:
                self._meanwhile.append(("take_row", ({}, encoded, as_text, step, closes)))
            self._take_values(decode_data(encoded, as_text), step, closes)

    def _take_values(self, row: dict[str, Any], step: int, closes: bool) -> None:
        if self._by_hand:
            for path, _ in leaves(row):
                if above := self.set_by_hand_above(path):
                    self._delete(above)
        merge(self._items, row)
        if self._is_simple:
            return
        if step != self._open_step:
            self._close_row()
            self._open_step = step
        for path, value in leaves(row):
            words = self._words_of(path)
            if words or self._keeps_all:
                statistics = self._statistics.setdefault(path, _WithOpenRow())
                if not statistics.pending:
                    self._open.append(statistics)
                statistics.pending = (value,)
                if words:
                    self._unshown[path] = statistics
        if closes:
            self._close_row()

    def define(self, name: str, words: Sequence[str], overwrite: bool) -> None:
        """Show these statistics of a metric from now on; those asked for earlier stay, unless this overwrites them.

        The values of a row that was taken before count too: they are read again when somebody looks.
        """
        with self._lock:
            if self._meanwhile is not None:
                self._meanwhile.append(("define", (name, words, overwrite)))
            earlier = [] if overwrite else [word for word in self._asked.get(name, []) if word != "none"]
            wanted = [*earlier, *(word for word in words if word not in earlier)]
            if not wanted and name not in self._asked:
                return
            self._show()
            self._is_due |= not self._keeps_all and self._lacks_values(name, words, earlier)
            self._asked[name], self._is_simple = wanted, False
            self._words.clear()
            self._without_statistics.discard(tuple(name.split(".")))
            self._unshown |= self._statistics

    def _lacks_values(self, name: str, words: Sequence[str], earlier: Sequence[str]) -> bool:
        """Whether a definition shows statistics, of values that are there, which were not kept so far."""
        if set(words) <= {*earlier, "none"}:
            return False
        if name.endswith("*"):
            known = self._statistics
            return any(
                ".".join(path).startswith(name[:-1])
                and not any(path[:n] in known for n in range(1, len(path) + 1))
                for path, _ in leaves(self._items)
            )
        if (name,) in self._statistics or tuple(name.split(".")) in self._statistics:
            return False
        return name in self._items or name.partition(".")[0] in self._items

    def set_at(self, path: Path, value: Any) -> None:
        """Set a value by hand: no statistic is made of this key any more, until it is defined anew."""
        with self._lock:
            if self._meanwhile is not None:
                self._meanwhile.append(("set_at", (path, copy.deepcopy(value))))
            set_at(self._items, path, value)
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
        with self._lock:
            if self._meanwhile is not None:
                self._meanwhile.append(("delete", (path,)))
            self._delete(path)

    def _delete(self, path: Path) -> None:
        self._forget_below(path)
        pop(self._items, path)

    def _forget_below(self, path: Path) -> None:
        for below in [other for other in list(self._statistics) if other[: len(path)] == path]:
            del self._statistics[below]
            self._unshown.pop(below, None)
        if self._by_hand:
            self._by_hand = {other for other in self._by_hand if other[: len(path)] != path}

    def _show(self) -> None:
        """Let the items show the statistics."""
        unshown, self._unshown = self._unshown, {}
        for path, statistics in unshown.items():
            words = self._words_of(path)
            if "none" in words:
                pop(self._items, path)
            elif tracked := [word for word in TRACKED if word in words]:
                set_at(self._items, path, statistics.shown(tracked))

    def _close_row(self) -> None:
        closing, self._open = self._open, []
        for statistics in closing:
            statistics.commit()

    def _words_of(self, path: Path) -> list[str]:
        known = self._words.get(path)
        if known is None:
            name = ".".join(path)
            globs = (
                words
                for glob, words in self._asked.items()
                if glob[-1:] == "*" and name.startswith(glob[:-1])
            )
            known = [] if path in self._without_statistics else self._asked.get(name)
            known = self._words[path] = next(globs, []) if known is None else known
        return known


def _number(value: Any) -> float | None:
    """Return the number that a value of the log is, as W&B has it."""
    if type(value) is float:
        return value
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
