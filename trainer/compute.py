"""Where the numbers are computed: one process, or the ranks that `accelerate launch` or `torchrun` started.

Each rank plays its share of a rollout batch's groups and learns from them; what they learn is summed before the
optimiser steps, so every rank holds the same policy at every step.

Invariants
----------
* A gradient is a sum over all ranks of losses that were weighed by what is known of the whole step
  (`algorithms.StepSize`): two ranks step as one process with both shares would, but for float rounding.
* Every rank makes the same calls here, in the same order, also with nothing to say: or they would wait for ever.
* Asked for ranks and not given them is an error. `accelerate launch --cpu --num_processes 2` starts one process and
  says nothing; `torchrun --nproc-per-node=2` starts two.

Alone, nothing here communicates, and nothing is imported for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from trainer.errors import SettingsError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Compute:
    """One process, on the GPU if there is one."""

    index = 0
    local_index = 0
    count = 1
    sync_gradients = True  # whether the last gradient was one to step on, and not a part of one

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's part; the parts differ in length by one at most."""
        return items

    def gather(self, items: list[T]) -> list[T]:
        """Return every rank's items, by rank."""
        return items

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """Make each gradient the sum of all ranks' gradients; a missing one counts as 0."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the ranks."""
        return list(values)

    def wait(self) -> None:
        """Return when every rank is here."""


class AcceleratedCompute(Compute):
    """The ranks that accelerate finds: one, or several that were launched together."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device = accelerator.device
        self.index = accelerator.process_index
        self.local_index = accelerator.local_process_index
        self.count = accelerator.num_processes

    @property
    def sync_gradients(self) -> bool:  # type: ignore[override]
        return bool(self.accelerator.sync_gradients)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        size, rest = divmod(len(items), self.count)
        start = self.index * size + min(self.index, rest)
        return items[start : start + size + (self.index < rest)]

    def gather(self, items: list[T]) -> list[T]:
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object(items)
        return gathered

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # One message for all of them: the ranks meet once for a step, not once for a tensor.
        flat = torch.cat([p.grad.flatten().float() for p in trained])
        summed = self.accelerator.reduce(flat, reduction="sum")
        for parameter, part in zip(trained, summed.split([p.numel() for p in trained]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def total(self, values: Sequence[float]) -> list[float]:
        if self.count == 1:
            return list(values)
        sums: list[float] = self.accelerator.reduce(
            torch.tensor(list(values), dtype=torch.float64, device=self.device), reduction="sum"
        ).tolist()
        return sums

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def compute_of(kind: str) -> Compute:
    """Return where a recipe computes: `single`, `accelerate` (any number of ranks) or `ddp` (at least two)."""
    if kind == "single":
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise SettingsError(
                f"{os.environ['WORLD_SIZE']} processes were launched, and this recipe trains in one. "
                "The recipe for several is accelerate_ddp."
            )
        return Compute()
    from accelerate import Accelerator

    # A GPU is taken where there is one; on CPUs the ranks talk by gloo.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if kind == "ddp" and accelerator.num_processes < 2:
        raise SettingsError(
            "this recipe trains in several processes, and was started as one. Start it by "
            "`torchrun --nproc-per-node=2 -m trainer train accelerate_ddp …`, or on GPUs by "
            "`accelerate launch --multi_gpu --num_processes=2 -m trainer train accelerate_ddp …` "
            "(`accelerate launch --cpu --num_processes 2` starts one process only)."
        )
    return AcceleratedCompute(accelerator)
