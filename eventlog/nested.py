"""Nested dicts as W&B has them: the rows of metrics, the summary, the config.

Invariants
----------
* A path is the keys on the way to a value; what is no dict is a value, an empty dict none.
* Numbers are as a log has them, until somebody asks for W&B's, which are int64 or double.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def path_of(name: str) -> Path:
    r"""Split the name of a metric at its dots; `\.` is a dot that belongs to the name.

    >>> path_of(r"a.b\.c")
    ('a', 'b.c')
    """
    return tuple(part.replace("\0", ".") for part in name.replace(r"\.", "\0").split("."))


def leaves(tree: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each value with its path; the tree may change meanwhile.

    >>> list(leaves({"a": {"b": 1, "c": {}}, "d": [2]}))
    [(('a', 'b'), 1), (('d',), [2])]
    """
    for key, value in list(tree.items()):
        if type(value) is dict:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def merge(tree: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Put `row` into `tree` as W&B does: dicts grow together, and an empty dict is nothing.

    >>> tree = {"a": {"b": 1}, "d": 1}
    >>> merge(tree, {"a": {"c": 2}, "d": {"e": 3}, "f": {}})
    >>> tree
    {'a': {'b': 1, 'c': 2}, 'd': {'e': 3}}
    """
    for key, value in row.items():
        if type(value) is dict:
            below = tree.get(key)
            if type(below) is not dict:
                below = {}
            merge(below, value)
            if below:
                tree[key] = below
        else:
            tree[key] = value


def set_at(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value into nested dicts, which are made, or take the place of other values, on the way."""
    for key in path[:-1]:
        below = tree.get(key)
        if type(below) is not dict:
            below = tree[key] = {}
        tree = below
    tree[path[-1]] = value


def pop(tree: dict[str, Any], path: Path) -> None:
    """Take the value at a path out, if it is there."""
    for key in path[:-1]:
        below = tree.get(key)
        if type(below) is not dict:
            return
        tree = below
    tree.pop(path[-1], None)


def as_sent(value: Any) -> Any:
    """Return a value with W&B's numbers in it, which are int64 or double.

    >>> as_sent([2**63, 1, True, {"a": -(10**400)}])
    [9.223372036854776e+18, 1, True, {'a': -inf}]
    """
    kind = type(value)
    if kind is float or kind is str:
        return value
    if kind is int and not _INT64_MIN <= value <= _INT64_MAX:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if kind is list:
        return [as_sent(item) for item in value]
    if kind is dict:
        return {key: as_sent(item) for key, item in value.items()}
    return value


def as_config(value: Any) -> Any:
    """Return a value as W&B has it in the config: null for a NaN, and no empty dict.

    >>> as_config({"nan": float("nan"), "inf": float("inf"), "empty": {}})
    {'nan': None, 'inf': inf}
    """
    value = as_sent(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        kept = {key: as_config(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item != {}}
    return [as_config(item) for item in value] if isinstance(value, list) else value
