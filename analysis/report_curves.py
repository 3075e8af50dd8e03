"""The curves of a report: every number of its runs read once, who is drawn together, and a chart for each key.

Invariants
----------
* A run's log is read once for all of its curves; what is kept of one is bounded.
* Runs of a project that differ in the setting `seed`, and in no other, are one line: their mean, with the interval that
  `seeds_ci` gives. Smoothing is that of `ema`.
* Of several values at one step, the last one logged counts.

How a chart is drawn is `report_charts`'s; the table of points is in the connection, and the next report's replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson

from analysis.asking import execute
from analysis.compare import Comparison
from analysis.curves import averaged, last_at_step
from analysis.naming import Run, labels
from analysis.report_charts import Chart, Line, has_place, thinned

if TYPE_CHECKING:
    import duckdb

_ROWS_AT_ONCE = 50_000
# A query costs some milliseconds before it reads anything, and holds all that it reads until it has ordered it.
_RUNS_AT_ONCE = 16
# Of a setting in a legend: a prompt may be one.
_LABEL_CHARS = 40


@dataclass(frozen=True, slots=True)
class Drawn:
    """What has a colour: a run, or the seeds of one setting."""

    label: str
    runs: list[Run]


def drawn_together(comparison: Comparison) -> list[Drawn]:
    """Return who is drawn together: runs of a project that differ in the setting `seed`, and in no other."""
    called = labels(comparison.runs)
    settings: dict[Any, list[Run]] = {}
    for run in comparison.runs:
        mine = {key: values[run] for key, values in comparison.config.items() if run in values}
        has_seed = "seed" in mine
        seed = mine.pop("seed", None)
        # Two runs of one seed, or of none, are not two draws of one experiment.
        alone = run if not has_seed else None
        said = orjson.dumps(mine, option=orjson.OPT_SORT_KEYS)
        members = settings.setdefault((run.project, alone, said), [])
        if has_seed and any(comparison.config["seed"][other] == seed for other in members):
            settings[run.project, run, said] = [run]
        else:
            members.append(run)
    groups = list(settings.values())
    found = []
    for group in groups:
        label = called[group[0]] if len(group) == 1 else _setting(group, groups, comparison)
        found.append(Drawn(label, group))
    return found


def _setting(group: list[Run], groups: list[list[Run]], comparison: Comparison) -> str:
    """Return what tells the seeds of one setting from the others that are drawn."""
    seeds = f"{len(group)} seeds"
    if len(groups) == 1:
        return seeds
    told = []
    for key in comparison.differing:
        values = comparison.config[key]
        if key != "seed" and any(values.get(group[0]) != values.get(other[0]) for other in groups):
            told.append(f"{key}={values.get(group[0], '–')}"[:_LABEL_CHARS])
    return f"{', '.join(told) or ', '.join(run.run_id for run in group)} · {seeds}"


def read_points(con: duckdb.DuckDBPyConnection, runs: list[Run]) -> None:
    """Read every number of these runs once, into a table: `run` counts them."""
    con.execute(
        "CREATE OR REPLACE TEMP TABLE report_points (run INTEGER, key VARCHAR, step BIGINT, value DOUBLE)"
    )
    con.execute("CREATE OR REPLACE TEMP TABLE report_members (run INTEGER, project VARCHAR, run_id VARCHAR)")
    con.executemany(
        "INSERT INTO temp.report_members VALUES (?, ?, ?)",
        [[number, run.project, run.run_id] for number, run in enumerate(runs)],
    )
    for at in range(0, len(runs), _RUNS_AT_ONCE):
        execute(
            con,
            f"""INSERT INTO temp.report_points SELECT m.run, key, step, last.value
            FROM ({last_at_step(runs[at : at + _RUNS_AT_ONCE])}) JOIN temp.report_members m USING (project, run_id)
            WHERE last.value IS NOT NULL AND step IS NOT NULL""",
        )


def read_lines(
    con: duckdb.DuckDBPyConnection, drawn: list[Drawn], keys: Iterable[str], smooth: float
) -> Iterator[tuple[str, Line]]:
    """Yield every curve whole, by who is drawn and then by key."""
    con.execute(
        "CREATE OR REPLACE TEMP TABLE report_keys AS SELECT unnest(?::VARCHAR[]) AS key", [list(keys)]
    )
    for number, each in enumerate(drawn):
        of_these = (
            "FROM temp.report_points JOIN temp.report_keys USING (key) JOIN temp.report_members m USING (run) "
            "WHERE (m.project, m.run_id) IN (SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[]))"
        )
        query = f"SELECT key, step, value, NULL {of_these} ORDER BY key, step"
        if len(each.runs) > 1:
            # As `seeds_ci` has it.
            query = (
                "SELECT key, step, avg(value), internal.t_975(count(*) - 1) * stddev_samp(value) / sqrt(count(*)) "
                f"{of_these} AND isfinite(value) GROUP BY key, step ORDER BY key, step"
            )
        con.execute(query, [[run.project for run in each.runs], [run.run_id for run in each.runs]])
        for key, points in groupby(_fetched(con), key=itemgetter(0)):
            yield key, _line(number, [*points], len(each.runs) > 1, smooth)


def _line(of: int, points: list[tuple[Any, ...]], is_band: bool, smooth: float) -> Line:
    steps: list[int] = [point[1] for point in points]
    values: list[float] = [point[2] for point in points]
    if not is_band:
        line = Line(of, steps, values)
    else:
        halves = [math.nan if point[3] is None else point[3] for point in points]
        low = [value - half for value, half in zip(values, halves, strict=True)]
        high = [value + half for value, half in zip(values, halves, strict=True)]
        line = Line(of, steps, values, band=(low, high))
    return smoothed(line, smooth)


def smoothed(line: Line, weight: float) -> Line:
    if not weight:
        return line
    band = (averaged(line.band[0], weight), averaged(line.band[1], weight)) if line.band else None
    return replace(line, values=averaged(line.values, weight), band=band, behind=(line.steps, line.values))


def _fetched(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while rows := con.fetchmany(_ROWS_AT_ONCE):
        yield from rows


def keys_by_run(
    con: duckdb.DuckDBPyConnection, runs: list[Run], keys: Sequence[str] | None
) -> list[dict[str, int]]:
    """Return the keys of each run, among those that are asked for, with how many points each has."""
    found: list[dict[str, int]] = [{} for _ in runs]
    con.execute("SELECT run, key, count(*) FROM temp.report_points GROUP BY run, key ORDER BY key")
    for number, key, count in con.fetchall():
        if keys is None or key in keys:
            found[number][key] = count
    return found


@dataclass(frozen=True, slots=True)
class Charts:
    """One for each key that has a curve; and the keys that have none."""

    drawn: list[Chart]
    single: list[str]
    """No run has more than one value of it."""
    placeless: list[str]
    """No value has a place in a chart."""


def charts(
    con: duckdb.DuckDBPyConnection, drawn: list[Drawn], by_run: list[dict[str, int]], smooth: float, most: int
) -> Charts:
    """Return the charts, with at most so many points in a line."""
    keys = sorted(set().union(*by_run))
    curves = [key for key in keys if max(counts.get(key, 0) for counts in by_run) > 1]
    found: dict[str, list[Line]] = {key: [] for key in curves}
    missing: dict[str, list[int]] = {key: [] for key in curves}
    for key, line in read_lines(con, drawn, curves, smooth):
        found[key].append(thinned(line, most))
        missing[key].append(len(line.missing))
    placeless = [key for key, lines in found.items() if not any(map(has_place, _values(lines)))]
    made = [Chart(key, lines, missing=missing[key]) for key, lines in found.items() if key not in placeless]
    return Charts(made, [key for key in keys if key not in found], placeless)


def _values(lines: Iterable[Line]) -> Iterator[float]:
    return (value for line in lines for value in line.values)
