r"""Questions about an inbox: search it, read a mail, give the answer and say where it stands.

    When was the mail about "valero" sent?
        search_inbox(["valero"])          → enron1-0155: re : valero
        read_email("enron1-0155")         → date: 2000-01-10 …
        return_answer("2000-01-10", ["enron1-0155"])

Questions are either made from the mails themselves (when, who, which number), so that whether an answer is right can be
told by comparing text, or they are a person's, with a judge to say whether an answer means what was expected.

The reward is that of ART·E (OpenPipe, dev/art-e/art_e/rollout.py, `calculate_reward`), from -2 to 1.5:

    the call cannot be read      -2.0 + hints    `cant_parse_tool_call`; also a turn that calls nothing
    there is no such tool        -1.9 + hints    `bad_tool_call_name`
    its arguments do not fit     -1.8 + hints    `bad_tool_call_args`
    the answer is wrong          -1.0 + hints    `attempted_answer and not answer_correct`
    "I don't know", or no answer  0.0 + hints    `returned_i_dont_know or ran_out_of_turns`
    the answer is right           1.0 + 0.3 if the sources have the mail + 0.1 / sources named + 0.1 (1 - turns / limit)

with four hints of 0.1: the mail was found; it was read; no mail was asked for that does not exist; the sources have it.

Invariants
----------
* A reward is the sum of its parts, each by name in `Grade.rewards`.
* What a tool cannot do is said in its answer; nothing that a policy writes raises. As in ART·E a call that cannot be
  run at all ends the episode, a turn's second call is not run, and a mail that does not exist is merely said to be none.
* `grade` is a function of the turns: their calls say what was run, and what came of it.

There is no model or token here, and no network but the judge's, which is handed in. Where that fails, the episode has no
reward.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventlog import ToolCall, Turn
from trainer.data.emails import MAX_RESULTS, SNIPPET_WORDS, Inbox, Mail
from trainer.judge import Case, Judge
from trainer.tasks import Grade

I_DONT_KNOW = "I don't know"


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    message_id: str  # of the mail that has the answer
    keywords: tuple[str, ...] = ()  # that find it; (): whoever asks does not know any
    owner: str = ""  # whose inbox is searched; "": all mails
    asked_on: str = ""  # the day of the question
    id: str = ""
    inbox: Inbox | None = field(default=None, repr=False, compare=False)


# --- questions --------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\b[a-z]{4,10}\b")
_CODE = re.compile(r"\b\d{2,4}\b")
_GREETING = re.compile(r"([a-z]{3,12}) ?[,:-] ?\n", re.IGNORECASE)
_NUMBER = re.compile(r"\b(meter|deal|contract|order|ticket|sitara)s? #? ?(\d{3,8})(?!\d)", re.IGNORECASE)
# A word that one subject in so many has is no rarity: a small vocabulary has a token for it.
COMMON = 40
# Numbers are from a mail's beginning.
KEYWORD_CHARS = 600
# Of a large inbox, only so many mails are asked about.
MAX_ASKED = 10_000
# What stands where a name does.
_NO_NAMES = frozenset({"all", "everybody", "everyone", "fyi", "hello", "hey", "note", "thanks"})


def questions_of(
    inbox: Inbox, seed: int, *, body_chars: int, words: Container[str] | None = None, per_mail: int = 8
) -> list[Question]:
    """Return questions whose answers can be found by searching, reading and copying, in an order that is the seed's.

    A mail is asked for by a number, two of them, or one and a word of its subject that no other mail has: "meter",
    "1517". The words are `words`, or those that are common here. Answers stand in the first `body_chars` of a body.
    """
    rng = random.Random(f"questions {seed}")
    words = common_words(inbox) if words is None else words
    questions: dict[str, Question] = {}
    for mail in itertools.islice(inbox, MAX_ASKED):
        asks = list(_asks(mail, body_chars))
        for keywords in _keywords(inbox, mail, words, rng, per_mail if asks else 0):
            ask, answer = rng.choice(asks)
            if answer not in keywords:
                text = ask.format(", ".join(f'"{keyword}"' for keyword in keywords))
                number = len(questions)
                questions[text] = Question(
                    text, answer, mail.message_id, keywords, id=f"{mail.message_id}/{number}", inbox=inbox
                )
    found = list(questions.values())
    rng.shuffle(found)
    return found


def common_words(inbox: Inbox) -> frozenset[str]:
    """Return the words that one subject in 40 has: a small vocabulary has tokens for them."""
    n_mails, n_subjects = 0, Counter[str]()
    for mail in itertools.islice(inbox, MAX_ASKED):
        n_mails += 1
        n_subjects.update(_subject_words(mail))
    return frozenset(word for word, n in n_subjects.items() if n * COMMON >= n_mails)


def _asks(mail: Mail, body_chars: int) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) of one mail, the keywords left open."""
    if mail.date:
        yield "When was the mail about {} sent?", mail.date[:10]
    if mail.sender:
        yield "Who sent the mail about {}?", mail.sender
    begin = mail.body[:body_chars]
    greeting = _GREETING.match(begin)
    if greeting and greeting[1].lower() not in _NO_NAMES:
        yield "Who is greeted in the mail about {}?", greeting[1]
    numbers: dict[str, set[str]] = {}
    for kind, number in _NUMBER.findall(mail.body):
        numbers.setdefault(kind.lower(), set()).add(number)
    for kind, number in _NUMBER.findall(begin):
        # With two of a kind, the question would have two answers.
        if numbers[kind.lower()] == {number}:
            yield f"Which {kind.lower()} number is in the mail about {{}}?", number


def _subject_words(mail: Mail) -> list[str]:
    return list(dict.fromkeys(_WORD.findall(mail.subject.lower())))


def _keywords(
    inbox: Inbox, mail: Mail, words: Container[str], rng: random.Random, n: int
) -> Iterator[tuple[str, ...]]:
    """Yield up to `n` tuples of keywords that find this mail and no other, of each form alike."""
    numbers = list(dict.fromkeys(_CODE.findall(f"{mail.subject} {mail.body[:KEYWORD_CHARS]}")))
    common = [word for word in _subject_words(mail) if word in words]
    forms: list[list[tuple[str, ...]]] = [
        list(itertools.product(common, numbers)),
        [(number,) for number in numbers],
        list(itertools.combinations(numbers[:6], 2)),
    ]
    for form in forms:
        rng.shuffle(form)
    mixed = [keywords for row in itertools.zip_longest(*forms) for keywords in row if keywords]
    for keywords in mixed[: 4 * n]:
        if n and inbox.having(keywords, 2) == [mail.message_id]:
            n -= 1
            yield keywords


# --- the tools --------------------------------------------------------------------------------------------------------


def _function(name: str, description: str, required: Sequence[str], **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _texts(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": description}


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


TOOLS = (
    _function(
        "search_inbox",
        "Search the inbox for mails that have all the keywords, newest first: a message id and a snippet of each.",
        ["keywords"],
        keywords=_texts("Words or phrases; a mail must have all of them, in its subject or its body."),
        from_addr=_string("Only mails from this address."),
        to_addr=_string("Only mails to this address."),
        sent_after=_string("Only mails of this day or later: YYYY-MM-DD."),
        sent_before=_string("Only mails before this day: YYYY-MM-DD."),
        max_results={"type": "integer", "description": f"How many mails at most: 1 to {MAX_RESULTS}."},
    ),
    _function(
        "read_email",
        "Read one mail.",
        ["message_id"],
        message_id=_string("A message id that a search returned."),
    ),
    _function(
        "return_answer",
        "Give the answer, which ends the conversation.",
        ["answer", "sources"],
        answer=_string(f"The answer in a few words; {I_DONT_KNOW!r} if the mails do not have it."),
        sources=_texts("The message ids of the mails that have the answer; usually one."),
    ),
)

_INSTRUCTIONS = (
    "You find answers in a person's mails. Search the inbox with search_inbox, read the mails that look right with "
    "read_email, and end with return_answer. Call one tool in each turn. You have {max_turns} turns; where a search "
    "finds nothing, try other keywords."
)


class JudgeFailed(RuntimeError):
    """Whether an answer is right is not known: a reward would be made up."""


class _Unusable(ValueError):
    """A call that cannot be run; the message is what the trajectory says of it."""


_UNREADABLE = "error: the call cannot be read"
_NO_SUCH_TOOL = "error: there is no such tool"
_BAD_ARGUMENTS = "error: the arguments do not fit"
NO_SUCH_MAIL = "error: there is no mail with this id"
NOTHING_FOUND = "nothing found"


class EmailTask:
    def __init__(
        self,
        *,
        max_turns: int,
        max_results: int = MAX_RESULTS,
        snippet_words: int = SNIPPET_WORDS,
        body_chars: int = 10_000,
        with_instructions: bool = True,
        judge: Judge | None = None,
        concurrency: int = 1,
    ) -> None:
        self.tools: Sequence[dict[str, Any]] = TOOLS
        self.concurrency = concurrency
        self._max_turns = max_turns
        self._max_results = max_results
        self._snippet_words = snippet_words
        self._body_chars = body_chars
        self._with_instructions = with_instructions
        self._judge = judge

    def opening(self, problem: Question) -> list[Turn]:
        question = Turn(role="user", content=problem.text)
        if not self._with_instructions:
            return [question]
        told = _INSTRUCTIONS.format(max_turns=self._max_turns)
        if problem.owner:
            told += f" The inbox is that of {problem.owner}."
        if problem.asked_on:
            told += f" Today is {problem.asked_on}."
        return [Turn(role="system", content=told), question]

    def respond(self, problem: Question, turns: Sequence[Turn]) -> list[Turn]:
        calls = turns[-1].tool_calls
        if not calls:
            return []
        call, started_s = calls[0], time.perf_counter()
        try:
            call.result = self._run(problem, call)
        except _Unusable as error:
            call.error = str(error)
        call.duration_s = time.perf_counter() - started_s
        if call.error is not None or call.name == "return_answer":
            return []
        return [Turn(role="tool", content=call.result or "", tool_call_id=call.id)]

    def _run(self, problem: Question, call: ToolCall) -> str:
        arguments = _arguments(call)
        if call.name == "return_answer":
            return "the conversation is over"
        inbox = problem.inbox
        assert inbox is not None, "a question that is played has an inbox"
        if call.name == "read_email":
            mail = inbox.mail(arguments["message_id"])
            return NO_SUCH_MAIL if mail is None else shown(mail, self._body_chars)
        limit = arguments.pop("max_results", self._max_results)
        hits = inbox.search(
            **arguments,
            owner=problem.owner,
            max_results=min(limit, self._max_results),
            snippet_words=self._snippet_words,
        )
        return "\n".join(f"{message_id}: {snippet}" for message_id, snippet in hits) or NOTHING_FOUND

    def grade(self, problem: Question, turns: Sequence[Turn]) -> Grade:
        rubric, answer = rubric_of(problem, turns)
        info: dict[str, Any] = {
            "expected": problem.answer,
            "gold_message_id": problem.message_id,
            "question_id": problem.id,
        }
        if answer is not None and not rubric.answer_correct and self._judge is not None:
            verdict = self._judge.ask(Case("email", problem.text, problem.answer, answer))
            if verdict.result not in ("correct", "incorrect"):
                raise JudgeFailed(f"{verdict.result}: {verdict.error}")
            rubric.answer_correct = verdict.result == "correct"
            info["verdict"] = verdict.as_info()
        rewards = parts_of_reward(rubric, self._max_turns)
        metrics = {name: float(value) for name, value in vars(rubric).items() if name != "num_turns"}
        return Grade(sum(rewards.values()), metrics, info, rewards)

    def demonstrate(self, problem: Question) -> list[Turn]:
        steps: list[tuple[str, dict[str, Any]]] = [
            ("search_inbox", {"keywords": list(problem.keywords)}),
            ("read_email", {"message_id": problem.message_id}),
            ("return_answer", {"answer": problem.answer, "sources": [problem.message_id]}),
        ]
        turns = self.opening(problem)
        for name, arguments in steps if problem.keywords else steps[1:]:
            turns.append(Turn(role="assistant", tool_calls=[ToolCall(name=name, arguments=arguments)]))
            turns += self.respond(problem, turns)
        return turns


def shown(mail: Mail, body_chars: int) -> str:
    """Return a mail as `read_email` answers it, its body cut to so many characters.

    >>> print(shown(Mail("lunch", "at noon ? or at one ?", date="2000-05-01", to=("a@x.org",)), 10))
    date: 2000-05-01
    to: a@x.org
    subject: lunch
    <BLANKLINE>
    at noon ? …
    """
    headers = {"date": mail.date, "from": mail.sender, "to": ", ".join(mail.to), "cc": ", ".join(mail.cc)}
    lines = [f"{name}: {value}" for name, value in headers.items() if value]
    body = mail.body if len(mail.body) <= body_chars else f"{mail.body[:body_chars]}…"
    return "\n".join([*lines, f"subject: {mail.subject}", "", body])


def normalised(text: str) -> str:
    """Return an answer without what does not matter: case, punctuation at its ends, and how wide its gaps are.

    >>> normalised(" The  Meter is 1517. ")
    'the meter is 1517'
    """
    return " ".join(text.lower().split()).strip(" .,;:!?\"'")


def _arguments(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call as its tool takes them, or raise `_Unusable`."""
    if call.error is not None and not call.name:
        raise _Unusable(_UNREADABLE)
    if call.name not in _FITTING:
        raise _Unusable(_NO_SUCH_TOOL)
    if not isinstance(call.arguments, dict) or not _FITTING[call.name](call.arguments):
        raise _Unusable(_BAD_ARGUMENTS)
    return {name: value for name, value in call.arguments.items() if value is not None}


def _fit_search(arguments: dict[str, Any]) -> bool:
    limit = arguments.get("max_results")
    days = [arguments.get(name) for name in ("sent_after", "sent_before")]
    addresses = [arguments.get(name) for name in ("from_addr", "to_addr")]
    return (
        arguments.keys() <= TOOLS[0]["function"]["parameters"]["properties"].keys()
        and _are_texts(arguments.get("keywords"))
        and len(arguments["keywords"]) > 0
        and (limit is None or (type(limit) is int and 1 <= limit <= MAX_RESULTS))
        and all(
            day is None or (isinstance(day, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", day)) for day in days
        )
        and all(address is None or isinstance(address, str) for address in addresses)
    )


def _fit_read(arguments: dict[str, Any]) -> bool:
    return arguments.keys() == {"message_id"} and isinstance(arguments["message_id"], str)


def _fit_answer(arguments: dict[str, Any]) -> bool:
    return (
        arguments.keys() == {"answer", "sources"}
        and isinstance(arguments["answer"], str)
        and _are_texts(arguments["sources"])
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


_FITTING = {"search_inbox": _fit_search, "read_email": _fit_read, "return_answer": _fit_answer}


# --- the reward -------------------------------------------------------------------------------------------------------


@dataclass
class Rubric:
    """What an episode is judged by: ART·E's `FinalRubric`, and its names."""

    num_turns: int = 0
    answer_correct: bool = False
    sources_correct: bool = False
    attempted_answer: bool = False
    returned_i_dont_know: bool = False
    ran_out_of_turns: bool = False
    cant_parse_tool_call: bool = False
    bad_tool_call_name: bool = False
    bad_tool_call_args: bool = False
    ever_found_right_email: bool = False
    ever_read_right_email: bool = False
    ever_tried_to_read_invalid_email: bool = False
    num_sources: int = 0


def rubric_of(problem: Question, turns: Sequence[Turn]) -> tuple[Rubric, str | None]:
    """Return what an episode did, and the answer that it attempted; right is one in the expected words."""
    written = [turn for turn in turns if turn.role == "assistant"]
    calls = [turn.tool_calls[0] if turn.tool_calls else None for turn in written]
    rubric = Rubric(num_turns=len(written))
    for call in calls:
        if call is not None and call.result is not None:
            _note(rubric, problem, call)
    last = calls[-1] if calls else None
    if last is not None and last.error in (_NO_SUCH_TOOL, _BAD_ARGUMENTS):
        rubric.bad_tool_call_name = last.error == _NO_SUCH_TOOL
        rubric.bad_tool_call_args = last.error == _BAD_ARGUMENTS
    elif last is None or last.result is None:  # or one that was cut off, and never run
        rubric.cant_parse_tool_call = True
    elif last.name != "return_answer":
        rubric.ran_out_of_turns = True
    else:
        return rubric, _rate(rubric, problem, **last.arguments)
    return rubric, None


def _note(rubric: Rubric, problem: Question, call: ToolCall) -> None:
    assert call.result is not None
    if call.name == "search_inbox":
        found = [line.split(": ", 1)[0] for line in call.result.splitlines()]
        rubric.ever_found_right_email |= problem.message_id in found
    elif call.name == "read_email" and call.result == NO_SUCH_MAIL:
        rubric.ever_tried_to_read_invalid_email = True
    elif call.name == "read_email":
        rubric.ever_read_right_email |= call.arguments["message_id"] == problem.message_id


def _rate(rubric: Rubric, problem: Question, answer: str, sources: Sequence[str]) -> str | None:
    rubric.num_sources = len(sources)
    if normalised(answer) in ("", normalised(I_DONT_KNOW)):
        rubric.returned_i_dont_know = True
        return None
    rubric.attempted_answer = True
    rubric.sources_correct = problem.message_id in sources
    rubric.answer_correct = normalised(answer) == normalised(problem.answer)
    return answer


def parts_of_reward(rubric: Rubric, max_turns: int) -> dict[str, float]:
    """Return the parts of the reward by name, in the order of ART·E's rule: the first outcome that holds counts.

    >>> parts_of_reward(Rubric(num_turns=3, answer_correct=True, sources_correct=True, num_sources=1), max_turns=6)
    {'answer': 1.0, 'sources': 0.3, 'few_sources': 0.1, 'few_turns': 0.05}
    """
    if rubric.cant_parse_tool_call:
        outcome = {"unreadable_call": -2.0}
    elif rubric.bad_tool_call_name:
        outcome = {"unknown_tool": -1.9}
    elif rubric.bad_tool_call_args:
        outcome = {"bad_arguments": -1.8}
    elif rubric.attempted_answer and not rubric.answer_correct:
        outcome = {"answer": -1.0}
    elif rubric.answer_correct:
        return {
            "answer": 1.0,
            "sources": 0.3 if rubric.sources_correct else 0.0,
            "few_sources": 0.1 / rubric.num_sources if rubric.num_sources else 0.0,
            "few_turns": 0.1 * (1 - rubric.num_turns / max_turns),
        }
    else:
        outcome = {"no_answer": 0.0}
    # Together less than 0.5, so that no hint makes up for a worse outcome.
    return outcome | {
        "found": 0.1 * rubric.ever_found_right_email,
        "read": 0.1 * rubric.ever_read_right_email,
        "only_real_ids": 0.1 * (not rubric.ever_tried_to_read_invalid_email),
        "sources": 0.1 * rubric.sources_correct,
    }
