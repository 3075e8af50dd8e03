"""What a mixture of sources logs: accuracy by source, how the judge fared, and what it all costs.

    python -m trainer.collectors.mixture          a self test: prints the three summaries

Each collector also works alone: add samples, `get_metrics()`, `print_summary()`, `reset()`.

Invariants
----------
* `dataset/*/accuracy`, `val/*/accuracy` and `train/accuracy*` are percentages, 0-100; `judge/*` are fractions, 0-1,
  whose first three add up to 1. Costs are dollars.
* `dataset/*`, `judge/*` and `train/*` are of one rollout batch. `cost/*` is of all that the run paid for so far, its
  validations too, and survives a resume. (A warm-up's looks are no part of the log, nor of this.)
* A source, or a judge, that was not asked is not logged.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eventlog import Trajectory
from trainer.collectors import At, Collector, Metrics, finished, mean
from trainer.data.mixture import DOMAINS, SOURCES

_TRAIN_ACCURACIES = ("train/accuracy", *(f"train/accuracy_{d}" for d in sorted(set(DOMAINS.values()))))


class DatasetMetricsCollector(Collector):
    """`dataset/{source}/*` and `train/accuracy*` of a rollout batch, `val/{source}/*` of an evaluation."""

    units: Mapping[str, str] = {
        f"{prefix}/{s}/accuracy": "percent" for prefix in ("dataset", "val") for s in SOURCES
    } | dict.fromkeys(_TRAIN_ACCURACIES, "percent")
    axes: Mapping[str, str] = {
        "dataset/*": "train/step",
        "train/accuracy*": "train/step",
        "val/*": "global_step",
    }

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[bool, float]]] = {}

    def add_sample(self, source: str, correct: bool, reward: float | None = None) -> None:
        self._samples.setdefault(source, []).append((correct, float(correct) if reward is None else reward))

    def reset(self) -> None:
        self._samples = {}

    def get_metrics(self) -> Metrics:
        """Return what was added since the last `reset`."""
        row: Metrics = {}
        by_domain: dict[str, list[bool]] = {}
        for source, samples in self._samples.items():
            right = [correct for correct, _ in samples]
            row[f"dataset/{source}/accuracy"] = _percent(right)
            row[f"dataset/{source}/count"] = len(samples)
            row[f"dataset/{source}/avg_reward"] = mean([reward for _, reward in samples])
            by_domain.setdefault(DOMAINS.get(source, source), []).extend(right)
        if by_domain:
            row["train/accuracy"] = _percent([c for right in by_domain.values() for c in right])
        return row | {f"train/accuracy_{domain}": _percent(right) for domain, right in by_domain.items()}

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        self.reset()
        # In the order of the sources, not of the problems that were drawn: so is the summary.
        for source, reward in sorted(_graded(trajectories), key=lambda graded: SOURCES.index(graded[0])):
            self.add_sample(source, reward == 1.0, reward)
        return self.get_metrics() | {"train/step": at.batch_step}

    def of_evaluation(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        right: dict[str, list[bool]] = {}
        for source, reward in _graded(trajectories):
            right.setdefault(source, []).append(reward == 1.0)
        row: Metrics = {f"val/{source}/accuracy": _percent(r) for source, r in right.items()}
        return row | {f"val/{source}/count": len(r) for source, r in right.items()}

    def summary(self) -> str:
        lines = ["数据集统计摘要:"]
        for source, samples in self._samples.items():
            right = [correct for correct, _ in samples]
            lines.append(f"  {source:<15}: {sum(right):3}/{len(right):3} = {_percent(right):5.1f}%")
        return "\n".join(lines)

    def print_summary(self) -> None:
        _print(self.summary())


class JudgeMetricsCollector(Collector):
    """`judge/*` of a rollout batch: how often the judge could be asked and understood, and what it said."""

    axes: Mapping[str, str] = {"judge/*": "train/step"}
    units: Mapping[str, str] = {
        f"judge/{name}": "fraction"
        for name in (
            "success_rate",
            "parse_failure_rate",
            "api_failure_rate",
            "correct_ratio",
            "incorrect_ratio",
        )
    }

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._calls = dict.fromkeys(("correct", "incorrect", "parse_failure", "api_failure"), 0)

    def add_call(self, result: str) -> None:
        """Count one call: correct, incorrect, parse_failure or api_failure."""
        self._calls[result] += 1

    def add_stats(self, eval_stats: Mapping[str, int]) -> None:
        """Count the calls that a `RewardComputer.eval_stats` counted."""
        for result in self._calls:
            self._calls[result] += eval_stats.get(result, 0)

    @property
    def total(self) -> int:
        return sum(self._calls.values())

    @property
    def successes(self) -> int:
        return self._calls["correct"] + self._calls["incorrect"]

    def get_metrics(self) -> Metrics:
        """Return what was added since the last `reset`."""
        if not self.total:
            return {}
        row: Metrics = {
            "judge/success_rate": self.successes / self.total,
            "judge/parse_failure_rate": self._calls["parse_failure"] / self.total,
            "judge/api_failure_rate": self._calls["api_failure"] / self.total,
        }
        if self.successes:
            row["judge/correct_ratio"] = self._calls["correct"] / self.successes
            row["judge/incorrect_ratio"] = self._calls["incorrect"] / self.successes
        return row

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        self.reset()
        for trajectory in finished(trajectories):
            if "judge" in trajectory.info:
                self.add_call(trajectory.info["judge"]["result"])
        return self.get_metrics()

    def summary(self) -> str:
        rate = 100.0 * self.successes / self.total if self.total else 0.0
        return f"LLM Judge统计 (总计: {self.total} 次):\n  成功: {self.successes} ({rate:.1f}%)"

    def print_summary(self) -> None:
        _print(self.summary())


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens."""

    executor_prompt: float = 0.0
    executor_completion: float = 0.0
    judge_prompt: float = 0.0
    judge_completion: float = 0.0

    def of(self, trajectory: Trajectory) -> float:
        """Return what a trajectory cost: the policy's tokens, over all its turns, and its judge's."""
        judge = trajectory.info.get("judge") or {}
        millionths: float = (
            (trajectory.prompt_tokens or 0) * self.executor_prompt
            + (trajectory.completion_tokens or 0) * self.executor_completion
            + judge.get("prompt_tokens", 0) * self.judge_prompt
            + judge.get("completion_tokens", 0) * self.judge_completion
        )
        return millionths / 1e6


@dataclass
class _Spent:
    total_cost: float = 0.0
    samples: int = 0
    executor_calls: int = 0  # assistant turns: each is one request to the policy
    judge_calls: int = 0


class CostTracker(Collector):
    """`cost/*`, cumulative since the run began, and `val/{source}/avg_cost`."""

    axes: Mapping[str, str] = {"cost/*": "global_step"}
    units: Mapping[str, str] = {"cost/total_cost": "USD", "cost/avg_cost_per_sample": "USD"} | {
        f"val/{source}/avg_cost": "USD" for source in SOURCES
    }

    def __init__(self, prices: Prices | None = None) -> None:
        self._prices = prices or Prices()
        self._spent = _Spent()

    def add_sample(self, cost: float, *, executor_calls: int = 1, judge_calls: int = 0) -> None:
        self._spent.total_cost += cost
        self._spent.samples += 1
        self._spent.executor_calls += executor_calls
        self._spent.judge_calls += judge_calls

    def reset(self) -> None:
        self._spent = _Spent()

    def get_metrics(self) -> Metrics:
        spent = self._spent
        if not spent.samples:
            return {}
        return {
            "cost/total_cost": spent.total_cost,
            "cost/avg_cost_per_sample": spent.total_cost / spent.samples,
            "cost/executor_calls": spent.executor_calls,
            "cost/judge_calls": spent.judge_calls,
        }

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        self._add(trajectories)
        return self.get_metrics()

    def of_evaluation(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        self._add(trajectories)
        costs: dict[str, list[float]] = {}
        for trajectory in finished(trajectories):
            costs.setdefault(trajectory.info["source"], []).append(self._prices.of(trajectory))
        row: Metrics = {f"val/{source}/avg_cost": mean(values) for source, values in costs.items()}
        return row | self.get_metrics()

    def _add(self, trajectories: Sequence[Trajectory]) -> None:
        for trajectory in finished(trajectories):
            self.add_sample(
                self._prices.of(trajectory),
                executor_calls=sum(turn.role == "assistant" for turn in trajectory.turns),
                judge_calls=int("judge" in trajectory.info),
            )

    def state(self) -> dict[str, Any]:
        return asdict(self._spent)

    def restore(self, state: Mapping[str, Any]) -> None:
        self._spent = _Spent(**state)

    def summary(self) -> str:
        return f"成本统计:\n  总成本: ${self._spent.total_cost:.4f}"

    def print_summary(self) -> None:
        _print(self.summary())


def _print(text: str) -> None:
    # A terminal whose encoding has no Chinese must not end a training.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def _graded(trajectories: Sequence[Trajectory]) -> list[tuple[str, float]]:
    return [(t.info["source"], t.reward) for t in finished(trajectories) if t.reward is not None]


def _percent(right: Sequence[bool]) -> float:
    return 100.0 * sum(right) / len(right)


def self_test() -> None:
    """Feed the three collectors what is easy to check by hand, and print what they make of it."""
    datasets, judge, cost = DatasetMetricsCollector(), JudgeMetricsCollector(), CostTracker()
    for source, correct in [
        ("gsm8k", True),
        ("gsm8k", True),
        ("gsm8k", False),
        ("math", True),
        ("math", False),
    ]:
        datasets.add_sample(source, correct)
    judge.add_stats({"correct": 60, "incorrect": 25, "parse_failure": 10, "api_failure": 5})
    for dollars in (0.015, 0.02):
        cost.add_sample(dollars, judge_calls=1)
    for collector in (datasets, judge, cost):
        collector.print_summary()


if __name__ == "__main__":
    self_test()
