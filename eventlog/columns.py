"""What W&B calls the types of a table's columns: decides them from the cells.

Invariants
----------
* A type is the JSON object that stands in a table's file: `{"wb_type": "number"}`.
* A column takes the type of its first cell that is not None; a later cell of another type is refused, as W&B does.

>>> column = optional(UNKNOWN)
>>> assign(assign(column, None), 3)
{'wb_type': 'union', 'params': {'allowed_types': [{'wb_type': 'none'}, {'wb_type': 'number'}]}}
>>> assign(assign(column, 3), "three") is None
True

No NumPy is imported here: whoever made an array has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

Type = dict[str, Any]

UNKNOWN: Type = {"wb_type": "unknown"}
ANY: Type = {"wb_type": "any"}
NONE: Type = {"wb_type": "none"}
_INVALID: Type = {"wb_type": "invalid"}
_NUMBER: Type = {"wb_type": "number"}
_TIMESTAMP: Type = {"wb_type": "timestamp"}
_PLAIN = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "none"}


def optional(inner: Type) -> Type:
    """Return the type of a column whose cells may be None."""
    return _union([inner, NONE])


def of_class(cls: type) -> Type | None:
    """Return the type that a Python class stands for, None if there is none."""
    if cls in _PLAIN:
        return {"wb_type": _PLAIN[cls]}
    if cls in (list, tuple, set):
        return _list(UNKNOWN, None)
    return getattr(cls, "column_type", None)


def type_of(value: Any) -> Type:
    """Return the type of one cell."""
    cls = value.__class__
    if cls is float and value != value:
        # In a data frame a NaN is how a missing cell looks.
        return NONE
    if cls in _PLAIN:
        return {"wb_type": _PLAIN[cls]}
    if hasattr(cls, "column_type"):
        return cls.column_type  # type: ignore[no-any-return]
    if cls in (list, tuple, set, frozenset):
        items = list(value)
        element: Type = optional(UNKNOWN) if any(item is None for item in items) else UNKNOWN
        for item in items:
            element = assign(element, item) or _INVALID
        return _list(element, len(items))
    if cls is dict:
        return {
            "wb_type": "typedDict",
            "params": {"type_map": {key: type_of(item) for key, item in value.items()}},
        }
    return _of_library(value) or {"wb_type": "pythonObject", "params": {"class_name": cls.__name__}}


def assign(to: Type, value: Any) -> Type | None:
    """Return what a column of the type `to` is once it holds `value` too, None if it cannot."""
    kind, params = to["wb_type"], to.get("params", {})
    if kind == "unknown":
        found = type_of(value)
        return None if found == NONE else found
    if kind == "any":
        return None if type_of(value) == NONE else to
    if kind == "union":
        return _assign_union(params["allowed_types"], value)
    if kind == "list":
        if not hasattr(value, "__iter__"):
            return None
        element, items = params["element_type"], list(value)
        for item in items:
            element = assign(element, item)
            if element is None:
                return None
        return _list(element, len(items))
    if kind == "typedDict":
        return _assign_dict(params["type_map"], value)
    if kind == "ndarray" and type(value) is list:
        return to if params["shape"] == _shape_of(value) else None
    return to if type_of(value) == to else None


def _assign_union(allowed: list[Type], value: Any) -> Type | None:
    for place, one in enumerate(allowed):
        # An unknown takes anything: only what nothing else takes.
        taken = None if one == UNKNOWN else assign(one, value)
        if taken is not None:
            return _union([*allowed[:place], taken, *allowed[place + 1 :]])
    if UNKNOWN in allowed:
        taken = assign(UNKNOWN, value)
        if taken is not None:
            place = allowed.index(UNKNOWN)
            return _union([*allowed[:place], taken, *allowed[place + 1 :]])
    return None


def _assign_dict(type_map: dict[Any, Type], value: Any) -> Type | None:
    if not isinstance(value, dict) or not value.keys() <= type_map.keys():
        return None
    assigned: dict[Any, Type] = {}
    for key, one in type_map.items():
        taken = assign(one, value.get(key))
        if taken is None:
            return None
        assigned[key] = taken
    return {"wb_type": "typedDict", "params": {"type_map": assigned}}


def _of_library(value: Any) -> Type | None:
    datetime = sys.modules.get("datetime")
    if datetime is not None and value.__class__ in (datetime.datetime, datetime.date):
        return _TIMESTAMP
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ndarray):
        return {"wb_type": "ndarray", "params": {"shape": list(value.shape), "serialization_path": None}}
    if isinstance(value, numpy.bool_):
        return {"wb_type": "boolean"}
    if isinstance(value, numpy.datetime64):
        return _TIMESTAMP
    return _NUMBER if isinstance(value, numpy.number) and not isinstance(value, numpy.timedelta64) else None


def _shape_of(value: Any) -> list[int]:
    shape: list[int] = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _list(element: Type, length: int | None) -> Type:
    return {"wb_type": "list", "params": {"element_type": element, "length": length}}


def _union(allowed: list[Type]) -> Type:
    flat: list[Type] = []
    for one in allowed:
        flat += one["params"]["allowed_types"] if one["wb_type"] == "union" else [one]
    return {"wb_type": "union", "params": {"allowed_types": sorted(flat, key=_in_words)}}


def _in_words(one: Type) -> str:
    """Return the name by which W&B orders the types of a union."""
    kind = one["wb_type"]
    if kind == "union":
        return " or ".join(map(_in_words, one["params"]["allowed_types"]))
    if kind == "list":
        return _in_words(one["params"]["element_type"]) + "[]"
    return "{" if kind == "typedDict" else str(kind).capitalize()
