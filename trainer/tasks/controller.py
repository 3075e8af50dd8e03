"""Choosing, for each sample and its latency budget, how much of an adaptive model to run.

    Sample: 14 links in 64 tokens. Budget: 45 percent … Family: chain     depth 3 exit 0.8 tokens 16

The policy reads what is known of a sample before it is run, and writes the three knobs as its one turn. The adaptive
model (`trainer.adaptive`) then answers the sample with these knobs, and

    reward = accuracy - budget_penalty
    budget_penalty = violation_weight · min(latency / budget, 2) if latency > budget, else 0

with accuracy 1 or 0, and the budget a share of the full model's latency. At the default weight of 1 no decision over
budget is worth more than a wrong answer within it: the budget is a constraint, and a larger overrun costs more, up to 2.

Invariants
----------
* A turn without knobs within their bounds is a decision too: no answer (accuracy 0) for the full model's latency,
  counted by `unparsable`.
* The same knobs on the same sample have the same reward (the latency is the testbed's, one for each kind of run).
* Demonstrations follow a rule of thumb that knows no budget: a layer more than the family's longest chain, all tokens,
  no exit; and some knobs at random, so that a group has something to compare. Accurate and dear: what to spend is for
  the training to find. So a warm-up has a number of steps, not a target.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eventlog import Turn
from trainer.adaptive import FAMILIES, N_TOKENS, Knobs, Sample, Testbed, draw_sample
from trainer.tasks import Grade

# A latency twice the budget or more is penalised alike: one wild decision should not outweigh a group.
OVERRUN_MAX = 2.0

EXITS = ("0.5", "0.8", "0.9", "1")
TOKENS = (8, 16, 24, 32, 64)
# Of the knobs that are demonstrated; the others follow the rule of thumb.
RANDOM_SHARE = 0.4


@dataclass(frozen=True)
class Problem:
    sample: Sample
    budget_percent: int  # of the full model's latency


def draw_problems(n: int, families: Sequence[str], budgets: Sequence[int], seed: int) -> list[Problem]:
    """Return `n` problems, the same ones for the same arguments."""
    rng = random.Random(f"controller problems {seed}")
    return [Problem(draw_sample(rng, rng.choice(families)), rng.choice(budgets)) for _ in range(n)]


_KNOBS = re.compile(r"depth (\d{1,3}) exit (1(?:\.0+)?|0?\.\d{1,4}) tokens (\d{1,4})(?!\d)")


def parse_knobs(text: str, n_layers: int) -> Knobs | None:
    """Return the last knobs in a text, if they are within their bounds.

    >>> parse_knobs("depth 3 exit 0.8 tokens 16", n_layers=5)
    Knobs(depth=3, exit=0.8, tokens=16)
    >>> parse_knobs("depth 9 exit 0.8 tokens 16", n_layers=5)
    """
    found = _KNOBS.findall(text)
    if not found:
        return None
    knobs = Knobs(int(found[-1][0]), float(found[-1][1]), int(found[-1][2]))
    within = 1 <= knobs.depth <= n_layers and knobs.exit > 0.0 and 1 <= knobs.tokens <= N_TOKENS
    return knobs if within else None


def budget_penalty(latency_ms: float, budget_ms: float, weight: float) -> float:
    """Return what a decision pays for its latency.

    >>> budget_penalty(0.9, 1.0, 1.0), budget_penalty(1.5, 1.0, 1.0), budget_penalty(9.0, 1.0, 1.0)
    (0.0, 1.5, 2.0)
    """
    return weight * min(latency_ms / budget_ms, OVERRUN_MAX) if latency_ms > budget_ms else 0.0


class ControllerTask:
    """One turn: the knobs.  Reward: the accuracy that they gave, less a penalty for what was over budget."""

    concurrency = 1
    tools: Sequence[dict[str, Any]] = ()

    def __init__(self, testbed: Testbed, n_layers: int, violation_weight: float, seed: int) -> None:
        self._testbed = testbed
        self._n_layers = n_layers
        self._violation_weight = violation_weight
        self._seed = seed

    def opening(self, problem: Problem) -> list[Turn]:
        sample = problem.sample
        return [
            Turn(
                role="user",
                # What differs stands last and near to the answer, where a tiny model learns soonest to look.
                content=f"Choose how much of an adaptive model to run: its depth (1 to {self._n_layers} layers), the "
                "confidence at which a layer's answer is taken (up to 1: never), and how many tokens are kept (1 to "
                f"{N_TOKENS}). Write only, for example: depth 2 exit 0.8 tokens 16\n"
                f"Sample: {sample.n_links} links in {len(sample.tokens)} tokens. "
                f"Budget: {problem.budget_percent} percent of the full latency. Family: {sample.family}",
            )
        ]

    def respond(self, problem: Problem, turns: Sequence[Turn]) -> list[Turn]:
        return []

    def grade(self, problem: Problem, turns: Sequence[Turn]) -> Grade:
        full_ms = self._testbed.full_ms
        budget_ms = full_ms * problem.budget_percent / 100
        knobs = parse_knobs(turns[-1].content, self._n_layers)
        accuracy, latency_ms, used = 0.0, full_ms, {}
        info: dict[str, Any] = {
            "family": problem.sample.family,
            "budget_percent": problem.budget_percent,
            "expected": problem.sample.path[-1],
        }
        if knobs is not None:
            ran, latency_ms = self._testbed.run(problem.sample, knobs)
            accuracy = float(ran.answer == problem.sample.path[-1])
            used = {"layers": float(ran.layers), "tokens": float(ran.tokens)}
            info |= {"answer": ran.answer, "knobs": vars(knobs)}
        penalty = budget_penalty(latency_ms, budget_ms, self._violation_weight)
        metrics = {
            "accuracy": accuracy,
            "latency_ms": latency_ms,
            "budget_ms": budget_ms,
            "budget_violation": float(latency_ms > budget_ms),
            "unparsable": float(knobs is None),
            **used,
        }
        rewards = {"accuracy": accuracy, "budget_penalty": -penalty}
        return Grade(accuracy - penalty, metrics, info, rewards)

    def demonstrate(self, problem: Problem) -> list[Turn]:
        rng = random.Random(f"demonstration {self._seed} {problem}")
        depths = range(1, self._n_layers + 1)
        enough = min(FAMILIES[problem.sample.family][1] + 1, self._n_layers)
        depth = rng.choice(depths) if rng.random() < RANDOM_SHARE else enough
        exit_at = rng.choice(EXITS) if rng.random() < RANDOM_SHARE else EXITS[-1]
        tokens = rng.choice(TOKENS) if rng.random() < RANDOM_SHARE else TOKENS[-1]
        said = f"depth {depth} exit {exit_at} tokens {tokens}"
        return [*self.opening(problem), Turn(role="assistant", content=said)]
