"""`run.config` and `run.summary`: mappings of which every change is a record.

Invariants
----------
* What the mapping shows is what the log says, once the log has it: a change is recorded before it shows.
* What was read out is a copy where it is a container: changing it changes nothing, here or in the log.

The mappings know no file: they hand each change to the function that they were made with.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

Path = tuple[str, ...]


class Config(Mapping[str, Any]):
    """What the run was started with.  `config["lr"]` and `config.lr` are the same."""

    __slots__ = ("_items", "_record")

    def __init__(self, items: Mapping[str, Any], record: Callable[[dict[str, Any]], None]) -> None:
        object.__setattr__(self, "_items", dict(items))
        object.__setattr__(self, "_record", record)

    def update(self, values: Any = (), allow_val_change: bool | None = None) -> None:
        """Set several values at once.

        A value may change, and the log keeps what it was before; `allow_val_change=False` refuses that.
        """
        changes = as_config(values)
        if allow_val_change is False:
            for key, value in changes.items():
                if key in self._items and self._items[key] != value:
                    raise ValueError(
                        f"config {key!r} is {self._items[key]!r} and would become {value!r}. "
                        "Leave out allow_val_change=False to let it change."
                    )
        if changes:
            self._record(changes)
            self._items.update(changes)

    def setdefaults(self, values: Any) -> None:
        """Set those of `values` that are not there yet."""
        self.update({key: value for key, value in as_config(values).items() if key not in self._items})

    def as_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self._items)

    def __getitem__(self, key: str) -> Any:
        return _detached(self._items[key])

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


class Summary(MutableMapping[str, Any]):
    """What the run came to: the last value of each metric that this process logged, and what was set here.

    `summary["a"]["b"] = 1` sets the inner value. What is shown elsewhere is made from the log, by `define_metric`'s rules.
    """

    __slots__ = ("_items", "_path", "_record")

    def __init__(
        self,
        record: Callable[[list[tuple[Path, Any]], list[Path]], None],
        items: dict[str, Any] | None = None,
        path: Path = (),
    ) -> None:
        object.__setattr__(self, "_record", record)
        object.__setattr__(self, "_items", {} if items is None else items)
        object.__setattr__(self, "_path", path)

    def show_logged(self, row: Mapping[str, Any], is_flat: bool) -> None:
        """Take over the values of a logged row, which has its record already."""
        # A nested dict is the caller's: setting a value inside of it here must not change it there.
        self._items.update(row if is_flat else {key: _detached(value) for key, value in row.items()})

    def update(self, *mappings: Any, **named: Any) -> None:
        """Set several values, in one record."""
        values = dict(*mappings, **named)
        if values:
            plain = {str(key): _without_views(value) for key, value in values.items()}
            self._record([((*self._path, key), value) for key, value in plain.items()], [])
            self._items.update(plain)

    def __getitem__(self, key: str) -> Any:
        value = self._items[key]
        if isinstance(value, dict):
            return Summary(self._record, value, (*self._path, key))
        return _detached(value)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        if key not in self._items:
            raise KeyError(key)
        self._record([], [(*self._path, key)])
        del self._items[key]

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

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Summary({self._items!r})"


def as_config(values: Any) -> dict[str, Any]:
    """Return the config that a mapping, a dataclass or an `argparse.Namespace` stands for, or raise `TypeError`."""
    if values is None:
        return {}
    if isinstance(values, Mapping):
        items = dict(values)
    elif dataclasses.is_dataclass(values) and not isinstance(values, type):
        items = dataclasses.asdict(values)
    elif hasattr(values, "__dict__") and not isinstance(values, type):
        items = {key: value for key, value in vars(values).items() if not key.startswith("_")}
    else:
        try:
            items = dict(values)
        except (TypeError, ValueError):
            raise TypeError(
                f"a config is a dict, a dataclass or an argparse.Namespace, not {values!r}. "
                "Read a file first: config=yaml.safe_load(open(path))."
            ) from None
    return {str(key): _detached(value) for key, value in items.items()}


def _detached(value: Any) -> Any:
    """Return a copy of a container, so that nobody changes it without a record."""
    if not isinstance(value, (dict, list, set)):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - a stranger's __deepcopy__ may do anything; the value itself is still good
        return value


def _without_views(value: Any) -> Any:
    return copy.deepcopy(value._items) if isinstance(value, Summary) else _detached(value)
