"""What an episode is about: the opening, the tools, the reward.  One module for each task.

A task knows no model, token or log: it reads and writes turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eventlog import Turn


@dataclass(frozen=True)
class Grade:
    reward: float
    metrics: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    """For whoever reads the trajectory: what was expected, where the problem is from, what a judge said."""
    rewards: dict[str, float] = field(default_factory=dict)
    """The parts that `reward` is made of, by name."""


class Task(Protocol):
    """Each method may raise: the episode is then over, its trajectory has the exception, and no reward."""

    tools: Sequence[dict[str, Any]]
    """The JSON schemas (OpenAI's function format) that a pretrained model is told of."""
    concurrency: int
    """How many episodes may be answered and graded at once: more than 1 where that waits for a network."""

    def opening(self, problem: Any) -> list[Turn]:
        """Return the turns before the policy's first one."""
        ...

    def respond(self, problem: Any, turns: Sequence[Turn]) -> list[Turn]:
        """Run the tools that the last turn called, and return their answers; nothing means the episode is over.

        Results, errors and durations are also written into the calls themselves.
        """
        ...

    def grade(self, problem: Any, turns: Sequence[Turn]) -> Grade:
        """Return the reward of a whole episode."""
        ...

    def demonstrate(self, problem: Any) -> list[Turn]:
        """Return an episode that earns the full reward: what a warm-up imitates."""
        ...
