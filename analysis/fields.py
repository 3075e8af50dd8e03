"""What `config.lr` and `summary."eval/reward"` mean in `analysis runs`: typed values out of the JSON columns.

Invariants
----------
* A value compares with a literal of its kind: numbers with numbers, texts with texts, true with true, whatever other runs
  have. With any other it is unequal, and neither more nor less; and so is NaN with every number, as in Python.
* NaN and the infinities are numbers, though JSON has them as text.
* A key that no run has is an error that names the nearest; nothing is silently NULL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from analysis.naming import NotFound, nearest
from analysis.sqltext import Reference, identifier, literal, tokens, with_references

COLUMNS = ("config", "summary")
# What JSON has no word for, as FORMAT.md writes it.
_NUMBERS_AS_TEXT = ("NaN", "Infinity", "-Infinity")
_NUMBERS = "('BIGINT', 'UBIGINT', 'DOUBLE')"
# Unequal to every literal of the kind.
_UNLIKE = {"number": "'NaN'::DOUBLE", "text": "chr(0)", "bool": "2"}


@dataclass(slots=True)
class Fields:
    """The keys of some runs' JSON columns, and of which kinds their values are."""

    kinds: dict[tuple[str, ...], set[str]] = field(default_factory=dict)
    """(column, key, …) → kinds."""
    used: dict[str, str] = field(default_factory=dict)
    """What was asked for → its SQL, to be shown beside the rest."""

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str]]) -> Fields:
        """Return the fields of runs, given as their (config, summary)."""
        fields = cls()
        for row in rows:
            for column, text in zip(COLUMNS, row, strict=True):
                for path, kind in _leaves(orjson.loads(text)):
                    fields.kinds.setdefault((column, *path), set()).add(kind)
        return fields

    def condition(self, text: str) -> str:
        """Return a condition with its references in SQL."""
        return with_references(text, self._sql_of, COLUMNS)

    def order(self, text: str) -> str | None:
        """Return what to sort by, given a single reference, or None if it is none: numbers first, then texts, then nothing.

        The key needs no quotes here: `-summary.eval/reward`.
        """
        down = text.startswith("-")
        column, dot, key = text.removeprefix("-").partition(".")
        if not dot or column.lower() not in COLUMNS:
            return None
        path: tuple[str, ...] = (key,)
        if (column.lower(), key) not in self.kinds:
            path = tuple(token.name for token in tokens(key) if token.text != ".")
            if (column.lower(), *path) not in self.kinds:
                path = tuple(key.replace('"', "").split("."))
        found = self._found(Reference(column.lower(), path))
        self.used[found.shown] = self._value(found)
        number = _number(found)
        direction = "DESC" if down else "ASC"
        # NaN would be the greatest number of all.
        return (
            f"CASE WHEN isnan({number}) THEN 1 WHEN {number} IS NULL THEN 2 ELSE 0 END, "
            f"{number} {direction}, {_text(found)} {direction} NULLS LAST"
        )

    def _sql_of(self, reference: Reference) -> str:
        found = self._found(reference)
        value = self._value(found)
        self.used.setdefault(found.shown, value)
        kind = found.compared_with
        if kind is None or (kind == "number" and self._kinds(found) == {"int"}):
            return value
        like = {"number": _ordered, "text": _string, "bool": _bool}[kind](found)
        if not found.is_negated:
            return like
        return f"coalesce({like}, CASE WHEN {_text(found)} IS NOT NULL THEN {_UNLIKE[kind]} END)"

    def _found(self, reference: Reference) -> Reference:
        """Return the reference with the path that there is."""
        dotted = (".".join(reference.path),)
        for path in (reference.path, dotted, tuple(dotted[0].split("."))):
            if not self.kinds or (reference.column, *path) in self.kinds:
                return replace(reference, path=path)
        known = [f"{column}.{_dotted(path)}" for column, *path in self.kinds if column == reference.column]
        wanted = f"{reference.column}.{_dotted(reference.path)}"
        raise NotFound(f"no run has {wanted!r}. {nearest(wanted, sorted(known))}")

    def _kinds(self, reference: Reference) -> set[str]:
        return self.kinds.get((reference.column, *reference.path), set()) - {"null"}

    def _value(self, reference: Reference) -> str:
        """Return the SQL of what the runs have: of the type that all values have, else the text of each."""
        kinds = self._kinds(reference)
        if kinds == {"int"}:
            return f"TRY_CAST({_text(reference)} AS HUGEINT)"
        if kinds and kinds <= {"int", "number"}:
            return _number(reference)
        return _bool(reference) if kinds == {"bool"} else _text(reference)


def _number(reference: Reference) -> str:
    words = ", ".join(map(literal, _NUMBERS_AS_TEXT))
    text = _text(reference)
    return f"TRY_CAST(CASE WHEN {_type(reference)} IN {_NUMBERS} OR {text} IN ({words}) THEN {text} END AS DOUBLE)"


def _ordered(reference: Reference) -> str:
    # DuckDB's NaN is greater than all numbers.
    return f"nullif({_number(reference)}, 'NaN')"


def _bool(reference: Reference) -> str:
    return f"TRY_CAST(CASE WHEN {_type(reference)} = 'BOOLEAN' THEN {_text(reference)} END AS BOOLEAN)"


def _string(reference: Reference) -> str:
    return f"CASE WHEN {_type(reference)} <> 'BOOLEAN' AND {_type(reference)} NOT IN {_NUMBERS} THEN {_text(reference)} END"


def _text(reference: Reference) -> str:
    return f"({reference.column} ->> {_pointer(reference)})"


def _type(reference: Reference) -> str:
    return f"json_type({reference.column}, {_pointer(reference)})"


def _pointer(reference: Reference) -> str:
    return literal("".join("/" + part.replace("~", "~0").replace("/", "~1") for part in reference.path))


def _dotted(path: Iterable[str]) -> str:
    """Return a path as it is to be typed.

    >>> _dotted(["optimizer", "lr"]), _dotted(["eval/reward"])
    ('optimizer.lr', '"eval/reward"')
    """
    return ".".join(part if part.isidentifier() else identifier(part) for part in path)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, (*path, key))
        else:
            yield (*path, key), _kind(inner)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float) or (isinstance(value, str) and value in _NUMBERS_AS_TEXT):
        return "number"
    return "text"
