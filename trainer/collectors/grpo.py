"""The loop's own metrics, which every recipe logs: `rollouts/*`, `training_step/*`, `training_epoch/*` and their kin.

Rewards, their spread and accuracies are in the task's own unit (a fraction 0-1 for the calculator).
`rollouts/returns_std` is the unbiased standard deviation (n - 1), as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eventlog import Table, Trajectory
from trainer.collectors import At, Collector, Metrics, UpdateStats, finished, mean, means, returns_of, std


@dataclass(frozen=True)
class Totals:
    """What accumulates over a whole training; kept in the checkpoint."""

    optimiser_steps: int = 0
    batches: int = 0  # that were rolled out and learnt from
    rollouts: int = 0
    invalid_losses: int = 0
    exceptions: int = 0
    best_mean_return: float | None = None

    def with_rollouts(self, trajectories: Sequence[Trajectory]) -> Totals:
        returns = returns_of(trajectories)
        best = self.best_mean_return
        if returns:
            best = mean(returns) if best is None else max(best, mean(returns))
        return replace(
            self,
            rollouts=self.rollouts + len(trajectories),
            exceptions=self.exceptions + len(trajectories) - len(finished(trajectories)),
            best_mean_return=best,
        )


def rollout_metrics(trajectories: Sequence[Trajectory], kl: Sequence[float], totals: Totals) -> Metrics:
    """Return `rollouts/*`; `kl` is k3 of each sampled token, and `totals` counts these trajectories."""
    returns = returns_of(trajectories)
    advantages = [t.advantage for t in finished(trajectories) if t.advantage is not None]
    return {
        **({"rollouts/returns_sum": sum(returns)} if returns else {}),
        **_spread("rollouts/returns_", returns, "mean std max min"),
        **_optional("rollouts/returns_best_mean", totals.best_mean_return),
        **_spread("rollouts/kl_", kl, "mean std max"),
        **_spread("rollouts/advantages_", advantages, "mean std"),
        "rollouts/total_rollouts": totals.rollouts,
        "rollouts/exceptions": len(trajectories) - len(finished(trajectories)),
        "rollouts/batch_step": totals.batches,
    }


def batch_return_metrics(trajectories: Sequence[Trajectory]) -> Metrics:
    """Return `batch_returns/*`: how the returns of one rollout batch are spread, and how many groups teach nothing."""
    groups: dict[str | None, set[float]] = {}
    for trajectory in finished(trajectories):
        if trajectory.reward is not None:
            groups.setdefault(trajectory.group, set()).add(trajectory.reward)
    returns = returns_of(trajectories)
    if not returns:
        return {}
    return {
        **_spread("batch_returns/", returns, "mean std min max"),
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
        "training_step/clip_fraction": update.clip_fraction,
        "training_step/entropy": update.entropy,
    }


def epoch_metrics(updates: Sequence[UpdateStats]) -> Metrics:
    """Return `training_epoch/*` of one pass over a rollout batch."""
    return {
        **_spread("training_epoch/loss_", [u.loss for u in updates], "mean std"),
        **_spread("training_epoch/kl_", [u.kl for u in updates], "mean std"),
        **_spread("training_epoch/grad_norm_", [u.grad_norm for u in updates], "mean max"),
    }


def eval_metrics(trajectories: Sequence[Trajectory]) -> Metrics:
    """Return `eval/*`: the mean reward and the means of what the task measured."""
    graded = [t for t in finished(trajectories) if t.reward is not None]
    return {
        **means("eval/", [{"reward": t.reward, **t.metrics} for t in graded]),
        "eval/n_trajectories": len(graded),
        "eval/exceptions": len(trajectories) - len(finished(trajectories)),
    }


def final_metrics(totals: Totals) -> Metrics:
    """Return `final/*`, once, at the end."""
    return {
        "final/total_steps": totals.optimiser_steps,
        "final/total_batches": totals.batches,
        "final/total_rollouts": totals.rollouts,
        **_optional("final/best_mean_return", totals.best_mean_return),
    }


class DrGrpo(Collector):
    """`dr_grpo/*`, and the parts of Dr. GRPO's loss: policy + kl is `training_step/loss`, exactly."""

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        advantages = [t.advantage for t in finished(trajectories) if t.advantage is not None]
        if not advantages:
            return {}
        middle, spread = mean(advantages), std(advantages, unbiased=False)
        row = {"dr_grpo/advantages_variance": spread * spread}
        if spread > 0.0:
            row["dr_grpo/advantages_skewness"] = mean([(a - middle) ** 3 for a in advantages]) / spread**3
        return row

    def of_update(self, at: At, update: UpdateStats | None, is_batchs_last: bool) -> Metrics:
        if update is None:
            return {}
        return {
            "training_step/dr_component_policy": update.policy,
            "training_step/dr_component_kl": update.kl_part,
            "training_step/dr_component_clip_fraction": update.clip_fraction,
        }


class Examples(Collector):
    """`examples/completion`: one conversation of each rollout batch, as a table of prompt, completion and return."""

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        done = finished(trajectories)
        if not done:
            return {}
        # The best one: what to look at first, and the same one when the step is done again.
        best = max(done, key=lambda t: -math.inf if t.reward is None else t.reward)
        n_given = next((i for i, turn in enumerate(best.turns) if turn.role == "assistant"), len(best.turns))
        table = Table(columns=["prompt", "completion", "return"])
        table.add_data(transcript(best.turns[:n_given]), transcript(best.turns[n_given:]), best.reward)
        return {"examples/completion": table}


def transcript(turns: Sequence[Any]) -> str:
    """Return turns as a person reads them: who, what was said, and what was called."""
    return "\n".join(
        " ".join(
            [f"{turn.role}:", turn.content, *(f"{c.name}({c.arguments})" for c in turn.tool_calls)]
        ).strip()
        for turn in turns
    )


def _spread(prefix: str, values: Sequence[float], names: str) -> Metrics:
    if not values:
        return {}
    found: Mapping[str, float] = {
        "mean": mean(values),
        "max": max(values),
        "min": min(values),
        **({"std": std(values, unbiased=True)} if len(values) > 1 else {}),
    }
    return {f"{prefix}{name}": found[name] for name in names.split() if name in found}


def _percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile with linear interpolation, as in NumPy."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def _optional(key: str, value: float | None) -> Metrics:
    return {} if value is None else {key: value}
