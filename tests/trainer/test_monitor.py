"""What is noticed while a training runs, and how often it is said."""

import pytest

from eventlog import Trajectory
from trainer.collectors import At, UpdateStats
from trainer.monitor import Monitor

WELL = UpdateStats(
    policy=0.0, kl_part=0.0, kl=0.01, clip_fraction=0.0, entropy=1.0, grad_norm=1.0, learning_rate=1e-4
)


def at(batch):
    return At(batch, batch, 1, 100)


def rewards(mean, n=64):
    """Groups of two, half a point around the mean: never equal within a group."""
    return [Trajectory([], reward=mean + (0.5 if i % 2 else -0.5), group=str(i // 2)) for i in range(n)]


def titles(monitor):
    return [alarm.title for alarm in monitor.alarms()]


def played(monitor, means):
    found = []
    for batch, mean in enumerate(means):
        monitor.of_rollouts(at(batch), rewards(mean))
        found += [(batch, title) for title in titles(monitor)]
    return found


def test_a_training_that_goes_well_raises_nothing():
    monitor = Monitor()

    assert played(monitor, [0.3, 0.35, 0.32, 0.4, 0.5, 0.55, 0.52, 0.6, 0.7, 0.68]) == []
    monitor.of_update(at(0), WELL, True)
    assert titles(monitor) == []


def test_a_collapse_is_said_once_while_it_lasts():
    found = played(Monitor(), [0.3, 0.5, 0.6, 0.7, 0.7, 0.7, 0.1, 0.0, 0.0, 0.0, 0.0])

    assert [title for _, title in found] == ["The reward collapsed"]
    assert found[0][0] == 7  # the second bad batch


def test_a_collapse_below_where_it_began_is_one_too():
    assert played(Monitor(), [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]) != []


def test_a_training_that_ruins_its_policy_at_once_is_noticed_by_the_first_evaluation_that_shows_it():
    monitor, found = Monitor(), []
    for step, mean in [(0, 0.6), (5, 0.1), (10, 0.1), (15, 0.5), (20, 0.0)]:
        monitor.of_evaluation(at(step), rewards(mean))
        found += [(step, title) for title in titles(monitor)]

    assert found == [(5, "The held-out reward collapsed"), (20, "The held-out reward collapsed")]


def test_an_evaluation_that_wavers_is_no_collapse():
    monitor = Monitor()
    for step, mean in enumerate([0.6, 0.55, 0.62, 0.5, 0.6, 0.7, 0.65]):
        monitor.of_evaluation(at(step), rewards(mean))

    assert titles(monitor) == []


def test_one_bad_batch_is_no_collapse():
    assert played(Monitor(), [0.3, 0.5, 0.7, 0.7, 0.1, 0.7, 0.7]) == []


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"kl": 5.0}, "The policy has run away"),
        ({"kl": float("nan")}, "The policy has run away"),
        ({"clip_fraction": 0.5}, "Updates are clipped"),
        ({"entropy": 0.001}, "The policy has stopped exploring"),
    ],
)
def test_a_sign_of_an_update_is_said_once_and_again_after_it_was_gone(change, title):
    monitor = Monitor()
    monitor.of_update(at(0), WELL, True)
    ill = UpdateStats(**{**vars(WELL), **change})

    said = []
    for batch, update in enumerate([ill, ill, WELL, ill], start=1):
        monitor.of_update(at(batch), update, True)
        said.append(titles(monitor))

    assert said == [[title], [], [], [title]]


def test_groups_that_teach_nothing_are_said():
    monitor = Monitor()
    monitor.of_rollouts(at(0), [Trajectory([], reward=1.0, group=str(i // 4)) for i in range(40)])

    assert titles(monitor) == ["Nothing to learn from"]


def test_episodes_that_fail_are_said():
    monitor = Monitor()
    monitor.of_rollouts(at(0), [Trajectory([], exception="TimeoutError", group="0")] * 3 + rewards(0.5, 2))

    assert titles(monitor) == ["Episodes fail"]


def failed(*exceptions):
    return [Trajectory([], exception=exception, group="0") for exception in exceptions]


def test_the_commonest_reason_why_episodes_fail_is_said():
    monitor = Monitor()
    monitor.of_rollouts(
        at(0),
        failed("TimeoutError: ", "TemplateError: System role not supported\n at line 3")
        + failed("TemplateError: System role not supported\n at line 7", "KeyError: 'inbox'"),
    )

    (alarm,) = monitor.alarms()
    assert "4 of 4 episodes raised" in alarm.text
    assert "TemplateError: System role not supported" in alarm.text
    assert "\n" not in alarm.text


def test_a_reason_as_long_as_a_page_is_cut():
    monitor = Monitor()
    monitor.of_rollouts(at(0), failed("ValueError: " + "no " * 5000))

    (alarm,) = monitor.alarms()
    assert len(alarm.text) < 500


def test_held_out_episodes_that_fail_are_said_and_again_at_the_end():
    monitor, found = Monitor(), []
    for batch in (0, 50, 100):
        monitor.of_evaluation(at(batch), failed(*["TemplateError: System role not supported"] * 4))
        found.append(
            [(alarm.title, "TemplateError: System role" in alarm.text) for alarm in monitor.alarms()]
        )

    assert found == [[("Held-out episodes fail", True)], [], [("Held-out episodes failed to the end", True)]]


def judged(**results):
    return [
        Trajectory(
            [],
            reward=float(i % 2),
            group=str(i // 2),
            info={"judge": {"result": result, "error": "HTTP 401: no key" if "failure" in result else None}},
        )
        for i, result in enumerate(result for result, n in results.items() for _ in range(n))
    ]


@pytest.mark.parametrize("failure", ["api_failure", "parse_failure"])
def test_a_judge_that_fails_is_said_once_with_its_reason(failure):
    monitor, found = Monitor(), []
    for batch in range(2):
        monitor.of_rollouts(at(batch), judged(**{"correct": 2, failure: 8}))
        found += monitor.alarms()

    (alarm,) = found
    assert alarm.title == "The judge fails"
    assert "8 of 10 calls" in alarm.text
    assert "HTTP 401: no key" in alarm.text


def test_a_judge_that_fails_now_and_then_is_not_said():
    monitor = Monitor()
    monitor.of_rollouts(at(0), judged(correct=5, incorrect=3, parse_failure=2))

    assert titles(monitor) == []


def test_a_sampler_that_drifts_is_said():
    monitor = Monitor()
    monitor.of_drift(at(0), 0.01)
    monitor.of_drift(at(1), 0.5)

    assert titles(monitor) == ["The sampler is another policy"]


def test_a_resumed_monitor_says_what_an_unbroken_one_would():
    means = [0.3, 0.5, 0.6, 0.7, 0.7, 0.7, 0.1, 0.0, 0.0]
    whole = played(Monitor(), means)

    first, second = Monitor(), Monitor()
    found = played(first, means[:5])
    second.restore(first.state())
    for batch, mean in enumerate(means[5:], start=5):
        second.of_rollouts(at(batch), rewards(mean))
        found += [(batch, title) for title in titles(second)]

    assert found == whole
