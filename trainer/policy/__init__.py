"""The policy as the rollout sees it: token ids in, sampled token ids and their log-probs out.

An engine may be a model in this process (`policy.transformers`) or a server; the loop cannot tell.

Invariants
----------
* What was sampled is never re-tokenised: ids go back into the next prompt exactly as they came out.
* The log-prob of a token is that of the distribution it was drawn from (temperature applied). Greedy decoding
  (temperature 0) records those of temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

TokenIds = list[int]
Completion = tuple[TokenIds, list[float]]


class Engine(Protocol):
    def complete(self, prompts: Sequence[TokenIds], max_new: int, temperature: float) -> list[Completion]:
        """Return one completion per prompt, in order, of at most `max_new` tokens (the end token included)."""
        ...

    def sync(self, model: Any) -> None:
        """Make later completions come from the weights that `model` has now."""
        ...
