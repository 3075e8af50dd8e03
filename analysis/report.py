"""What a report says of some runs: read from the logs, and put together here; how it looks is `report_page`'s.

    read_report(con, runs) ──▶ Report ──▶ report_page.page(report) ──▶ one HTML file

Invariants
----------
* A run's log is read a few times, however many metrics it has.
* Nothing that a run said of its own trouble is left out without a word: of alerts there are the newest, and how many more.
* A trajectory is among the best or among the worst, never both.

Curves are `report_curves`'s and `report_ready`'s.  Nothing is drawn, escaped or printed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from analysis.asking import damage, execute, lost_records, rows_of
from analysis.compare import Comparison, compare
from analysis.naming import Run, labels
from analysis.report_charts import points_each
from analysis.report_curves import Charts, Drawn, charts, drawn_together, keys_by_run, read_points
from analysis.report_ready import Ready, lines_each, ready

if TYPE_CHECKING:
    import duckdb

_ALERTS_MAX = 20
_ALERTS = f"""
SELECT project, run_id, level, title, text, step, time, count(*) OVER (PARTITION BY project, run_id)
FROM alerts_of($ids) WHERE level IN ('WARN', 'ERROR')
QUALIFY row_number() OVER (PARTITION BY project, run_id ORDER BY time DESC, seq DESC) <= {_ALERTS_MAX}
ORDER BY time DESC, seq DESC
"""
_GAPS = """
SELECT internal.project_of(run_dir), internal.run_id_of(run_dir), sum(TRY_CAST(data ->> 'dropped' AS BIGINT)),
    string_agg(DISTINCT data ->> 'reason', ', ')
FROM internal.events_of($ids) WHERE kind = 'gap' GROUP BY run_dir
"""
_SYNC = """
SELECT project, run_id, base_url, url, state, records, acked, backlog, error, not_shown, time
FROM sync_state_of($ids) ORDER BY base_url
"""
# Words in a key that say which way is good. One of the third kind says that neither is.
_UP = {
    "reward",
    "rewards",
    "return",
    "returns",
    "accuracy",
    "acc",
    "correct",
    "success",
    "score",
    "f1",
    "bleu",
    "rouge",
}
_DOWN = {
    "loss",
    "cost",
    "error",
    "errors",
    "failure",
    "failures",
    "incorrect",
    "violation",
    "latency",
    "perplexity",
    "exceptions",
}
_NEITHER = {
    "std",
    "var",
    "variance",
    "count",
    "total",
    "num",
    "n",
    "step",
    "skewness",
    "calls",
    "lr",
    "norm",
    "baseline",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of a run at the head."""

    run: Run
    label: str
    colour: int
    name: str | None
    state: str
    tags: list[str]
    notes: str | None
    started: datetime | None
    last_time: datetime | None
    duration_s: float | None
    last_step: int | None
    records: int
    trajectories: int
    pieces: int


@dataclass(frozen=True, slots=True)
class Warned:
    level: str
    """ERROR or WARN."""
    label: str
    title: str
    text: str = ""
    step: int | None = None
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Episode:
    """One trajectory."""

    is_best: bool
    step: int | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Episodes:
    of: Facts
    shown: list[Episode]
    """The best, then the worst, each from the most extreme inwards."""
    rewarded: int


@dataclass(slots=True)
class Report:
    runs: list[Facts]
    drawn: list[Drawn]
    warnings: list[Warned]
    comparison: Comparison
    directions: dict[str, int]
    """Key → 1 where more is better, -1 where less is."""
    extremes: dict[tuple[str, Run], tuple[float, int]]
    """The best finite value of a key that has a direction, and its step."""
    charts: Charts
    ready: list[Ready]
    trajectories: list[Episodes]
    sync: list[dict[str, Any]] = field(default_factory=list)
    smooth: float = 0.0


def read_report(
    con: duckdb.DuckDBPyConnection,
    runs: list[Run],
    keys: Sequence[str] | None = None,
    smooth: float = 0.0,
    trajectories: int = 3,
) -> Report:
    """Return the report on these runs; of the curves, only these keys, if they are given."""
    comparison = compare(con, runs)
    drawn = drawn_together(comparison)
    facts = _facts(con, runs, drawn)
    read_points(con, runs)
    by_run = keys_by_run(con, runs, keys)
    directions = _directions(con, runs)
    extremes = _extremes(con, runs, directions)
    lines = (len(set().union(*by_run)) + lines_each(by_run)) * len(drawn)
    most = points_each(lines * (2 if smooth else 1))
    return Report(
        runs=facts,
        drawn=drawn,
        warnings=[*_warnings(con, facts)],
        comparison=comparison,
        directions=directions,
        extremes=extremes,
        charts=charts(con, drawn, by_run, smooth, most),
        ready=ready(con, runs, drawn, by_run, smooth, most),
        trajectories=[_episodes(con, each, trajectories) for each in facts],
        sync=[*_sync(con, facts)],
        smooth=smooth,
    )


def direction(key: str) -> int:
    """Return 1 where more of it is better, -1 where less is, 0 where its name does not say.

    >>> direction("train/avg_reward"), direction("training_step/loss"), direction("Train/Reward_Std"), direction("lr")
    (1, -1, 0, 0)
    >>> direction("judge/parse_failure_rate"), direction("judge/success_rate"), direction("cost/total_cost")
    (-1, 1, 0)
    """
    # The last part says what it is, those before it only where: `cost/accuracy` is an accuracy.
    for part in reversed(key.lower().split("/")):
        words = set(re.split(r"[^a-z0-9]+", part))
        if words & _NEITHER:
            return 0
        if words & _DOWN:
            return -1
        if words & _UP:
            return 1
    return 0


# ── head and warnings ────────────────────────────────────────────────────────────────────────────────────────


def _facts(con: duckdb.DuckDBPyConnection, runs: list[Run], drawn: list[Drawn]) -> list[Facts]:
    called = labels(runs)
    of_runs = """SELECT project, run_id, name, state, tags, notes, started, last_time, duration_s, last_step, records,
        trajectories, pieces FROM runs_of($ids)"""
    rows = dict(rows_of(con, runs, of_runs))
    facts = []
    for run in runs:
        name, state, tags, *rest = rows[run]
        colour = next(number for number, each in enumerate(drawn) if run in each.runs)
        facts.append(Facts(run, called[run], colour, name, state, tags or [], *rest))
    return facts


def _warnings(con: duckdb.DuckDBPyConnection, facts: list[Facts]) -> Iterator[Warned]:
    runs = [each.run for each in facts]
    lost = lost_records(con, runs, ["events", "trajectories"])
    gaps = dict(rows_of(con, runs, _GAPS))
    alerts: dict[Run, list[tuple[Any, ...]]] = {}
    for run, alert in rows_of(con, runs, _ALERTS):
        alerts.setdefault(run, []).append(alert)
    for each in facts:
        if each.state == "crashed":
            yield Warned(
                "ERROR", each.label, "The run crashed.", "Its writer is gone without a word.", each.last_step
            )
        elif each.state == "failed":
            yield Warned(
                "ERROR",
                each.label,
                "The run failed.",
                "It ended with an exit code other than 0.",
                each.last_step,
            )
        elif each.state == "stale":
            yield Warned(
                "WARN",
                each.label,
                "The run is stale.",
                "Its writer, on another machine, was not heard of for 10 minutes.",
            )
        if each.run in lost:
            yield Warned("ERROR", each.label, "The log is damaged.", damage(each.run.full, lost[each.run]))
        dropped, reason = gaps.get(each.run, (0, ""))
        if dropped:
            what = "1 record was" if dropped == 1 else f"{dropped:,} records were"
            yield Warned("ERROR", each.label, "Not everything was logged.", f"{what} dropped: {reason}.")
        of_run = alerts.get(each.run, [])
        for level, title, text, step, time, _ in of_run:
            yield Warned(level, each.label, title or "", text or "", step, time)
        if of_run and of_run[0][-1] > len(of_run):
            more = of_run[0][-1] - len(of_run)
            yield Warned("WARN", each.label, f"And {more:,} older alerts.", "The view `alerts` has them all.")


# ── which way is good ────────────────────────────────────────────────────────────────────────────────────────


def _directions(con: duckdb.DuckDBPyConnection, runs: list[Run]) -> dict[str, int]:
    """Return which way is better, as `define_metric` says it, else as the name does."""
    con.execute("SELECT DISTINCT key FROM temp.report_points")
    keys = [key for (key,) in con.fetchall()]
    execute(
        con,
        "SELECT data ->> 'name', data ->> 'goal', TRY_CAST(data -> 'summary' AS VARCHAR[]) "
        "FROM internal.events_of($runs) WHERE kind = 'define_metric' AND number IS NOT NULL ORDER BY place",
        {"runs": [run.run_id for run in runs]},
    )
    defined = {}
    for pattern, goal, summary in con.fetchall():
        said = {"maximize": 1, "minimize": -1}.get(goal or "")
        asked = {"max", "min"} & set(summary or [])
        if said is None and len(asked) == 1:
            said = 1 if asked == {"max"} else -1
        if said is not None and pattern:
            is_glob = pattern.endswith("*")
            defined.update(
                {key: said for key in keys if key == pattern or (is_glob and key.startswith(pattern[:-1]))}
            )
    return {key: which for key in keys if (which := defined.get(key, direction(key)))}


def _extremes(
    con: duckdb.DuckDBPyConnection, runs: list[Run], directions: dict[str, int]
) -> dict[tuple[str, Run], tuple[float, int]]:
    con.execute(
        "SELECT run, key, min(value), arg_min(step, (value, step)), max(value), arg_min(step, (-value, step)), count(*) "
        "FROM temp.report_points WHERE isfinite(value) GROUP BY run, key"
    )
    found = {}
    for number, key, low, low_step, high, high_step, count in con.fetchall():
        if count > 1 and (which := directions.get(key)):
            found[key, runs[number]] = (high, high_step) if which > 0 else (low, low_step)
    return found


# ── trajectories and upload ──────────────────────────────────────────────────────────────────────────────────

_EPISODE = """
SELECT step, data.id, data."group", data.reward, data.advantage, data.rewards, data.metrics, data.turns, data.prompt_tokens,
    data.completion_tokens, data.stop_reason, data.exception, data.duration_s, data.policy_version, data.info
FROM internal.trajectories_of([$run_id])
WHERE kind = 'trajectory' AND internal.project_of(run_dir) = $project AND writer = $writer AND seq = $seq
"""
_EPISODE_FIELDS = (
    "id",
    "group",
    "reward",
    "advantage",
    "rewards",
    "metrics",
    "turns",
    "prompt_tokens",
    "completion_tokens",
    "stop_reason",
    "exception",
    "duration_s",
    "policy_version",
    "info",
)


def _episodes(con: duckdb.DuckDBPyConnection, of: Facts, count: int) -> Episodes:
    """Return the best and the worst, each trajectory once; of equal ones the newest."""
    of_run = {"project": of.run.project, "run_id": of.run.run_id}
    execute(
        con,
        "SELECT writer, seq, reward, step FROM (SELECT writer, seq, step, data.reward AS reward FROM internal.trajectories_of([$run_id]) "
        "WHERE kind = 'trajectory' AND internal.project_of(run_dir) = $project) "
        "WHERE reward IS NOT NULL AND NOT isnan(reward) ORDER BY reward DESC, step DESC NULLS LAST, writer, seq",
        of_run,
    )
    ranked = con.fetchall()
    best = ranked[:count]
    worst = sorted(ranked[count:], key=lambda each: (each[2], -(each[3] or 0)))[:count]
    shown = []
    for number, (writer, seq, *_) in enumerate([*best, *worst]):
        execute(con, _EPISODE, {**of_run, "writer": writer, "seq": seq})
        row = con.fetchone()
        if row is not None:
            step, *values = row
            shown.append(Episode(number < len(best), step, dict(zip(_EPISODE_FIELDS, values, strict=True))))
    return Episodes(of, shown, len(ranked))


def _sync(con: duckdb.DuckDBPyConnection, facts: list[Facts]) -> Iterator[dict[str, Any]]:
    places = {each.run: (at, each.label) for at, each in enumerate(facts)}
    rows = sorted(rows_of(con, [*places], _SYNC), key=lambda row: places[row[0]])
    names = [column[0] for column in con.description or ()][2:]
    for run, values in rows:
        found = dict(zip(names, values, strict=True))
        yield {**found, "label": places[run][1], "not_shown": orjson.loads(found["not_shown"] or "{}")}
