r"""One question of six sources, one answer; right or wrong, by the rule of its source, or by a judge.

    source          the answer is                          decided by
    gsm8k           the number after `####`, or the last   a rule
    math            \boxed{…}                              a rule; a judge where it is an expression in another form
    hotpotqa        what follows `Answer:`                 a rule if it is the reference, word for word; else a judge
    commonsenseqa   the letter that follows `Answer:`      a rule
    mmlu            the same                               a rule
    humaneval       code                                   its tests, run in the sandbox

Invariants
----------
* A reward is 1.0 or 0.0. What neither a rule nor the judge could decide (it failed, or there is none) is 0.0, and
  `info["decided_by"]` says so.
* A rule never calls an answer wrong that another form of the reference could be: that is left to the judge.
* Safe to call from several threads.

There is no model or token here; the network is the judge's, the processes are the sandbox's.
"""

from __future__ import annotations

import re
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import Any

from eventlog import Turn
from trainer import sandbox
from trainer.data.mixture import LETTERS, Problem
from trainer.judge import Case, Judge, Verdict
from trainer.tasks import Grade

_FORMS = {
    "gsm8k": "End with #### and the number.",
    "math": "Put the final answer into \\boxed{}.",
    "hotpotqa": 'End with "Answer:" and the answer alone.',
    "commonsenseqa": 'End with "Answer:" and the letter.',
    "mmlu": 'End with "Answer:" and the letter.',
    "humaneval": "Complete the function; answer with code only.",
}


class MixtureTask:
    def __init__(self, rewards: RewardComputer, *, concurrency: int = 1) -> None:
        self.rewards = rewards
        self.concurrency = concurrency
        self.tools: Sequence[dict[str, Any]] = ()

    def opening(self, problem: Problem) -> list[Turn]:
        options = [f"{LETTERS[i]}. {text}" for i, text in enumerate(problem.choices)]
        return [Turn(role="user", content="\n".join([problem.question, *options, _FORMS[problem.source]]))]

    def respond(self, problem: Problem, turns: Sequence[Turn]) -> list[Turn]:
        return []

    def grade(self, problem: Problem, turns: Sequence[Turn]) -> Grade:
        return self.rewards.compute(problem, turns[-1].content)

    def demonstrate(self, problem: Problem) -> list[Turn]:
        return [*self.opening(problem), Turn(role="assistant", content=_perfect_answer(problem))]


def _perfect_answer(problem: Problem) -> str:
    if problem.solution:
        return problem.solution
    return {
        "gsm8k": f"#### {problem.answer}",
        "math": f"\\boxed{{{problem.answer}}}",
        "humaneval": problem.answer,
    }.get(problem.source, f"Answer: {problem.answer}")


# --- right or wrong ---------------------------------------------------------------------------------------------------


class RewardComputer:
    """Decides whether answers are right: by rule first, by the judge where a rule cannot; without one, they are not."""

    def __init__(self, judge: Judge | None = None, limits: sandbox.Limits | None = None) -> None:
        self._judge = judge
        self._limits = limits
        self._lock = threading.Lock()
        self.eval_stats = {
            "total": 0,
            "success": 0,
            "parse_failure": 0,
            "api_failure": 0,
            "correct": 0,
            "incorrect": 0,
        }
        """How the judge's calls came out, since this computer was made."""

    def compute(self, problem: Problem, text: str) -> Grade:
        """Return 1.0 or 0.0 for what a policy wrote, and how that was decided."""
        if problem.source == "humaneval":
            outcome = sandbox.run(program_of(problem, text), self._limits)
            info = {"decided_by": "tests", "error": outcome.error, "sandbox_s": outcome.duration_s}
            return _grade(problem, outcome.passed, info)
        answer = _EXTRACT[problem.source](text, problem)
        right = None if answer is None else _DECIDE[problem.source](answer, problem)
        if answer is None or right is not None:
            return _grade(problem, bool(right), {"decided_by": "rule", "answer": answer})
        if self._judge is None:
            return _grade(problem, False, {"decided_by": "nobody", "answer": answer})
        verdict = self._judge.ask(Case(problem.source, problem.question, problem.answer, answer))
        self._count(verdict)
        return _grade(
            problem,
            verdict.result == "correct",
            {
                "decided_by": "judge" if verdict.error is None else "nobody",
                "answer": answer,
                "judge": verdict.as_info(),
            },
        )

    def _count(self, verdict: Verdict) -> None:
        with self._lock:
            self.eval_stats["total"] += 1
            self.eval_stats[verdict.result] += 1
            if verdict.result in ("correct", "incorrect"):
                self.eval_stats["success"] += 1


def _grade(problem: Problem, right: bool, info: dict[str, Any]) -> Grade:
    reward = 1.0 if right else 0.0
    return Grade(
        reward,
        metrics={"judge_calls": float("judge" in info)},
        info={"source": problem.source, "domain": problem.domain, "expected": problem.answer, **info},
        rewards={"correct": reward},
    )


# --- finding the answer in what was written ---------------------------------------------------------------------------

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def _number(text: str, problem: Problem) -> str | None:
    """Return the number after the last `####`, or the last of all; None if there is none."""
    marked = _NUMBER.search(text.rpartition("####")[2]) if "####" in text else None
    numbers = _NUMBER.findall(text)
    found = marked[0] if marked else numbers[-1] if numbers else None
    return found and found.replace(",", "")


def _boxed(text: str, problem: Problem) -> str | None:
    r"""Return what the last `\boxed{…}` holds, braces and all; without one, what follows `Answer:`.

    >>> _boxed(r"so \boxed{\frac{1}{2}}.", Problem("math", "", ""))
    '\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return _after_answer(text)
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip() or None
    return None


def _after_answer(text: str) -> str | None:
    """Return the line that follows the last "Answer:"; None if there is none."""
    match = re.search(r".*\banswer(?:\s+is\s*:?|\s*:)\s*(.+)", text, re.IGNORECASE | re.DOTALL)
    line = match[1].strip().splitlines()[0].strip(" .*\"'") if match and match[1].strip() else ""
    return line or None


def _span(text: str, problem: Problem) -> str | None:
    """Return what follows `Answer:`, or the whole of a text that is one line."""
    whole = text.strip()
    return _after_answer(text) or (whole if whole and "\n" not in whole else None)


def _letter(text: str, problem: Problem) -> str | None:
    """Return the letter that is chosen, or the text of an option in its place; else what stands there."""
    letters = LETTERS[: len(problem.choices)] or "ABCD"
    said = _span(text, problem)
    if said is None:
        return None
    match = re.match(rf"\(?([{letters}])(?:[).:]|\Z)", said)
    if match:
        return match[1]
    for letter, choice in zip(letters, problem.choices, strict=False):
        if _words(said) == _words(choice):
            return letter
    return said


_EXTRACT: dict[str, Callable[[str, Problem], str | None]] = {
    "gsm8k": _number,
    "math": _boxed,
    "hotpotqa": _span,
    "commonsenseqa": _letter,
    "mmlu": _letter,
}


# --- the rules: True, False, or None where they cannot tell -----------------------------------------------------------


def _same_number(answer: str, problem: Problem) -> bool:
    return abs(float(answer) - float(problem.answer)) < 1e-6


def _same_expression(answer: str, problem: Problem) -> bool | None:
    given, wanted = _plain_math(answer), _plain_math(problem.answer)
    if given == wanted:
        return True
    both_numbers = _PLAIN_NUMBER.fullmatch(given) and _PLAIN_NUMBER.fullmatch(wanted)
    return abs(float(given) - float(wanted)) < 1e-6 if both_numbers else None


_PLAIN_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
# One number and no more, but for words and signs around it: in (1,200), or 1,200,3, the comma stands between two.
_ONE_GROUPED_NUMBER = re.compile(
    r"[-\s$=a-z]*\d{1,3}(?:,\d{3})+(?:\.\d*)?[\s$.%a-z]*", re.ASCII | re.IGNORECASE
)


def _plain_math(text: str) -> str:
    r"""Write an expression without what changes its looks only.

    >>> _plain_math(r"$\dfrac{1}{2}$"), _plain_math("1,000"), _plain_math("(1, 200)"), _plain_math("x + 1.")
    ('1/2', '1000', '(1,200)', 'x+1')
    """
    text = re.sub(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:left|right|!)|\\text\{([^{}]*)\}", lambda m: m[1] or "", text)
    # Spaces of all kinds go last: the comma of "1,\\ 200" stands between two numbers.
    text = re.sub(r"\\[,;\s]", " ", text)
    if _ONE_GROUPED_NUMBER.fullmatch(text):
        text = text.replace(",", "")
    return re.sub(r"[\s$]", "", text).rstrip(".")


def _same_span(answer: str, problem: Problem) -> bool | None:
    given, wanted = _words(answer), _words(problem.answer)
    if given == wanted:
        return True
    # Other words may name the same thing, but yes is not no.
    return False if {*given} | {*wanted} == {"yes", "no"} else None


def _words(text: str) -> list[str]:
    """Return the words that count, as SQuAD's and HotpotQA's own scripts compare them."""
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def _same_letter(answer: str, problem: Problem) -> bool | None:
    return answer == problem.answer if answer in LETTERS else None


_DECIDE: dict[str, Callable[[str, Problem], bool | None]] = {
    "gsm8k": _same_number,
    "math": _same_expression,
    "hotpotqa": _same_span,
    "commonsenseqa": _same_letter,
    "mmlu": _same_letter,
}


# --- code -------------------------------------------------------------------------------------------------------------

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def program_of(problem: Problem, text: str) -> str:
    """Return the program that ends well only if the answer passes the problem's tests.

    An answer is the rest of the function, or a whole one, alone or between ``` marks.
    """
    fenced = _FENCED.findall(text)
    code = fenced[-1] if fenced else text
    whole = re.search(rf"^def {re.escape(problem.entry_point)}\(", code, re.MULTILINE)
    prompt = problem.question.rstrip() + "\n"
    # The prompt's imports and its other functions are needed in either case.
    body = f"{prompt}    pass\n{code}" if whole else f"{prompt}{_indented(code)}"
    return f"{body}\n{problem.test}\ncheck({problem.entry_point})\n"


def _indented(code: str) -> str:
    """Return a function's body as the prompt needs it: chats strip what stands before its first word, or indent nothing."""
    first, _, rest = code.partition("\n")
    if first[:1].isspace() or not first:
        return code
    if any(line and not line[0].isspace() for line in rest.splitlines()):
        return textwrap.indent(code, "    ")
    return "    " + code
