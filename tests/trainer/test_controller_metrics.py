"""`Train/*` and `Val/*`: names, formulas, when they are logged, and that a resumed training logs the same."""

import statistics

import pytest

from eventlog import Trajectory
from trainer.collectors import At, UpdateStats
from trainer.collectors.controller import Controller


class Nothing:
    """A testbed that has nothing to keep."""

    def state(self):
        return {}

    def restore(self, state):
        pass


def decision(reward, accuracy, latency_ms, violation=0.0, unparsable=0.0):
    metrics = {
        "accuracy": accuracy,
        "latency_ms": latency_ms,
        "budget_violation": violation,
        "unparsable": unparsable,
        "num_turns": 1.0,
    }
    return Trajectory(turns=[], reward=reward, metrics=metrics)


FAILED = Trajectory(turns=[], exception="RuntimeError: no")
FIRST = [decision(1.0, 1.0, 2.0), decision(-1.5, 0.0, 9.0, violation=1.0, unparsable=1.0), FAILED]
SECOND = [decision(0.0, 0.0, 1.0), decision(1.0, 1.0, 4.0)]


def update(loss):
    return UpdateStats(loss - 0.25, 0.25, 0.0, 0.0, 0.0, 1.0, 1e-4)


def at(batch_step, per_epoch=2, n_batches=4):
    return At(batch_step, batch_step, per_epoch, n_batches)


def test_an_epoch_is_logged_once_in_the_row_of_its_last_update():
    collector = Controller(Nothing())

    rows = []
    for batch_step, batch in enumerate([FIRST, SECOND]):
        assert collector.of_rollouts(at(batch_step), batch) == {}
        rows.append(collector.of_update(at(batch_step), update(batch_step + 1.0), is_batchs_last=False))
        rows.append(collector.of_update(at(batch_step), update(batch_step + 2.0), is_batchs_last=True))

    assert rows[:3] == [{}, {}, {}]
    assert rows[3] == {
        "epoch": 0,
        "Train/Loss": 2.0,  # of 1, 2, 2 and 3
        "Train/Reward_Mean": pytest.approx(0.125),
        "Train/Reward_Std": pytest.approx(statistics.pstdev([1.0, -1.5, 0.0, 1.0])),
        "Train/Accuracy_Mean": 0.5,
        "Train/Accuracy_Std": 0.5,
        "Train/Latency_Mean": 4.0,
        "Train/Latency_Std": pytest.approx(statistics.pstdev([2.0, 9.0, 1.0, 4.0])),
        "Train/Budget_Violation_Rate": 0.25,
        "Train/Unparsable_Count": 1,
    }


def test_the_next_epoch_begins_with_nothing():
    collector = Controller(Nothing())
    for batch_step, batch in enumerate([FIRST, FIRST, SECOND, SECOND]):
        collector.of_rollouts(at(batch_step), batch)
        row = collector.of_update(at(batch_step), update(1.0), is_batchs_last=True)

    assert row["epoch"] == 1
    assert row["Train/Latency_Mean"] == 2.5
    assert row["Train/Unparsable_Count"] == 0


def test_an_epoch_that_was_cut_short_is_logged_too():
    collector = Controller(Nothing())
    last = at(2, per_epoch=2, n_batches=3)

    collector.of_rollouts(last, SECOND)

    assert collector.of_update(last, update(1.0), is_batchs_last=True)["epoch"] == 1


def test_a_mean_over_nothing_is_not_logged():
    collector = Controller(Nothing())

    collector.of_rollouts(at(1), [FAILED])

    assert collector.of_update(at(1), None, is_batchs_last=True) == {"epoch": 0}
    assert collector.of_evaluation(at(0), [FAILED]) == {"epoch": 0}


def test_a_skipped_update_has_no_part_in_the_loss():
    collector = Controller(Nothing())

    collector.of_update(at(0), update(3.0), is_batchs_last=True)

    assert collector.of_update(at(1), None, is_batchs_last=True)["Train/Loss"] == 3.0


def test_an_evaluation_is_the_means_of_the_greedy_choice_before_its_epoch():
    collector = Controller(Nothing())

    assert collector.of_evaluation(at(2), FIRST) == {
        "epoch": 1,
        "Val/Reward_Mean": -0.25,
        "Val/Accuracy_Mean": 0.5,
        "Val/Latency_Mean": 5.5,
        "Val/Budget_Violation_Rate": 0.5,
        "Val/Unparsable_Count": 1,
    }


@pytest.mark.parametrize(("n_batches", "epoch"), [(4, 2), (3, 2), (1, 1)])
def test_the_last_evaluation_comes_after_the_last_epoch(n_batches, epoch):
    collector = Controller(Nothing())

    row = collector.of_evaluation(at(n_batches, per_epoch=2, n_batches=n_batches), SECOND)

    assert row["epoch"] == epoch


def test_an_evaluation_within_an_epoch_makes_no_second_point_of_it():
    assert Controller(Nothing()).of_evaluation(at(1), SECOND) == {}


def test_epochs_of_one_row_have_train_and_val_at_the_same_place():
    collector, only = Controller(Nothing()), at(3, per_epoch=1)

    before = collector.of_evaluation(only, SECOND)
    collector.of_rollouts(only, SECOND)
    during = collector.of_update(only, update(1.0), is_batchs_last=True)

    assert before["epoch"] == during["epoch"] == 3


def test_a_restored_collector_logs_what_an_unbroken_one_does():
    whole, first_part, second_part = (Controller(Nothing()) for _ in range(3))
    for collector in (whole, first_part):
        collector.of_rollouts(at(0), FIRST)
        collector.of_update(at(0), update(1.0), is_batchs_last=True)

    second_part.restore(first_part.state())

    for collector in (whole, second_part):
        collector.of_rollouts(at(1), SECOND)
    expected = whole.of_update(at(1), update(2.0), is_batchs_last=True)
    assert second_part.of_update(at(1), update(2.0), is_batchs_last=True) == expected


def test_what_is_kept_does_not_change_afterwards():
    collector = Controller(Nothing())
    collector.of_rollouts(at(0), FIRST)
    kept = collector.state()

    collector.of_rollouts(at(1), SECOND)

    assert kept["decisions"]["reward"] == [1.0, -1.5]


def test_the_testbed_is_kept_and_given_back():
    class Box:
        def __init__(self, value):
            self.value = value

        def state(self):
            return {"value": self.value}

        def restore(self, state):
            self.value = state["value"]

    full, empty = Box(7), Box(None)

    Controller(empty).restore(Controller(full).state())

    assert empty.value == 7


def test_every_curve_has_the_epoch_as_its_axis_and_fractions_and_ms_their_unit():
    assert Controller.axes == {"Train/*": "epoch", "Val/*": "epoch"}
    assert Controller.units["Val/Accuracy_Mean"] == "fraction 0-1"
    assert Controller.units["Train/Budget_Violation_Rate"] == "fraction 0-1"
    assert Controller.units["Train/Latency_Std"] == "ms"
