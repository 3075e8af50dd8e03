"""What runs were started with and came to, side by side.

Invariants
----------
* A setting that a run does not have is not the same as one that is null.
* A metric's value is the one that `summary` has: the last, by W&B's step rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from analysis.asking import rows_of
from analysis.naming import Run

if TYPE_CHECKING:
    import duckdb


@dataclass(slots=True)
class Comparison:
    """Key → run → value; a run that has no such key is not in it."""

    runs: list[Run]
    config: dict[str, dict[Run, Any]] = field(default_factory=dict)
    """The settings, those in a dict as `optimizer.lr`."""
    metrics: dict[str, dict[Run, Any]] = field(default_factory=dict)

    @property
    def differing(self) -> list[str]:
        """The settings in which the runs differ."""
        return [key for key, values in self.config.items() if differs(values, self.runs)]


def differs(values: Mapping[Run, Any], runs: Sequence[Run]) -> bool:
    """Whether not all of the runs have the same value.

    >>> differs({"a": 1, "b": 1.0}, ["a", "b"]), differs({"a": None}, ["a", "b"]), differs({"a": 1, "b": True}, ["a", "b"])
    (False, True, True)
    """
    if len(values) < len(runs):
        return True
    told = [(isinstance(value, bool), value) for value in values.values()]
    return any(value != told[0] for value in told)


def compare(con: duckdb.DuckDBPyConnection, runs: list[Run]) -> Comparison:
    comparison = Comparison(runs)
    for run, (key, value) in rows_of(con, runs, "SELECT project, run_id, key, value FROM config_of($ids)"):
        for path, inner in _flat(key, None if value is None else orjson.loads(value)):
            comparison.config.setdefault(path, {})[run] = inner
    last = "SELECT project, run_id, key, text, int, value FROM summary_of($ids)"
    for run, (key, *values) in rows_of(con, runs, last):
        known = next((each for each in values if each is not None), None)
        comparison.metrics.setdefault(key, {})[run] = known
    comparison.config = dict(sorted(comparison.config.items()))
    comparison.metrics = dict(sorted(comparison.metrics.items()))
    return comparison


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """
    >>> list(_flat("optimizer", {"lr": 0.1, "betas": [0.9, 0.99]}))
    [('optimizer.lr', 0.1), ('optimizer.betas', [0.9, 0.99])]
    """
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        yield key, value
