"""The controller's episode: what it is asked, how its choice is read, and what the choice earns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import Turn
from tests.trainer.test_adaptive import SMALL, untrained
from trainer.adaptive import FAMILIES, N_TOKENS, Testbed, count
from trainer.tasks.controller import (
    EXITS,
    TOKENS,
    ControllerTask,
    Problem,
    budget_penalty,
    draw_problems,
    parse_knobs,
)

PROBLEMS = draw_problems(60, list(FAMILIES), [50, 75], seed=0)


def a_task(weight=1.0, seed=0):
    testbed = Testbed(untrained, count)
    return ControllerTask(testbed, SMALL.layers, weight, seed), testbed


def said(problem, text):
    task, _ = a_task()
    return [*task.opening(problem), Turn(role="assistant", content=text)]


def test_the_prompt_says_what_is_known_before_the_sample_is_run():
    task, _ = a_task()
    problem = PROBLEMS[0]

    (turn,) = task.opening(problem)

    assert turn.role == "user"
    assert f"{problem.sample.n_links} links in {N_TOKENS} tokens" in turn.content
    assert f"Budget: {problem.budget_percent} percent" in turn.content
    assert turn.content.endswith(f"Family: {problem.sample.family}")


@given(
    depth=st.integers(1, 5), exit_at=st.sampled_from([*EXITS, "1.0", ".25"]), tokens=st.integers(1, N_TOKENS)
)
def test_knobs_within_their_bounds_are_read_as_written(depth, exit_at, tokens):
    knobs = parse_knobs(f"depth {depth} exit {exit_at} tokens {tokens}", n_layers=5)

    assert (knobs.depth, knobs.exit, knobs.tokens) == (depth, float(exit_at), tokens)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "depth 3",
        "depth 0 exit 1 tokens 8",
        "depth 6 exit 1 tokens 8",
        "depth 3 exit 0.0 tokens 8",
        "depth 3 exit 1.5 tokens 8",
        "depth 3 exit 2 tokens 8",
        "depth 3 exit 1 tokens 0",
        "depth 3 exit 1 tokens 65",
        "depth 3 exit 1 tokens 999999",
        "depth three exit 1 tokens 8",
        "depth -3 exit 1 tokens 8",
    ],
)
def test_a_choice_that_cannot_be_run_is_no_choice(text):
    assert parse_knobs(text, n_layers=5) is None


def test_of_several_choices_the_last_one_counts():
    text = "I could say depth 5 exit 1 tokens 64, but depth 2 exit 0.8 tokens 16."

    assert parse_knobs(text, n_layers=5).depth == 2


@given(
    latency_ms=st.floats(0.01, 100), budget_ms=st.floats(0.01, 100), weight=st.floats(0, 3, allow_nan=False)
)
def test_only_what_is_over_budget_is_penalised_and_more_for_more_up_to_twice_the_weight(
    latency_ms, budget_ms, weight
):
    penalty = budget_penalty(latency_ms, budget_ms, weight)

    if latency_ms <= budget_ms:
        assert penalty == 0.0
    else:
        assert weight <= penalty <= 2 * weight
        assert penalty <= budget_penalty(latency_ms * 1.1, budget_ms, weight)


@pytest.mark.parametrize("number", range(10))
def test_the_reward_is_the_accuracy_less_the_penalty_each_as_measured(number):
    problem = PROBLEMS[number]
    task, testbed = a_task(weight=0.5)
    model, latency_ms = untrained(), count(untrained())

    grade = task.grade(problem, said(problem, "depth 3 exit 1 tokens 40"))

    knobs = parse_knobs("depth 3 exit 1 tokens 40", n_layers=3)
    right = model.run(problem.sample, knobs).answer == problem.sample.path[-1]
    took_ms, budget_ms = latency_ms["3/40/0"], latency_ms["3/64/0"] * problem.budget_percent / 100
    penalty = 0.5 * min(took_ms / budget_ms, 2) if took_ms > budget_ms else 0.0
    assert grade.reward == float(right) - penalty
    assert grade.rewards == {"accuracy": float(right), "budget_penalty": -penalty}
    assert sum(grade.rewards.values()) == grade.reward
    assert grade.metrics == {
        "accuracy": float(right),
        "latency_ms": took_ms,
        "budget_ms": budget_ms,
        "budget_violation": float(took_ms > budget_ms),
        "unparsable": 0.0,
        "layers": 3.0,
        "tokens": 40.0,
    }
    assert grade.info["knobs"] == {"depth": 3, "exit": 1.0, "tokens": 40}
    assert grade.info["family"] == problem.sample.family
    assert testbed.full_ms == latency_ms["3/64/0"]


def test_a_right_answer_within_the_budget_earns_1():
    task, _ = a_task()
    run = untrained().run
    for problem in draw_problems(400, ["mixed"], [99], seed=1):
        knobs = parse_knobs("depth 1 exit 1 tokens 64", n_layers=3)
        if run(problem.sample, knobs).answer == problem.sample.path[-1]:
            assert task.grade(problem, said(problem, "depth 1 exit 1 tokens 64")).reward == 1.0
            return
    raise AssertionError("of 400 guesses among 24 nodes, one is right")


@pytest.mark.parametrize("text", ["", "no knobs", "depth 9 exit 1 tokens 8"])
def test_a_turn_without_knobs_costs_the_full_model_and_answers_nothing(text):
    problem = next(p for p in PROBLEMS if p.budget_percent == 75)
    task, testbed = a_task()

    grade = task.grade(problem, said(problem, text))

    assert grade.metrics["unparsable"] == 1.0
    assert grade.metrics["accuracy"] == 0.0
    assert grade.metrics["latency_ms"] == testbed.full_ms
    assert grade.metrics["budget_violation"] == 1.0
    assert grade.reward == pytest.approx(-100 / 75)
    assert "knobs" not in grade.info


def test_at_weight_1_no_decision_over_budget_is_worth_more_than_a_wrong_one_within_it():
    over, weight = budget_penalty(1.001, 1.0, 1.0), 1.0

    assert weight - over < 0.0


def test_a_demonstration_names_knobs_that_can_be_run():
    task, _ = a_task()

    for problem in PROBLEMS:
        *_, turn = task.demonstrate(problem)
        knobs = parse_knobs(turn.content, SMALL.layers)
        assert turn.role == "assistant"
        assert knobs is not None
        assert knobs.tokens in TOKENS


def test_demonstrations_know_the_family_and_no_budget_and_leave_something_to_compare():
    testbed = Testbed(untrained, count)
    task = ControllerTask(testbed, 5, 1.0, seed=0)
    drawn = draw_problems(400, ["direct", "chain"], [10, 90], seed=0)

    depths = {
        (family, budget): [
            parse_knobs(task.demonstrate(p)[-1].content, 5).depth
            for p in drawn
            if (p.sample.family, p.budget_percent) == (family, budget)
        ]
        for family in ("direct", "chain")
        for budget in (10, 90)
    }

    for budget in (10, 90):
        assert max(depths["direct", budget], key=depths["direct", budget].count) == 2
        assert max(depths["chain", budget], key=depths["chain", budget].count) == 4
        assert set(depths["chain", budget]) == {1, 2, 3, 4, 5}


def test_demonstrations_are_the_same_when_they_are_made_again():
    assert [a_task()[0].demonstrate(p) for p in PROBLEMS] == [a_task()[0].demonstrate(p) for p in PROBLEMS]
    assert [a_task()[0].demonstrate(p) for p in PROBLEMS] != [
        a_task(seed=1)[0].demonstrate(p) for p in PROBLEMS
    ]


def test_an_episode_is_over_after_the_choice():
    task, _ = a_task()

    assert task.respond(PROBLEMS[0], said(PROBLEMS[0], "depth 1 exit 1 tokens 8")) == []


def test_problems_are_of_the_families_and_budgets_asked_for():
    drawn = draw_problems(100, ["relay", "chain"], [40, 90], seed=2)

    assert {p.sample.family for p in drawn} == {"relay", "chain"}
    assert {p.budget_percent for p in drawn} == {40, 90}
    assert drawn == draw_problems(100, ["relay", "chain"], [40, 90], seed=2)
    assert all(isinstance(p, Problem) for p in drawn)
