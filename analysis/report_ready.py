"""The charts that a report has ready for the metrics of known trainings; they appear where their keys are.

Invariants
----------
* What is shown of a gap, a judge and costs is what the commands of these names answer, with the same verdicts.
* Of each run, several metrics are in one chart: the colour says whose a line is, and the dashes which.
* A chart whose metrics are not all there is not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis import verdicts
from analysis.asking import execute
from analysis.naming import Run, labels
from analysis.report_charts import Chart, Line, thinned
from analysis.report_curves import Drawn, read_lines, smoothed

if TYPE_CHECKING:
    import duckdb

_BEST_STEPS = 5


@dataclass(frozen=True, slots=True)
class Ready:
    """Charts that belong together and appear where their keys are."""

    title: str
    charts: list[Chart]


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
# What else is drawn of each run: a gap, a judge's rate, mean and failures, a price.
_MIXTURE_LINES = 5


def lines_each(by_run: list[dict[str, int]]) -> int:
    """Return how many lines the ready charts have of a run, at most."""
    wanted = [each for charts in _wanted(by_run).values() for each in charts]
    return sum(len(each.keys) for each in wanted) + _MIXTURE_LINES


def _wanted(by_run: list[dict[str, int]]) -> dict[str, list[_Wanted]]:
    known = set().union(*by_run)
    found = {title: [each for each in charts if each.needs <= known] for title, charts in _READY.items()}
    return {title: charts for title, charts in found.items() if charts}


def ready(
    con: duckdb.DuckDBPyConnection,
    runs: list[Run],
    drawn: list[Drawn],
    by_run: list[dict[str, int]],
    smooth: float,
    most: int,
) -> list[Ready]:
    """Return those whose keys are there, with at most so many points in a line.  It adds to the table of points."""
    wanted = _wanted(by_run)
    needed = {key for charts in wanted.values() for each in charts for key in each.needs}
    lines: dict[str, dict[int, Line]] = {key: {} for key in needed}
    if needed:
        for key, line in read_lines(con, drawn, needed, smooth=0):
            lines[key][line.of] = line
    found = [
        Ready(title, [_several(each, lines, smooth) for each in charts]) for title, charts in wanted.items()
    ]
    mixture = [
        chart(con, drawn, answers, smooth)
        for question, chart in ((verdicts.GAP, _gap), (verdicts.JUDGE, _judge), (verdicts.COST, _cost))
        if (answers := _answers(con, runs, drawn, question, by_run))
    ]
    if mixture:
        found.append(Ready("Mixture, judge and cost", mixture))
    return [
        Ready(each.title, [_thinned(chart, most) for chart in each.charts if chart.lines]) for each in found
    ]


def _thinned(chart: Chart, most: int) -> Chart:
    return replace(chart, lines=[thinned(line, most) for line in chart.lines])


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
            found.append(replace(smoothed(mine, smooth), behind=None))
    return Chart(wanted.title, found)


def _pairs(line: Line | None) -> Iterable[tuple[int, float]]:
    return zip(line.steps, line.values, strict=True) if line else ()


@dataclass(frozen=True, slots=True)
class _Asked:
    label: str
    colour: int


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a question's macro says of each run that has its keys."""

    question: verdicts.Question
    by_run: list[tuple[_Asked, verdicts.Rows]]

    @property
    def verdicts(self) -> list[str]:
        said = [(each.label, self.question.verdict(rows)) for each, rows in self.by_run]
        return [verdict if len(said) == 1 else f"{label}: {verdict}" for label, verdict in said]


# Before the name of a column that is drawn as if it were a metric: no key that a person types begins so.
_DERIVED = "\x1f"


def _answers(
    con: duckdb.DuckDBPyConnection,
    runs: list[Run],
    drawn: list[Drawn],
    question: verdicts.Question,
    by_run: list[dict[str, int]],
) -> _Answers | None:
    """Ask it of each run; what it says is drawn like a metric, so that the seeds of a setting are one line."""
    called = labels(runs)
    found: list[tuple[_Asked, verdicts.Rows]] = []
    for number, run in enumerate(runs):
        if not by_run[number].keys() >= set(question.needs):
            continue
        values = {"run": run.run_id, "project": run.project, "steps": verdicts.STEPS}
        if "$steps" not in question.query:
            del values["steps"]
        execute(con, f"CREATE OR REPLACE TEMP TABLE report_answer AS {question.query}", values)
        for column in question.drawn:
            con.execute(
                f"INSERT INTO temp.report_points SELECT ?, ?, step, coalesce({column}, 'nan') FROM temp.report_answer",
                [number, _DERIVED + column],
            )
        if rows := con.execute("FROM temp.report_answer").fetchall():
            colour = next(of for of, each in enumerate(drawn) if run in each.runs)
            found.append((_Asked(called[run], colour), rows))
    return _Answers(question, found) if found else None


def _gap(con: duckdb.DuckDBPyConnection, drawn: list[Drawn], answers: _Answers, smooth: float) -> Chart:
    lines = [
        _labelled(line, "GSM8K − MATH") for _, line in read_lines(con, drawn, [_DERIVED + "gap"], smooth)
    ]
    return Chart("Gap GSM8K − MATH, in percentage points", lines, levels=((0.0, ""),), notes=answers.verdicts)


def _judge(con: duckdb.DuckDBPyConnection, drawn: list[Drawn], answers: _Answers, smooth: float) -> Chart:
    (rate,) = answers.question.needs
    # A moving mean is smooth as it is.
    lines = [
        _labelled(replace(line, band=None), "success rate", "under")
        for _, line in read_lines(con, drawn, [rate], 0)
    ]
    mean = f"mean of {verdicts.STEPS} steps"
    lines += [_labelled(line, mean) for _, line in read_lines(con, drawn, [_DERIVED + "mean"], 0)]
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
    lines = [
        _labelled(line, "$") for _, line in read_lines(con, drawn, [_DERIVED + "cost_per_correct"], smooth)
    ]
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


def _of(each: _Asked, answers: _Answers) -> str:
    return f"{each.label}: " if len(answers.by_run) > 1 else ""


def _labelled(line: Line, label: str, style: str = "") -> Line:
    return replace(line, label=label, style=style)
