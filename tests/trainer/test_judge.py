"""The judge, against a real server on loopback that misbehaves on demand: every call comes back as a verdict."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventlog import Trajectory
from tests.trainer.judge_server import completion, judge_server
from trainer.collectors.mixture import Prices
from trainer.data.mixture import SOURCES
from trainer.errors import DataError, SettingsError
from trainer.judge import Case, HttpJudge, JudgePromptLoader, RuleJudge, key_from_environment, parse_verdict

CASE = Case("math", question="What is 1/4 + 1/4?", expected="1/2", answer="2/4")


def ask(server, **options):
    return HttpJudge(server.url, "gpt-oss-120b", **{"timeout_s": 60.0, **options}).ask(CASE)


@pytest.fixture
def server():
    with judge_server() as server:
        yield server


# --- what is asked, and what is understood ----------------------------------------------------------------------------


def test_a_verdict_has_what_the_judge_said_and_the_tokens_it_used(server):
    server.answer = completion("Equal in value.\nVerdict: correct", prompt_tokens=80, completion_tokens=7)

    verdict = ask(server)

    assert (verdict.result, verdict.error) == ("correct", None)
    assert (verdict.prompt_tokens, verdict.completion_tokens) == (80, 7)


def test_the_server_is_asked_as_openais_would_be(server):
    ask(server, key="sk-1", max_tokens=99)

    ((path, headers, request),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-1"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("gpt-oss-120b", 99, 0)
    (message,) = request["messages"]
    assert message["role"] == "user"
    assert all(part in message["content"] for part in ("What is 1/4 + 1/4?", "1/2", "2/4"))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Verdict: incorrect", "incorrect"),
        ('{"verdict": "correct"}', "correct"),
        ("**Verdict:** INCORRECT", "incorrect"),
        ('I first thought "Verdict: correct", but no.\nVerdict: incorrect', "incorrect"),
        ("Correct.", "correct"),
        ("It is not correct", None),
        ("Verdict: correctish", None),
        ("", None),
    ],
)
def test_a_reply_is_read_by_its_last_verdict_and_never_guessed_at(reply, said):
    assert parse_verdict(reply) == said


def test_a_reply_without_a_verdict_is_a_parse_failure_that_was_paid_for(server):
    server.answer = "I would rather talk about the weather."

    verdict = ask(server)

    assert verdict.result == "parse_failure"
    assert "weather" in verdict.error
    assert verdict.prompt_tokens == 100


def test_a_reply_of_null_is_a_parse_failure(server):
    server.answer = completion(None)

    assert ask(server).result == "parse_failure"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        *({"prompt_tokens": n, "completion_tokens": n} for n in ("many", -5, 2.5, True, 10**400, 2**64)),
    ],
    ids=lambda usage: str(usage)[:30],
)
def test_usage_that_is_missing_or_senseless_counts_as_no_tokens(server, usage):
    server.answer = {**completion("Verdict: correct"), "usage": usage}

    verdict = ask(server)

    assert (verdict.result, verdict.prompt_tokens, verdict.completion_tokens) == ("correct", 0, 0)
    assert Prices(judge_prompt=1.0).of(Trajectory([], info={"judge": verdict.as_info()})) == 0.0


def test_many_may_ask_at_once_and_each_gets_its_own_answer(server):
    def answer(request):
        right = "answer 3 " in request["messages"][0]["content"]
        return f"Verdict: {'correct' if right else 'incorrect'}"

    server.answer = answer
    judge = HttpJudge(server.url, "m", timeout_s=60.0)

    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda i: judge.ask(Case("math", "q", "e", f"answer {i} ")), range(24)))

    assert [i for i, verdict in enumerate(verdicts) if verdict.result == "correct"] == [3]


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (500, "HTTP 500.*out of order"),
        (429, "HTTP 429"),
        (401, "HTTP 401"),
        (b"<html>log in to the hotel's network</html>", "not a chat completion.*hotel"),
        (b"", "not a chat completion"),
        (b"\xff\xfe", "not a chat completion"),
        (b"[" * 100_000, "not a chat completion"),
        ({"choices": []}, "not a chat completion"),
        ({"error": "overloaded"}, "not a chat completion"),
        (b" " * (2**20 + 1), "longer than 1 MiB"),
        ("hang up", "RemoteDisconnected|ConnectionReset"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_server_that_does_not_answer_as_it_should_is_an_api_failure_that_says_why(server, answer, reason):
    server.answer = answer

    verdict = ask(server)

    assert verdict.result == "api_failure"
    assert re.search(reason, verdict.error), verdict.error
    assert (verdict.prompt_tokens, verdict.completion_tokens) == (0, 0)


@pytest.mark.parametrize("answer", ["hang", "drip"])
def test_a_server_that_is_silent_or_drips_for_ever_is_given_up_at_the_deadline(server, answer):
    server.answer = answer

    verdict = ask(server, timeout_s=0.3)

    assert verdict.result == "api_failure"
    assert "no answer within 0.3 s" in verdict.error


def test_a_server_that_is_not_there_is_an_api_failure():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"

        verdict = HttpJudge(url, "m", timeout_s=60.0).ask(CASE)

    assert verdict.result == "api_failure"
    assert "refused" in verdict.error.lower()


@pytest.mark.parametrize(
    "url", ["localhost:8002", "ftp://host/v1", "http://", "http://host:port/v1", "http://[host", ""]
)
def test_an_address_that_no_server_can_have_is_refused_before_the_training(url):
    with pytest.raises(SettingsError, match="http://localhost:8002/v1"):
        HttpJudge(url, "m")


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_without_the_newline_of_the_file_it_was_in(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-2\n")

    assert key_from_environment() == "sk-2"


def test_the_judges_own_key_is_taken_before_openais(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "general")
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    assert key_from_environment() == "general"

    monkeypatch.setenv("JUDGE_API_KEY", "own")
    assert key_from_environment() == "own"


@pytest.mark.parametrize(
    "answer",
    [
        401,
        (401, b'{"error": {"message": "no such key", "headers": {"Authorization": "Bearer sk-se/cret"}}}'),
        (401, rb'{"headers": {"Authorization": "Bearer sk-se\/cret"}}'),
        (500, b"x" * 195 + b"sk-se/cret"),  # where the text is cut, a part of it would be left
        b"<html>you sent sk-se/cret</html>",
        "you sent me sk-se/cret",
        "sk-se/cret" + "x" * 195,
        "hang up with sk-se/cret",
    ],
    ids=lambda answer: str(answer)[:20],
)
def test_no_verdict_repeats_the_key_nor_a_part_of_it_whatever_the_server_echoes(server, answer):
    server.answer = answer

    verdict = ask(server, key="sk-se/cret")

    assert verdict.result in ("api_failure", "parse_failure")
    assert not re.search(r"sk-s|\bcret|e.{0,2}/cret", json.dumps(verdict.as_info()))


def test_a_key_that_cannot_be_sent_is_refused_before_the_training():
    with pytest.raises(SettingsError, match="API key"):
        HttpJudge("http://localhost/v1", "m", key="two\nlines")


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [*SOURCES, "another"])
def test_every_source_has_a_prompt_that_shows_all_three_parts(source):
    prompt = JudgePromptLoader().render(Case(source, "the question", "the reference", "the answer"))

    assert all(part in prompt for part in ("the question", "the reference", "the answer", "Verdict: correct"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.yaml", 'math: "Is {answer} {expected}?"\n'),
        ("prompts.json", '{"math": "Is {answer} {expected}?"}'),
    ],
)
def test_a_file_replaces_the_prompts_that_it_names_and_no_others(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    prompts = JudgePromptLoader(tmp_path / name)

    assert prompts.render(CASE) == "Is 2/4 1/2?"
    assert prompts.load("mmlu") == JudgePromptLoader().load("mmlu")


def test_a_files_default_is_for_all_sources_that_it_does_not_name(tmp_path):
    (tmp_path / "prompts.yaml").write_text('default: "{answer}?"\n')

    assert JudgePromptLoader(tmp_path / "prompts.yaml").load("mmlu") == "{answer}?"


def test_an_answer_that_writes_our_places_in_braces_is_shown_as_it_is():
    prompt = JudgePromptLoader().render(Case("math", "q", "the secret", "{expected} {question}"))

    assert "{expected} {question}" in prompt


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("math: [", "cannot read"),
        ("- a list", "holds no prompts"),
        ("math: 3", "holds no prompts"),
        ('math: "Is it right?"', r"no \{answer\}"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used_is_refused(tmp_path, text, reason):
    (tmp_path / "prompts.yaml").write_text(text)

    with pytest.raises(DataError, match=reason):
        JudgePromptLoader(tmp_path / "prompts.yaml")


# --- the rule in this process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "answer", "result"),
    [
        ("1/2", "2/4", "correct"),
        ("1/2", "0.5", "correct"),
        ("1/2", "1/0", "incorrect"),
        ("1/2", "3/4", "incorrect"),
        ("floor 3", "It is on floor 3", "correct"),
        ("floor 3", "floor 4", "incorrect"),
        ("New York City", "New York", "incorrect"),
        ("New York", "York, New", "incorrect"),
    ],
)
def test_the_rule_judge_sees_equal_values_and_texts_that_hold_the_reference(expected, answer, result):
    verdict = RuleJudge().ask(Case("math", "q", expected, answer))

    assert (verdict.result, verdict.prompt_tokens) == (result, 0)
