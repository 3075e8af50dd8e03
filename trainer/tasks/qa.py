r"""Conversations about a text: a question, the policy's answer, the next question, which leans on the one before.

    Ann has 3 red cups. Bob has 7 green pens.       How many has Ann?    → 3
                                                    Which colour?        → red
                                                    Who has cups?        → Ann

Each answer is written in the text. The next question comes whatever the answer was, as in CoQA, so that one mistake
costs one answer and not the rest. Reward: the share of the questions that were answered right.

Texts are generated, or read from JSONL (`{"text": …, "questions": [{"question": …, "answer": …}, …]}`; CoQA's `story`
and `questions`/`answers` lists serve too).

Invariants
----------
* A question's answer depends on the text and the questions before it, never on what the policy answered.
* An answer is right if it is the expected one, but for case, articles and punctuation (SQuAD's rule).
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eventlog import Turn
from trainer.errors import DataError
from trainer.tasks import Grade

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gil", "Hal", "Ida", "Jon", "Kim", "Leo")
THINGS = ("cups", "pens", "hats", "keys", "maps", "bags", "nuts", "toys", "bells", "coins", "shoes", "lamps")
COLOURS = ("red", "green", "blue", "black", "white", "grey", "pink", "brown")


@dataclass(frozen=True)
class Conversation:
    text: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def generate(n: int, seed: int, n_facts: int) -> list[Conversation]:
    """Return `n` conversations, each about a text of its own of so many facts; the same ones for the same seed."""
    rng = random.Random(f"conversations {seed} {n_facts}")
    found: dict[str, Conversation] = {}
    while len(found) < n:
        facts = [
            (name, str(rng.randrange(2, 10)), rng.choice(COLOURS), thing)
            for name, thing in zip(rng.sample(NAMES, n_facts), rng.sample(THINGS, n_facts), strict=True)
        ]
        text = " ".join(f"{name} has {count} {colour} {thing}." for name, count, colour, thing in facts)
        name, count, colour, thing = rng.choice(facts)
        # Only the first question says who or what is asked about; the others lean on it.
        opening, *leaning = rng.sample(
            [(f"How many has {name}?", count), (f"What has {name}?", thing), (f"Who has {thing}?", name)], 2
        )
        asked = [opening, ("Which colour?", colour), *leaning]
        found[text] = Conversation(text, tuple(q for q, _ in asked), tuple(a for _, a in asked))
    return list(found.values())


def guessed(conversation: Conversation, rng: random.Random) -> Conversation:
    """Return the conversation with each answer replaced by any word of the text: the form, and no knowledge.

    >>> guessed(Conversation("Ann has 3 red cups.", ("Which colour?",), ("red",)), random.Random(1)).answers
    ('has',)
    """
    words = re.findall(r"\w+", conversation.text) or [conversation.text]
    return replace(conversation, answers=tuple(rng.choice(words) for _ in conversation.questions))


def read_conversations(path: Path) -> list[Conversation]:
    """Return the distinct conversations of a JSONL file, in the order of the file."""
    found: dict[Conversation, None] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    found[_conversation(line, path, number)] = None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the conversations from {str(path)!r}: {error}. Give a JSONL file with --data, or none, and "
            "conversations are generated."
        ) from None
    return list(found)


def _conversation(line: str, path: Path, number: int) -> Conversation:
    try:
        row = json.loads(line)
        if "story" in row:
            questions = [q["input_text"] if isinstance(q, dict) else q for q in row["questions"]]
            given = row["answers"]["input_text"] if isinstance(row["answers"], dict) else row["answers"]
            answers = [a["input_text"] if isinstance(a, dict) else a for a in given]
            text = row["story"]
        else:
            text = row["text"]
            questions = [q["question"] for q in row["questions"]]
            answers = [q["answer"] for q in row["questions"]]
        if (
            not questions
            or len(questions) != len(answers)
            or not all(isinstance(t, str) for t in (text, *questions, *answers))
        ):
            raise ValueError
        return Conversation(text, tuple(questions), tuple(answers))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(
            f"line {number} of {str(path)!r} is no conversation: expected a JSON object with 'text' and 'questions', each "
            f"with 'question' and 'answer', found {line.strip()[:60]!r}. Mend the line, or give another file with --data."
        ) from None


def normalised(answer: str) -> str:
    """
    >>> normalised(" The  Red one. ")
    'red one'
    """
    kept = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


class QATask:
    """Answer each question about the text, in a word or two."""

    concurrency = 1
    tools: Sequence[dict[str, Any]] = ()

    def opening(self, problem: Conversation) -> list[Turn]:
        return [Turn(role="user", content=f"{problem.text}\n{problem.questions[0]}")]

    def respond(self, problem: Conversation, turns: Sequence[Turn]) -> list[Turn]:
        asked = sum(turn.role == "user" for turn in turns)
        if asked == len(problem.questions):
            return []
        return [Turn(role="user", content=problem.questions[asked])]

    def grade(self, problem: Conversation, turns: Sequence[Turn]) -> Grade:
        given = [turn.content for turn in turns if turn.role == "assistant"]
        right = [normalised(a) == normalised(b) for a, b in zip(given, problem.answers, strict=False)]
        share = sum(right) / len(problem.answers)
        metrics = {
            "answers_right": share,
            "all_right": float(share == 1.0),
            "answered": len(given) / len(problem.answers),
        }
        return Grade(share, metrics, {"expected": list(problem.answers)}, rewards={"correct": share})

    def demonstrate(self, problem: Conversation) -> list[Turn]:
        turns = self.opening(problem)
        for answer in problem.answers:
            turns.append(Turn(role="assistant", content=answer))
            turns += self.respond(problem, turns)
        return turns
