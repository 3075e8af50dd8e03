"""The calculator's recipe in several processes, each of which plays and learns from its share of every batch.

    torchrun --nproc-per-node=2 -m trainer train accelerate_ddp --quick --run-name pair

Every rank logs its own trajectories and its place (`ddp/*`); the rows of the whole training are the first rank's. On
CPUs the ranks talk by gloo. `accelerate launch --cpu` starts one process only, whatever it is asked for; that is
refused.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.recipes import calculator

RECIPE = replace(calculator.RECIPE, name="accelerate_ddp", project="grpo_accelerate_ddp", compute="ddp")
