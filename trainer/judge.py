"""Asks whether an answer is right where no rule can tell: a model behind an OpenAI-compatible server, or a rule here.

    Case (question, expected, answer) ─ prompt of its source ─▶ POST <url>/chat/completions ─▶ reply ─▶ Verdict

Invariants
----------
* `ask` returns a verdict whatever happens: a server that is away, slow, refuses or sends no JSON is `api_failure`; a
  reply that says neither correct nor incorrect is `parse_failure`. A training is never stopped by its judge.
* A call is counted once, under one of four outcomes, and never repeated.
* A call ends at its deadline, however slowly the server drips.
* The key comes from the environment and goes to the server: it is no setting, and no part of a verdict, not even where
  the server repeats it.

What a verdict is worth is the task's business, and what it costs the collectors'. Proxies are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from trainer.errors import DataError, SettingsError

Result = Literal["correct", "incorrect", "parse_failure", "api_failure"]
# A verdict is a few words and its reason: what is longer is no answer to our question.
REPLY_MAX_BYTES = 2**20
# No model reads or writes so much in one call: a usage beyond it is an error of the server's.
USAGE_MAX_TOKENS = 10**9


@dataclass(frozen=True)
class Case:
    source: str
    question: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Verdict:
    result: Result
    error: str | None = None  # why it is a failure
    prompt_tokens: int = 0
    completion_tokens: int = 0
    duration_s: float = 0.0

    def as_info(self) -> dict[str, Any]:
        """Return it as plain values, for `Trajectory.info`."""
        return asdict(self)


class Judge(Protocol):
    def ask(self, case: Case) -> Verdict: ...


# --- prompts ----------------------------------------------------------------------------------------------------------

_FORM = """Question:
{question}

Reference answer:
{expected}

Answer to judge:
{answer}

{rule} End with one line: "Verdict: correct" or "Verdict: incorrect"."""

_RULES = {
    "gsm8k": "Is the number that the answer ends with equal to the reference?",
    "math": "Is the final expression equal to the reference in value? Another form of the same value is correct.",
    "hotpotqa": "Does the answer name the same thing as the reference? Other words for it are correct.",
    "humaneval": "Does the code do what the question asks?",
    "commonsenseqa": "Does the answer choose the same option as the reference?",
    "mmlu": "Does the answer choose the same option as the reference?",
    "default": "Does the answer mean the same as the reference?",
}


class JudgePromptLoader:
    """What the judge is asked, by source: built in, or from a YAML or JSON file of {source: text}.

    A text holds `{question}`, `{expected}` and `{answer}`. Sources that it does not name use its "default", or ours.
    """

    def __init__(self, path: Path | None = None) -> None:
        built_in = {source: _FORM.replace("{rule}", rule) for source, rule in _RULES.items()}
        given = {} if path is None else _read_prompts(path)
        if "default" in given:
            built_in = {}
        self._prompts = {**built_in, **given}

    def load(self, source: str) -> str:
        """Return the prompt of a source, its places still open."""
        return self._prompts.get(source) or self._prompts["default"]

    def render(self, case: Case) -> str:
        """Return the prompt of a case.

        >>> print(JudgePromptLoader().render(Case("math", "1/2 + 1/2?", "1", "{question}")).splitlines()[7])
        {question}
        """
        # In one pass: what an answer writes in braces is not filled in again.
        return re.sub(
            r"\{(question|expected|answer)\}", lambda m: getattr(case, m[1]), self.load(case.source)
        )


def _read_prompts(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            prompts = json.loads(text)
        else:
            import yaml  # type: ignore[import-untyped]  # comes with transformers; no other judge needs it

            try:
                prompts = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(str(error)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the judge's prompts from {str(path)!r}: {error}") from None
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise DataError(
            f"{str(path)!r} holds no prompts: expected one text for each source, as in "
            '{"math": "Is {answer} equal to {expected}? …"}.'
        )
    for source, prompt in prompts.items():
        if "{answer}" not in prompt:
            raise DataError(f"the prompt for {source!r} in {str(path)!r} has no {{answer}} to judge; add it.")
    return prompts


# --- verdicts ---------------------------------------------------------------------------------------------------------

_VERDICT = re.compile(r"verdict\W+(correct|incorrect)\b", re.IGNORECASE)


def parse_verdict(reply: str) -> Literal["correct", "incorrect"] | None:
    """Return what a reply says: its last "Verdict: …", or the reply itself if it is that one word.

    >>> parse_verdict("Equal in value.\\n**Verdict:** Correct"), parse_verdict("incorrect."), parse_verdict("It is right.")
    ('correct', 'incorrect', None)
    """
    found = _VERDICT.findall(reply)
    word = (found[-1] if found else reply.strip().strip(".*\"'")).lower()
    return "correct" if word == "correct" else "incorrect" if word == "incorrect" else None


class HttpJudge:
    """A model behind an OpenAI-compatible server, such as vLLM's."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        prompts: JudgePromptLoader | None = None,
        timeout_s: float = 120.0,
        max_tokens: int = 512,
        key: str | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            port, usable = parts.port, parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError(
                f"the judge's address is {url!r}; it must be like 'http://localhost:8002/v1': "
                "the base of an OpenAI-compatible server."
            )
        self._connection_type = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._host, self._port = parts.hostname or "", port
        self._path = parts.path.rstrip("/") + "/chat/completions"
        self._model = model
        self._prompts = prompts or JudgePromptLoader()
        self._timeout_s = timeout_s
        self._max_tokens = max_tokens
        self._headers = {"Content-Type": "application/json"}
        self._key = key
        if key:
            if not key.isascii() or not key.isprintable():
                raise SettingsError("the judge's API key has characters that no key has; set it anew.")
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, case: Case) -> Verdict:
        started_s = time.perf_counter()
        try:
            reply, usage = self._reply(self._prompts.render(case))
        except _ApiFailure as error:
            return Verdict("api_failure", str(error), duration_s=time.perf_counter() - started_s)
        said = parse_verdict(reply)
        return Verdict(
            said or "parse_failure",
            None if said else f"no verdict in {self._without_key(reply)[-200:]!r}",
            _count(usage, "prompt_tokens"),
            _count(usage, "completion_tokens"),
            time.perf_counter() - started_s,
        )

    def _reply(self, prompt: str) -> tuple[str, Any]:
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        status, body = self._post(json.dumps(request).encode())
        # Cut after the key is out: where the cut is in the middle of it, a part would be left.
        beginning = self._without_key(body.decode(errors="replace"))[:200]
        if status != 200:
            raise _ApiFailure(f"HTTP {status}: {beginning}")
        try:
            answer = json.loads(body)
            content = answer["choices"][0]["message"]["content"]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            raise _ApiFailure(f"not a chat completion: {beginning}") from None
        # A reasoning model that ran out of tokens has said nothing: that is no verdict, but it was an answer.
        return content if isinstance(content, str) else "", answer.get("usage")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        started_s = time.perf_counter()
        connection = self._connection_type(self._host, self._port, timeout=self._timeout_s)
        passed = threading.Event()
        try:
            connection.connect()
            left_s = self._timeout_s - (time.perf_counter() - started_s)
            with _deadline(connection.sock, left_s, passed):
                connection.request("POST", self._path, body, self._headers)
                response = connection.getresponse()
                answer = response.read(REPLY_MAX_BYTES + 1)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            if passed.is_set() or isinstance(error, TimeoutError):
                raise _ApiFailure(f"no answer within {self._timeout_s:g} s") from None
            # What is no HTTP is repeated in the error, and may be as long as the server likes.
            raise _ApiFailure(f"{type(error).__name__}: {self._without_key(str(error))[:200]}") from None
        finally:
            connection.close()
        if passed.is_set():  # a body without a length just ends where it was cut
            raise _ApiFailure(f"no answer within {self._timeout_s:g} s")
        if len(answer) > REPLY_MAX_BYTES:
            raise _ApiFailure("the answer is longer than 1 MiB")
        return response.status, answer

    def _without_key(self, text: str) -> str:
        if not self._key:
            return text
        # JSON, and `repr`, may have written a backslash before any of its characters.
        return re.sub(r"\\*".join(map(re.escape, self._key)), "[the key]", text)


class _ApiFailure(Exception):
    """No reply came; the message is for a person."""


@contextmanager
def _deadline(sock: socket.socket, left_s: float, passed: threading.Event) -> Iterator[None]:
    """Cut the connection when the time is up: a socket's own time-out starts anew with every byte."""

    def cut() -> None:
        passed.set()
        # Not close: only a shutdown wakes the thread that is reading. It may just have read the last byte.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(max(left_s, 0.0), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _count(usage: Any, key: str) -> int:
    """Return a count of tokens, or 0 where the server says none that can be: a number is no reason to stop."""
    value = usage.get(key) if isinstance(usage, Mapping) else None
    return value if type(value) is int and 0 <= value <= USAGE_MAX_TOKENS else 0


class RuleJudge:
    """A judge in this process, for where there is no server: lenient where the rules of the sources are strict.

    Numbers and fractions of the same value are the same, and so is a text that holds all words of the expected one, in order.
    Whatever it is asked, it gives a verdict; it uses no tokens.
    """

    def ask(self, case: Case) -> Verdict:
        same = _same_value(case.expected, case.answer) or _holds(case.answer, case.expected)
        return Verdict("correct" if same else "incorrect")


def _same_value(a: str, b: str) -> bool:
    try:
        return Fraction(a.replace(" ", "")) == Fraction(b.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return False


def _holds(text: str, wanted: str) -> bool:
    words = iter(re.findall(r"\w+", text.lower()))
    parts = re.findall(r"\w+", wanted.lower())
    return bool(parts) and all(part in words for part in parts)


def key_from_environment() -> str | None:
    """Return the judge's key; a setting would be written into the run's config."""
    return (os.environ.get("JUDGE_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip() or None
