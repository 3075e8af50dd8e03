"""The calculator's recipe on the devices that accelerate finds: a GPU, several, or the CPU.

Alone it trains as `base` does; under `torchrun` or `accelerate launch` each process is a rank (see `trainer.compute`).
"""

from __future__ import annotations

from dataclasses import replace

from trainer.recipes import calculator

RECIPE = replace(calculator.RECIPE, name="accelerate", project="accelerate_grpo", compute="accelerate")
