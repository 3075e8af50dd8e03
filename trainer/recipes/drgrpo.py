"""Dr. GRPO on the calculator's problems: advantages are not divided by the group's std, tokens weigh 1 / L_max.

The parts of its loss are logged beside it, and add up to it. Source: Liu et al. 2025 (arXiv 2503.20783).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.collectors import Collector
from trainer.collectors.grpo import DrGrpo
from trainer.config import Variant
from trainer.recipes import calculator
from trainer.recipes.calculator import CalculatorSettings


@dataclass(frozen=True)
class DrGrpoSettings(CalculatorSettings):
    variant: Variant = "dr_grpo"
    critic_type: str = ""  # a word of your own for the run's config; there is no critic


def collectors_for(settings: DrGrpoSettings) -> Sequence[Collector]:
    return [DrGrpo()]


RECIPE = replace(
    calculator.RECIPE,
    name="drgrpo",
    project="drgrpo_experiment",
    settings=DrGrpoSettings,
    # Its tokens weigh less than GRPO's, by their share of L_max: the steps need not.
    quick={**calculator.QUICK, "lr": 5e-4},
    collectors=collectors_for,
)
