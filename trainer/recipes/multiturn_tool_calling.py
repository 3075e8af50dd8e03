"""The calculator's recipe with an example of each batch: `examples/completion` shows its best conversation.

What is real, and what is small, is said in `trainer.recipes.calculator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainer.collectors import Collector
from trainer.collectors.grpo import Examples
from trainer.recipes import calculator
from trainer.recipes.calculator import CalculatorSettings


def collectors_for(settings: CalculatorSettings) -> Sequence[Collector]:
    return [Examples()]


RECIPE = replace(calculator.RECIPE, name="multiturn_tool_calling", collectors=collectors_for)
