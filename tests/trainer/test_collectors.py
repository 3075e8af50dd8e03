"""The names and formulas of the metrics: what dashboards built on these names expect."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import Trajectory
from trainer.collectors import (
    Totals,
    UpdateStats,
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


def test_an_optimiser_step_has_four_metrics_and_a_skipped_one_none():
    assert update_metrics(UpdateStats(loss=1.0, kl=2.0, grad_norm=3.0, learning_rate=4.0)) == {
        "training_step/loss": 1.0,
        "training_step/kl": 2.0,
        "training_step/grad_norm": 3.0,
        "training_step/learning_rate": 4.0,
    }
    assert update_metrics(None) == {}


def test_an_epoch_is_summarised_over_its_optimiser_steps():
    updates = [UpdateStats(1.0, 0.0, 5.0, 1e-4), UpdateStats(3.0, 2.0, 7.0, 1e-4)]

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
    metrics = epoch_metrics([UpdateStats(1.0, 0.0, 5.0, 1e-4)])

    assert not any(key.endswith("_std") for key in metrics)


def test_nothing_is_logged_of_nothing():
    assert epoch_metrics([]) == {}
    assert batch_return_metrics([]) == {}
    assert eval_metrics([]) == {"eval/n_trajectories": 0}


def test_an_evaluation_is_the_mean_reward_and_the_means_of_what_the_task_measured():
    assert eval_metrics(BATCH) == {"eval/reward": 0.75, "eval/num_turns": 2.0, "eval/n_trajectories": 4}


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
