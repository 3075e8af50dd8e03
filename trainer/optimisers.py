"""The optimisers of what is trained from nothing: Muon for the matrices inside a network, AdamW for the rest.

Muon warms a tiny model up two to four times as fast as AdamW does. At these learning rates that takes about 100 steps.
GRPO's own optimiser is the loop's: it fine-tunes, and must not leap. There is no schedule here: who trains says a factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

MUON_LR = 0.02
ADAMW_LR = 3e-3
# Gradients are clipped to this L2 norm.
MAX_NORM = 1.0


def muon_and_adamw(model: Any, matrices: Iterable[Any]) -> list[torch.optim.Optimizer]:
    """Return optimisers of all the model's parameters; AdamW alone where torch has no Muon (< 2.9)."""
    muon = getattr(torch.optim, "Muon", None)
    inside = list(matrices) if muon else []
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=ADAMW_LR, weight_decay=0.0)]
    if muon:
        optimisers.append(muon(inside, lr=MUON_LR, weight_decay=0.0))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["full_lr"] = group["lr"]
    return optimisers


def take_step(model: Any, optimisers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Take one clipped step at so much of the full learning rates, and forget the gradients."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["full_lr"] * factor
        optimiser.step()
        optimiser.zero_grad()
