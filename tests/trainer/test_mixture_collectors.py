"""What the mixture logs: S4's names, units and formulas, its console summaries, and costs that outlive a crash."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import Trajectory, Turn
from trainer.collectors import At
from trainer.collectors.mixture import CostTracker, DatasetMetricsCollector, JudgeMetricsCollector, Prices
from trainer.data.mixture import SOURCES

AT = At(global_step=12, batch_step=6, batches_per_epoch=100, n_batches=10)
PRICES = Prices(executor_prompt=1.0, executor_completion=10.0, judge_prompt=2.0, judge_completion=20.0)


def trajectory(source, reward, judge=None, exception=None, n_turns=1):
    info = {} if exception else {"source": source}
    if judge:
        info["judge"] = {"result": judge, "prompt_tokens": 50, "completion_tokens": 5}
    return Trajectory(
        turns=[Turn(role="user"), *[Turn(role="assistant")] * n_turns],
        reward=None if exception else reward,
        prompt_tokens=200,
        completion_tokens=30,
        exception=exception,
        info=info,
    )


BATCH = [
    trajectory("math", 1.0, judge="correct"),
    trajectory("gsm8k", 1.0),
    trajectory("gsm8k", 1.0),
    trajectory("gsm8k", 0.0),
    trajectory("math", 0.0, judge="api_failure"),
    trajectory("mmlu", 0.0),
    trajectory("humaneval", 1.0),
    trajectory("gsm8k", 0.0, exception="the server is gone"),
]


# --- by source --------------------------------------------------------------------------------------------------------


def test_a_batch_says_of_each_source_its_percentage_count_and_reward_and_of_each_domain_its_percentage():
    assert DatasetMetricsCollector().of_rollouts(AT, BATCH) == {
        "dataset/gsm8k/accuracy": pytest.approx(66.6667, abs=1e-4),
        "dataset/gsm8k/count": 3,
        "dataset/gsm8k/avg_reward": pytest.approx(2 / 3),
        "dataset/math/accuracy": 50.0,
        "dataset/math/count": 2,
        "dataset/math/avg_reward": 0.5,
        "dataset/mmlu/accuracy": 0.0,
        "dataset/mmlu/count": 1,
        "dataset/mmlu/avg_reward": 0.0,
        "dataset/humaneval/accuracy": 100.0,
        "dataset/humaneval/count": 1,
        "dataset/humaneval/avg_reward": 1.0,
        "train/accuracy": pytest.approx(100 * 4 / 7),
        "train/accuracy_math": 60.0,
        "train/accuracy_qa": 0.0,
        "train/accuracy_code": 100.0,
        "train/step": 6,
    }


def test_a_batch_says_nothing_of_the_batch_before_it():
    collector = DatasetMetricsCollector()
    collector.of_rollouts(AT, BATCH)

    assert collector.of_rollouts(AT, [trajectory("hotpotqa", 1.0)]) == {
        "dataset/hotpotqa/accuracy": 100.0,
        "dataset/hotpotqa/count": 1,
        "dataset/hotpotqa/avg_reward": 1.0,
        "train/accuracy": 100.0,
        "train/accuracy_qa": 100.0,
        "train/step": 6,
    }


def test_an_evaluation_says_the_same_under_val_and_leaves_the_batchs_own_alone():
    collector = DatasetMetricsCollector()
    collector.of_rollouts(AT, BATCH[:1])

    row = collector.of_evaluation(AT, BATCH)

    assert row["val/gsm8k/accuracy"] == pytest.approx(66.6667, abs=1e-4)
    assert row["val/gsm8k/count"] == 3
    assert set(row) == {
        f"val/{s}/{k}" for s in ("math", "gsm8k", "mmlu", "humaneval") for k in ("accuracy", "count")
    }
    assert collector.get_metrics()["dataset/math/count"] == 1


def test_where_nothing_finished_only_the_step_is_said():
    assert DatasetMetricsCollector().of_rollouts(AT, [BATCH[-1]]) == {"train/step": 6}
    assert DatasetMetricsCollector().of_evaluation(AT, [BATCH[-1]]) == {}


def test_percent_and_fraction_are_told_apart():
    assert DatasetMetricsCollector.units["dataset/gsm8k/accuracy"] == "percent"
    assert DatasetMetricsCollector.units["val/mmlu/accuracy"] == "percent"
    assert DatasetMetricsCollector.units["train/accuracy_code"] == "percent"
    assert JudgeMetricsCollector.units["judge/success_rate"] == "fraction"
    assert CostTracker.units["cost/total_cost"] == "USD"


# --- the judge --------------------------------------------------------------------------------------------------------


def test_the_judge_is_counted_from_what_the_trajectories_carry():
    assert JudgeMetricsCollector().of_rollouts(AT, BATCH) == {
        "judge/success_rate": 0.5,
        "judge/parse_failure_rate": 0.0,
        "judge/api_failure_rate": 0.5,
        "judge/correct_ratio": 1.0,
        "judge/incorrect_ratio": 0.0,
    }


def test_60_of_85_verdicts_are_a_ratio_of_706_thousandths():
    collector = JudgeMetricsCollector()
    collector.add_stats({"correct": 60, "incorrect": 25, "parse_failure": 10, "api_failure": 5})

    metrics = collector.get_metrics()

    assert metrics["judge/success_rate"] == 0.85
    assert metrics["judge/correct_ratio"] == pytest.approx(0.706, abs=5e-4)
    assert metrics["judge/incorrect_ratio"] == pytest.approx(1 - 0.706, abs=5e-4)


def test_a_judge_that_was_not_asked_or_never_understood_has_no_ratio():
    collector = JudgeMetricsCollector()
    assert collector.of_rollouts(AT, BATCH[1:4]) == {}

    collector.add_call("parse_failure")

    assert collector.get_metrics() == {
        "judge/success_rate": 0.0,
        "judge/parse_failure_rate": 1.0,
        "judge/api_failure_rate": 0.0,
    }


@given(
    results=st.lists(st.sampled_from(["correct", "incorrect", "parse_failure", "api_failure"]), min_size=1)
)
def test_the_three_rates_add_up_to_one(results):
    collector = JudgeMetricsCollector()
    for result in results:
        collector.add_call(result)

    rates = [collector.get_metrics()[f"judge/{k}_rate"] for k in ("success", "parse_failure", "api_failure")]

    assert sum(rates) == pytest.approx(1.0)


# --- costs ------------------------------------------------------------------------------------------------------------


def test_a_trajectory_costs_its_tokens_and_its_judges_at_their_prices_per_million():
    assert PRICES.of(BATCH[1]) == pytest.approx((200 * 1 + 30 * 10) / 1e6)
    assert PRICES.of(BATCH[0]) == pytest.approx((200 * 1 + 30 * 10 + 50 * 2 + 5 * 20) / 1e6)


def test_costs_add_up_over_batches_and_validations():
    tracker = CostTracker(PRICES)

    first = tracker.of_rollouts(AT, BATCH)
    second = tracker.of_evaluation(AT, [trajectory("gsm8k", 1.0, n_turns=2)])

    assert first == {
        "cost/total_cost": pytest.approx((7 * 500 + 2 * 200) / 1e6),
        "cost/avg_cost_per_sample": pytest.approx((7 * 500 + 2 * 200) / 7e6),
        "cost/executor_calls": 7,
        "cost/judge_calls": 2,
    }
    assert second == {
        "val/gsm8k/avg_cost": pytest.approx(500 / 1e6),
        "cost/total_cost": pytest.approx((8 * 500 + 2 * 200) / 1e6),
        "cost/avg_cost_per_sample": pytest.approx((8 * 500 + 2 * 200) / 8e6),
        "cost/executor_calls": 9,
        "cost/judge_calls": 2,
    }


def test_the_average_cost_of_a_source_in_a_validation_is_a_mean_over_its_samples():
    row = CostTracker(PRICES).of_evaluation(AT, BATCH)

    assert row["val/math/avg_cost"] == pytest.approx((500 + 200) / 1e6)
    assert row["val/gsm8k/avg_cost"] == pytest.approx(500 / 1e6)


def test_the_total_survives_a_resume():
    before, after = CostTracker(PRICES), CostTracker(PRICES)
    before.of_rollouts(AT, BATCH)

    after.restore(before.state())

    assert after.of_rollouts(AT, BATCH) == before.of_rollouts(AT, BATCH)
    assert after.get_metrics()["cost/executor_calls"] == 14


def test_where_nothing_was_paid_for_no_cost_is_logged():
    assert CostTracker(PRICES).of_rollouts(AT, [BATCH[-1]]) == {}


# --- the console ------------------------------------------------------------------------------------------------------

SELF_TEST = """\
数据集统计摘要:
  gsm8k          :   2/  3 =  66.7%
  math           :   1/  2 =  50.0%
LLM Judge统计 (总计: 100 次):
  成功: 85 (85.0%)
成本统计:
  总成本: $0.0350
"""


def test_the_self_test_prints_the_three_summaries():
    command = [sys.executable, "-m", "trainer.collectors.mixture"]

    assert subprocess.run(command, capture_output=True, check=True).stdout.decode() == SELF_TEST


def test_a_terminal_without_chinese_stops_nothing():
    command = [sys.executable, "-m", "trainer.collectors.mixture"]

    said = subprocess.run(
        command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )

    assert "gsm8k          :   2/  3 =  66.7%" in said.stdout.decode("latin-1")


def test_the_collectors_work_alone(capsys):
    datasets, judge, cost = DatasetMetricsCollector(), JudgeMetricsCollector(), CostTracker()
    for correct in (True, True, False):
        datasets.add_sample("gsm8k", correct, reward=float(correct))
    for correct in (True, False):
        datasets.add_sample("math", correct)
    for i in range(100):
        judge.add_call("correct" if i < 85 else "parse_failure")
    cost.add_sample(0.035, executor_calls=3, judge_calls=1)

    for collector in (datasets, judge, cost):
        collector.print_summary()

    assert capsys.readouterr().out == SELF_TEST
    assert datasets.get_metrics()["dataset/math/accuracy"] == 50.0
    assert cost.get_metrics()["cost/executor_calls"] == 3


def test_a_reset_forgets_all():
    datasets, judge, cost = DatasetMetricsCollector(), JudgeMetricsCollector(), CostTracker()
    datasets.add_sample("gsm8k", True)
    judge.add_call("correct")
    cost.add_sample(1.0)

    for collector in (datasets, judge, cost):
        collector.reset()

    assert [collector.get_metrics() for collector in (datasets, judge, cost)] == [{}, {}, {}]


def test_a_summary_lists_the_sources_in_their_own_order():
    collector = DatasetMetricsCollector()

    collector.of_rollouts(AT, BATCH)

    listed = [line.split(":")[0].strip() for line in collector.summary().splitlines()[1:]]
    assert listed == [source for source in SOURCES if source in listed]
