"""`Train/*` and `Val/*` of the joint controller: one point of each curve per epoch, over the axis `epoch`.

    of epoch e    Train/Loss                     mean loss of its optimiser steps
                  Train/Reward_Mean, _Std        of every decision that was sampled in it
                  Train/Accuracy_Mean, _Std      fraction 0-1
                  Train/Latency_Mean, _Std       ms, of the configuration that was chosen
                  Train/Budget_Violation_Rate    fraction of decisions with latency > budget
                  Train/Unparsable_Count         decisions that named no knobs
    before it     Val/…_Mean, Val/Budget_Violation_Rate, Val/Unparsable_Count: the greedy choice on held-out samples

So `Val/*` at epoch e is of the policy after e epochs, as `eval/*` at step n is after n updates; the last point is that
of the trained policy, and has no `Train/*`. A standard deviation is the population's (over n), as NumPy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from eventlog import Trajectory
from trainer.collectors import At, Collector, Metrics, UpdateStats, finished, mean, std

# What a grade measured → how its curves are called.
_CURVES = {"reward": "Reward", "accuracy": "Accuracy", "latency_ms": "Latency"}
_COLUMNS = (*_CURVES, "budget_violation", "unparsable")


class Kept(Protocol):
    """What else a resumed training must find as it was: the adaptive model, and what its latencies were measured as."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Controller(Collector):
    units: Mapping[str, str] = {
        **{
            f"{part}/Accuracy_{what}": "fraction 0-1" for part in ("Train", "Val") for what in ("Mean", "Std")
        },
        **{f"{part}/Latency_{what}": "ms" for part in ("Train", "Val") for what in ("Mean", "Std")},
        **{f"{part}/Budget_Violation_Rate": "fraction 0-1" for part in ("Train", "Val")},
    }
    axes: Mapping[str, str] = {"Train/*": "epoch", "Val/*": "epoch"}

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._losses: list[float] = []
        self._decisions: dict[str, list[float]] = {column: [] for column in _COLUMNS}

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        for column, values in _columns(trajectories).items():
            self._decisions[column] += values
        return {}

    def of_update(self, at: At, update: UpdateStats | None, is_batchs_last: bool) -> Metrics:
        if update is not None:
            self._losses.append(update.loss)
        if not (is_batchs_last and at.is_epochs_last):
            return {}
        row: Metrics = {"epoch": at.epoch, **_curves("Train", self._decisions, spread=True)}
        if self._losses:
            row["Train/Loss"] = mean(self._losses)
        self._losses, self._decisions = [], {column: [] for column in _COLUMNS}
        return row

    def of_evaluation(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        # A training may end within an epoch: what it ended with comes after that epoch's beginning.
        epoch = -(-at.batch_step // at.batches_per_epoch) if at.is_final else at.epoch
        if at.epoch_step and not at.is_final:
            return {}
        return {"epoch": epoch, **_curves("Val", _columns(trajectories), spread=False)}

    def state(self) -> dict[str, Any]:
        decisions = {column: list(values) for column, values in self._decisions.items()}
        return {"losses": list(self._losses), "decisions": decisions, "kept": self._kept.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._losses = list(state["losses"])
        self._decisions = {column: list(values) for column, values in state["decisions"].items()}
        self._kept.restore(state["kept"])


def _columns(trajectories: Sequence[Trajectory]) -> dict[str, list[float]]:
    rows = [{"reward": t.reward, **t.metrics} for t in finished(trajectories) if t.reward is not None]
    return {column: [row[column] for row in rows] for column in _COLUMNS}


def _curves(part: str, decisions: Mapping[str, Sequence[float]], *, spread: bool) -> Metrics:
    if not decisions["reward"]:
        return {}
    row: Metrics = {}
    for column, name in _CURVES.items():
        row[f"{part}/{name}_Mean"] = mean(decisions[column])
        if spread:
            row[f"{part}/{name}_Std"] = std(decisions[column], unbiased=False)
    row[f"{part}/Budget_Violation_Rate"] = mean(decisions["budget_violation"])
    row[f"{part}/Unparsable_Count"] = int(sum(decisions["unparsable"]))
    return row
