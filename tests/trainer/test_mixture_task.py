"""Right or wrong: what the rules of the six sources decide, what they leave to a judge, and code that is run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.mixture import SOURCES, Problem, make
from trainer.judge import RuleJudge, Verdict
from trainer.tasks.mixture import MixtureTask, RewardComputer, program_of


class ScriptedJudge:
    """A judge that says what it is told to, and remembers what it was asked."""

    def __init__(self, *results):
        self.results = list(results)
        self.cases = []

    def ask(self, case):
        self.cases.append(case)
        result = self.results.pop(0) if self.results else "correct"
        return Verdict(result, "why" if "failure" in result else None, prompt_tokens=50, completion_tokens=5)


def decided(problem, text, judge=None):
    grade = RewardComputer(judge).compute(problem, text)
    return grade.reward, grade.info["decided_by"]


GSM8K = Problem("gsm8k", "How many?", "1250")


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("1000+250=1250\n#### 1250", 1.0),
        ("#### 1,250", 1.0),
        ("#### $1250.00", 1.0),
        ("It is 1,250.", 1.0),
        ("#### 1250\nbut before that there were 7", 1.0),
        ("#### 7\nand then 1250 …", 0.0),
        ("1250 or 1251", 0.0),
        ("none", 0.0),
        ("", 0.0),
        ("9" * 400, 0.0),
    ],
)
def test_gsm8k_takes_the_number_after_the_marks_or_the_last_one(text, reward):
    assert decided(GSM8K, text) == (reward, "rule")


@pytest.mark.parametrize(
    ("expected", "text", "outcome"),
    [
        ("7", r"so \boxed{7}.", (1.0, "rule")),
        ("7", r"\boxed{8}", (0.0, "rule")),
        ("7", r"\boxed{1} no, \boxed{7.0}", (1.0, "rule")),
        ("1,000", r"\boxed{1000}", (1.0, "rule")),
        ("1234567.5", r"\boxed{1,234,567.5}", (1.0, "rule")),
        ("-1,000", r"\boxed{$-1,\!000$}", (1.0, "rule")),
        ("1000 dollars", r"\boxed{1,000 \text{ dollars}}", (1.0, "rule")),
        ("(1200)", r"\boxed{(1,200)}", (1.0, "judge")),
        ("1200", r"\boxed{\{1,200\}}", (1.0, "judge")),
        ("1200", r"\boxed{1,\ 200}", (1.0, "judge")),
        ("(1,200)", r"\boxed{\left( 1, 200 \right)}", (1.0, "rule")),
        ("1200,3", r"\boxed{1,200,3}", (1.0, "judge")),
        (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}", (1.0, "rule")),
        (r"\frac{1}{2}", r"\boxed{1/2}", (1.0, "rule")),
        ("x+1", r"\boxed{ x + 1 }", (1.0, "rule")),
        ("7", "Answer: 7", (1.0, "rule")),
        ("1/2", r"\boxed{2/4}", (1.0, "judge")),
        ("x+1", r"\boxed{1+x}", (1.0, "judge")),
        ("7", r"\boxed{1,2}", (1.0, "judge")),
        ("7", r"\boxed{}", (0.0, "rule")),
        ("7", r"\boxed{7", (0.0, "rule")),
        ("7", "no box at all", (0.0, "rule")),
    ],
)
def test_math_compares_what_is_boxed_and_leaves_other_forms_to_the_judge(expected, text, outcome):
    assert decided(Problem("math", "?", expected), text, ScriptedJudge("correct")) == outcome


@pytest.mark.parametrize(
    ("expected", "text", "outcome"),
    [
        ("New York", "He was born there.\nAnswer: New York", (1.0, "rule")),
        ("New York", "the new york", (1.0, "rule")),
        ("New York", "The answer is New York.", (1.0, "rule")),
        ("New York", "Answer: NYC", (0.0, "judge")),
        ("yes", "Answer: no", (0.0, "rule")),
        ("New York", "two\nlines without it", (0.0, "rule")),
    ],
)
def test_hotpotqa_compares_words_and_leaves_other_words_to_the_judge(expected, text, outcome):
    assert decided(Problem("hotpotqa", "?", expected), text, ScriptedJudge("incorrect")) == outcome


@pytest.mark.parametrize("source", ["commonsenseqa", "mmlu"])
@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Answer: B", (1.0, "rule")),
        ("Fish live there.\nAnswer: (B)", (1.0, "rule")),
        ("B", (1.0, "rule")),
        ("Answer: B. sea", (1.0, "rule")),
        ("Answer: the sea", (1.0, "rule")),
        ("Answer: C", (0.0, "rule")),
        ("Answer: A", (0.0, "rule")),
        ("Answer: the ocean", (1.0, "judge")),
        ("", (0.0, "rule")),
    ],
)
def test_a_choice_is_a_letter_or_the_text_of_an_option(source, text, outcome):
    problem = Problem(source, "Where do fish live?", "B", choices=("nest", "sea", "farm"))

    assert decided(problem, text, ScriptedJudge("correct")) == outcome


# --- the judge --------------------------------------------------------------------------------------------------------

UNDECIDED = (Problem("math", "Add 1/4 and 1/4.", "1/2"), r"\boxed{2/4}")


def test_the_judge_sees_the_question_the_reference_and_the_answer_alone():
    judge = ScriptedJudge("correct")

    grade = RewardComputer(judge).compute(*UNDECIDED)

    (case,) = judge.cases
    assert (case.source, case.question, case.expected, case.answer) == (
        "math",
        "Add 1/4 and 1/4.",
        "1/2",
        "2/4",
    )
    assert grade.info["judge"]["result"] == "correct"
    assert (grade.info["judge"]["prompt_tokens"], grade.info["judge"]["completion_tokens"]) == (50, 5)
    assert grade.metrics == {"judge_calls": 1.0}


def test_what_a_rule_decides_is_no_call():
    judge = ScriptedJudge()

    grade = RewardComputer(judge).compute(GSM8K, "#### 1250")

    assert judge.cases == []
    assert "judge" not in grade.info
    assert grade.metrics == {"judge_calls": 0.0}


@pytest.mark.parametrize("failure", ["parse_failure", "api_failure"])
def test_a_judge_that_fails_decides_nothing_and_earns_nothing(failure):
    grade = RewardComputer(ScriptedJudge(failure)).compute(*UNDECIDED)

    assert (grade.reward, grade.info["decided_by"]) == (0.0, "nobody")
    assert grade.info["judge"]["error"] == "why"


def test_without_a_judge_what_is_undecided_is_wrong():
    assert decided(*UNDECIDED) == (0.0, "nobody")


def test_the_stats_count_every_call_once():
    rewards = RewardComputer(ScriptedJudge("correct", "incorrect", "correct", "parse_failure", "api_failure"))

    for _ in range(5):
        rewards.compute(*UNDECIDED)

    assert rewards.eval_stats == {
        "total": 5,
        "success": 3,
        "parse_failure": 1,
        "api_failure": 1,
        "correct": 2,
        "incorrect": 1,
    }


# --- code -------------------------------------------------------------------------------------------------------------

CODE = Problem(
    "humaneval",
    'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Return each number twice as large."""\n',
    "",
    test="def check(candidate):\n    assert candidate([1, -2]) == [2, -4]\n    assert candidate([]) == []\n",
    entry_point="double",
)


@pytest.mark.parametrize(
    "answer",
    [
        "    return [2 * x for x in xs]",
        "return [2 * x for x in xs]",
        "ys = []\n    for x in xs:\n        ys.append(2 * x)\n    return ys",
        "ys = []\nfor x in xs:\n    ys.append(2 * x)\nreturn ys",
        "```python\n    return [2 * x for x in xs]\n```",
        "Here it is:\n```\ndef double(xs):\n    return [2 * x for x in xs]\n```\nIt doubles.",
        "def double(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]",
    ],
)
def test_code_that_passes_its_tests_is_right_however_it_is_written(answer):
    grade = RewardComputer().compute(CODE, answer)

    assert (grade.reward, grade.info["error"]) == (1.0, None)
    assert grade.info["decided_by"] == "tests"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("return xs", "AssertionError"),
        ("return [2 * x for x in", "SyntaxError"),
        ("", "TypeError|AssertionError"),
        ("import sys\n    sys.exit(0)", "SystemExit"),
        ("```python\n```", "SyntaxError"),
    ],
)
def test_code_that_does_not_is_wrong_and_says_why(answer, error):
    grade = RewardComputer().compute(CODE, answer)

    assert grade.reward == 0.0
    assert any(name in grade.info["error"] for name in error.split("|"))


def test_a_prompt_that_ends_without_a_line_break_gets_one():
    problem = Problem(
        "humaneval", "def one():", "", test="def check(f):\n    assert f() == 1", entry_point="one"
    )

    assert "def one():\n    return 1\n" in program_of(problem, "return 1")


# --- any answer, any problem ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    text=st.text(max_size=60) | st.from_regex(r"(Answer: |#### |\\boxed\{)?[-\d.,/]{0,8}[)}. ]?[A-J]?"),
    data=st.data(),
)
def test_whatever_a_policy_writes_is_right_or_wrong_and_raises_nothing(text, data):
    source = data.draw(st.sampled_from([source for source in SOURCES if source != "humaneval"]))
    problem = data.draw(st.sampled_from([p for p in make(4, seed=1) if p.source == source]))

    grade = RewardComputer(RuleJudge()).compute(problem, text)

    assert grade.reward in (0.0, 1.0)
    assert grade.rewards == {"correct": grade.reward}
    assert (grade.info["source"], grade.info["domain"]) == (source, problem.domain)


@pytest.mark.parametrize("source", SOURCES)
def test_what_a_warm_up_imitates_earns_the_full_reward(source):
    task = MixtureTask(RewardComputer(RuleJudge()))

    for problem in [p for p in make(8, seed=3) if p.source == source]:
        turns = task.demonstrate(problem)
        assert turns[:-1] == task.opening(problem)
        assert task.respond(problem, turns) == []
        assert task.grade(problem, turns).reward == 1.0, problem


def test_a_choice_is_asked_with_its_options_by_letter():
    (turn,) = MixtureTask(RewardComputer()).opening(
        Problem("mmlu", "How many continents are there?", "C", choices=("5", "6", "7", "8"))
    )

    assert turn.content.splitlines()[:5] == ["How many continents are there?", "A. 5", "B. 6", "C. 7", "D. 8"]
