"""Curves of runs: read from the logs, smoothed, exported.

Invariants
----------
* A curve is of the run's history, in the order of its steps. Of several values at one step the last one logged counts, as
  in a row of W&B's that is still open; `metrics` has them all.
* Smoothing is W&B's and TensorBoard's: an exponential average without the pull towards zero at the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis.asking import execute
from analysis.naming import Run
from analysis.sqltext import identifier, literal

if TYPE_CHECKING:
    import duckdb

# The last value of each key at each step of one run; `place` orders what was logged.
_LAST_AT_STEP = """
SELECT project, run_id, step, key, max(time) AS time,
    arg_max({{value: value, int: int, text: text}}, (writer, seq)) AS last
FROM metrics_of([{run_id}])
WHERE project = {project} AND writer LIKE 'main-%' AND {keys}
GROUP BY project, run_id, step, key
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one run."""

    run: Run
    key: str
    steps: list[int]
    seconds: list[float]
    """Since the run's first value of any of the keys that were read with this one."""
    values: list[float]

    def xs(self, axis: str) -> Sequence[float]:
        return self.seconds if axis == "time" else self.steps


def read_curves(con: duckdb.DuckDBPyConnection, runs: Sequence[Run], keys: Sequence[str]) -> list[Curve]:
    """Return the curves that there are, by key and then by run; a value that is no number is in none."""
    found: dict[tuple[str, Run], list[tuple[int, float, float]]] = {}
    for run in runs:
        execute(
            con,
            f"SELECT key, step, epoch(time), last.value FROM ({last_at_step(run, keys)}) "
            "WHERE last.value IS NOT NULL AND step IS NOT NULL ORDER BY step",
        )
        rows = con.fetchall()
        began = min((time for _, _, time, _ in rows), default=0.0)
        for key, step, time, value in rows:
            found.setdefault((key, run), []).append((step, time - began, value))
    curves = []
    for key in keys:
        for run in runs:
            if points := found.get((key, run)):
                steps, seconds, values = (list(each) for each in zip(*points, strict=True))
                curves.append(Curve(run, key, steps, seconds, values))
    return curves


def smoothed(curve: Curve, weight: float) -> Curve:
    """Return the curve with each value drawn to the average of those before it."""
    return replace(curve, values=averaged(curve.values, weight))


def averaged(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential average at each value; what is not finite stays as it is.

    >>> averaged([0.0, 1.0, math.inf], 0.5)
    [0.0, 0.6666666666666666, inf]
    """
    found = []
    average, debt = 0.0, 1.0
    for value in values:
        if not math.isfinite(value):
            found.append(value)
            continue
        average = average * weight + (1 - weight) * value
        debt *= weight
        found.append(average / (1 - debt))
    return found


def wide(con: duckdb.DuckDBPyConnection, runs: Sequence[Run], keys: Sequence[str]) -> str:
    """Return the SQL for one row per run and step, and a column per key: a number where all values are, else text."""
    columns = []
    for key, is_whole, is_number in _types(con, runs, keys):
        last = identifier(key)
        number = f"coalesce({last}.int::VARCHAR, {last}.value::VARCHAR)"
        value = (
            f"{last}.int"
            if is_whole
            else f"{last}.value"
            if is_number
            else f"coalesce({last}.text, {number})"
        )
        columns.append(f"{value} AS {last}")
    listed = ", ".join(literal(key) for key in keys)
    last = " UNION ALL ".join(f"({last_at_step(run, keys)})" for run in runs)
    return (
        f"SELECT project, run_id, step, time, {', '.join(columns)} FROM ("
        f"PIVOT (SELECT * EXCLUDE (time), max(time) OVER (PARTITION BY project, run_id, step) AS time FROM ({last})) "
        f"ON key IN ({listed}) USING any_value(last) GROUP BY project, run_id, step, time) "
        "ORDER BY project, run_id, step"
    )


def long(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """Return the SQL for one row per value, of every writer, as it was logged."""
    listed = ", ".join(literal(key) for key in keys)
    of_each = " UNION ALL ".join(
        f"SELECT * FROM metrics_of([{literal(run.run_id)}]) WHERE project = {literal(run.project)} "
        f"AND key IN ({listed})"
        for run in runs
    )
    return f"SELECT * FROM ({of_each}) ORDER BY project, run_id, writer, seq, key"


def _types(
    con: duckdb.DuckDBPyConnection, runs: Sequence[Run], keys: Sequence[str]
) -> list[tuple[str, bool, bool]]:
    of_each = " UNION ALL ".join(f"SELECT key, last.* FROM ({last_at_step(run, keys)})" for run in runs)
    # A bool is a number and a text, and is written as the text.
    rows = con.execute(
        f"SELECT key, bool_and(int IS NOT NULL AND text IS NULL), bool_and(value IS NOT NULL AND text IS NULL) "
        f"FROM ({of_each}) WHERE value IS NOT NULL OR int IS NOT NULL OR text IS NOT NULL GROUP BY key"
    ).fetchall()
    types = {key: (is_whole, is_number) for key, is_whole, is_number in rows}
    return [(key, *types.get(key, (False, False))) for key in keys]


def last_at_step(run: Run, keys: Sequence[str] | None = None) -> str:
    """Return the SQL for the points of these curves, or of all; `last` is a struct of value, int and text."""
    listed = "true" if keys is None else f"key IN ({', '.join(literal(key) for key in keys)})"
    return _LAST_AT_STEP.format(project=literal(run.project), run_id=literal(run.run_id), keys=listed)
