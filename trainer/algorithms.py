"""The mathematics of GRPO and its kin: rewards to advantages, log-probs to a loss.  Tensors in, tensors out.

Shapes are in the names: B trajectories, T predicted tokens, G groups (prompts), K trajectories of one group.
`mask_BT` is 1 where the policy sampled the token; prompts, tool results, template and padding are 0.

The published variants differ in three choices, and in nothing else here:

    name      advantage            weight of a token                       clip of the ratio
    grpo      (R - mean) / std     1 / (tokens of its trajectory · B)      1 ± ε
    dr_grpo   R - mean             1 / (L_max · B)                         1 ± ε
    dapo      (R - mean) / std     1 / (tokens of all trajectories)        1 - ε_low, 1 + ε_high

Invariants
----------
* A token with mask 0 has no influence on any value or gradient here, whatever its log-probs are (even NaN).
* A group whose rewards are all equal has advantage 0 everywhere.
* A loss is a sum over tokens, each weighed by what is known of the whole optimiser step. So the losses of its
  micro-batches, and of its ranks, add up to the loss of all.

Sources: GRPO, Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300, eqs. 3-4); Dr. GRPO, Liu et al. 2025 (arXiv
2503.20783, § 3.2); DAPO, Yu et al. 2025 (arXiv 2503.14476, eqs. 8-12); the clipped ratio, Schulman et al. 2017 (PPO,
arXiv 1707.06347, eq. 7); k1 and k3, Schulman 2020 ("Approximating KL Divergence").
There is no model, optimiser, randomness or file here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import Estimator, Schedule, Variant

# Keeps the division finite for a group of nearly equal rewards; the same as in DeepSeekMath's descendants (TRL: 1e-4).
STD_EPS = 1e-4


# --- rewards → advantages ---------------------------------------------------------------------------------------------


def group_advantages(rewards_GK: Tensor, variant: Variant = "grpo") -> Tensor:
    """Return reward - group mean, over (unbiased group std + eps) but for Dr. GRPO; 0 where a group has no variance.

    >>> group_advantages(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    tensor([[ 0.0000,  0.0000],
            [-0.7070,  0.7070]])
    >>> group_advantages(torch.tensor([[0.0, 1.0]]), "dr_grpo")
    tensor([[-0.5000,  0.5000]])
    """
    if rewards_GK.shape[1] < 2:
        return torch.zeros_like(rewards_GK)
    advantages_GK = rewards_GK - rewards_GK.mean(dim=1, keepdim=True)
    if variant != "dr_grpo":
        advantages_GK = advantages_GK / (rewards_GK.std(dim=1, keepdim=True) + STD_EPS)
    # Equal rewards can leave a centred value of one rounding error: decide by the rewards, not by the std.
    return torch.where(has_variance(rewards_GK)[:, None], advantages_GK, 0.0)


def has_variance(rewards_GK: Tensor) -> Tensor:
    """Say of each group whether its rewards differ: only then is there anything to learn from it."""
    return rewards_GK.amax(dim=1) > rewards_GK.amin(dim=1)


# --- per token --------------------------------------------------------------------------------------------------------


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) per token, from tokens the policy sampled; never negative.

    k3 = r - 1 - log r, with r = reference probability / policy probability.
    """
    log_ratio = reference - logprobs
    return torch.exp(log_ratio) - log_ratio - 1.0


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) per token as log policy - log reference; of either sign."""
    return logprobs - reference


def importance_weights(trained: Tensor, sampled: Tensor, cap: float) -> Tensor:
    """Return min(p trained / p sampled, cap) per token: a server's numerics are not quite those of what is trained.

    Truncated importance sampling, Ionides 2008; for GRPO with another sampler, Yao et al. 2025.
    """
    return torch.exp(trained - sampled).clamp(max=cap)


# --- log-probs → loss -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What an optimiser step minimises, apart from the data."""

    variant: Variant = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.01
    kl_estimator: Estimator = "k3"


@dataclass(frozen=True)
class StepSize:
    """What the weight of a token depends on: the whole optimiser step, over all its micro-batches and ranks."""

    n_trajectories: int
    n_tokens: int  # sampled by the policy
    max_tokens: int  # L_max: the most that a trajectory can have sampled


@dataclass(frozen=True)
class Loss:
    """What is minimised, and the sums that curves are made of; only `total` has a gradient. All are scalars."""

    total: Tensor
    policy: Tensor  # policy + kl = total
    kl: Tensor  # weighed, as it stands in `total`
    k3_sum: Tensor  # over the sampled tokens, not weighed
    clipped_sum: Tensor  # tokens whose ratio the clip stopped


def token_weights(mask_BT: Tensor, variant: Variant, step: StepSize) -> Tensor:
    """Return the weight of each sampled token in the loss of a step, as in the table above; 0 elsewhere."""
    mask_BT = mask_BT.to(torch.get_default_dtype()) if mask_BT.dtype == torch.bool else mask_BT
    if variant == "grpo":
        return mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1) / step.n_trajectories
    if variant == "dr_grpo":
        return mask_BT / (step.max_tokens * step.n_trajectories)
    return mask_BT / max(step.n_tokens, 1)


def policy_loss(
    logprobs_BT: Tensor,
    old_BT: Tensor,
    reference_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    objective: Objective,
    step: StepSize,
    importance_BT: Tensor | None = None,
) -> Loss:
    """Return these trajectories' part of the loss of a step: Σ weight · (-min(ρA, clip(ρ)A) · importance + β · KL).

    ρ = exp(logprobs - old), and `importance_BT` corrects for a sampler that is not quite the old policy (none: 1).
    """
    sampled_BT = mask_BT.bool()
    # Unsampled tokens are overwritten before any arithmetic: 0 x NaN would still be NaN, and so would its gradient.
    logprobs_BT = logprobs_BT.masked_fill(~sampled_BT, 0.0)
    old_BT = old_BT.masked_fill(~sampled_BT, 0.0)
    reference_BT = reference_BT.masked_fill(~sampled_BT, 0.0)

    ratio_BT = torch.exp(logprobs_BT - old_BT)
    advantages_B1 = advantages_B[:, None]
    unclipped_BT = ratio_BT * advantages_B1
    clipped_BT = ratio_BT.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high) * advantages_B1
    policy_BT = -torch.minimum(unclipped_BT, clipped_BT)
    if importance_BT is not None:
        policy_BT = policy_BT * importance_BT.masked_fill(~sampled_BT, 0.0)

    k3_BT = k3(logprobs_BT, reference_BT)
    kl_BT = k3_BT if objective.kl_estimator == "k3" else k1(logprobs_BT, reference_BT)

    weights_BT = token_weights(mask_BT, objective.variant, step)
    policy = (policy_BT * weights_BT).sum()
    kl = objective.kl_weight * (kl_BT * weights_BT).sum()
    return Loss(
        total=policy + kl,
        policy=policy.detach(),
        kl=kl.detach(),
        k3_sum=k3_BT.detach().sum(),
        clipped_sum=(clipped_BT < unclipped_BT).detach().sum(),
    )


def imitation_loss(logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the cross-entropy of a demonstration: the mean over its tokens with mask 1."""
    return -logprobs_BT.masked_fill(~mask_BT.bool(), 0.0).sum() / mask_BT.sum().clamp(min=1)


# --- the course of a training -----------------------------------------------------------------------------------------


def learning_rate_factor(schedule: Schedule, step: int, n_steps: int, n_ramp: int) -> float:
    """Return what the learning rate of optimiser step `step` (from 0) is multiplied by: a linear ramp, then a decay to 0.

    >>> [learning_rate_factor("linear", step, 6, 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < n_ramp:
        return (step + 1) / n_ramp
    if schedule == "constant":
        return 1.0
    done = (step - n_ramp) / max(n_steps - n_ramp, 1)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + float(torch.cos(torch.tensor(min(done, 1.0) * torch.pi))))
