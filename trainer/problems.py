"""The problems of a training: three parts that share none, and which of them a rollout batch plays.

Invariants
----------
* What a batch plays is a function of seed and batch: a resumed training plays what an unbroken one would.
* Each pass (epoch) over the problems has an order of its own, and plays none twice; what does not fill a batch at
  its end is left out of that epoch.

Reading and making problems is the recipes' business.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Problems:
    warmup: Sequence[Any]
    train: Sequence[Any]
    held_out: Sequence[Any]
    source: str  # in words, for the console and the config
    fingerprint: str  # equal for equal problems
    choose: Callable[[int, int, int], list[Any]] | None = None
    """(batch step, how many, seed) → the problems of a rollout batch, where a recipe draws them in its own way."""

    def of_batch(self, batch_step: int, n: int, seed: int) -> list[Any]:
        if self.choose is not None:
            return self.choose(batch_step, n, seed)
        return [self.train[i] for i in places_of_batch(batch_step, n, len(self.train), seed)]

    def batches_per_epoch(self, n: int) -> int:
        """Return how many rollout batches of `n` problems one pass over `train` has."""
        return max(1, len(self.train) // n)


def places_of_batch(batch_step: int, n: int, n_problems: int, seed: int) -> list[int]:
    """Return which of `n_problems` a batch plays: the next `n` of this epoch's own order.

    >>> places_of_batch(0, 2, 5, seed=0) + places_of_batch(1, 2, 5, seed=0)
    [4, 0, 2, 1]
    """
    epoch, within = divmod(batch_step, max(1, n_problems // n))
    order = random.Random(f"problems {seed} {epoch}").sample(range(n_problems), n_problems)
    return [order[i % n_problems] for i in range(within * n, (within + 1) * n)]


# As `--data`: problems that are made up, where a file or the hub might else be found.
GENERATED = Path("generated")


def shared_data(name: str) -> Path | None:
    """Return a file of the data directory that lies beside the repository, if it is there."""
    path = Path(__file__).resolve().parents[1].parent / "shared" / "data" / name
    return path if path.exists() else None


def named_data(given: Path | None) -> Path | None:
    """Return the data that a person named: `--data`, else `$TIDELOG_DATA`."""
    return given or (Path(os.environ["TIDELOG_DATA"]) if os.environ.get("TIDELOG_DATA") else None)


def named_file(given: Path | None) -> Path | None:
    """Return the same, where a recipe makes problems up unless it is given some."""
    named = named_data(given)
    return None if named == GENERATED else named
