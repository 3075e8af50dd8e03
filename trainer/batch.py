"""Trajectories → padded tensors.  The only place that knows where in a tensor a token's log-prob stands.

A trajectory of n tokens has n - 1 predictions: column t of every `_BT` tensor but `token_ids_BT` is about the
prediction of token t + 1 from the tokens before it.

Invariants
----------
* `mask_BT` is 1 exactly where the predicted token was sampled by the policy.
* `old_BT` holds there what the policy recorded when it sampled, in order; 0 elsewhere. `reference_BT` likewise.
* Padding stands on the right and is masked; it changes no other token's log-prob (attention is causal).

There is no model here, and no choice of what to train on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eventlog import Trajectory


@dataclass(frozen=True)
class Batch:
    token_ids_BT: Tensor  # one column more than the others: the first token is predicted by nothing
    mask_BT: Tensor
    old_BT: Tensor
    advantages_B: Tensor
    reference_BT: Tensor  # as old_BT, of the reference policy; 0 until it was asked
    importance_BT: Tensor  # what corrects for the sampler; 1 where it is the policy itself

    def __len__(self) -> int:
        return len(self.advantages_B)

    @property
    def n_tokens(self) -> int:
        """How many tokens the policy sampled."""
        return int(self.mask_BT.sum())

    def of(self, rows: Sequence[int]) -> Batch:
        """Return these rows, and of the columns only those up to the last token that was sampled in any of them."""
        mask_BT = self.mask_BT[rows]
        width = int(mask_BT.any(dim=0).nonzero().max()) + 1
        return Batch(
            self.token_ids_BT[rows, : width + 1],
            mask_BT[:, :width],
            self.old_BT[rows, :width],
            self.advantages_B[rows],
            self.reference_BT[rows, :width],
            self.importance_BT[rows, :width],
        )

    def micro_batches(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """Split rows into parts of at most `size` of about equal length: short ones then need no wide padding."""
        lengths = [int(mask_T.nonzero().max()) for mask_T in self.mask_BT[rows]]
        by_length = [row for _, row in sorted(zip(lengths, rows, strict=True))]
        return [by_length[i : i + size] for i in range(0, len(rows), size)]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def make_batch(trajectories: Sequence[Trajectory], pad_id: int) -> Batch:
    """Return the tensors of these trajectories; one without an advantage counts as 0."""
    width = max(len(t.token_ids) for t in trajectories)
    shape = (len(trajectories), width)
    token_ids_BT = torch.full(shape, pad_id, dtype=torch.long)
    mask_BT = torch.zeros(shape)
    old_BT = torch.zeros(shape)
    for row, trajectory in enumerate(trajectories):
        n = len(trajectory.token_ids)
        assert len(trajectory.mask) == n
        assert sum(trajectory.mask) == len(trajectory.logprobs), "one log-prob per sampled token"
        token_ids_BT[row, :n] = torch.tensor(trajectory.token_ids)
        mask_BT[row, :n] = torch.tensor(trajectory.mask, dtype=torch.float)
        old_BT[row, mask_BT[row].bool()] = torch.tensor(trajectory.logprobs)
    advantages_B = torch.tensor([t.advantage or 0.0 for t in trajectories])
    mask_BT, old_BT = mask_BT[:, 1:], old_BT[:, 1:]
    return Batch(
        token_ids_BT, mask_BT, old_BT, advantages_B, torch.zeros_like(old_BT), torch.ones_like(old_BT)
    )


def of_each_trajectory(values_BT: Tensor, mask_BT: Tensor) -> list[list[float]]:
    """Return each trajectory's values at its sampled tokens, in order: the form in which a log keeps log-probs."""
    return [
        values_T[mask_T].tolist()
        for values_T, mask_T in zip(values_BT.cpu(), mask_BT.cpu().bool(), strict=True)
    ]


def shards(rows: Sequence[int], n_shards: int) -> list[Sequence[int]]:
    """Split rows into `n_shards` parts of nearly equal length; some are empty if there are too few.

    >>> shards([7, 8, 9], 2), shards([7], 2)
    ([[7, 8], [9]], [[7], []])
    """
    size, rest = divmod(len(rows), n_shards)
    starts = [i * size + min(i, rest) for i in range(n_shards + 1)]
    return [rows[start:stop] for start, stop in itertools.pairwise(starts)]
