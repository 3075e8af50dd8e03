"""One row of the table: what was measured of whom, in numbers, and how these stand to what is aimed at.

Invariants
----------
* `what` and `peer` are the same in every run, whatever the sizes: programs find a row by them.
* The unit ends a number's name: `p50_us`, `peak_mb`, `records_per_s`. A name without one counts something.
* A row without numbers says why it has none.

Nothing is measured here, and nothing printed.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Aim:
    """What a row should come to, in words, and whether it did."""

    text: str
    is_met: bool


@dataclass(frozen=True)
class Row:
    what: str
    peer: str
    values: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    """To what `of` names, measured in the same run."""
    of: str = "floor"
    aims: tuple[Aim, ...] = ()
    size: str = ""
    """How much was measured, in words."""
    skipped: str = ""
    """Why there are no numbers."""


def at_most(value: float, limit: float, text: str) -> Aim:
    """
    >>> at_most(4.2, 5, "≤ 5 × floor")
    Aim(text='≤ 5 × floor', is_met=True)
    """
    return Aim(text, value <= limit)


def at_least(value: float, limit: float, text: str) -> Aim:
    return Aim(text, value >= limit)


def percentile(ordered: list[float], percent: int) -> float:
    """Return the value below which so many percent of some sorted numbers lie.

    >>> percentile([float(i) for i in range(200)], 99)
    198.0
    """
    return ordered[len(ordered) * percent // 100]
