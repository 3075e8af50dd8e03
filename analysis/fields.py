"""What `config.lr` and `summary."eval/reward"` mean in `analysis runs`: typed values out of the JSON columns.

Invariants
----------
* Numbers compare as numbers, texts as texts, also where one run has a number and another a text.
* NaN and the infinities are numbers, though JSON has them as text.
* A key that no run has is an error that names the nearest; nothing is silently NULL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from analysis.naming import NotFound, nearest
from analysis.sqltext import Reference, identifier, literal, tokens, with_references

COLUMNS = ("config", "summary")
# What JSON has no word for, as FORMAT.md writes it.
_NUMBERS_AS_TEXT = {"NaN", "Infinity", "-Infinity"}
_SQL_TYPES = {"int": "HUGEINT", "number": "DOUBLE", "bool": "BOOLEAN"}


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
        self.used[found.shown] = self._typed(found)
        number = _as("number", found)
        direction = "DESC" if down else "ASC"
        # NaN would be the greatest number of all.
        return (
            f"CASE WHEN isnan({number}) THEN 1 WHEN {number} IS NULL THEN 2 ELSE 0 END, "
            f"{number} {direction}, {_text(found)} {direction} NULLS LAST"
        )

    def _sql_of(self, reference: Reference) -> str:
        found = self._found(reference)
        sql = self._typed(found)
        self.used.setdefault(found.shown, sql)
        return sql

    def _found(self, reference: Reference) -> Reference:
        """Return the reference with the path that there is."""
        dotted = (".".join(reference.path),)
        for path in (reference.path, dotted, tuple(dotted[0].split("."))):
            if not self.kinds or (reference.column, *path) in self.kinds:
                return Reference(reference.column, path, reference.compared_with)
        known = [f"{column}.{_written(path)}" for column, *path in self.kinds if column == reference.column]
        wanted = f"{reference.column}.{_written(reference.path)}"
        raise NotFound(f"no run has {wanted!r}. {nearest(wanted, sorted(known))}")

    def _typed(self, reference: Reference) -> str:
        kinds = self.kinds.get((reference.column, *reference.path), set()) - {"null"}
        if kinds == {"int"}:
            kind = "int"
        elif kinds and kinds <= {"int", "number"}:
            kind = "number"
        elif kinds == {"bool"}:
            kind = "bool"
        else:
            # What it is compared with decides, where its values do not.
            kind = reference.compared_with or "text"
        return _as(kind, reference)


def _as(kind: str, reference: Reference) -> str:
    text = _text(reference)
    return f"TRY_CAST({text} AS {_SQL_TYPES[kind]})" if kind in _SQL_TYPES else text


def _text(reference: Reference) -> str:
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in reference.path)
    return f"({reference.column} ->> {literal(pointer)})"


def _written(path: Iterable[str]) -> str:
    """Return a path as it is to be typed.

    >>> _written(["optimizer", "lr"]), _written(["eval/reward"])
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
