"""Trajectories and statistics → the metrics of a row, under the names that dashboards rely on.

Invariants
----------
* A mean over nothing is not logged: the key is absent, never 0 and never NaN. Values that are not finite themselves
  (the KL of a policy that ran away) show as they are, and never raise.
* Rewards, their spread and accuracies are in the task's own unit (a fraction 0–1 for the calculator).
* `rollouts/returns_std` is the unbiased standard deviation (n - 1), as in torch.

Plain numbers in, dicts out: no tensor, model, clock or log here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eventlog import Trajectory

Metrics = dict[str, float]


@dataclass(frozen=True)
class Totals:
    """What accumulates over a whole training; kept in the checkpoint."""

    optimiser_steps: int = 0
    batches: int = 0  # that were rolled out and learnt from
    rollouts: int = 0
    invalid_losses: int = 0
    best_mean_return: float | None = None

    def with_rollouts(self, trajectories: Sequence[Trajectory]) -> Totals:
        mean_return = _mean(_returns(trajectories))
        best = mean_return if self.best_mean_return is None else max(self.best_mean_return, mean_return)
        return replace(self, rollouts=self.rollouts + len(trajectories), best_mean_return=best)


@dataclass(frozen=True)
class UpdateStats:
    """One optimiser step that was taken."""

    loss: float
    kl: float
    grad_norm: float  # before clipping
    learning_rate: float


def rollout_metrics(trajectories: Sequence[Trajectory], kl: Sequence[float], totals: Totals) -> Metrics:
    """Return `rollouts/*`; `kl` is k3 of each sampled token, and `totals` counts these trajectories."""
    returns = _returns(trajectories)
    advantages = [t.advantage for t in trajectories if t.advantage is not None]
    return {
        "rollouts/returns_sum": sum(returns),
        **_prefixed("rollouts/returns", returns, "mean std max min"),
        **_optional("rollouts/returns_best_mean", totals.best_mean_return),
        **_prefixed("rollouts/kl", kl, "mean std max"),
        **_prefixed("rollouts/advantages", advantages, "mean std"),
        "rollouts/total_rollouts": totals.rollouts,
        "rollouts/batch_step": totals.batches,
    }


def batch_return_metrics(trajectories: Sequence[Trajectory]) -> Metrics:
    """Return `batch_returns/*`: how the returns of one rollout batch are spread, and how many groups teach nothing."""
    returns = _returns(trajectories)
    if not returns:
        return {}
    groups: dict[str | None, set[float]] = {}
    for trajectory, value in zip(trajectories, returns, strict=True):
        groups.setdefault(trajectory.group, set()).add(value)
    return {
        **_prefixed("batch_returns", returns, "mean std min max", separator="/"),
        "batch_returns/p10": _percentile(returns, 10),
        "batch_returns/p50": _percentile(returns, 50),
        "batch_returns/p90": _percentile(returns, 90),
        "batch_returns/nonzero_fraction": sum(r != 0 for r in returns) / len(returns),
        "batch_returns/zero_std_group_fraction": sum(len(g) == 1 for g in groups.values()) / len(groups),
    }


def update_metrics(update: UpdateStats | None) -> Metrics:
    """Return `training_step/*` of one optimiser step; nothing if it was skipped."""
    if update is None:
        return {}
    return {
        "training_step/loss": update.loss,
        "training_step/kl": update.kl,
        "training_step/grad_norm": update.grad_norm,
        "training_step/learning_rate": update.learning_rate,
    }


def epoch_metrics(updates: Sequence[UpdateStats]) -> Metrics:
    """Return `training_epoch/*` of one pass over a rollout batch."""
    grad_norms = [u.grad_norm for u in updates]
    return {
        **_prefixed("training_epoch/loss", [u.loss for u in updates], "mean std"),
        **_prefixed("training_epoch/kl", [u.kl for u in updates], "mean std"),
        **_prefixed("training_epoch/grad_norm", grad_norms, "mean max"),
    }


def eval_metrics(trajectories: Sequence[Trajectory]) -> Metrics:
    """Return `eval/*`: the mean reward and the means of what the task measured."""
    rows = [{"reward": t.reward, **t.metrics} for t in trajectories if t.reward is not None]
    means: Metrics = {}
    for key in rows[0] if rows else ():
        means[f"eval/{key}"] = _mean([row[key] for row in rows])
    return means | {"eval/n_trajectories": len(rows)}


def final_metrics(totals: Totals) -> Metrics:
    """Return `final/*`, once, at the end."""
    return {
        "final/total_steps": totals.optimiser_steps,
        "final/total_batches": totals.batches,
        "final/total_rollouts": totals.rollouts,
        **_optional("final/best_mean_return", totals.best_mean_return),
    }


def _returns(trajectories: Sequence[Trajectory]) -> list[float]:
    return [t.reward for t in trajectories if t.reward is not None]


def _prefixed(prefix: str, values: Sequence[float], names: str, separator: str = "_") -> Metrics:
    if not values:
        return {}
    mean = _mean(values)
    found: Metrics = {"mean": mean, "max": max(values), "min": min(values)}
    if len(values) > 1:
        # Not the statistics module: it raises on the infinite KL of a policy that ran away, which is what to show.
        found["std"] = math.sqrt(sum((v - mean) * (v - mean) for v in values) / (len(values) - 1))
    return {f"{prefix}{separator}{name}": found[name] for name in names.split() if name in found}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile with linear interpolation, as in NumPy."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def _optional(key: str, value: float | None) -> Metrics:
    return {} if value is None else {key: value}
