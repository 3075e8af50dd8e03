"""The policy as the rollout sees it: token ids in, sampled token ids and their log-probs out.

An engine may be a model in this process (`policy.transformers`) or a server (`policy.vllm`); the loop cannot tell.

Invariants
----------
* What was sampled is never re-tokenised: ids go back into the next prompt exactly as they came out.
* The log-prob of a token is that of the distribution it was drawn from (temperature applied). Greedy decoding
  (temperature 0) records those of temperature 1.
* An engine that fails, fails prompt by prompt: such a completion has an `error` and no tokens, and nothing is raised.
  Only an engine that cannot be used at all raises, and then before anything was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

TokenIds = list[int]


class Completion(NamedTuple):
    token_ids: TokenIds
    logprobs: list[float]  # one for each token
    error: str | None = None  # in words, if nothing could be sampled


class Engine(Protocol):
    exact: bool
    """Whether its log-probs are those of the model that is trained, to the last bits of float32.

    If not, the loop computes them again, logs the difference, and corrects for it (`algorithms.importance_weights`).
    """

    def complete(self, prompts: Sequence[TokenIds], max_new: int, temperature: float) -> list[Completion]:
        """Return one completion per prompt, in order, of at most `max_new` tokens (the end token included)."""
        ...

    def sync(self, model: Any, version: int) -> None:
        """Make later completions come from the weights that `model` has now; `version` counts optimiser steps."""
        ...
