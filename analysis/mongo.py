"""W&B's filters and orders of runs: the part of MongoDB's query language that its public API takes.

    {"config.lr": {"$gt": 1e-5}, "state": "finished"}  +  a run's values  ──matches──▶ bool

Invariants
----------
* Numbers compare with numbers and texts with texts; a comparison of unlike things is false, and never an error.
* A key that a run does not have is like a null: `$eq: None` and `$ne` match it, no comparison does.
* Of a list, one item that matches is enough, so `{"tags": "baseline"}` finds what has that tag.
* An operator that is not there is refused by its name, before any run is looked at.

Values are not SQL's here: config and summary are JSON that no two runs need share, which MongoDB's rules are made for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from analysis.errors import CommError

Lookup = Callable[[str], Any]
"""Return what a run has under a key, or `ABSENT`."""
ABSENT: Any = object()

_JOINING = ("$and", "$or", "$nor", "$not")
_COMPARING = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$regex")
OPERATORS = (*_JOINING, *_COMPARING)


def check(filters: Mapping[str, Any], check_key: Callable[[str], None]) -> None:
    """Raise `CommError` where a filter says what cannot be asked.

    >>> check({"config.lr": {"$near": 1}}, print)
    Traceback (most recent call last):
    ...
    analysis.errors.CommError: the operator '$near' is not known here. There are: $and, $or, $nor, $not, $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $exists, $regex.
    """
    if not isinstance(filters, Mapping):
        raise CommError(f'a filter is a dict, as in {{"config.lr": {{"$gt": 1e-5}}}}, not {filters!r}.')
    for key, asked in filters.items():
        if key in ("$and", "$or", "$nor"):
            if not isinstance(asked, list | tuple):
                raise CommError(f"{key} takes a list of filters, not {asked!r}.")
            for each in asked:
                check(each, check_key)
        elif key == "$not":
            check(asked, check_key)
        elif not isinstance(key, str):
            raise CommError(f"a filter's key is a text, as in {{'config.lr': 1e-5}}, not {key!r}.")
        elif key.startswith("$"):
            raise _unknown(key)
        else:
            check_key(key)
            _check_condition(asked)


def _check_condition(asked: Any) -> None:
    if not _is_condition(asked):
        return
    for operator, operand in asked.items():
        if operator == "$not":
            _check_condition(operand)
        elif operator not in _COMPARING:
            raise _unknown(operator)
        elif operator in ("$in", "$nin") and not isinstance(operand, list | tuple | set | frozenset):
            raise CommError(f"{operator} takes a list of values, not {operand!r}.")
        elif operator == "$regex":
            try:
                re.compile(operand)
            except (re.error, TypeError) as error:
                raise CommError(f"{operand!r} is no regular expression: {error}.") from None


def _unknown(operator: str) -> CommError:
    return CommError(f"the operator {operator!r} is not known here. There are: {', '.join(OPERATORS)}.")


def matches(filters: Mapping[str, Any], value_of: Lookup) -> bool:
    """Return whether a run is one of those that are asked for; the filter was checked.

    >>> run = {"lr": 0.1, "tags": ["a", "b"], "name": "first", "n": None}
    >>> def asked(filters): return matches(filters, lambda key: run.get(key, ABSENT))
    >>> asked({"lr": 0.1, "name": "first"}), asked({"lr": 0.1, "name": "other"}), asked({})
    (True, False, True)
    >>> asked({"lr": {"$gt": 0.01, "$lte": 0.1}}), asked({"lr": {"$lt": "1"}}), asked({"name": {"$gte": "f"}})
    (True, False, True)
    >>> asked({"tags": "a"}), asked({"tags": {"$in": ["b", "c"]}}), asked({"tags": {"$nin": ["a"]}}), asked({"tags": ["a", "b"]})
    (True, True, False, True)
    >>> asked({"x": None}), asked({"n": None}), asked({"x": {"$ne": 1}}), asked({"x": {"$lt": 1}})
    (True, True, True, False)
    >>> asked({"n": {"$exists": True}}), asked({"x": {"$exists": False}}), asked({"lr": {"$exists": False}})
    (True, True, False)
    >>> asked({"name": {"$regex": "^fi"}}), asked({"name": {"$regex": "irs"}}), asked({"lr": {"$regex": "0"}})
    (True, True, False)
    >>> asked({"$or": [{"lr": 1}, {"name": "first"}]}), asked({"$nor": [{"lr": 1}, {"name": "first"}]})
    (True, False)
    >>> asked({"$and": [{"lr": {"$not": {"$gt": 1}}}, {"$not": {"name": "other"}}]})
    True
    """
    return all(_holds(key, asked, value_of) for key, asked in filters.items())


def _holds(key: str, asked: Any, value_of: Lookup) -> bool:
    if key == "$and":
        return all(matches(each, value_of) for each in asked)
    if key == "$or":
        return any(matches(each, value_of) for each in asked)
    if key == "$nor":
        return not any(matches(each, value_of) for each in asked)
    if key == "$not":
        return not matches(asked, value_of)
    return _fits(value_of(key), asked)


def _fits(value: Any, asked: Any) -> bool:
    if not _is_condition(asked):
        return _equal(value, asked)
    return all(_compares(value, operator, operand) for operator, operand in asked.items())


def _compares(value: Any, operator: str, operand: Any) -> bool:
    if operator == "$not":
        return not _fits(value, operand)
    if operator == "$exists":
        return (value is not ABSENT) is bool(operand)
    if operator in ("$eq", "$ne"):
        return _equal(value, operand) is (operator == "$eq")
    if operator in ("$in", "$nin"):
        return any(_equal(value, each) for each in operand) is (operator == "$in")
    if operator == "$regex":
        return any(isinstance(each, str) and re.search(operand, each) is not None for each in _items(value))
    return any(_ordered(each, operator, operand) for each in _items(value))


def _ordered(value: Any, operator: str, operand: Any) -> bool:
    if _rank(value) != _rank(operand) or _rank(value) is None:
        return False
    if operator == "$gt":
        return bool(value > operand)
    if operator == "$gte":
        return bool(value >= operand)
    return bool(value < operand) if operator == "$lt" else bool(value <= operand)


def _equal(value: Any, asked: Any) -> bool:
    if asked is None:
        return value is ABSENT or value is None
    if isinstance(value, list) and not isinstance(asked, list | tuple):
        return any(_same(each, asked) for each in value)
    return _same(value, list(asked) if isinstance(asked, tuple) else asked)


def _same(value: Any, asked: Any) -> bool:
    if isinstance(value, bool) or isinstance(asked, bool):
        return value is asked
    return bool(value == asked) or (value != value and asked != asked)


def _is_condition(asked: Any) -> bool:
    """Whether it says how to compare; any other dict is a value."""
    return isinstance(asked, Mapping) and any(str(key).startswith("$") for key in asked)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _rank(value: Any) -> int | None:
    """Return what kind of thing it is, among things of which one may be greater."""
    if isinstance(value, bool):
        return 2
    if isinstance(value, int | float):
        return 0
    return 1 if isinstance(value, str) else None


def place(value: Any, is_down: bool) -> tuple[Any, ...]:
    """Return what to sort by: numbers, then NaN, texts, anything else, and what is not there, whichever the direction.

    >>> values = ["b", None, 2, float("nan"), 10, "a"]
    >>> sorted(values, key=lambda value: place(value, is_down=False)), sorted(values, key=lambda value: place(value, is_down=True))
    ([2, 10, nan, 'a', 'b', None], [10, 2, nan, 'b', 'a', None])
    """
    sign = -1 if is_down else 1
    if isinstance(value, int | float):
        return (1,) if math.isnan(value) else (0, sign * value)
    if isinstance(value, str):
        return (2, *(sign * ord(letter) for letter in value), -sign * math.inf)
    return (4,) if value is ABSENT or value is None else (3,)
