"""The objectives against a plain float64 reference and against TRL's own loss, and the laws they obey."""

import math
import statistics
from collections import defaultdict
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.algorithms import (
    STD_EPS,
    Objective,
    StepSize,
    group_advantages,
    has_variance,
    imitation_loss,
    importance_weights,
    k1,
    k3,
    learning_rate_factor,
    policy_loss,
    token_weights,
)
from trainer.config import Estimator, Variant

rewards = st.lists(st.lists(st.floats(-2, 2), min_size=4, max_size=4), min_size=1, max_size=3)
variants = st.sampled_from(get_args(Variant))
objectives = st.builds(
    Objective,
    variants,
    clip_low=st.sampled_from([0.0, 0.1, 0.2]),
    clip_high=st.sampled_from([0.1, 0.2, 0.28, 5.0]),
    kl_weight=st.sampled_from([0.0, 0.01, 0.5]),
    kl_estimator=st.sampled_from(get_args(Estimator)),
)
MAX_TOKENS = 11


class Case(SimpleNamespace):
    """The tensors of an optimiser step, in float64; `logprobs_BT` has a gradient."""

    def loss(self, objective, rows=slice(None), **changed):
        given = {**vars(self), **changed}
        return policy_loss(
            given["logprobs_BT"][rows],
            given["old_BT"][rows],
            given["reference_BT"][rows],
            given["advantages_B"][rows],
            given["mask_BT"][rows],
            objective,
            self.step,
            None if given["importance_BT"] is None else given["importance_BT"][rows],
        )

    @property
    def step(self):
        return StepSize(len(self.mask_BT), int(self.mask_BT.sum()), MAX_TOKENS)


@st.composite
def cases(draw, importance=True):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    B, T = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    old_BT = -3 * torch.rand(B, T, generator=generator, dtype=torch.float64)
    # Near to each other, as policies are: some ratios are clipped at either side, and some are not.
    logprobs_BT = old_BT + 0.3 * torch.randn(B, T, generator=generator, dtype=torch.float64)
    reference_BT = old_BT + 0.5 * torch.randn(B, T, generator=generator, dtype=torch.float64)
    mask_BT = torch.randint(0, 2, (B, T), generator=generator).double()
    if draw(st.booleans()):
        mask_BT[:, 0] = 1  # else a trajectory may have sampled nothing
    weights_BT = None
    if importance and draw(st.booleans()):
        weights_BT = 2 * torch.rand(B, T, generator=generator, dtype=torch.float64)
    return Case(
        logprobs_BT=logprobs_BT.requires_grad_(),
        old_BT=old_BT,
        reference_BT=reference_BT,
        advantages_B=torch.randn(B, generator=generator, dtype=torch.float64),
        mask_BT=mask_BT,
        importance_BT=weights_BT,
    )


def gradient(loss, logprobs_BT):
    return torch.autograd.grad(loss.total, logprobs_BT)[0]


# --- the definition, token by token -----------------------------------------------------------------------------------


def by_definition(case, objective):
    """Return policy part, KL part, Σ k3 and the number of clipped tokens, by Python's loops over floats."""
    B, n_tokens = len(case.mask_BT), case.mask_BT.sum().item()
    policy = kl = k3_sum = clipped_sum = 0.0
    for b in range(B):
        advantage = case.advantages_B[b].item()
        length = case.mask_BT[b].sum().item()
        weight = {
            "grpo": lambda n=length: 1 / (n * B),
            "dr_grpo": lambda: 1 / (MAX_TOKENS * B),
            "dapo": lambda: 1 / n_tokens,
        }[objective.variant]
        for t in range(case.mask_BT.shape[1]):
            if not case.mask_BT[b, t]:
                continue
            new, old, ref = (x[b, t].item() for x in (case.logprobs_BT, case.old_BT, case.reference_BT))
            ratio = math.exp(new - old)
            clipped = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
            gain = min(ratio * advantage, clipped * advantage)
            importance = 1.0 if case.importance_BT is None else case.importance_BT[b, t].item()
            estimate = math.exp(ref - new) - (ref - new) - 1
            k3_sum += estimate
            clipped_sum += clipped * advantage < ratio * advantage
            policy -= weight() * gain * importance
            kl += weight() * objective.kl_weight * (estimate if objective.kl_estimator == "k3" else new - ref)
    return policy, kl, k3_sum, clipped_sum


@given(case=cases(), objective=objectives)
@settings(deadline=None)
def test_the_loss_is_the_definition_computed_token_by_token(case, objective):
    loss = case.loss(objective)

    policy, kl, k3_sum, clipped_sum = by_definition(case, objective)
    near = pytest.approx
    assert loss.total.item() == near(policy + kl, rel=1e-9, abs=1e-12)
    assert loss.policy.item() == near(policy, rel=1e-9, abs=1e-12)
    assert loss.kl.item() == near(kl, rel=1e-9, abs=1e-12)
    assert loss.k3_sum.item() == near(k3_sum, rel=1e-9, abs=1e-12)
    assert loss.clipped_sum.item() == clipped_sum


@given(case=cases(), objective=objectives)
@settings(deadline=None, max_examples=30)
def test_the_gradient_is_the_slope_of_the_definition(case, objective):
    slope_BT = gradient(case.loss(objective), case.logprobs_BT)

    h = 1e-6
    for place in torch.cartesian_prod(*map(torch.arange, slope_BT.shape)).view(-1, 2).tolist():
        changed = []
        for by in (-h, h):
            moved = case.logprobs_BT.detach().clone()
            moved[tuple(place)] += by
            policy, kl, _, _ = by_definition(Case(**{**vars(case), "logprobs_BT": moved}), objective)
            changed.append(policy + kl)
        ratio = math.exp((case.logprobs_BT - case.old_BT)[tuple(place)].item())
        if min(abs(ratio - 1 + objective.clip_low), abs(ratio - 1 - objective.clip_high)) > 1e-4:  # no kink
            expected = (changed[1] - changed[0]) / (2 * h)
            assert slope_BT[tuple(place)].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@given(case=cases(), objective=objectives)
@settings(deadline=None)
def test_the_reported_parts_add_up_to_what_is_minimised(case, objective):
    loss = case.loss(objective)

    assert (loss.policy + loss.kl).item() == loss.total.item()
    assert loss.total.requires_grad
    assert not any(part.requires_grad for part in (loss.policy, loss.kl, loss.k3_sum, loss.clipped_sum))


# --- the parts of a step ----------------------------------------------------------------------------------------------


@given(case=cases(), objective=objectives, data=st.data())
@settings(deadline=None)
def test_the_losses_of_micro_batches_and_ranks_add_up_to_the_loss_of_all(case, objective, data):
    whole = case.loss(objective)
    B = len(case.mask_BT)
    part_of = data.draw(st.lists(st.integers(0, 2), min_size=B, max_size=B), label="part of each row")

    parts = [case.loss(objective, [row for row in range(B) if part_of[row] == part]) for part in set(part_of)]

    for name in ("total", "policy", "kl", "k3_sum", "clipped_sum"):
        added = sum(getattr(part, name).item() for part in parts)
        assert added == pytest.approx(getattr(whole, name).item(), rel=1e-9, abs=1e-12)
    gradients = sum(gradient(part, case.logprobs_BT) for part in parts)
    assert torch.allclose(gradients, gradient(whole, case.logprobs_BT), atol=1e-12)


@given(case=cases(), objective=objectives, width=st.integers(1, 4))
@settings(deadline=None)
def test_padding_changes_nothing(case, objective, width):
    padded = {
        name: torch.nn.functional.pad(getattr(case, name), (0, width), value=9.0)
        for name in ("logprobs_BT", "old_BT", "reference_BT")
    }
    if case.importance_BT is not None:
        padded["importance_BT"] = torch.nn.functional.pad(case.importance_BT, (0, width), value=9.0)

    loss = case.loss(objective, mask_BT=torch.nn.functional.pad(case.mask_BT, (0, width)), **padded)

    assert loss.total.item() == pytest.approx(case.loss(objective).total.item(), rel=1e-12, abs=1e-15)


@given(
    case=cases(),
    objective=objectives,
    value=st.sampled_from([-50.0, 0.0, math.nan, -math.inf, math.inf]),
    spoiled=st.sampled_from(["logprobs_BT", "old_BT", "reference_BT", "importance_BT"]),
)
@settings(deadline=None)
def test_a_token_that_was_not_sampled_changes_neither_the_loss_nor_a_gradient(
    case, objective, value, spoiled
):
    before = case.loss(objective)
    if getattr(case, spoiled) is None:
        return
    changed = {"logprobs_BT": case.logprobs_BT.detach()}
    changed[spoiled] = torch.where(case.mask_BT.bool(), getattr(case, spoiled).detach(), value)
    changed["logprobs_BT"].requires_grad_()

    after = case.loss(objective, **changed)

    assert after.total.item() == before.total.item()
    assert (after.k3_sum.item(), after.clipped_sum.item()) == (
        before.k3_sum.item(),
        before.clipped_sum.item(),
    )
    slope_BT = gradient(after, changed["logprobs_BT"])
    assert torch.equal(slope_BT, gradient(before, case.logprobs_BT))
    assert (slope_BT[case.mask_BT == 0] == 0).all()


@given(case=cases(), variant=variants)
@settings(deadline=None)
def test_a_mask_of_booleans_weighs_as_one_of_numbers(case, variant):
    numbers = token_weights(case.mask_BT.float(), variant, case.step)

    assert torch.equal(token_weights(case.mask_BT.bool(), variant, case.step), numbers)


def test_the_weights_of_the_variants_on_a_short_and_a_long_trajectory():
    mask_BT = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    step = StepSize(n_trajectories=2, n_tokens=4, max_tokens=10)

    assert token_weights(mask_BT, "grpo", step).tolist() == [
        [0.5, 0.0, 0.0],
        pytest.approx([1 / 6, 1 / 6, 1 / 6]),
    ]
    assert token_weights(mask_BT, "dr_grpo", step)[mask_BT.bool()].tolist() == pytest.approx([0.05] * 4)
    assert token_weights(mask_BT, "dapo", step)[mask_BT.bool()].tolist() == [0.25] * 4


# --- ratio, clip and importance ---------------------------------------------------------------------------------------


@given(case=cases(importance=False), variant=variants)
@settings(deadline=None)
def test_on_the_sampling_policy_the_gradient_is_plain_policy_gradient(case, variant):
    on_policy = Case(**{**vars(case), "old_BT": case.logprobs_BT.detach()})

    slope_BT = gradient(on_policy.loss(Objective(variant, kl_weight=0.0)), case.logprobs_BT)

    expected = -case.advantages_B[:, None] * token_weights(case.mask_BT, variant, case.step)
    assert torch.allclose(slope_BT, expected)


def one_token(log_ratio, advantage, objective):
    logprobs_BT = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    zero_BT = torch.zeros(1, 1, dtype=torch.float64)
    loss = policy_loss(
        logprobs_BT,
        zero_BT,
        zero_BT,
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
        objective,
        StepSize(1, 1, 1),
    )
    return loss, gradient(loss, logprobs_BT).item()


PLAIN = Objective(kl_weight=0.0)


@pytest.mark.parametrize(("log_ratio", "advantage"), [(1.0, 1.0), (-1.0, -1.0)])
def test_a_ratio_beyond_the_clip_has_no_gradient_in_the_direction_it_went(log_ratio, advantage):
    loss, slope = one_token(log_ratio, advantage, PLAIN)

    assert slope == 0.0
    assert loss.clipped_sum.item() == 1


@pytest.mark.parametrize(("log_ratio", "advantage"), [(1.0, -1.0), (-1.0, 1.0)])
def test_a_ratio_beyond_the_clip_still_has_a_gradient_back(log_ratio, advantage):
    loss, slope = one_token(log_ratio, advantage, PLAIN)

    assert slope == pytest.approx(-advantage * math.exp(log_ratio))
    assert loss.clipped_sum.item() == 0


def test_clip_higher_lets_a_likelier_token_rise_further_and_an_unlikelier_one_not_fall_further():
    higher = Objective("dapo", clip_low=0.2, clip_high=0.28, kl_weight=0.0)

    risen = one_token(math.log(1.25), 1.0, higher)
    fallen = one_token(math.log(0.75), -1.0, higher)

    assert risen[1] == pytest.approx(-1.25)
    assert one_token(math.log(1.25), 1.0, PLAIN)[1] == 0.0
    assert fallen[1] == one_token(math.log(0.75), -1.0, PLAIN)[1] == 0.0
    assert one_token(math.log(1.29), 1.0, higher)[1] == 0.0


def test_importance_weights_are_the_ratio_of_probabilities_up_to_the_cap():
    trained, sampled = torch.log(torch.tensor([0.5, 0.3, 0.9])), torch.log(torch.tensor([0.25, 0.6, 0.1]))

    assert importance_weights(trained, sampled, cap=2.5).tolist() == pytest.approx([2.0, 0.5, 2.5])


# --- KL ---------------------------------------------------------------------------------------------------------------


@given(logprob=st.floats(-20, 0), reference=st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_for_equal_policies(logprob, reference):
    both = torch.tensor([logprob, reference], dtype=torch.float64)

    assert k3(both[0], both[1]) >= -1e-9
    assert k3(both[0], both[0]) == 0


@pytest.mark.parametrize("estimator", [k1, k3])
def test_the_expectation_of_an_estimator_is_the_divergence_of_the_distributions(estimator):
    policy = torch.log_softmax(torch.tensor([0.5, -0.3, 1.2], dtype=torch.float64), dim=0)
    reference = torch.log_softmax(torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64), dim=0)

    expected = (policy.exp() * estimator(policy, reference)).sum()

    assert torch.isclose(
        expected, torch.nn.functional.kl_div(reference, policy, reduction="sum", log_target=True)
    )


def test_k1_has_either_sign():
    assert k1(torch.tensor(-1.0), torch.tensor(-2.0)) == 1.0
    assert k1(torch.tensor(-2.0), torch.tensor(-1.0)) == -1.0


# --- advantages -------------------------------------------------------------------------------------------------------


@given(rewards_GK=rewards, variant=variants)
def test_advantages_are_the_rewards_less_their_groups_mean_over_its_spread_but_for_dr_grpo(
    rewards_GK, variant
):
    advantages = group_advantages(torch.tensor(rewards_GK, dtype=torch.float64), variant).tolist()

    for of_group, computed in zip(rewards_GK, advantages, strict=True):
        mean = statistics.fmean(of_group)
        scale = 1.0 if variant == "dr_grpo" else statistics.stdev(of_group) + STD_EPS
        expected = [(r - mean) / scale if len(set(of_group)) > 1 else 0.0 for r in of_group]
        assert computed == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(reward=st.floats(-2, 2), size=st.integers(1, 9), variant=variants)
def test_a_group_of_equal_rewards_has_no_advantage_and_no_variance(reward, size, variant):
    rewards_GK = torch.full((1, size), reward)

    assert group_advantages(rewards_GK, variant).tolist() == [[0.0] * size]
    assert has_variance(rewards_GK).tolist() == [False]


@given(rewards_GK=rewards, variant=variants)
def test_a_group_knows_nothing_of_the_others(rewards_GK, variant):
    together = group_advantages(torch.tensor(rewards_GK, dtype=torch.float64), variant)

    alone = [group_advantages(torch.tensor([g], dtype=torch.float64), variant)[0] for g in rewards_GK]
    assert torch.allclose(together, torch.stack(alone))


@given(case=cases(), objective=objectives)
@settings(deadline=None)
def test_a_trajectory_without_advantage_is_moved_by_the_kl_alone(case, objective):
    zero = Case(**{**vars(case), "advantages_B": torch.zeros_like(case.advantages_B)})

    loss = zero.loss(objective)

    assert loss.policy.item() == 0.0
    assert loss.clipped_sum.item() == 0
    assert loss.total.item() == loss.kl.item()


# --- imitation and schedule -------------------------------------------------------------------------------------------


def test_imitation_is_the_mean_cross_entropy_of_the_demonstrated_tokens():
    logprobs_BT = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, math.nan, -9.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]])

    assert imitation_loss(logprobs_BT, mask_BT).item() == 2.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_a_schedule_ramps_up_and_then_decays_to_nothing(schedule, expected):
    factors = [learning_rate_factor(schedule, step, n_steps=6, n_ramp=2) for step in range(6)]

    assert factors == pytest.approx(expected, abs=1e-6)
    if schedule != "constant":
        assert learning_rate_factor(schedule, 6, 6, 2) == pytest.approx(0.0, abs=1e-6)
        assert learning_rate_factor(schedule, 99, 6, 2) == pytest.approx(0.0, abs=1e-6)


def test_without_a_ramp_the_first_step_has_the_full_rate():
    assert learning_rate_factor("linear", 0, n_steps=4, n_ramp=0) == 1.0
    assert learning_rate_factor("linear", 3, n_steps=4, n_ramp=0) == 0.25


# --- TRL --------------------------------------------------------------------------------------------------------------
#
# The loss of `trl.GRPOTrainer` (its own `_compute_loss`) on the same tensors. What is called how, ours | TRL's:
#
#     variant grpo, dr_grpo, dapo                | loss_type, of the same name
#     1 - clip_low, 1 + clip_high                | epsilon, epsilon_high
#     kl_weight, with kl_estimator k3 (the only) | beta
#     StepSize.max_tokens                        | max_completion_length
#     StepSize.n_tokens                          | num_items_in_batch
#     mask_BT                                    | completion_mask (x tool_mask)
#     importance_BT                              | importance_sampling_ratio, with use_vllm
#
# TRL's bnpo is dapo of one micro-batch alone: there the two agree, and across micro-batches they do not, by intent.


def loss_of_trl(case, objective, loss_type):
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    sampled = case.mask_BT.long()

    def per_token(*_, **__):
        return case.logprobs_BT, torch.zeros_like(case.logprobs_BT), None

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=per_token,
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        loss_type=loss_type,
        beta=objective.kl_weight,
        epsilon_low=objective.clip_low,
        epsilon_high=objective.clip_high,
        max_completion_length=MAX_TOKENS,
        importance_sampling_level="token",
        use_vllm=case.importance_BT is not None,
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(sampled), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(sampled), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(sampled),
        "completion_mask": torch.ones_like(sampled),
        "tool_mask": sampled,
        "advantages": case.advantages_B,
        "old_per_token_logps": case.old_BT,
        "ref_per_token_logps": case.reference_BT,
        "importance_sampling_ratio": case.importance_BT,
        "num_items_in_batch": sampled.sum(),
    }
    loss = grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, trainer._metrics["train"]


def of_trl(objective):
    """TRL has k3 only."""
    return Objective(objective.variant, objective.clip_low, objective.clip_high, objective.kl_weight)


@given(case=cases(), objective=objectives)
@settings(deadline=None)
def test_the_loss_and_its_gradient_are_trls_on_the_same_tensors(case, objective):
    objective = of_trl(objective)

    ours = case.loss(objective)
    theirs, metrics = loss_of_trl(case, objective, objective.variant)

    assert ours.total.item() == pytest.approx(theirs.item(), rel=1e-9, abs=1e-12)
    slope_BT = torch.autograd.grad(theirs, case.logprobs_BT)[0]
    assert torch.allclose(gradient(ours, case.logprobs_BT), slope_BT, atol=1e-12)
    if case.mask_BT.shape[1] == 1:
        return  # TRL's metrics take a single column for one value per trajectory
    n_tokens = max(case.step.n_tokens, 1)
    if objective.kl_weight:
        assert ours.k3_sum.item() / n_tokens == pytest.approx(metrics["kl"][0], rel=1e-6, abs=1e-9)
    clipped = metrics["clip_ratio/region_mean"][0]
    assert ours.clipped_sum.item() / n_tokens == pytest.approx(clipped, rel=1e-6, abs=1e-9)


@given(case=cases(), objective=objectives)
@settings(deadline=None, max_examples=30)
def test_dapo_in_one_micro_batch_is_trls_bnpo_too(case, objective):
    objective = Objective("dapo", objective.clip_low, objective.clip_high, objective.kl_weight)

    theirs, _ = loss_of_trl(case, objective, "bnpo")

    assert case.loss(objective).total.item() == pytest.approx(theirs.item(), rel=1e-9, abs=1e-12)


@given(rewards_GK=rewards)
@settings(deadline=None)
def test_advantages_are_trls_with_and_without_scaling(rewards_GK):
    utils = pytest.importorskip("trl.trainer.utils", reason="TRL is not installed")
    given_GK = torch.tensor(rewards_GK, dtype=torch.float64)
    if not has_variance(given_GK).all():
        return  # TRL leaves a rounding error there where ours is 0

    # As in `GRPOTrainer._generate_and_score_completions`, with scale_rewards "none" and "group".
    plain = given_GK - torch.nanmean(given_GK, dim=1, keepdim=True)
    scaled = plain / (utils.nanstd(given_GK, dim=1)[:, None] + 1e-4)

    assert torch.allclose(group_advantages(given_GK, "dr_grpo"), plain)
    assert torch.allclose(group_advantages(given_GK, "grpo"), scaled, atol=1e-9)
    assert torch.allclose(group_advantages(given_GK, "dapo"), scaled, atol=1e-9)
