"""The e-mail agent's task: its tools, its questions, and ART·E's reward, branch by branch."""

import json

import pytest

from eventlog import ToolCall, Turn
from trainer.chat import parse_assistant
from trainer.data.emails import MAX_RESULTS, Inbox, Mail, generate
from trainer.judge import Verdict
from trainer.tasks.email import (
    NO_SUCH_MAIL,
    NOTHING_FOUND,
    TOOLS,
    EmailTask,
    JudgeFailed,
    Question,
    Rubric,
    normalised,
    parts_of_reward,
    questions_of,
)

INBOX = Inbox.of(
    [
        Mail(
            "meter 1517",
            "daren ,\nmeter 981506 is shut in .",
            "2000-01-10",
            "ann@x.org",
            ("bob@x.org",),
            message_id="a",
        ),
        Mail("lunch", "at noon ?", "2000-01-11", "bob@x.org", message_id="b"),
    ],
    "two mails",
)
WHEN = Question("When was the mail about “1517” sent?", "2000-01-10", "a", ("1517",), inbox=INBOX)
TASK = EmailTask(max_turns=5)

SEARCH = ("search_inbox", {"keywords": ["1517"]})
READ = ("read_email", {"message_id": "a"})
RIGHT = ("return_answer", {"answer": "2000-01-10", "sources": ["a"]})


def play(*steps, task=TASK, problem=WHEN):
    """Play an episode of these calls (name, arguments), or texts; return its turns, as a rollout would."""
    turns = task.opening(problem)
    for step in steps:
        if isinstance(step, str):
            turns.append(parse_assistant(step))
        else:
            turns.append(Turn(role="assistant", tool_calls=[ToolCall(*step, id="call_0")]))
        answers = task.respond(problem, turns)
        if not answers:
            break
        turns += answers
    return turns


def grade(*steps, task=TASK, problem=WHEN):
    return task.grade(problem, play(*steps, task=task, problem=problem))


def answer_to(*step, task=TASK, problem=WHEN):
    return play(step, task=task, problem=problem)[-1].content


# --- the tools ---


def test_a_search_answers_with_ids_and_snippets():
    assert answer_to(*SEARCH) == "a: meter 1517"
    assert answer_to("search_inbox", {"keywords": ["9999"]}) == NOTHING_FOUND


def test_a_search_takes_addresses_days_and_a_limit():
    def found(**arguments):
        return answer_to("search_inbox", {"keywords": ["meter"], **arguments})

    assert (
        found(from_addr="ann@x.org", to_addr="bob@x.org", sent_after="2000-01-10", max_results=1)
        != NOTHING_FOUND
    )
    assert found(from_addr="bob@x.org") == NOTHING_FOUND
    assert found(sent_before="2000-01-10") == NOTHING_FOUND
    assert found(sent_before=None) != NOTHING_FOUND


def test_a_search_looks_into_the_askers_inbox_only():
    def found(owner):
        problem = Question("?", "x", "a", owner=owner, inbox=INBOX)
        return answer_to("search_inbox", {"keywords": ["lunch"]}, problem=problem)

    assert found("bob@x.org") == "b: lunch"
    assert found("ann@x.org") == NOTHING_FOUND


def test_a_search_returns_no_more_than_the_task_allows():
    problem = Question(
        "?", "x", "a", inbox=Inbox.of([Mail("same", "same", message_id=str(i)) for i in range(20)], "x")
    )

    def n_found(task, **arguments):
        step = ("search_inbox", {"keywords": ["same"], **arguments})
        return len(answer_to(*step, task=task, problem=problem).splitlines())

    assert n_found(TASK) == MAX_RESULTS == 10
    assert n_found(TASK, max_results=4) == 4
    assert n_found(EmailTask(max_turns=5, max_results=3), max_results=4) == 3


def test_reading_answers_with_the_mail_or_says_that_there_is_none():
    assert answer_to(*READ) == (
        "date: 2000-01-10\nfrom: ann@x.org\nto: bob@x.org\nsubject: meter 1517\n\ndaren ,\nmeter 981506 is shut in ."
    )
    assert answer_to(*READ, task=EmailTask(max_turns=5, body_chars=5)).endswith("\n\ndaren…")
    assert answer_to("read_email", {"message_id": "z"}) == NO_SUCH_MAIL


def test_returning_an_answer_ends_the_episode():
    turns = play(RIGHT, SEARCH)

    assert len(turns) == 3
    assert turns[-1].tool_calls[0].result is not None


def test_only_the_first_call_of_a_turn_is_run():
    turns = [*TASK.opening(WHEN), Turn(role="assistant", tool_calls=[ToolCall(*SEARCH), ToolCall(*RIGHT)])]

    (answer,) = TASK.respond(WHEN, turns)

    assert answer.content == "a: meter 1517"
    assert turns[-1].tool_calls[1].result is None


def test_a_call_keeps_what_came_of_it_and_how_long_it_took():
    call = play(SEARCH)[-2].tool_calls[0]

    assert call.result == "a: meter 1517"
    assert call.duration_s > 0


def test_the_schemas_are_openais_and_name_what_the_tools_take():
    by_name = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}

    assert set(by_name) == {"search_inbox", "read_email", "return_answer"}
    assert all(tool["type"] == "function" for tool in TOOLS)
    assert by_name["return_answer"]["required"] == ["answer", "sources"]
    assert all(set(p["required"]) <= set(p["properties"]) for p in by_name.values())
    json.dumps(TOOLS)


def test_a_pretrained_model_is_told_what_to_do_whose_inbox_it_is_and_what_day():
    problem = Question("Who?", "x", "a", owner="ann@x.org", asked_on="2001-05-01")

    system, user = TASK.opening(problem)

    assert user == Turn(role="user", content="Who?")
    assert all(word in system.content for word in ("search_inbox", "5 turns", "ann@x.org", "2001-05-01"))
    assert EmailTask(max_turns=5, with_instructions=False).opening(problem) == [user]


# --- the reward, as ART·E's calculate_reward has it ---


@pytest.mark.parametrize(
    ("steps", "reward"),
    [
        # right: 1 + 0.3 (sources) + 0.1 / sources + 0.1 (1 - turns / 5)
        ([SEARCH, READ, RIGHT], 1.0 + 0.3 + 0.1 + 0.1 * 2 / 5),
        ([RIGHT], 1.0 + 0.3 + 0.1 + 0.1 * 4 / 5),
        ([("return_answer", {"answer": "2000-01-10", "sources": ["a", "b"]})], 1.0 + 0.3 + 0.05 + 0.08),
        ([("return_answer", {"answer": "2000-01-10", "sources": ["b"]})], 1.0 + 0.1 + 0.08),
        ([("return_answer", {"answer": "2000-01-10", "sources": []})], 1.0 + 0.08),
        # wrong: -1 + hints (found, read, only real ids, sources)
        ([("return_answer", {"answer": "2001-01-10", "sources": []})], -1.0 + 0.1),
        ([SEARCH, ("return_answer", {"answer": "no", "sources": []})], -1.0 + 0.2),
        ([SEARCH, READ, ("return_answer", {"answer": "no", "sources": ["a"]})], -1.0 + 0.4),
        ([("read_email", {"message_id": "z"}), ("return_answer", {"answer": "no", "sources": []})], -1.0),
        # "I don't know", nothing said, or out of turns: 0 + hints
        ([SEARCH, ("return_answer", {"answer": "I don't know", "sources": []})], 0.2),
        ([("return_answer", {"answer": " ", "sources": []})], 0.1),
        ([("return_answer", {"answer": "I don't know", "sources": ["a"]})], 0.1),
        ([SEARCH, READ, SEARCH, READ, SEARCH], 0.3),
        # a call that cannot be run: -1.8, -1.9, -2 + hints
        ([("read_email", {"id": "a"})], -1.8 + 0.1),
        ([("read_email", {"message_id": 5})], -1.8 + 0.1),
        ([("search_inbox", {"keywords": "1517"})], -1.8 + 0.1),
        ([("search_inbox", {"keywords": []})], -1.8 + 0.1),
        ([("search_inbox", {"keywords": ["a"], "max_results": 11})], -1.8 + 0.1),
        ([("search_inbox", {"keywords": ["a"], "max_results": True})], -1.8 + 0.1),
        ([("search_inbox", {"keywords": ["a"], "sent_after": "May"})], -1.8 + 0.1),
        ([("search_inbox", {"keywords": ["a"], "from_addr": 1})], -1.8 + 0.1),
        ([("search_inbox", {"keywords": ["a"], "where": "here"})], -1.8 + 0.1),
        ([SEARCH, READ, ("return_answer", {"answer": "2000-01-10"})], -1.8 + 0.3),
        ([("return_answer", {"answer": "2000-01-10", "sources": "a"})], -1.8 + 0.1),
        (['<tool_call>{"name": "read_email"}</tool_call>'], -1.8 + 0.1),
        ([SEARCH, ("send_email", {})], -1.9 + 0.2),
        (["The mail was sent on 2000-01-10."], -2.0 + 0.1),
        ([""], -2.0 + 0.1),
        ([SEARCH, READ, "<tool_call>{return</tool_call>"], -2.0 + 0.3),
    ],
)
def test_the_reward_is_art_es(steps, reward):
    graded = grade(*steps)

    assert graded.reward == pytest.approx(reward)
    assert sum(graded.rewards.values()) == graded.reward
    assert -2.0 <= graded.reward <= 1.5


def test_a_turn_that_was_cut_off_cannot_be_read_even_if_its_call_is_whole():
    turns = [
        *play(SEARCH),
        Turn(role="assistant", tool_calls=[ToolCall(*RIGHT)]),
    ]  # no answer was asked for it

    assert TASK.grade(WHEN, turns).rewards["unreadable_call"] == -2.0


def test_hints_never_make_up_for_a_worse_outcome():
    def worst_and_best(**outcome):
        hints = {"ever_found_right_email": True, "ever_read_right_email": True, "sources_correct": True}
        return [
            sum(parts_of_reward(Rubric(num_turns=1, **outcome, **given), 10).values())
            for given in ({"ever_tried_to_read_invalid_email": True}, hints)
        ]

    unreadable = worst_and_best(cant_parse_tool_call=True)
    wrong = worst_and_best(attempted_answer=True)
    none = worst_and_best(ran_out_of_turns=True)
    right = worst_and_best(attempted_answer=True, answer_correct=True)

    assert unreadable[1] < wrong[0] <= wrong[1] < none[0] <= none[1] < right[0]


def test_what_an_episode_did_is_measured():
    metrics = grade(SEARCH, READ, RIGHT).metrics

    assert metrics == {
        "answer_correct": 1.0,
        "sources_correct": 1.0,
        "attempted_answer": 1.0,
        "returned_i_dont_know": 0.0,
        "ran_out_of_turns": 0.0,
        "cant_parse_tool_call": 0.0,
        "bad_tool_call_name": 0.0,
        "bad_tool_call_args": 0.0,
        "ever_found_right_email": 1.0,
        "ever_read_right_email": 1.0,
        "ever_tried_to_read_invalid_email": 0.0,
        "num_sources": 1.0,
    }


def test_saying_i_dont_know_is_no_attempt():
    metrics = grade(("return_answer", {"answer": "i don't know.", "sources": ["a"]})).metrics

    assert (metrics["attempted_answer"], metrics["returned_i_dont_know"]) == (0.0, 1.0)
    assert (metrics["answer_correct"], metrics["sources_correct"]) == (0.0, 0.0)


def test_a_reader_of_the_trajectory_is_told_what_was_expected():
    assert grade(RIGHT).info == {"expected": "2000-01-10", "gold_message_id": "a", "question_id": ""}


@pytest.mark.parametrize("answer", ["The Meter is  1517", "the meter is 1517.", ' "the meter is 1517" '])
def test_an_answer_is_right_whatever_its_case_gaps_and_ends(answer):
    assert normalised(answer) == normalised("the meter is 1517")


# --- the judge ---


class FixedJudge:
    def __init__(self, result):
        self.result = result
        self.asked = []

    def ask(self, case):
        self.asked.append(case)
        return Verdict(self.result, error="no reply" if "failure" in self.result else None)


OTHER_WORDS = ("return_answer", {"answer": "on the tenth of January 2000", "sources": ["a"]})


def test_a_judge_is_asked_about_other_words_only():
    judge = FixedJudge("correct")
    task = EmailTask(max_turns=5, judge=judge)

    right, in_other_words = grade(RIGHT, task=task), grade(OTHER_WORDS, task=task)

    assert right.reward == in_other_words.reward
    assert [(case.question, case.expected, case.answer) for case in judge.asked] == [
        (WHEN.text, "2000-01-10", "on the tenth of January 2000")
    ]
    assert in_other_words.info["verdict"]["result"] == "correct"
    assert "verdict" not in right.info


def test_a_judge_may_say_no_and_is_not_asked_about_no_answer():
    judge = FixedJudge("incorrect")
    task = EmailTask(max_turns=5, judge=judge)

    assert grade(OTHER_WORDS, task=task).rewards["answer"] == -1.0
    grade(("return_answer", {"answer": "I don't know", "sources": []}), task=task)
    assert len(judge.asked) == 1


@pytest.mark.parametrize("result", ["api_failure", "parse_failure"])
def test_without_a_verdict_there_is_no_reward(result):
    with pytest.raises(JudgeFailed, match=f"{result}: no reply"):
        grade(OTHER_WORDS, task=EmailTask(max_turns=5, judge=FixedJudge(result)))


# --- questions ---

MADE_UP = Inbox.of(generate(200, seed=0), "made up")
QUESTIONS = questions_of(MADE_UP, seed=0, body_chars=200)


def test_a_demonstration_earns_the_full_reward():
    assert QUESTIONS
    for problem in QUESTIONS:
        graded = TASK.grade(problem, TASK.demonstrate(problem))
        assert graded.reward == pytest.approx(1.44)


def test_a_question_is_about_one_mail_that_its_keywords_find():
    for problem in QUESTIONS:
        assert [hit.message_id for hit in MADE_UP.search(problem.keywords)] == [problem.message_id]
        assert all(f'"{keyword}"' in problem.text for keyword in problem.keywords)


def test_each_kind_of_question_is_answered_by_the_mail():
    kinds = {problem.text.split(" the mail")[0].split(" number")[0] for problem in QUESTIONS}

    assert {"When was", "Who sent", "Who is greeted in"} <= kinds
    assert any(kind.startswith("Which ") for kind in kinds)
    for problem in QUESTIONS:
        mail = MADE_UP.mail(problem.message_id)
        assert problem.answer in (mail.date, mail.sender) or problem.answer in mail.body
        assert problem.answer not in problem.keywords


def test_questions_differ_and_are_the_seeds():
    assert len({problem.text for problem in QUESTIONS}) == len(QUESTIONS)
    assert questions_of(MADE_UP, seed=0, body_chars=200) == QUESTIONS
    assert questions_of(MADE_UP, seed=1, body_chars=200) != QUESTIONS


def test_a_number_is_asked_for_only_if_it_is_the_only_one_of_its_kind_and_shown():
    def asked(body, body_chars=100):
        inbox = Inbox.of([Mail("notes 4711", body, message_id="a")], "x")
        return {problem.answer for problem in questions_of(inbox, seed=0, body_chars=body_chars)}

    assert asked("see deal 1517 .") == {"1517"}
    assert asked("see deal 1517 and deal 1518 .") == set()
    assert asked("see deal 1517 .", body_chars=10) == set()
    assert asked("see deal 1517 and meter 2222 .") == {"1517", "2222"}


def test_who_is_no_name_is_not_greeted():
    def asked(body):
        inbox = Inbox.of([Mail("notes 4711", body, message_id="a")], "x")
        return {problem.answer for problem in questions_of(inbox, seed=0, body_chars=100)}

    assert asked("daren ,\nhello") == {"daren"}
    assert asked("thanks ,\nhello") == set()


def test_a_question_without_keywords_is_demonstrated_by_reading():
    problem = Question("When?", "2000-01-10", "a", inbox=INBOX)

    calls = [call.name for turn in TASK.demonstrate(problem) for call in turn.tool_calls]

    assert calls == ["read_email", "return_answer"]
