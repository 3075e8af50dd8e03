"""`run.config` and `run.summary`: mappings of which every change is a record.

Invariants
----------
* What the mapping shows is what the log says, once the log has it: a change is recorded before it shows.
* A value of the config is replaced only where that was allowed; one that is locked, as a sweep's are, never is.
* A dict or list that was read out of the config is the config's own, as in W&B's client: what a script changes inside of
  it shows at once, and is recorded by the next `catch_up`. One that was read out of the summary is a copy.

The mappings know no file: they hand each change to the function that they were made with.  Of what a config may be
made is decided in `configs`, what a summary shows in `summary`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from eventlog.configs import as_config, copied, friendly, merged
from eventlog.errors import ConfigError
from eventlog.nested import Path
from eventlog.outcome import SummaryState
from eventlog.record import as_logged


class Config(Mapping[str, Any]):
    """What the run was started with.  `config["lr"]` and `config.lr` are the same."""

    __slots__ = ("_allow_val_change", "_items", "_lent", "_locked", "_record", "_tell")

    def __init__(
        self,
        items: Mapping[str, Any],
        record: Callable[[dict[str, Any]], None],
        allow_val_change: bool | None = None,
        locked: Iterable[str] = (),
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`locked` keys never change; `tell` gets a sentence when one was to."""
        object.__setattr__(self, "_items", dict(items))
        # The dicts and lists that were read out, as the log has them.
        object.__setattr__(self, "_lent", {})
        object.__setattr__(self, "_record", record)
        object.__setattr__(self, "_allow_val_change", bool(allow_val_change))
        object.__setattr__(self, "_locked", set(locked))
        object.__setattr__(self, "_tell", tell)

    def update(self, values: Any = (), allow_val_change: bool | None = None) -> None:
        """Set several values at once; raise `ConfigError` if one is there with another value.

        With `allow_val_change=True` it changes, and the log keeps what it was before.
        """
        self._set(self._free(as_config(values)), allow_val_change)

    def setdefaults(self, values: Any) -> None:
        """Set those of `values` that are not there yet."""
        self.update({key: value for key, value in as_config(values).items() if key not in self._items})

    def update_locked(self, values: Any, user: Any = None, _allow_val_change: bool | None = None) -> None:
        """Set values that nobody changes any more; what starts scripts for W&B calls it."""
        changes = as_config(values)
        self._set(changes, _allow_val_change)
        self._locked.update(changes)

    def merge_locked(self, values: Any, user: Any = None, _allow_val_change: bool | None = None) -> None:
        """Like `update_locked`, and let a dict grow together with the one that is there."""
        given = as_config(values)
        changes = {key: merged(self._items.get(key), value) for key, value in given.items()}
        self._set(changes, _allow_val_change)
        self._locked.update(changes)

    def persist(self) -> None:
        """Record what was changed inside of a value; every other change is in the log already."""
        self.catch_up()

    def catch_up(self) -> None:
        """Record the dicts and lists inside of which something was changed since they were read out."""
        for key, known in list(self._lent.items()):
            there = self._items[key]
            if not _is_same(known, there):
                self._lent[key] = copied(there)
                self._record({key: friendly(there)})

    def as_dict(self) -> dict[str, Any]:
        return {key: copied(value) for key, value in self._items.items()}

    def __getitem__(self, key: str) -> Any:
        value = self._items[key]
        if isinstance(value, (dict, list)) and key not in self._lent:
            self._lent[key] = copied(value)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # `copy` and `pickle` ask for these before there are items.
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no {name!r}. It has: {', '.join(self._items)}.") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Config({self._items!r})"

    def _set(self, changes: dict[str, Any], allow_val_change: bool | None) -> None:
        self.catch_up()
        may_change = self._allow_val_change if allow_val_change is None else allow_val_change
        if not may_change:
            self._refuse_changes(changes)
        if changes:
            self._record(changes)
            for key in changes:
                self._lent.pop(key, None)
            self._items.update(changes)

    def _free(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return the changes less those of locked keys."""
        for key in changes.keys() & self._locked:
            if not _is_same(self._items.get(key), changes[key]):
                self._tell(f"the sweep has set config {key!r}: it stays {self._items.get(key)!r}.")
        return {key: value for key, value in changes.items() if key not in self._locked}

    def _refuse_changes(self, changes: Mapping[str, Any]) -> None:
        for key, value in changes.items():
            if key in self._items and not _is_same(self._items[key], value):
                raise ConfigError(
                    f"config {key!r} is {self._items[key]!r} and would become {value!r}. "
                    "To change it, use config.update(…, allow_val_change=True)."
                )


class StaticConfig(dict[str, Any]):
    """A copy of the config that cannot be changed."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __setitem__(self, key: str, value: Any) -> None:
        raise AttributeError("config_static is a copy that cannot be changed. Change run.config.")


class Summary(MutableMapping[str, Any]):
    """What the run came to: the last value of each metric, or what `define_metric` makes of it, and what was set here.

    `summary["a"]["b"] = 1` sets the inner value.
    """

    __slots__ = ("_path", "_record", "_state")

    def __init__(
        self,
        record: Callable[[list[tuple[Path, Any]], list[Path]], None],
        state: SummaryState | None = None,
        path: Path = (),
    ) -> None:
        object.__setattr__(self, "_record", record)
        object.__setattr__(self, "_state", SummaryState() if state is None else state)
        object.__setattr__(self, "_path", path)

    def update(self, *mappings: Any, **named: Any) -> None:
        """Set several values, in one record."""
        values = dict(*mappings, **named)
        if values:
            given = {str(key): value for key, value in values.items()}
            if self._is_in_one_value():
                self._replace_the_whole({**self._as_dict(), **given})
                return
            self._record([((*self._path, key), value) for key, value in given.items()], [])
            for key, value in as_logged(given).items():
                self._state.set_at((*self._path, key), value)

    def __getitem__(self, key: str) -> Any:
        value = self._items()[key]
        if isinstance(value, dict):
            return Summary(self._record, self._state, (*self._path, key))
        return copy.deepcopy(value)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        if key not in self._items():
            raise KeyError(key)
        if self._is_in_one_value():
            self._replace_the_whole(
                {other: value for other, value in self._as_dict().items() if other != key}
            )
            return
        self._record([], [(*self._path, key)])
        self._state.delete((*self._path, key))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # `copy` and `pickle` ask for these before there are items.
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"nothing was set as {name!r} in the summary.") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __iter__(self) -> Iterator[str]:
        # Of a list: another thread may log meanwhile.
        return iter(list(self._items()))

    def __len__(self) -> int:
        return len(self._items())

    def __repr__(self) -> str:
        return f"Summary({self._as_dict()!r})"

    def _as_dict(self) -> dict[str, Any]:
        """Return it as plain dicts; scripts know this name of W&B's."""
        plain: dict[str, Any] = self._state.copy_of(self._path)
        return plain

    def _is_in_one_value(self) -> bool:
        return self._state.set_by_hand_above((*self._path, "")) is not None

    def _replace_the_whole(self, changed: dict[str, Any]) -> None:
        """Set the dict that this is a part of once more: it was set as one value, and W&B knows no part of it."""
        top = self._state.set_by_hand_above((*self._path, ""))
        assert top is not None
        whole: dict[str, Any] = self._state.copy_of(top)
        below = self._path[len(top) :]
        if below:
            part = whole
            for key in below[:-1]:
                part = part[key]
            part[below[-1]] = changed
        else:
            whole = changed
        self._record([(top, whole)], [])
        self._state.set_at(top, as_logged(whole))

    def _items(self) -> dict[str, Any]:
        items: dict[str, Any] = self._state.at(self._path)
        return items


def _is_same(there: Any, value: Any) -> bool:
    try:
        # NaN is itself here: a config that is given again is no change.
        return bool(there == value) or bool(there != there and value != value)
    except Exception:  # noqa: BLE001 - a stranger's own code compares; arrays, cell by cell, may have no single answer
        try:
            return bool(friendly(there) == friendly(value))
        except Exception:  # noqa: BLE001 - as above
            return False
