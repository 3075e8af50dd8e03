"""Problems of six sources: read from rows of `data/mixed/*.jsonl`, or small ones of the same forms, made here.

A row is one JSON object with `source`, a question (`problem`, `question` or `prompt`) and an `answer`; beside these,
as the source has it: `choices` (a list of texts), `context` (a text, or a list of texts or of [title, sentences]),
`solution`, and for code `test`, `entry_point` and `canonical_solution`, named as in the human-eval data set.

Invariants
----------
* A problem's answer can be graded by the rule of its source: a number, an option's letter, a text, or tests.
* Problems are distinct by source, question and options.
* A row that is damaged is named by file and line, and nothing is read past it in silence.

The made ones are of a language that half a million parameters learn in a minute, and everything else about them is
real: the numbers add up, the answer to two hops stands in the text, the code is tested by running it.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError

DOMAINS = {
    "gsm8k": "math",
    "math": "math",
    "hotpotqa": "qa",
    "commonsenseqa": "qa",
    "mmlu": "qa",
    "humaneval": "code",
}
SOURCES = tuple(DOMAINS)
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Problem:
    source: str
    question: str
    answer: str
    solution: str = ""  # how a perfect policy writes it, where that is known
    choices: tuple[str, ...] = ()
    test: str = ""  # defines check(candidate)
    entry_point: str = ""

    @property
    def domain(self) -> str:
        return DOMAINS[self.source]

    @property
    def asked(self) -> tuple[str, str, tuple[str, ...]]:
        """What makes it another problem: the same question with other options is one."""
        return self.source, self.question, self.choices


# --- reading ----------------------------------------------------------------------------------------------------------

SHOWN_DAMAGE = 5


@dataclass(frozen=True)
class Rows:
    train: list[Problem]
    held_out: list[Problem]  # of the files that are called val… or test…


def read(directory: Path) -> Rows:
    """Return the distinct problems of a directory's `*.jsonl` files, or of one such file."""
    paths = sorted(directory.glob("*.jsonl")) if directory.is_dir() else [directory]
    damage: list[str] = []
    parts: dict[bool, dict[tuple[Any, ...], Problem]] = {True: {}, False: {}}
    for path in paths:
        held_out = path.stem.startswith(("val", "test"))
        for problem in _read_file(path, damage):
            parts[held_out].setdefault(problem.asked, problem)
    if damage:
        more = f"\n  … and {len(damage) - SHOWN_DAMAGE} more" if len(damage) > SHOWN_DAMAGE else ""
        raise DataError(
            f"{len(damage)} rows in {str(directory)!r} are no problems; mend or delete them:\n  "
            + "\n  ".join(damage[:SHOWN_DAMAGE])
            + more
        )
    if not any(parts.values()):
        raise DataError(
            f"{str(directory)!r} has no problem in any *.jsonl file. Each row there is a JSON object with 'source' "
            f"({', '.join(SOURCES)}), 'problem' and 'answer'."
        )
    # A question of the held-out files is never trained on.
    train = [problem for key, problem in parts[False].items() if key not in parts[True]]
    return Rows(train, list(parts[True].values()))


def _read_file(path: Path, damage: list[str]) -> Iterator[Problem]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"cannot read the problems from {str(path)!r}: {error}. Give a directory of *.jsonl files with --data, "
            "or none, and problems are made."
        ) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield problem_of(json.loads(line))
            # Invalid UTF-8 is a ValueError too.
            except (ValueError, RecursionError) as error:
                damage.append(f"{path.name}, line {number}: {error}")


def problem_of(row: Any) -> Problem:
    """Return the problem of a row; `ValueError` says what is wrong with it.

    >>> problem_of({"source": "gsm8k", "question": "2 + 3?", "answer": "2+3=5\\n#### 5"}).answer
    '5'
    """
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    source = str(row.get("source", "")).lower()
    if source not in DOMAINS:
        raise ValueError(f"its source is {row.get('source')!r}, not one of {', '.join(SOURCES)}")
    if source == "humaneval":
        return Problem(
            source,
            _text(row, "prompt", "problem", "question"),
            answer=str(row.get("canonical_solution") or ""),
            solution=str(row.get("canonical_solution") or ""),
            test=_text(row, "test"),
            entry_point=_identifier(_text(row, "entry_point")),
        )
    question = _with_context(row, _text(row, "problem", "question"))
    answer = _text(row, "answer", "ground_truth")
    if source in ("commonsenseqa", "mmlu"):
        choices = _choices(row)
        # MMLU's own form is the place of the option, as a number: the text "3" may be an option.
        place = row.get("answer")
        letter = _letter_at(place, choices) if isinstance(place, int) else _letter(answer, choices)
        return Problem(source, question, letter, choices=choices)
    solution = str(row.get("solution") or "")
    if source == "gsm8k":
        # GSM8K's own answers are whole solutions, the number after the marks.
        solution = solution or (answer if "####" in answer else "")
        answer = answer.rpartition("####")[2].strip().replace(",", "")
        _number(answer)
    return Problem(source, question, answer, solution)


def _text(row: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value
    raise ValueError(f"it has no text under {' or '.join(map(repr, names))}")


def _with_context(row: Mapping[str, Any], question: str) -> str:
    context = row.get("context")
    if not context:
        return question
    parts = context if isinstance(context, list) else [context]
    # HotpotQA's own form is [title, [sentence, …]].
    texts = [
        " ".join(p[1]) if isinstance(p, list) and len(p) == 2 and isinstance(p[1], list) else p for p in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its context is neither text nor a list of texts")
    return "\n".join([*texts, question])


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    choices = row.get("choices")
    # CommonsenseQA's own form is {"label": […], "text": […]}.
    texts = choices.get("text") if isinstance(choices, dict) else choices
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"its choices are not a list of 2 to {len(LETTERS)} texts")
    return tuple(str(text) for text in texts)


def _letter(answer: str, choices: tuple[str, ...]) -> str:
    """Return the letter of an answer, which may be that letter, the text of an option, or its place in digits."""
    if len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return answer.upper()
    if answer in choices:
        return LETTERS[choices.index(answer)]
    if answer.isdecimal():
        return _letter_at(int(answer), choices)
    raise ValueError(f"its answer {answer!r} is none of its {len(choices)} choices")


def _letter_at(place: int, choices: tuple[str, ...]) -> str:
    if not 0 <= place < len(choices):
        raise ValueError(f"its answer {place!r} is none of its {len(choices)} choices, counted from 0")
    return LETTERS[place]


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"its entry_point {name!r} is no name of a function")
    return name


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"its answer {text!r} is not a number") from None


# --- making -----------------------------------------------------------------------------------------------------------


def make(n_of_each: int, seed: int) -> list[Problem]:
    """Return up to `n_of_each` distinct problems of every source, the same ones for the same seed."""
    return [
        problem
        for source, make_one in _MAKERS.items()
        for problem in _distinct(source, make_one, n_of_each, seed)
    ]


def _distinct(source: str, make_one: Callable[[random.Random], Problem], n: int, seed: int) -> list[Problem]:
    rng = random.Random(f"mixture problems {source} {seed}")
    problems: dict[tuple[Any, ...], Problem] = {}
    # Some forms have a few hundred problems only: those that are still unmade after so many draws are hardly any.
    for _ in range(10 * n):
        problem = make_one(rng)
        problems.setdefault(problem.asked, problem)
        if len(problems) == n:
            break
    return list(problems.values())


_NAMES = ("Tom", "Ann", "Sam", "Eva")
_THINGS = ("apples", "books", "coins")


def _gsm8k(rng: random.Random) -> Problem:
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b = rng.randint(1, 3), rng.randint(1, 3)
    question, steps, answer = f"{name} has {a} {things} and buys {b} more", [f"{a}+{b}={a + b}"], a + b
    if rng.random() < 0.5:
        c = rng.randint(1, 2)
        question += f", then gives away {c}"
        steps.append(f"{answer}-{c}={answer - c}")
        answer -= c
    return Problem(
        "gsm8k",
        f"{question}. How many {things} are there now?",
        str(answer),
        f"{' '.join(steps)}\n#### {answer}",
    )


def _math(rng: random.Random) -> Problem:
    b = rng.randint(2, 5)
    a = rng.randint(1, b - 1)
    d, x = rng.randint(b + 1, 9), rng.choice("xyz")
    plus, minus = f"{a}+{b - a}={b}", f"{b}-{a}={b - a}"
    # A sum's reference is in lowest terms, its demonstration is not: whether they are equal is what a judge decides.
    return rng.choice(
        [
            Problem("math", f"Solve {x} + {a} = {b}.", str(b - a), f"{minus}\n\\boxed{{{b - a}}}"),
            Problem("math", f"Add {a}/{d} and {b - a}/{d}.", _lowest(b, d), f"{plus}\n\\boxed{{{b}/{d}}}"),
            Problem(
                "math", f"Take {a}/{d} from {b}/{d}.", _lowest(b - a, d), f"{minus}\n\\boxed{{{b - a}/{d}}}"
            ),
        ]
    )


def _lowest(numerator: int, denominator: int) -> str:
    common = math.gcd(numerator, denominator)
    return f"{numerator // common}/{denominator // common}"


_CHAINS = (
    ("cat", "in room", "Room", "on floor"),
    ("key", "in box", "Box", "on shelf"),
    ("letter", "in bag", "Bag", "on desk"),
)


def _hotpotqa(rng: random.Random) -> Problem:
    facts, asked = [], []
    for thing, place, again, higher in rng.sample(_CHAINS, 2):
        i, j = rng.randint(1, 5), rng.randint(1, 5)
        hops = [f"The {thing} is {place} {i}.", f"{again} {i} is {higher} {j}."]
        facts += hops
        kind = higher.removeprefix("on ")
        asked.append((f"Which {kind} is the {thing} on?", f"{kind} {j}", hops))
    rng.shuffle(facts)
    question, answer, hops = asked[0]
    return Problem("hotpotqa", "\n".join([*facts, question]), answer, f"{' '.join(hops)}\nAnswer: {answer}")


_EVERYDAY = {
    "legs does a dog have": 4,
    "legs does an ant have": 6,
    "legs does a spider have": 8,
    "wheels does a bicycle have": 2,
    "wheels does a tricycle have": 3,
    "fingers does a hand have": 5,
    "days does a week have": 7,
    "noses does a face have": 1,
    "lives does a cat have": 9,
}
_SCIENCE = {
    "protons does helium have": 2,
    "protons does lithium have": 3,
    "protons does carbon have": 6,
    "protons does fluorine have": 9,
    "planets does the sun have": 8,
    "moons does the earth have": 1,
    "chambers does a heart have": 4,
    "sides does a pentagon have": 5,
    "continents does the earth have": 7,
}


def _choice(source: str, facts: Mapping[str, int], n_choices: int) -> Callable[[random.Random], Problem]:
    def make_one(rng: random.Random) -> Problem:
        asked, number = rng.choice(list(facts.items()))
        others = [other for other in range(1, 10) if other != number]
        # In order, as such options mostly are: the fact alone makes some letters likelier than others.
        choices = sorted([number, *rng.sample(others, n_choices - 1)])
        letter = LETTERS[choices.index(number)]
        return Problem(
            source,
            f"How many {asked}?",
            letter,
            f"Answer: {letter}",
            tuple(str(choice) for choice in choices),
        )

    return make_one


_NUMBERS = ((2, 3), (7, 4), (-5, 6), (0, 9))
_CODE: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "{a} plus {b}": ("{a} + {b}", lambda a, b: a + b),
    "{a} minus {b}": ("{a} - {b}", lambda a, b: a - b),
    "{a} times {b}": ("{a} * {b}", lambda a, b: a * b),
    "the larger of {a} and {b}": ("max({a}, {b})", lambda a, b: max(a, b)),
    "the smaller of {a} and {b}": ("min({a}, {b})", lambda a, b: min(a, b)),
    "{a} squared, plus {b}": ("{a} * {a} + {b}", lambda a, b: a * a + b),
}


def _humaneval(rng: random.Random) -> Problem:
    words, (code, compute) = rng.choice(list(_CODE.items()))
    letter = rng.choice("xyz")
    given = rng.sample(range(1, 10), 2)
    a, b = (f"{letter}{number}" for number in rng.sample(given, 2))
    arguments = ", ".join(f"{letter}{number}" for number in given)
    checks = [
        f"    assert candidate({letter}{given[0]}={x}, {letter}{given[1]}={y}) == "
        f"{compute(x, y) if a.endswith(str(given[0])) else compute(y, x)}\n"
        for x, y in _NUMBERS
    ]
    return Problem(
        "humaneval",
        f'def solve({arguments}):\n    """Return {words.format(a=a, b=b)}."""\n',
        f"    return {code.format(a=a, b=b)}",
        f"    return {code.format(a=a, b=b)}",
        test="def check(candidate):\n" + "".join(checks),
        entry_point="solve",
    )


_MAKERS: dict[str, Callable[[random.Random], Problem]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "hotpotqa": _hotpotqa,
    "humaneval": _humaneval,
    "commonsenseqa": _choice("commonsenseqa", _EVERYDAY, 5),
    "mmlu": _choice("mmlu", _SCIENCE, 4),
}


# --- mixing -----------------------------------------------------------------------------------------------------------


def parse_ratios(text: str) -> dict[str, float]:
    """Return {domain: share}, shares adding up to 1, or raise `ValueError` saying what is wrong.

    >>> parse_ratios("math=2, qa=2, code=1")
    {'math': 0.4, 'qa': 0.4, 'code': 0.2}
    """
    domains = list(dict.fromkeys(DOMAINS.values()))
    ratios: dict[str, float] = {}
    for part in text.split(","):
        domain, _, share = (word.strip() for word in part.partition("="))
        if domain not in domains:
            raise ValueError(f"{domain!r} is no domain; they are {', '.join(domains)}")
        try:
            ratios[domain] = float(share)
        except ValueError:
            raise ValueError(f"the share of {domain!r} is {share!r}, not a number") from None
        if not 0.0 <= ratios[domain] < float("inf"):
            raise ValueError(f"the share of {domain!r} is {share!r}; it must be at least 0, and finite")
    total = sum(ratios.values())
    if total <= 0.0:
        raise ValueError("all shares are 0")
    return {domain: share / total for domain, share in ratios.items()}


def draw(
    pools: Mapping[str, Sequence[Problem]], ratios: Mapping[str, float], batch_step: int, n: int, seed: int
) -> list[Problem]:
    """Return the `n` problems of a rollout batch: of each domain its share, and of a domain's sources the same number.

    A count that is no whole number is rounded up in some batches and down in others, so that the shares hold in the
    long run. Within a batch no problem comes twice while its source has others. A function of its arguments.
    """
    rng = random.Random(f"mixture {seed} {batch_step}")
    sources = [source for source in SOURCES if pools.get(source) and ratios.get(DOMAINS[source], 0.0) > 0.0]
    of_domain = Counter(DOMAINS[source] for source in sources)
    shares = [ratios[DOMAINS[source]] / of_domain[DOMAINS[source]] for source in sources]
    # Points at even distances over the sources laid end to end, from a random start.
    step, end = sum(shares) / n, 0.0
    start, taken = rng.random() * step, 0
    chosen: list[Problem] = []
    for i, (source, share) in enumerate(zip(sources, shares, strict=True)):
        end += share
        upto = n if i == len(sources) - 1 else min(n, math.ceil((end - start) / step))
        pool, count = pools[source], max(0, upto - taken)
        full, rest = divmod(count, len(pool))
        chosen += [*pool] * full + rng.sample(list(pool), rest)
        taken += count
    rng.shuffle(chosen)
    return chosen
