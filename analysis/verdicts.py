"""Three questions about a training that mixes problems, asks a judge and pays for both, and what their answers say.

Invariants
----------
* What is counted is a macro's to say (`dataset_gap`, `judge_health`, `cost_efficiency`); here is which metrics it needs, what
  is shown of it, and one sentence about it.
* A verdict is a pure function of the rows: a report says the same as the command.

Nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from analysis.naming import NotFound, Run, keys_of, nearest

if TYPE_CHECKING:
    import duckdb

Rows = Sequence[tuple[Any, ...]]

# Less than this, over the whole run, is noise.
_CHANGE_MIN = 0.5
STEPS = 10


@dataclass(frozen=True, slots=True)
class Question:
    needs: tuple[str, ...]
    """The metrics that a run has to log, at the same step."""
    query: str
    """With $run, $project, and perhaps $steps."""
    drawn: tuple[str, ...]
    """The columns that are a curve over the steps."""
    verdict: Callable[[Rows], str]
    """One sentence or two about all of its rows, of which there is one at least."""


def refuse_without(con: duckdb.DuckDBPyConnection, run: Run, question: Question) -> None:
    """Raise, with what is lacking, if the run did not log what the question is about."""
    known = keys_of(con, [run])
    needed = " and ".join(map(repr, question.needs))
    lacking = [key for key in question.needs if key not in known]
    if lacking:
        raise NotFound(
            f"{run.full} did not log {' and '.join(map(repr, lacking))}. This needs {needed}"
            f"{' at the same step' if len(question.needs) > 1 else ''}. {nearest(lacking[0], known)}"
        )
    of_each = " of each" if len(question.needs) > 1 else ""
    raise NotFound(f"{run.full} logged {needed}, but no step has a finite number{of_each}.")


def _gap(rows: Rows) -> str:
    """
    >>> _gap([(0, 80.0, 30.0, 50.0, None), (10, 84.0, 38.0, 46.0, -0.4), (20, 85.2, 42.1, 43.1, -0.345)])
    'MATH is 43.1 percentage points behind GSM8K at step 20 (42.1 % against 85.2 %). Since step 0 the gap shrinks by 3.45 points every 10 steps.'
    >>> _gap([(3, 50.0, 52.5, -2.5, None)])
    'MATH is 2.5 percentage points ahead of GSM8K at step 3 (52.5 % against 50 %).'
    """
    step, gsm8k, math, gap, _ = rows[-1]
    where = "behind" if gap >= 0 else "ahead of"
    said = f"MATH is {abs(gap):.3g} percentage points {where} GSM8K at step {step} ({math:.3g} % against {gsm8k:.3g} %)."
    if len(rows) == 1:
        return said
    first = rows[0][0]
    slope = linear_regression([row[0] for row in rows], [row[3] for row in rows]).slope
    if abs(slope * (step - first)) < _CHANGE_MIN:
        return f"{said} Since step {first} the gap has hardly changed."
    # Of the signed gap: where MATH is ahead, it shrinks by growing.
    verb = "shrinks" if (slope < 0) == (gap >= 0) else "grows"
    return f"{said} Since step {first} the gap {verb} by {abs(slope) * 10:.3g} points every 10 steps."


def _judge(rows: Rows) -> str:
    """
    >>> _judge([(0, 0.9, 0.9, False), (1, 0.7, 0.8, True), (2, 0.75, 0.783, True)])
    'The judge answers too seldom at 2 of 3 steps, first at step 1: its success rate is below 0.8. The moving mean is 0.783 by now, at step 2.'
    >>> _judge([(0, 0.9, 0.9, False)])
    'The judge is well: its success rate is 0.8 or more at all of 1 step. The moving mean is 0.9 by now, at step 0.'
    """
    step, _, mean, _ = rows[-1]
    bad = [row[0] for row in rows if row[3]]
    steps = f"{len(rows)} step{'s' if len(rows) > 1 else ''}"
    now = f"The moving mean is {mean:.3g} by now, at step {step}."
    if bad:
        return f"The judge answers too seldom at {len(bad)} of {steps}, first at step {bad[0]}: its success rate is below 0.8. {now}"
    return f"The judge is well: its success rate is 0.8 or more at all of {steps}. {now}"


def _cost(rows: Rows) -> str:
    """
    >>> _cost([(7, 0.012, 60.0, 0.02), (9, 0.015, 50.0, 0.03), (8, 0.01, 0.0, None)])
    'A right answer is cheapest at step 7: $0.02, by $0.012 a sample of which 60 % are right. At the last step, 9, it is $0.03.'
    >>> _cost([(8, 0.01, 0.0, None)])
    'No step has a right answer, so none has a price.'
    """
    priced = [row for row in rows if row[3] is not None]
    if not priced:
        return "No step has a right answer, so none has a price."
    step, cost, accuracy, price = priced[0]
    last = max(priced)
    said = f"A right answer is cheapest at step {step}: ${price:.3g}, by ${cost:.3g} a sample of which {accuracy:.3g} % are right."
    return said if last[0] == step else f"{said} At the last step, {last[0]}, it is ${last[3]:.3g}."


GAP = Question(
    ("dataset/gsm8k/accuracy", "dataset/math/accuracy"),
    # In points a step, of this step and those before it.
    """SELECT * EXCLUDE (slope), CASE WHEN isfinite(slope) THEN slope END AS trend FROM (
    SELECT step, gsm8k, math, gap, regr_slope(gap, step) OVER (
        ORDER BY step ROWS BETWEEN $steps::BIGINT - 1 PRECEDING AND CURRENT ROW) AS slope
    FROM dataset_gap($run) WHERE project = $project) ORDER BY step""",
    ("gap",),
    _gap,
)
JUDGE = Question(
    ("judge/success_rate",),
    """SELECT step, success_rate, mean, is_bad
FROM judge_health($run, steps := $steps::BIGINT) WHERE project = $project ORDER BY step""",
    ("mean",),
    _judge,
)
COST = Question(
    ("cost/avg_cost_per_sample", "train/accuracy"),
    "SELECT step, cost, accuracy, cost_per_correct FROM cost_efficiency($run) WHERE project = $project "
    "ORDER BY cost_per_correct NULLS LAST, step",
    ("cost_per_correct",),
    _cost,
)
