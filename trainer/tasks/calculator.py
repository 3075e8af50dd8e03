r"""Arithmetic word problems that are solved by calling a calculator, one step at a time.

    What is 48 divided by 2, then plus 48?     call 48/2 → 24     call 24+48 → 72     #### 72

The numbers and the chains of operations are GSM8K's own: each solution there marks its calculations
(`<<48/2=24>>…<<48+24=72>>`). The wording is ours: GSM8K's stories need a language model, and a half-million
parameter model trained for a minute is none. Without a file, problems of the same form are generated.

Invariants
----------
* A problem's answer is what this calculator computes by its chain, never a number read from a file.
* Problems are distinct by their question, so that a split by problem is a split by question.
* `evaluate` runs nothing but arithmetic on numbers of bounded size, in bounded time.

There is no model, token or network here.
"""

from __future__ import annotations

import ast
import json
import operator
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventlog import ToolCall, Turn
from trainer.errors import DataError
from trainer.tasks import Grade

WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
# How the second operand is said when the result so far comes second: 120-36 after …=36.
WORDS_REVERSED = {"+": "added to", "-": "taken from", "*": "multiplied by", "/": "divided into"}


# --- the calculator -------------------------------------------------------------------------------------------------

EXPRESSION_MAX_CHARS = 100
# Beyond 2^53 floats skip integers; an answer there is a mistake of the policy, not a number.
MAGNITUDE_MAX = 1e15
EXPONENT_MAX = 64
_ALLOWED = re.compile(r"[0-9.+\-*/%() ]+")
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


class CalculatorError(ValueError):
    """An expression that is not arithmetic, or too large; the message is the tool's answer."""


def evaluate(expression: str) -> float:
    """Return the value of an arithmetic expression, or raise `CalculatorError`.

    >>> evaluate("16-3-4"), evaluate("(2+3)*.5")
    (9, 2.5)
    """
    if len(expression) > EXPRESSION_MAX_CHARS:
        raise CalculatorError("error: the expression is too long")
    if not _ALLOWED.fullmatch(expression):
        raise CalculatorError("error: only numbers and + - * / ( ) are allowed")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise CalculatorError("error: not an expression") from None
    except ZeroDivisionError:
        raise CalculatorError("error: division by zero") from None
    except OverflowError:
        raise CalculatorError("error: the number is too large") from None


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > EXPONENT_MAX:
            raise CalculatorError("error: the exponent is too large")
        # With both bounded, the result has at most 64 x 50 bits before it is judged.
        return _bounded(_OPERATORS[type(node.op)](left, right))
    raise CalculatorError("error: not an expression")


def _bounded(value: Any) -> float:
    # A negative number to a fractional power is complex.
    if not isinstance(value, (int, float)) or not abs(value) <= MAGNITUDE_MAX:
        raise CalculatorError("error: the number is too large")
    return value


def format_number(value: float) -> str:
    """Write a number as a person would: no `.0`, at most six decimals.

    >>> format_number(24.0), format_number(0.1 + 0.2), format_number(-0.0)
    ('24', '0.3', '0')
    """
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


# --- problems -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    question: str
    expressions: tuple[str, ...]  # what a perfect policy calls, in order
    answer: str


def chain(expressions: Sequence[tuple[str, ...]]) -> Problem | None:
    """Return the problem of these steps, or None if it is not one that can be asked.

    A step is (operand, operator, operand, …); after the first it is (operator, operand), applied to the result so
    far, or (operand, operator), which puts the result second.

    >>> chain([("48", "/", "2"), ("+", "48")])
    Problem(question='What is 48 divided by 2, then plus 48?', expressions=('48/2', '24+48'), answer='72')
    """
    first, *rest = expressions
    words = " ".join(WORDS.get(part, part) for part in first)
    calls = ["".join(first)]
    for step in rest:
        result = _plain(calls[-1])
        if result is None:
            return None
        if step[0] in WORDS:
            words += f", then {WORDS[step[0]]} {step[1]}"
            calls.append(f"{result}{step[0]}{step[1]}")
        else:
            words += f", then {WORDS_REVERSED[step[1]]} {step[0]}"
            calls.append(f"{step[0]}{step[1]}{result}")
    answer = _plain(calls[-1])
    return None if answer is None else Problem(f"What is {words}?", tuple(calls), answer)


def _plain(expression: str) -> str | None:
    """Return the value as it can be said and copied: not negative, at most two decimals, below a million."""
    try:
        value = evaluate(expression)
    except CalculatorError:
        return None
    text = format_number(value)
    return text if re.fullmatch(r"\d{1,6}(\.\d{1,2})?", text) else None


_ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_STEP = re.compile(r"(\d+(?:\.\d+)?)((?:[-+*/]\d+(?:\.\d+)?){1,2})")


def problems_of_solution(solution: str) -> Iterator[Problem]:
    """Yield the problems in the annotations of one GSM8K solution: each calculation, and each pair that is linked.

    >>> [p.question for p in problems_of_solution("<<48/2=24>>24 … <<48+24=72>>72")]
    ['What is 48 divided by 2?', 'What is 48 divided by 2, then added to 48?', 'What is 48 plus 24?']
    """
    steps = [_parts(expression) for expression, _ in _ANNOTATION.findall(solution)]
    for i, first in enumerate(steps):
        if first is None:
            continue
        single = chain([first])
        if single is None:
            continue
        yield single
        second = steps[i + 1] if i + 1 < len(steps) else None
        if second is None or len(first) != 3 or len(second) != 3:
            continue
        left, sign, right = second
        if left == single.answer:
            linked = chain([first, (sign, right)])
        elif right == single.answer:
            linked = chain([first, (left, sign)])
        else:
            continue
        if linked is not None:
            yield linked


def _parts(expression: str) -> tuple[str, ...] | None:
    match = _STEP.fullmatch(expression.replace(" ", ""))
    if match is None:
        return None
    return (match[1], *re.findall(r"[-+*/]|[\d.]+", match[2]))


def read_gsm8k(path: Path) -> list[Problem]:
    """Return the distinct problems of a GSM8K JSONL file, in the order of the file."""
    solutions = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    solutions.append(_solution(line, path, number))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the problems from {str(path)!r}: {error}. Give a GSM8K file in JSONL with --data, or none, "
            "and problems are generated."
        ) from None
    return problems_of(solutions, source=str(path))


def problems_of(solutions: Iterable[str], source: str) -> list[Problem]:
    """Return the distinct problems of these solutions, in order."""
    problems = list(dict.fromkeys(p for s in solutions for p in problems_of_solution(s)))
    if not problems:
        raise DataError(
            f"{source!r} has no calculation of the form <<48/2=24>> in any answer, so it holds no problem. "
            "Give a GSM8K file with --data."
        )
    return problems


def _solution(line: str, path: Path, number: int) -> str:
    try:
        answer = json.loads(line)["answer"]
    except (ValueError, TypeError, KeyError):
        answer = None
    if not isinstance(answer, str):
        raise DataError(
            f"line {number} of {str(path)!r} is not a GSM8K problem: expected a JSON object whose 'answer' is text, "
            f"found {line.strip()[:60]!r}. Mend the line, or give another file with --data."
        )
    return answer


def generate(n: int, seed: int) -> list[Problem]:
    """Return `n` distinct problems of the same form as GSM8K's, the same ones for the same seed."""
    rng = random.Random(f"calculator problems {seed}")
    problems: dict[Problem, None] = {}
    while len(problems) < n:
        first = (_number(rng), rng.choice("+-*/"), _number(rng))
        shape = rng.choice(["one", "then", "then", "reversed"])
        if shape == "one":
            problem = chain([first])
        elif shape == "then":
            problem = chain([first, (rng.choice("+-*/"), _number(rng))])
        else:
            problem = chain([first, (_number(rng), rng.choice("+-*/"))])
        if problem is not None:
            problems[problem] = None
    return list(problems)


def _number(rng: random.Random) -> str:
    digits = rng.choices([1, 2, 3], weights=[4, 5, 2])[0]
    return str(rng.randrange(max(2, 10 ** (digits - 1)), 10**digits))


# --- the episode ----------------------------------------------------------------------------------------------------

_ANSWER = re.compile(r"####\s*(-?[\d,]*\.?\d+)")


class CalculatorTask:
    """Call the calculator until the answer is known, then write `#### answer`.  Reward: 1 if it is right, else 0."""

    concurrency = 1
    tools: Sequence[dict[str, Any]] = (
        {
            "type": "function",
            "function": {
                "name": "calculator",
                "description": "Compute an arithmetic expression of numbers and + - * / ( ).",
                "parameters": {
                    "type": "object",
                    "properties": {"expression": {"type": "string"}},
                    "required": ["expression"],
                },
            },
        },
    )

    def opening(self, problem: Problem) -> list[Turn]:
        return [Turn(role="user", content=problem.question)]

    def respond(self, problem: Problem, turns: Sequence[Turn]) -> list[Turn]:
        return [_answer_call(call) for call in turns[-1].tool_calls]

    def grade(self, problem: Problem, turns: Sequence[Turn]) -> Grade:
        answer = final_answer(turns)
        calls = [call for turn in turns for call in turn.tool_calls]
        metrics = {
            "answered": float(answer is not None),
            "tool_calls": float(len(calls)),
            "tool_errors": float(sum(call.error is not None for call in calls)),
        }
        right = answer is not None and abs(float(answer) - float(problem.answer)) < 1e-6
        return Grade(float(right), metrics, {"expected": problem.answer}, rewards={"correct": float(right)})

    def demonstrate(self, problem: Problem) -> list[Turn]:
        turns = self.opening(problem)
        for expression in problem.expressions:
            call = ToolCall(name="calculator", arguments={"expression": expression})
            turns.append(Turn(role="assistant", tool_calls=[call]))
            turns += self.respond(problem, turns)
        turns.append(Turn(role="assistant", content=f"#### {problem.answer}"))
        return turns


def final_answer(turns: Sequence[Turn]) -> str | None:
    """Return the number after the last turn's `####`, if the episode ended with one.

    >>> final_answer([Turn(role="assistant", content="#### 1,250")])
    '1250'
    """
    if turns[-1].role != "assistant" or turns[-1].tool_calls:
        return None
    match = _ANSWER.search(turns[-1].content)
    return match[1].replace(",", "") if match else None


def _answer_call(call: ToolCall) -> Turn:
    started = time.perf_counter()
    if call.error is None:
        try:
            call.result = format_number(evaluate(_expression(call)))
        except CalculatorError as error:
            call.error = str(error)
    call.duration_s = time.perf_counter() - started
    return Turn(role="tool", content=call.result or call.error or "", tool_call_id=call.id)


def _expression(call: ToolCall) -> str:
    if call.name != "calculator":
        raise CalculatorError("error: the only tool is calculator")
    expression = call.arguments.get("expression")
    if not isinstance(expression, str):
        raise CalculatorError("error: the calculator needs an expression")
    return expression
