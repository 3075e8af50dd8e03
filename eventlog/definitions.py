"""What `define_metric` says of a metric: over which x axis W&B shows it, and which statistics are its summary.

Invariants
----------
* A call that is no definition raises before anything is recorded.
* The record holds what was given, in today's words: `best`, of W&B's older clients, is the maximum or the minimum,
  whichever the goal is.

Pure: what the statistics come to is made of the log, in `outcome` for the training script.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_SUMMARIES = frozenset({"min", "max", "mean", "best", "last", "first", "copy", "none"})
_GOALS = (None, "maximize", "minimize")


class Metric(NamedTuple):
    """What `define_metric` was told; it need not be kept."""

    name: str
    step_metric: str | None = None
    step_sync: bool = False
    hidden: bool | None = None
    summary: tuple[str, ...] | None = None
    goal: str | None = None


def defined(
    name: str,
    step_metric: str | Metric | None,
    step_sync: bool | None,
    hidden: bool | None,
    summary: str | None,
    goal: str | None,
    overwrite: bool | None,
) -> tuple[Metric, dict[str, Any]]:
    """Return the metric and the data of its `define_metric` record, or raise `TypeError` or `ValueError`."""
    if not isinstance(name, str) or not name:
        raise TypeError(f'the name of a metric is a string, as in define_metric("eval/*"), not {name!r}.')
    if "*" in name[:-1]:
        raise ValueError(f"a metric's name may have one * at its end, not {name!r}.")
    if isinstance(step_metric, Metric):
        step_metric = step_metric.name
    if step_metric is not None and (not isinstance(step_metric, str) or "*" in step_metric):
        raise ValueError(f"step_metric is the name of one metric, not {step_metric!r}.")
    if goal not in _GOALS:
        raise ValueError(f'goal is "maximize" or "minimize", not {goal!r}.')
    words = _statistics_of(summary, goal)
    options = {
        "step_metric": step_metric,
        "step_sync": step_sync,
        "hidden": hidden,
        "summary": words,
        "goal": goal,
        "overwrite": overwrite,
    }
    given = {key: value for key, value in options.items() if value is not None}
    syncs = step_metric is not None if step_sync is None else step_sync
    metric = Metric(name, step_metric, syncs, hidden, None if words is None else tuple(words), goal)
    return metric, {"name": name, **given}


def _statistics_of(summary: str | None, goal: str | None) -> list[str] | None:
    if summary is None:
        return None
    words = [word.strip().lower() for word in str(summary).split(",")]
    for word in words:
        if word not in _SUMMARIES:
            raise ValueError(f"summary is a comma list of {', '.join(sorted(_SUMMARIES))}, not {summary!r}.")
    best = "max" if goal == "maximize" else "min"
    return list(dict.fromkeys(best if word == "best" else word for word in words))
