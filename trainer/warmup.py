"""Imitates demonstrations until the policy is good enough for its reward to teach it.

GRPO learns from differences within a group: a policy that never succeeds has none. The warm-up stops at a target
reward, not at a number of steps, so that every seed enters GRPO about equally good, with room above.

Invariants
----------
* It starts from the seed, and keeps nothing on disk: a warm-up that is killed is done again, and comes out the same.
* It logs nothing. Its curve is returned, and the loop logs it: see `loop._warmup_point` for why not here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eventlog import Trajectory
from trainer.algorithms import imitation_loss
from trainer.batch import make_batch
from trainer.models import device_of
from trainer.optimisers import muon_and_adamw, take_step
from trainer.policy.transformers import token_logprobs

# With small batches and many steps copying forms soonest; measured at 8, 16 and 32 demonstrations.
BATCH_SIZE = 16
EVAL_INTERVAL = 10
RAMP_STEPS = 10


@dataclass(frozen=True)
class WarmupPoint:
    step: int
    loss: float
    reward: float


def warm_up(
    model: Any,
    demonstrations: Sequence[tuple[list[int], list[int]]],
    reward: Callable[[], float],
    *,
    target: float,
    max_steps: int,
    seed: int,
    pad_id: int,
    progress: Callable[[WarmupPoint], None],
) -> list[WarmupPoint]:
    """Train `model` on (ids, mask) pairs until `reward()` reaches `target`, or for `max_steps`; return the curve."""
    named = model.named_parameters()
    optimisers = muon_and_adamw(model, [p for name, p in named if p.ndim == 2 and "embed" not in name])
    batches = _batches(demonstrations, random.Random(f"warm-up {seed}"))
    curve: list[WarmupPoint] = []
    for step in range(1, max_steps + 1):
        loss = _imitate(model, optimisers, next(batches), min(1.0, step / RAMP_STEPS), pad_id)
        if step % EVAL_INTERVAL == 0 or step == max_steps:
            curve.append(WarmupPoint(step, loss, reward()))
            progress(curve[-1])
            if curve[-1].reward >= target:
                break
    return curve


def _batches(
    demonstrations: Sequence[tuple[list[int], list[int]]], rng: random.Random
) -> Iterator[list[tuple[list[int], list[int]]]]:
    order: list[int] = []
    while True:
        if len(order) < BATCH_SIZE:
            order = rng.sample(range(len(demonstrations)), len(demonstrations))
        yield [demonstrations[order.pop()] for _ in range(min(BATCH_SIZE, len(order)))]


def _imitate(
    model: Any,
    optimisers: Sequence[torch.optim.Optimizer],
    demonstrations: Sequence[tuple[list[int], list[int]]],
    ramp: float,
    pad_id: int,
) -> float:
    # A demonstration is a trajectory whose every log-prob at sampling is 0: it was given, not drawn.
    given = [
        Trajectory(turns=[], token_ids=ids, mask=mask, logprobs=[0.0] * sum(mask))
        for ids, mask in demonstrations
    ]
    batch = make_batch(given, pad_id).to(device_of(model))
    loss: Tensor = imitation_loss(
        token_logprobs(model, batch.token_ids_BT, batch.mask_BT, 1.0), batch.mask_BT
    )
    loss.backward()
    take_step(model, optimisers, ramp)
    return float(loss.item())
