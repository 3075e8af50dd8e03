"""What a report says of some runs: read from the logs, and put together here; how it looks is `report_page`'s.

    read_report(con, runs) ──▶ Report ──▶ report_page.page(report) ──▶ one HTML file

Invariants
----------
* A run's log is read a few times, however many metrics it has; what is kept of a curve is bounded (`_POINTS`).
* Runs that are configured alike but for their seed are drawn as one: the mean, and the interval that `seeds_ci` gives.
* Smoothing is `ema`'s, and what the ready charts show of a gap, a judge and costs is that of the commands of these names.
* What is left out is counted: curves of one value, values without a place, trajectories without a reward.

Nothing is drawn, escaped or printed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson

from analysis import verdicts
from analysis.asking import damage, execute, lost_events
from analysis.compare import Comparison, compare
from analysis.curves import averaged, last_at_step
from analysis.naming import Run, labels
from analysis.report_charts import Chart, Line, thinned

if TYPE_CHECKING:
    import duckdb

# Of all curves together, and what one has at least and at most. A point costs some 20 bytes in the file.
_POINTS, _POINTS_MIN, _POINTS_MAX = 90_000, 40, 1_000
_ALERTS_MAX = 20
_ROWS_AT_ONCE = 50_000
_BEST_STEPS = 5

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
class Drawn:
    """What has a colour: a run, or the seeds of one setting."""

    label: str
    runs: list[Run]


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
class Ready:
    """Charts that belong together and appear where their keys are."""

    title: str
    charts: list[Chart]


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
    charts: list[Chart]
    """One for each key, by key."""
    single: list[str]
    """The keys of which no run has more than one value."""
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
    drawn = _drawn(comparison)
    facts = [_facts(con, run, drawn) for run in runs]
    _read_points(con, runs)
    directions = _directions(con, runs)
    charts, single = _charts(con, drawn, keys, smooth)
    extremes = _extremes(con, runs, directions)
    # The last to read the points: it adds to them.
    ready = _ready(con, facts, drawn, keys, smooth)
    return Report(
        runs=facts,
        drawn=drawn,
        warnings=[*_warnings(con, facts)],
        comparison=comparison,
        directions=directions,
        extremes=extremes,
        charts=charts,
        single=single,
        ready=ready,
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


def _drawn(comparison: Comparison) -> list[Drawn]:
    """Return who is drawn together: runs of a project that differ in the setting `seed`, and in no other."""
    called = labels(comparison.runs)
    settings: dict[Any, list[Run]] = {}
    for run in comparison.runs:
        mine = {key: values[run] for key, values in comparison.config.items() if run in values}
        has_seed = "seed" in mine
        seed = mine.pop("seed", None)
        # Two runs of one seed, or of none, are not two draws of one experiment.
        alone = run if not has_seed else None
        said = orjson.dumps(mine, option=orjson.OPT_SORT_KEYS, default=str)
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
            told.append(f"{key}={values.get(group[0], '–')}")
    return f"{', '.join(told) or ', '.join(run.run_id for run in group)} · {seeds}"


def _facts(con: duckdb.DuckDBPyConnection, run: Run, drawn: list[Drawn]) -> Facts:
    execute(
        con,
        "SELECT name, state, tags, notes, started, last_time, duration_s, last_step, records, trajectories, pieces "
        "FROM runs WHERE project = $project AND run_id = $run_id",
        {"project": run.project, "run_id": run.run_id},
    )
    row = con.fetchone()
    assert row is not None
    name, state, tags, *rest = row
    colour = next(number for number, each in enumerate(drawn) if run in each.runs)
    called = labels([run for each in drawn for run in each.runs])
    return Facts(run, called[run], colour, name, state, tags or [], *rest)


def _warnings(con: duckdb.DuckDBPyConnection, facts: list[Facts]) -> Iterator[Warned]:
    lost = lost_events(con, [each.run for each in facts])
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
        of_run = {"project": each.run.project, "run_id": each.run.run_id}
        execute(
            con,
            "SELECT sum(TRY_CAST(data ->> 'dropped' AS BIGINT)), string_agg(DISTINCT data ->> 'reason', ', ') "
            "FROM internal.events_of([$run_id]) WHERE kind = 'gap' AND internal.project_of(run_dir) = $project",
            of_run,
        )
        for dropped, reason in con.fetchall():
            if dropped:
                what = "1 record was" if dropped == 1 else f"{dropped:,} records were"
                yield Warned("ERROR", each.label, "Not everything was logged.", f"{what} dropped: {reason}.")
        execute(
            con,
            "SELECT level, title, text, step, time, count(*) OVER () FROM alerts WHERE project = $project "
            f"AND run_id = $run_id AND level IN ('WARN', 'ERROR') ORDER BY time DESC, seq DESC LIMIT {_ALERTS_MAX}",
            of_run,
        )
        alerts = con.fetchall()
        for level, title, text, step, time, _ in alerts:
            yield Warned(level, each.label, title or "", text or "", step, time)
        if alerts and alerts[0][-1] > len(alerts):
            more = alerts[0][-1] - len(alerts)
            yield Warned("WARN", each.label, f"And {more:,} older alerts.", "The view `alerts` has them all.")


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────


def _read_points(con: duckdb.DuckDBPyConnection, runs: list[Run]) -> None:
    """Read every number of these runs once, into a table: `run` counts them."""
    con.execute(
        "CREATE OR REPLACE TEMP TABLE report_points (run INTEGER, key VARCHAR, step BIGINT, value DOUBLE)"
    )
    for number, run in enumerate(runs):
        execute(
            con,
            f"INSERT INTO temp.report_points SELECT {number}, key, step, last.value FROM ({last_at_step(run)}) "
            "WHERE last.value IS NOT NULL AND step IS NOT NULL",
        )
    con.execute("CREATE OR REPLACE TEMP TABLE report_members (run INTEGER, project VARCHAR, run_id VARCHAR)")
    con.executemany(
        "INSERT INTO temp.report_members VALUES (?, ?, ?)",
        [[number, run.project, run.run_id] for number, run in enumerate(runs)],
    )


def _lines(
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
    return _smoothed(line, smooth)


def _smoothed(line: Line, weight: float) -> Line:
    if not weight:
        return line
    band = (averaged(line.band[0], weight), averaged(line.band[1], weight)) if line.band else None
    return replace(line, values=averaged(line.values, weight), band=band, behind=(line.steps, line.values))


def _fetched(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while rows := con.fetchmany(_ROWS_AT_ONCE):
        yield from rows


def _charts(
    con: duckdb.DuckDBPyConnection, drawn: list[Drawn], keys: Sequence[str] | None, smooth: float
) -> tuple[list[Chart], list[str]]:
    counted = con.execute(
        "SELECT key, max(n) > 1 FROM (SELECT run, key, count(*) AS n FROM temp.report_points GROUP BY ALL) "
        "GROUP BY key ORDER BY key"
    ).fetchall()
    asked = [(key, is_curve) for key, is_curve in counted if keys is None or key in set(keys)]
    curves = [key for key, is_curve in asked if is_curve]
    share = _POINTS // max(1, len(curves) * len(drawn) * (2 if smooth else 1))
    most = min(max(share, _POINTS_MIN), _POINTS_MAX)
    found: dict[str, list[Line]] = {key: [] for key in curves}
    missing: dict[str, list[int]] = {key: [] for key in curves}
    for key, line in _lines(con, drawn, curves, smooth):
        found[key].append(thinned(line, most))
        missing[key].append(len(line.missing))
    charts = [Chart(key, lines, missing=missing[key]) for key, lines in found.items() if lines]
    return charts, [key for key, is_curve in asked if not is_curve]


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


# ── charts that are ready ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A chart of several metrics of a run; the second is dashed, the third dotted."""

    title: str
    keys: tuple[str, ...]
    between: tuple[str, str] | None = None
    """The first is drawn in a band from this metric to that."""

    @property
    def needs(self) -> set[str]:
        return {*self.keys, *(self.between or ())}


_READY = {
    "Email agent": (
        _Wanted("Reward", ("eval/reward", "train/avg_reward")),
        _Wanted("Right answers", ("eval/answer_correct", "train/answer_correct")),
        _Wanted("Turns", ("eval/num_turns", "train/num_turns")),
        _Wanted("Right answers and their sources", ("eval/answer_correct", "eval/sources_correct")),
    ),
    "GRPO": (
        _Wanted(
            "Returns: mean, from the least to the most, and the best mean so far",
            ("rollouts/returns_mean", "rollouts/returns_best_mean"),
            between=("rollouts/returns_min", "rollouts/returns_max"),
        ),
        _Wanted(
            "KL from the reference: of rollouts, and in training", ("rollouts/kl_mean", "training_step/kl")
        ),
        _Wanted(
            "Gradient norm of an epoch: mean and most",
            ("training_epoch/grad_norm_mean", "training_epoch/grad_norm_max"),
        ),
        _Wanted("Advantages: mean and spread", ("rollouts/advantages_mean", "rollouts/advantages_std")),
    ),
}
_STYLES = ("", "second", "third")


def _ready(
    con: duckdb.DuckDBPyConnection,
    facts: list[Facts],
    drawn: list[Drawn],
    keys: Sequence[str] | None,
    smooth: float,
) -> list[Ready]:
    """Return those whose keys are there, and among those that were asked for."""
    con.execute("SELECT DISTINCT run, key FROM temp.report_points")
    of_run: dict[int, set[str]] = {number: set() for number in range(len(facts))}
    for number, key in con.fetchall():
        if keys is None or key in keys:
            of_run[number].add(key)
    known = set().union(*of_run.values())
    wanted = {title: [each for each in charts if each.needs <= known] for title, charts in _READY.items()}
    needed = {key for charts in wanted.values() for each in charts for key in each.needs}
    lines: dict[str, dict[int, Line]] = {key: {} for key in needed}
    if needed:
        for key, line in _lines(con, drawn, needed, smooth=0):
            lines[key][line.of] = line
    ready = [
        Ready(title, [_several(each, lines, smooth) for each in charts])
        for title, charts in wanted.items()
        if charts
    ]

    mixture = [
        chart(con, drawn, answers, smooth)
        for question, chart in ((verdicts.GAP, _gap), (verdicts.JUDGE, _judge), (verdicts.COST, _cost))
        if (answers := _answers(con, facts, question, of_run))
    ]
    if mixture:
        ready.append(Ready("Mixture, judge and cost", mixture))
    return ready


def _several(wanted: _Wanted, lines: dict[str, dict[int, Line]], smooth: float) -> Chart:
    found = []
    for key, style in zip(wanted.keys, _STYLES, strict=False):
        for of, line in lines[key].items():
            mine = replace(line, label=key, style=style, band=None if len(wanted.keys) > 1 else line.band)
            if wanted.between and key == wanted.keys[0]:
                ends = [dict(_pairs(lines[end].get(of))) for end in wanted.between]
                low, high = ([end.get(step, math.nan) for step in line.steps] for end in ends)
                mine = replace(mine, band=(low, high))
            # Two smoothed lines of one run, each with what it was: nobody could tell them apart.
            found.append(thinned(replace(_smoothed(mine, smooth), behind=None), _POINTS_MAX))
    return Chart(wanted.title, found)


def _pairs(line: Line | None) -> Iterable[tuple[int, float]]:
    return zip(line.steps, line.values, strict=True) if line else ()


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a question's macro says of each run that has its keys."""

    question: verdicts.Question
    by_run: list[tuple[Facts, verdicts.Rows]]

    @property
    def verdicts(self) -> list[str]:
        said = [(each.label, self.question.verdict(rows)) for each, rows in self.by_run]
        return [verdict if len(said) == 1 else f"{label}: {verdict}" for label, verdict in said]


# Before the name of a column that is drawn as if it were a metric: no key that a person types begins so.
_DERIVED = "\x1f"


def _answers(
    con: duckdb.DuckDBPyConnection,
    facts: list[Facts],
    question: verdicts.Question,
    of_run: dict[int, set[str]],
) -> _Answers | None:
    """Ask it of each run; what it says is drawn like a metric, so that the seeds of a setting are one line."""
    found: list[tuple[Facts, verdicts.Rows]] = []
    for number, each in enumerate(facts):
        if not of_run[number] >= set(question.needs):
            continue
        values = {"run": each.run.run_id, "project": each.run.project, "steps": verdicts.STEPS}
        if "$steps" not in question.query:
            del values["steps"]
        execute(con, f"CREATE OR REPLACE TEMP TABLE report_answer AS {question.query}", values)
        for column in question.drawn:
            con.execute(
                f"INSERT INTO temp.report_points SELECT ?, ?, step, {column} FROM temp.report_answer",
                [number, _DERIVED + column],
            )
        if rows := con.execute("FROM temp.report_answer").fetchall():
            found.append((each, rows))
    return _Answers(question, found) if found else None


def _gap(con: duckdb.DuckDBPyConnection, drawn: list[Drawn], answers: _Answers, smooth: float) -> Chart:
    lines = [_labelled(line, "GSM8K − MATH") for _, line in _lines(con, drawn, [_DERIVED + "gap"], smooth)]
    return Chart("Gap GSM8K − MATH, in percentage points", lines, levels=((0.0, ""),), notes=answers.verdicts)


def _judge(con: duckdb.DuckDBPyConnection, drawn: list[Drawn], answers: _Answers, smooth: float) -> Chart:
    (rate,) = answers.question.needs
    # It is smoothed as it is.
    lines = [
        _labelled(replace(line, band=None), "success rate", "under")
        for _, line in _lines(con, drawn, [rate], 0)
    ]
    mean = f"mean of {verdicts.STEPS} steps"
    lines += [_labelled(line, mean) for _, line in _lines(con, drawn, [_DERIVED + "mean"], 0)]
    moments = []
    for each, rows in answers.by_run:
        bad = [row for row in rows if row[3]]
        if bad:
            moments.append((bad[0][0], each.colour, f"{_of(each, answers)}first below 0.8: step {bad[0][0]}"))
        if bad and len(drawn[each.colour].runs) == 1:
            dots = Line(each.colour, [row[0] for row in bad], [row[1] for row in bad])
            lines.append(_labelled(dots, "below 0.8", "dots"))
    return Chart(
        "Does the judge answer? (success rate)",
        lines,
        levels=((0.8, "0.8"),),
        moments=moments,
        notes=answers.verdicts,
    )


def _cost(con: duckdb.DuckDBPyConnection, drawn: list[Drawn], answers: _Answers, smooth: float) -> Chart:
    lines = [_labelled(line, "$") for _, line in _lines(con, drawn, [_DERIVED + "cost_per_correct"], smooth)]
    moments = [
        (rows[0][0], each.colour, f"{_of(each, answers)}best: step {rows[0][0]}, ${rows[0][3]:.3g}")
        for each, rows in answers.by_run
        if rows[0][3] is not None
    ]
    shown = _BEST_STEPS if len(answers.by_run) == 1 else 1
    best = [[each.label, *row] for each, rows in answers.by_run for row in rows[:shown] if row[3] is not None]
    best.sort(key=lambda row: row[4])
    table = ["run", "step", "$ a sample", "% right", "$ a right answer"], best
    return Chart(
        "What a right answer costs, in $", lines, moments=moments, notes=answers.verdicts, table=table
    )


def _of(each: Facts, answers: _Answers) -> str:
    return f"{each.label}: " if len(answers.by_run) > 1 else ""


def _labelled(line: Line, label: str, style: str = "") -> Line:
    return thinned(replace(line, label=label, style=style), _POINTS_MAX)


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
    for each in facts:
        execute(
            con,
            "SELECT base_url, url, state, records, acked, backlog, error, not_shown, time FROM sync_state "
            "WHERE project = $project AND run_id = $run_id ORDER BY base_url",
            {"project": each.run.project, "run_id": each.run.run_id},
        )
        names = [column[0] for column in con.description or ()]
        for row in con.fetchall():
            found = dict(zip(names, row, strict=True))
            yield {**found, "label": each.label, "not_shown": orjson.loads(found["not_shown"] or "{}")}
