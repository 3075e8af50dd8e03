"""The mathematics of GRPO: rewards to advantages, log-probs to a loss.  Tensors in, tensors out.

Shapes are in the names: B trajectories, T predicted tokens, G groups (prompts), K trajectories of one group.
`mask_BT` is 1 where the policy sampled the token; prompts, tool results, template and padding are 0.

Invariants
----------
* A token with mask 0 has no influence on any value or gradient here, whatever its log-probs are (even NaN).
* A group whose rewards are all equal has advantage 0 everywhere.

Sources: GRPO, Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300, eqs. 3–4); the clipped ratio, Schulman et al. 2017
(PPO, arXiv 1707.06347, eq. 7); the estimator k3, Schulman 2020 ("Approximating KL Divergence").
There is no model, optimiser, randomness or file here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Keeps the division finite for a group of nearly equal rewards; the same as in DeepSeekMath's descendants (TRL: 1e-4).
STD_EPS = 1e-4


def group_advantages(rewards_GK: Tensor) -> Tensor:
    """Return (reward - group mean) / (group std + eps), with the unbiased std; 0 where a group has no variance.

    >>> group_advantages(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    tensor([[ 0.0000,  0.0000],
            [-0.7070,  0.7070]])
    """
    centred_GK = rewards_GK - rewards_GK.mean(dim=1, keepdim=True)
    if rewards_GK.shape[1] < 2:
        return torch.zeros_like(rewards_GK)
    std_G1 = rewards_GK.std(dim=1, keepdim=True)
    # Equal rewards can leave a centred value of one rounding error: decide by the rewards, not by the std.
    return torch.where(has_variance(rewards_GK)[:, None], centred_GK / (std_G1 + STD_EPS), 0.0)


def has_variance(rewards_GK: Tensor) -> Tensor:
    """Say of each group whether its rewards differ: only then is there anything to learn from it."""
    return rewards_GK.amax(dim=1) > rewards_GK.amin(dim=1)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) per token, from tokens the policy sampled; never negative.

    k3 = r - 1 - log r, with r = reference probability / policy probability.
    """
    log_ratio = reference - logprobs
    return torch.exp(log_ratio) - log_ratio - 1.0


def clipped_policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return -min(ρA, clip(ρ, 1-ε, 1+ε)A) per token, with ρ = exp(logprobs - old)."""
    ratio = torch.exp(logprobs - old)
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


@dataclass(frozen=True)
class Loss:
    """What one optimiser step minimises, and the part of it worth a curve of its own."""

    total: Tensor  # scalar, with a gradient
    kl_sum: Tensor  # scalar: k3 summed over the sampled tokens, without a gradient


def grpo_loss(
    logprobs_BT: Tensor,
    old_BT: Tensor,
    reference_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    kl_weight: float,
) -> Loss:
    """Return the mean over trajectories of the mean over their sampled tokens (each answer counts the same)."""
    sampled_BT = mask_BT.bool()
    # Unsampled tokens are overwritten before any arithmetic: 0 x NaN would still be NaN, and so would its gradient.
    logprobs_BT = logprobs_BT.masked_fill(~sampled_BT, 0.0)
    old_BT = old_BT.masked_fill(~sampled_BT, 0.0)
    reference_BT = reference_BT.masked_fill(~sampled_BT, 0.0)

    kl_BT = k3(logprobs_BT, reference_BT)
    policy_BT = clipped_policy_loss(logprobs_BT, old_BT, advantages_B[:, None], clip)
    loss_BT = (policy_BT + kl_weight * kl_BT) * sampled_BT

    n_sampled_B = sampled_BT.sum(dim=1).clamp(min=1)
    total = (loss_BT.sum(dim=1) / n_sampled_B).mean()
    return Loss(total, kl_sum=kl_BT.detach().sum())


def imitation_loss(logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the cross-entropy of a demonstration: the mean over its tokens with mask 1."""
    return -logprobs_BT.masked_fill(~mask_BT.bool(), 0.0).sum() / mask_BT.sum().clamp(min=1)
