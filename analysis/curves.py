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
from analysis.pivot import pivoted
from analysis.sqltext import literal

if TYPE_CHECKING:
    import duckdb

# Every value of these runs' histories. One id may be that of runs of several projects.
_POINTS = """
SELECT project, run_id, step, time, key, {{value: value, int: int, text: text}} AS cell, (writer, seq) AS place
FROM metrics_of([{ids}]) WHERE writer LIKE 'main-%' AND (project, run_id) IN ({runs}) AND {keys}
"""
# The last value of each key at each step.
_LAST_AT_STEP = """
SELECT project, run_id, step, key, max(time) AS time, arg_max(cell, place) AS last FROM ({points})
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
    execute(
        con,
        f"SELECT project, run_id, key, step, epoch(time), last.value FROM ({last_at_step(runs, keys)}) "
        "WHERE last.value IS NOT NULL AND step IS NOT NULL ORDER BY step",
    )
    called = {(run.project, run.run_id): run for run in runs}
    found: dict[tuple[str, Run], list[tuple[int, float, float]]] = {}
    began: dict[Run, float] = {}
    for project, run_id, key, step, time, value in con.fetchall():
        run = called[project, run_id]
        began[run] = min(time, began.get(run, time))
        found.setdefault((key, run), []).append((step, time, value))
    curves = []
    for key in keys:
        for run in runs:
            if points := found.get((key, run)):
                steps, times, values = (list(each) for each in zip(*points, strict=True))
                seconds = [time - began[run] for time in times]
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
    """Return the SQL for one row per run and step, and a column per key: a number where all values are, else text.

    A row's time is that of its last value.
    """
    points = _points(runs, keys)
    columns = []
    for key, is_whole, is_number in _types(con, points, keys):
        number = "coalesce({cell}.int::VARCHAR, {cell}.value::VARCHAR)"
        value = (
            "{cell}.int"
            if is_whole
            else "{cell}.value"
            if is_number
            else f"coalesce({{cell}}.text, {number})"
        )
        columns.append((key, value))
    timed = f"SELECT * REPLACE (max(time) OVER (PARTITION BY project, run_id, step) AS time) FROM ({points})"
    return pivoted(timed, ["project", "run_id", "step", "time"], columns)


def long(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """Return the SQL for one row per value, of every writer, as it was logged."""
    return (
        f"SELECT * FROM metrics_of([{_ids(runs)}]) WHERE (project, run_id) IN ({_named(runs)}) AND {_among(keys)} "
        "ORDER BY project, run_id, writer, seq, key"
    )


def last_at_step(runs: Sequence[Run], keys: Sequence[str] | None = None) -> str:
    """Return the SQL for the points of these curves, or of all; `last` is a struct of value, int and text."""
    return _LAST_AT_STEP.format(points=_points(runs, keys))


def _types(con: duckdb.DuckDBPyConnection, points: str, keys: Sequence[str]) -> list[tuple[str, bool, bool]]:
    # A bool is a number and a text, and is written as the text.
    rows = con.execute(
        f"""SELECT key, bool_and(cell.int IS NOT NULL AND cell.text IS NULL),
            bool_and(cell.value IS NOT NULL AND cell.text IS NULL)
        FROM ({points}) WHERE cell.value IS NOT NULL OR cell.int IS NOT NULL OR cell.text IS NOT NULL GROUP BY key"""
    ).fetchall()
    types = {key: (is_whole, is_number) for key, is_whole, is_number in rows}
    return [(key, *types.get(key, (False, False))) for key in keys]


def _points(runs: Sequence[Run], keys: Sequence[str] | None) -> str:
    return _POINTS.format(ids=_ids(runs), runs=_named(runs), keys="true" if keys is None else _among(keys))


def _ids(runs: Sequence[Run]) -> str:
    return ", ".join(literal(run.run_id) for run in runs)


def _named(runs: Sequence[Run]) -> str:
    return ", ".join(f"({literal(run.project)}, {literal(run.run_id)})" for run in runs)


def _among(keys: Sequence[str]) -> str:
    return f"key IN ({', '.join(map(literal, keys))})"
