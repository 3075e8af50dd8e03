"""The names and formulas of the metrics: what dashboards built on these names expect."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import Trajectory, Turn
from trainer.collectors import At, UpdateStats
from trainer.collectors.grpo import (
    DrGrpo,
    Examples,
    Totals,
    batch_return_metrics,
    epoch_metrics,
    eval_metrics,
    final_metrics,
    rollout_metrics,
    update_metrics,
)


def trajectories(*rewards, group_size=2):
    return [
        Trajectory(
            turns=[], reward=r, advantage=r - 0.5, group=f"0.{i // group_size}", metrics={"num_turns": 2.0}
        )
        for i, r in enumerate(rewards)
    ]


BATCH = trajectories(0.0, 1.0, 1.0, 1.0)
HERE = At(global_step=0, batch_step=0, batches_per_epoch=1, n_batches=1)


def test_rollout_metrics_have_the_seeds_names_and_values():
    totals = Totals(batches=4, rollouts=12, best_mean_return=0.5).with_rollouts(BATCH)

    metrics = rollout_metrics(BATCH, kl=[0.0, 0.5, 1.0], totals=totals)

    assert metrics == {
        "rollouts/returns_sum": 3.0,
        "rollouts/returns_mean": 0.75,
        "rollouts/returns_std": 0.5,
        "rollouts/returns_max": 1.0,
        "rollouts/returns_min": 0.0,
        "rollouts/returns_best_mean": 0.75,
        "rollouts/kl_mean": 0.5,
        "rollouts/kl_std": 0.5,
        "rollouts/kl_max": 1.0,
        "rollouts/advantages_mean": 0.25,
        "rollouts/advantages_std": 0.5,
        "rollouts/total_rollouts": 16,
        "rollouts/exceptions": 0,
        "rollouts/batch_step": 4,
    }


def test_the_best_mean_return_never_falls():
    totals = Totals().with_rollouts(trajectories(1.0, 1.0)).with_rollouts(trajectories(0.0, 0.0))

    assert totals.best_mean_return == 1.0
    assert totals.rollouts == 4


def test_batch_returns_say_how_rewards_are_spread():
    metrics = batch_return_metrics(BATCH)

    assert metrics == {
        "batch_returns/mean": 0.75,
        "batch_returns/std": 0.5,
        "batch_returns/min": 0.0,
        "batch_returns/max": 1.0,
        "batch_returns/p10": pytest.approx(0.3),
        "batch_returns/p50": 1.0,
        "batch_returns/p90": 1.0,
        "batch_returns/nonzero_fraction": 0.75,
        "batch_returns/zero_std_group_fraction": 0.5,
    }


def update(policy=1.0, kl=0.0, grad_norm=5.0):
    return UpdateStats(policy, 0.0, kl, 0.25, 0.5, grad_norm, 1e-4)


def test_an_optimiser_step_has_its_metrics_and_a_skipped_one_none():
    stats = UpdateStats(
        policy=0.75, kl_part=0.25, kl=2.0, clip_fraction=0.5, entropy=6.0, grad_norm=3.0, learning_rate=4.0
    )
    assert update_metrics(stats) == {
        "training_step/loss": 1.0,
        "training_step/kl": 2.0,
        "training_step/grad_norm": 3.0,
        "training_step/learning_rate": 4.0,
        "training_step/clip_fraction": 0.5,
        "training_step/entropy": 6.0,
    }
    assert update_metrics(None) == {}


def test_an_epoch_is_summarised_over_its_optimiser_steps():
    updates = [update(1.0, 0.0, 5.0), update(3.0, 2.0, 7.0)]

    metrics = epoch_metrics(updates)

    assert metrics == {
        "training_epoch/loss_mean": 2.0,
        "training_epoch/loss_std": pytest.approx(math.sqrt(2)),
        "training_epoch/kl_mean": 1.0,
        "training_epoch/kl_std": pytest.approx(math.sqrt(2)),
        "training_epoch/grad_norm_mean": 6.0,
        "training_epoch/grad_norm_max": 7.0,
    }


def test_a_spread_of_one_value_is_not_logged():
    metrics = epoch_metrics([update()])

    assert not any(key.endswith("_std") for key in metrics)


def test_nothing_is_logged_of_nothing():
    assert epoch_metrics([]) == {}
    assert batch_return_metrics([]) == {}
    assert eval_metrics([]) == {"eval/n_trajectories": 0, "eval/exceptions": 0}
    assert DrGrpo().of_rollouts(HERE, []) == Examples().of_rollouts(HERE, []) == {}


def test_an_evaluation_is_the_mean_reward_and_the_means_of_what_the_task_measured():
    assert eval_metrics(BATCH) == {
        "eval/reward": 0.75,
        "eval/num_turns": 2.0,
        "eval/n_trajectories": 4,
        "eval/exceptions": 0,
    }


def test_an_episode_that_failed_is_counted_and_in_no_mean():
    failed = [*BATCH, Trajectory([], exception="TimeoutError: …", group="0.0", metrics={})]

    totals = Totals().with_rollouts(failed)
    assert eval_metrics(failed) == eval_metrics(BATCH) | {"eval/exceptions": 1}
    assert rollout_metrics(failed, [], totals) == rollout_metrics(BATCH, [], totals) | {
        "rollouts/exceptions": 1
    }
    assert (totals.rollouts, totals.exceptions, totals.best_mean_return) == (5, 1, 0.75)


def test_dr_grpo_says_how_its_advantages_are_spread_and_what_its_loss_is_made_of():
    collector, stats = DrGrpo(), update(policy=-0.25)

    # Advantages -0.5, 0.5, 0.5, 0.5: mean 0.25, population variance 0.1875.
    assert collector.of_rollouts(HERE, BATCH) == {
        "dr_grpo/advantages_variance": pytest.approx(0.1875),
        "dr_grpo/advantages_skewness": pytest.approx(
            statistics.fmean([-(0.75**3), *[0.25**3] * 3]) / 0.1875**1.5
        ),
    }
    row = collector.of_update(HERE, stats, True)
    assert row == {
        "training_step/dr_component_policy": -0.25,
        "training_step/dr_component_kl": 0.0,
        "training_step/dr_component_clip_fraction": 0.25,
    }
    assert row["training_step/dr_component_policy"] + row["training_step/dr_component_kl"] == stats.loss


def test_equal_advantages_have_no_skewness():
    row = DrGrpo().of_rollouts(HERE, trajectories(1.0, 1.0))

    assert row == {"dr_grpo/advantages_variance": 0.0}


def test_an_example_is_the_best_conversation_of_the_batch():
    best = Trajectory([Turn("user", "2+2?"), Turn("assistant", "4")], reward=2.0)

    table = Examples().of_rollouts(HERE, [*BATCH, best])["examples/completion"]

    assert table.columns == ["prompt", "completion", "return"]
    assert table.data == [["user: 2+2?", "assistant: 4", 2.0]]


def test_a_place_in_a_training_knows_its_epoch():
    at = At(global_step=14, batch_step=7, batches_per_epoch=3, n_batches=8)

    assert (at.epoch, at.epoch_step, at.is_epochs_last, at.is_final) == (2, 1, True, False)
    assert At(16, 8, 3, 8).is_final


def test_the_final_metrics_are_the_totals():
    totals = Totals(optimiser_steps=39, batches=40, rollouts=640, best_mean_return=0.5)

    assert final_metrics(totals) == {
        "final/total_steps": 39,
        "final/total_batches": 40,
        "final/total_rollouts": 640,
        "final/best_mean_return": 0.5,
    }


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_kl_that_is_not_finite_is_shown_and_does_not_raise(value):
    metrics = rollout_metrics(BATCH, kl=[0.0, value], totals=Totals().with_rollouts(BATCH))

    assert not math.isfinite(metrics["rollouts/kl_mean"])
    assert not math.isfinite(metrics["rollouts/kl_std"])


@given(rewards=st.lists(st.floats(-2, 2), min_size=2, max_size=30))
def test_no_metric_of_finite_rewards_is_nan(rewards):
    batch = trajectories(*rewards)

    metrics = batch_return_metrics(batch) | rollout_metrics(batch, [0.1], Totals().with_rollouts(batch))

    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["batch_returns/p50"] == pytest.approx(statistics.median(rewards))
