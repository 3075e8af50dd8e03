"""GRPO's formulas against a plain float64 reference, and the laws they obey."""

import math
import statistics

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.algorithms import (
    STD_EPS,
    clipped_policy_loss,
    group_advantages,
    grpo_loss,
    has_variance,
    imitation_loss,
    k3,
)

rewards = st.lists(st.lists(st.floats(-2, 2), min_size=4, max_size=4), min_size=1, max_size=3)


def reference_loss(logprobs, old, ref, advantages, mask, clip, kl_weight):
    """The definition, token by token, in Python's float64."""
    of_trajectories = []
    for lp_T, old_T, ref_T, advantage, mask_T in zip(logprobs, old, ref, advantages, mask, strict=True):
        tokens = []
        for lp, o, r, m in zip(lp_T, old_T, ref_T, mask_T, strict=True):
            if m:
                ratio = math.exp(lp - o)
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                policy = -min(ratio * advantage, clipped * advantage)
                tokens.append(policy + kl_weight * (math.exp(r - lp) - (r - lp) - 1))
        of_trajectories.append(sum(tokens) / len(tokens))
    return statistics.fmean(of_trajectories)


def random_case(seed, B=3, T=5):
    generator = torch.Generator().manual_seed(seed)
    logprobs_BT, old_BT, ref_BT = (
        -3 * torch.rand(3, B, T, generator=generator, dtype=torch.float64)
    ).unbind()
    advantages_B = torch.randn(B, generator=generator, dtype=torch.float64)
    mask_BT = torch.randint(0, 2, (B, T), generator=generator)
    mask_BT[:, 2] = 1  # every trajectory has a sampled token
    return logprobs_BT, old_BT, ref_BT, advantages_B, mask_BT


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_loss_is_the_definition_computed_token_by_token(seed):
    case = random_case(seed)

    loss = grpo_loss(*case, clip=0.2, kl_weight=0.05)

    expected = reference_loss(*(tensor.tolist() for tensor in case), clip=0.2, kl_weight=0.05)
    assert math.isclose(loss.total.item(), expected, rel_tol=1e-9, abs_tol=1e-12)


def test_the_reported_kl_is_the_sum_over_all_sampled_tokens():
    logprobs_BT, old_BT, ref_BT, advantages_B, mask_BT = random_case(1)

    loss = grpo_loss(logprobs_BT, old_BT, ref_BT, advantages_B, mask_BT, clip=0.2, kl_weight=0.05)

    sampled = mask_BT.bool()
    assert torch.isclose(loss.kl_sum, k3(logprobs_BT[sampled], ref_BT[sampled]).sum())


@given(seed=st.integers(0, 10_000), value=st.sampled_from([-50.0, 0.0, math.nan, -math.inf, math.inf]))
@settings(max_examples=30, deadline=None)
def test_a_token_that_was_not_sampled_changes_neither_the_loss_nor_a_gradient(seed, value):
    logprobs_BT, old_BT, ref_BT, advantages_B, mask_BT = random_case(seed)
    plain = logprobs_BT.clone().requires_grad_()
    before = grpo_loss(plain, old_BT, ref_BT, advantages_B, mask_BT, clip=0.2, kl_weight=0.05).total
    before.backward()

    spoiled = torch.where(mask_BT.bool(), logprobs_BT, value).requires_grad_()
    after = grpo_loss(spoiled, old_BT, ref_BT, advantages_B, mask_BT, clip=0.2, kl_weight=0.05).total
    after.backward()

    assert after.item() == before.item()
    assert torch.equal(spoiled.grad, plain.grad)
    assert (plain.grad[mask_BT == 0] == 0).all()


def test_on_the_sampling_policy_the_gradient_is_plain_policy_gradient():
    logprobs_BT, _, _, advantages_B, mask_BT = random_case(2)
    logprobs_BT.requires_grad_()
    old_BT = logprobs_BT.detach()

    grpo_loss(logprobs_BT, old_BT, old_BT, advantages_B, mask_BT, clip=0.2, kl_weight=0.0).total.backward()

    B = len(advantages_B)
    expected = -advantages_B[:, None] * mask_BT / mask_BT.sum(dim=1, keepdim=True) / B
    assert torch.allclose(logprobs_BT.grad, expected)


def test_a_ratio_beyond_the_clip_has_no_gradient_in_the_direction_it_went():
    logprobs = torch.tensor([1.0, -1.0], requires_grad=True)

    clipped_policy_loss(logprobs, torch.zeros(2), torch.tensor([1.0, -1.0]), clip=0.2).sum().backward()

    assert logprobs.grad.tolist() == [0.0, 0.0]


def test_a_ratio_beyond_the_clip_still_has_a_gradient_back():
    logprobs = torch.tensor([1.0, -1.0], requires_grad=True)

    clipped_policy_loss(logprobs, torch.zeros(2), torch.tensor([-1.0, 1.0]), clip=0.2).sum().backward()

    assert (logprobs.grad != 0).all()


@given(logprob=st.floats(-20, 0), reference=st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_for_equal_policies(logprob, reference):
    both = torch.tensor([logprob, reference], dtype=torch.float64)

    assert k3(both[0], both[1]) >= -1e-9
    assert k3(both[0], both[0]) == 0


def test_k3_estimates_the_divergence_of_two_distributions():
    policy = torch.log_softmax(torch.tensor([0.5, -0.3, 1.2], dtype=torch.float64), dim=0)
    reference = torch.log_softmax(torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64), dim=0)

    expected_k3 = (policy.exp() * k3(policy, reference)).sum()

    assert torch.isclose(expected_k3, (policy.exp() * (policy - reference)).sum())


@given(rewards_GK=rewards)
def test_advantages_are_the_rewards_standardised_within_their_group(rewards_GK):
    advantages = group_advantages(torch.tensor(rewards_GK, dtype=torch.float64)).tolist()

    for of_group, computed in zip(rewards_GK, advantages, strict=True):
        mean, std = statistics.fmean(of_group), statistics.stdev(of_group)
        expected = [(r - mean) / (std + STD_EPS) if len(set(of_group)) > 1 else 0.0 for r in of_group]
        assert all(
            math.isclose(c, e, rel_tol=1e-6, abs_tol=1e-6) for c, e in zip(computed, expected, strict=True)
        )


@given(reward=st.floats(-2, 2), size=st.integers(1, 9))
def test_a_group_of_equal_rewards_has_no_advantage_and_no_variance(reward, size):
    rewards_GK = torch.full((1, size), reward)

    assert group_advantages(rewards_GK).tolist() == [[0.0] * size]
    assert has_variance(rewards_GK).tolist() == [False]


def test_imitation_is_the_mean_cross_entropy_of_the_demonstrated_tokens():
    logprobs_BT = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]])

    assert imitation_loss(logprobs_BT, mask_BT).item() == 2.0
