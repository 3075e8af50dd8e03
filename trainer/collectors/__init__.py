"""Trajectories and optimiser steps → the metrics of a row, under the names that dashboards rely on.

`grpo` has the loop's own, which every recipe logs; the other modules have those of one recipe each.

Invariants
----------
* A mean over nothing is not logged: the key is absent, never 0 and never NaN. Values that are not finite themselves
  (the KL of a policy that ran away) show as they are, and never raise.
* A trajectory is finished if it has no exception. Only finished ones count, but where exceptions are what is counted.
* What accumulates is in `state()`, which a checkpoint keeps: a resumed training logs what an unbroken one would.

Plain numbers in, dicts out: no tensor, model, clock or log in this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventlog import Trajectory

Metrics = dict[str, Any]


@dataclass(frozen=True)
class At:
    """Where in a training something happens; all count from 0."""

    global_step: int  # the row of the log: optimiser steps, taken or skipped
    batch_step: int
    batches_per_epoch: int
    n_batches: int

    @property
    def epoch(self) -> int:
        return self.batch_step // self.batches_per_epoch

    @property
    def epoch_step(self) -> int:
        return self.batch_step % self.batches_per_epoch

    @property
    def is_epochs_last(self) -> bool:
        return self.epoch_step == self.batches_per_epoch - 1 or self.batch_step == self.n_batches - 1

    @property
    def is_final(self) -> bool:
        """After the last update, where only evaluations are."""
        return self.batch_step >= self.n_batches


@dataclass(frozen=True)
class UpdateStats:
    """One optimiser step that was taken."""

    policy: float
    kl_part: float  # of the loss: weighed
    kl: float  # mean k3 over the sampled tokens
    clip_fraction: float
    entropy: float  # mean -log-prob over the sampled tokens: an estimate, from the tokens that were drawn
    grad_norm: float  # before clipping
    learning_rate: float

    @property
    def loss(self) -> float:
        return self.policy + self.kl_part


class Collector:
    """What a recipe logs beside the loop's own.  This one logs nothing: a recipe's overrides what it needs."""

    units: Mapping[str, str] = {}
    """Metric → unit, where a reader could take it for another: a fraction, a percentage, ms."""
    axes: Mapping[str, str] = {}
    """Metric, or glob → the metric that is its x axis."""

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        """Return what the first row of a rollout batch says of it."""
        return {}

    def of_update(self, at: At, update: UpdateStats | None, is_batchs_last: bool) -> Metrics:
        """Return what the row of an optimiser step says of it; None: it was skipped."""
        return {}

    def of_evaluation(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        """Return what an evaluation says: of the policy after `at.global_step` updates."""
        return {}

    def of_process(self, at: At) -> Metrics:
        """Return what each rank logs of itself with every row."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what accumulated, as plain values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""


def finished(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    return [t for t in trajectories if t.exception is None]


def returns_of(trajectories: Sequence[Trajectory]) -> list[float]:
    return [t.reward for t in trajectories if t.exception is None and t.reward is not None]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def std(values: Sequence[float], *, unbiased: bool) -> float:
    """Return the standard deviation: over n - 1, as torch's, or over n, as NumPy's."""
    # Not the statistics module: it raises on the infinite KL of a policy that ran away, which is what to show.
    middle = mean(values)
    return math.sqrt(sum((v - middle) * (v - middle) for v in values) / (len(values) - unbiased))


def means(prefix: str, rows: Sequence[Mapping[str, float | None]]) -> Metrics:
    """Return the mean of each key over the rows that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if value is not None:
                columns.setdefault(key, []).append(value)
    return {f"{prefix}{key}": mean(values) for key, values in columns.items()}
