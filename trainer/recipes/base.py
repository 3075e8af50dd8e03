"""GRPO as tiny-grpo has it, on the calculator's problems: the plain recipe that the others differ from.

What is real, and what is small, is said in `trainer.recipes.calculator`; this differs from it in the project's name.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.recipes import calculator

RECIPE = replace(calculator.RECIPE, name="base", project="tiny_grpo")
