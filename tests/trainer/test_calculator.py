"""The calculator task: a safe evaluator, problems from GSM8K's annotations, and the episode."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import ToolCall, Turn
from trainer.errors import DataError
from trainer.tasks.calculator import (
    MAGNITUDE_MAX,
    CalculatorError,
    CalculatorTask,
    chain,
    evaluate,
    final_answer,
    format_number,
    generate,
    problems_of_solution,
    read_gsm8k,
)

PROBLEM = chain([("48", "/", "2"), ("+", "48")])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("16-3-4", 9),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("7/2", 3.5),
        ("7//2", 3),
        ("-3+5", 2),
        (".5*4", 2),
        ("2**10", 1024),
    ],
)
def test_arithmetic_has_its_usual_value(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1/0", "division by zero"),
        ("1+", "not an expression"),
        ("", "only numbers"),
        ("2 3", "not an expression"),
        ("012", "not an expression"),
        ("__import__('os').system('true')", "only numbers"),
        ("a+1", "only numbers"),
        ("1e9", "only numbers"),
        ("1,000", "only numbers"),
        ("(1)(2)", "not an expression"),
        ("9**9**9", "exponent is too large"),
        ("2**-99999", "exponent is too large"),
        ("99999999**64", "number is too large"),
        ("(-8)**.5", "number is too large"),
        ("0**-1", "division by zero"),
        ("1" * 101, "expression is too long"),
        ("((((" * 25, "not an expression"),
    ],
)
def test_anything_else_is_a_tool_error(expression, message):
    with pytest.raises(CalculatorError, match=message):
        evaluate(expression)


@given(expression=st.text(alphabet="0123456789.+-*/%() ", max_size=100) | st.text(max_size=120))
def test_any_text_gives_a_bounded_number_or_a_tool_error_at_once(expression):
    started_s = time.perf_counter()
    try:
        value = evaluate(expression)
    except CalculatorError:
        value = 0.0

    assert math.isfinite(value)
    assert abs(value) <= MAGNITUDE_MAX
    assert time.perf_counter() - started_s < 1.0


def test_a_number_is_written_without_noise():
    assert [format_number(v) for v in (24.0, 0.1 + 0.2, -0.0, 1 / 3, 1e15)] == [
        "24",
        "0.3",
        "0",
        "0.333333",
        "1000000000000000",
    ]


def test_linked_annotations_become_a_problem_of_two_calls():
    solution = "He sold 48/2 = <<48/2=24>>24 in May.\nTogether 48+24 = <<48+24=72>>72.\n#### 72"

    problems = list(problems_of_solution(solution))

    assert [(p.question, p.expressions, p.answer) for p in problems] == [
        ("What is 48 divided by 2?", ("48/2",), "24"),
        ("What is 48 divided by 2, then added to 48?", ("48/2", "48+24"), "72"),
        ("What is 48 plus 24?", ("48+24",), "72"),
    ]


def test_a_result_may_come_second_in_the_next_call():
    assert chain([("12", "*", "2"), ("120", "-")]).expressions == ("12*2", "120-24")


@pytest.mark.parametrize(
    "annotation",
    ["<<1/3=0.33>>", "<<2-5=-3>>", "<<x+1=2>>", "<<5=5>>", "<<5/0=1>>", "<<9**9=1>>", "<<50%*3=1>>"],
)
def test_a_calculation_that_cannot_be_asked_is_left_out(annotation):
    assert list(problems_of_solution(annotation)) == []


def test_the_answer_is_computed_and_not_taken_from_the_file():
    (problem,) = problems_of_solution("<<2+2=5>>")

    assert problem.answer == "4"


def test_generated_problems_are_distinct_and_the_same_for_the_same_seed():
    problems = generate(200, seed=3)

    assert len({p.question for p in problems}) == 200
    assert problems == generate(200, seed=3)
    assert problems != generate(200, seed=4)


def test_a_file_of_problems_is_read_once_each(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "?", "answer": "<<1+2=3>>"}\n\n{"question": "?", "answer": "<<1+2=3>>"}\n')

    assert [p.question for p in read_gsm8k(path)] == ["What is 1 plus 2?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"answer": "<<1+2=3>>"}\nnot json\n', "line 2 of .* is not a GSM8K problem"),
        (b'{"answer": 5}\n', "line 1 of"),
        (b'["answer"]\n', "line 1 of"),
        (b'{"answer": "no annotation"}\n', "holds no problem"),
        (b"", "holds no problem"),
        (b"\xff\xfe\n", "cannot read the problems"),
    ],
)
def test_a_bad_file_is_refused_with_the_way_out(tmp_path, content, message):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message) as refused:
        read_gsm8k(path)

    assert "--data" in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        read_gsm8k(tmp_path / "nowhere.jsonl")


def test_a_demonstration_calls_the_calculator_and_earns_the_reward():
    task = CalculatorTask()

    turns = task.demonstrate(PROBLEM)

    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert [turn.content for turn in turns if turn.role == "tool"] == ["24", "72"]
    assert task.grade(PROBLEM, turns).reward == 1.0


def called(name="calculator", arguments=None, error=None):
    return Turn(role="assistant", tool_calls=[ToolCall(name, arguments, id="call_0", error=error)])


def test_a_tool_answer_is_written_into_the_call_and_the_turn():
    turn = called(arguments={"expression": "48/2"})

    (answer,) = CalculatorTask().respond(PROBLEM, [turn])

    assert (answer.role, answer.content, answer.tool_call_id) == ("tool", "24", "call_0")
    assert turn.tool_calls[0].result == "24"
    assert turn.tool_calls[0].duration_s >= 0


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (called(arguments={"expression": "1/0"}), "error: division by zero"),
        (called(arguments={"expression": 5}), "error: the calculator needs an expression"),
        (called(arguments={}), "error: the calculator needs an expression"),
        (called(name="search", arguments={"expression": "1"}), "error: the only tool is calculator"),
        (called(name="", arguments="{", error="error: the call is not JSON"), "error: the call is not JSON"),
    ],
)
def test_a_call_that_fails_is_answered_with_its_error(turn, message):
    (answer,) = CalculatorTask().respond(PROBLEM, [turn])

    assert answer.content == message
    assert turn.tool_calls[0].error == message


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("#### 72", 1.0),
        ("so it is #### 72.0", 1.0),
        ("#### 7", 0.0),
        ("72", 0.0),
        ("", 0.0),
        ("#### -72", 0.0),
    ],
)
def test_the_reward_is_for_the_right_number_after_the_mark(said, reward):
    turns = [*CalculatorTask().opening(PROBLEM), Turn(role="assistant", content=said)]

    assert CalculatorTask().grade(PROBLEM, turns).reward == reward


def test_an_episode_that_ends_with_a_call_has_no_answer():
    assert final_answer([called(arguments={})]) is None
    assert final_answer([Turn(role="tool", content="#### 72")]) is None
