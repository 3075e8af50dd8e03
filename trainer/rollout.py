"""Plays episodes: the policy writes a turn, the task answers, until the task has nothing to say.

Invariants
----------
* `token_ids` is what the policy saw and wrote, id for id; `mask` is 1 on what it wrote; `logprobs` has one value for
  each 1, as recorded when it was drawn. Nothing is re-tokenised.
* All episodes advance together, one turn at a time: each engine call is one batch. Answering and grading wait for
  each other only at the end of a turn, `concurrency` of them at once.
* An episode ends when the task is done, after `max_turns`, when a turn has no end token, when the next prompt would
  leave no room in `max_tokens`, or when the engine or the task failed on it, or its first prompt left no room. Then it
  has an `exception` and no reward, and the others go on.
* No trajectory has more than `max_tokens` token ids.

No loss, advantage or log here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from eventlog import Trajectory, Turn
from trainer.chat import Chat
from trainer.policy import Completion, Engine
from trainer.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    max_turns: int
    max_new_tokens: int  # of one turn
    max_tokens: int  # of the whole trajectory


@dataclass
class _Episode:
    problem: Any
    started_us: int
    started_s: float
    turns: list[Turn] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    duration_s: float = 0.0
    stop_reason: str | None = None
    exception: str | None = None

    def fail(self, why: str) -> None:
        self.exception, self.stop_reason = why, "exception"


def play(
    problems: Sequence[Any],
    task: Task,
    chat: Chat,
    engine: Engine,
    limits: Limits,
    *,
    temperature: float,
    concurrency: int = 0,
) -> list[Trajectory]:
    """Return one graded trajectory for each problem, in order; `concurrency` 0 is the task's own."""
    with ThreadPoolExecutor(concurrency or task.concurrency) as pool:
        each = _Each(pool, concurrency or task.concurrency)
        episodes = [_Episode(problem, time.time_ns() // 1000, time.perf_counter()) for problem in problems]
        each(lambda e: _open(e, task, chat, limits), episodes)
        playing = [e for e in episodes if not e.stop_reason]
        for n_turns in range(1, limits.max_turns + 1):
            if not playing:
                break
            turn_started_s = time.perf_counter()
            completions = engine.complete([e.token_ids for e in playing], limits.max_new_tokens, temperature)
            turn_s = time.perf_counter() - turn_started_s
            for episode, completion in zip(playing, completions, strict=True):
                _append_turn(episode, completion, chat, turn_s)
            each(
                lambda e, n=n_turns: _answer(e, task, chat, limits, is_last=n == limits.max_turns),  # type: ignore[misc]
                [e for e in playing if not e.stop_reason],
            )
            playing = [e for e in playing if not e.stop_reason]
        return each(lambda e: _trajectory(e, task), episodes)


T = TypeVar("T")


@dataclass(frozen=True)
class _Each:
    """Calls a function for each episode, in order or at once; what fails is that episode's."""

    pool: ThreadPoolExecutor
    concurrency: int

    def __call__(self, call: Callable[[_Episode], T], episodes: Sequence[_Episode]) -> list[T]:
        results: Iterable[T] = map(call, episodes) if self.concurrency == 1 else self.pool.map(call, episodes)
        return list(results)


def _open(episode: _Episode, task: Task, chat: Chat, limits: Limits) -> None:
    try:
        episode.turns = task.opening(episode.problem)
        prompt = chat.encode_opening(episode.turns)
    except Exception as error:  # noqa: BLE001 - a task's own code: the other episodes go on
        _failed(episode, error)
        return
    if len(prompt) + limits.max_new_tokens > limits.max_tokens:
        episode.fail(
            f"the prompt has {len(prompt)} tokens and a turn may have {limits.max_new_tokens} (max_new_tokens), but "
            f"max_length is {limits.max_tokens}: give a larger --max-length, or shorter problems."
        )
        return
    episode.token_ids, episode.mask = prompt, [0] * len(prompt)


def _append_turn(episode: _Episode, completion: Completion, chat: Chat, turn_s: float) -> None:
    episode.duration_s = time.perf_counter() - episode.started_s
    if completion.error is not None:
        episode.fail(completion.error)
        return
    turn = chat.decode_turn(completion.token_ids)
    # The turns of one call are decoded together, and no share of its time is anyone's own.
    turn.duration_s = turn_s
    turn.prompt_tokens, turn.completion_tokens = len(episode.token_ids), len(completion.token_ids)
    episode.turns.append(turn)
    episode.prompt_tokens += len(episode.token_ids)
    episode.token_ids = episode.token_ids + completion.token_ids
    episode.mask = episode.mask + [1] * len(completion.token_ids)
    episode.logprobs = episode.logprobs + completion.logprobs
    if not chat.is_ended(completion.token_ids):
        episode.stop_reason = "length"


def _answer(episode: _Episode, task: Task, chat: Chat, limits: Limits, *, is_last: bool) -> None:
    """Let the task answer the last turn; say whether, and why, that was the end."""
    try:
        answers = task.respond(episode.problem, episode.turns)
        following = chat.encode_following(answers) if answers else []
    except Exception as error:  # noqa: BLE001 - a task's own code: the other episodes go on
        _failed(episode, error)
        return
    finally:
        episode.duration_s = time.perf_counter() - episode.started_s
    if not answers:
        episode.stop_reason = "done"
        return
    if len(episode.token_ids) + len(following) + limits.max_new_tokens > limits.max_tokens:
        episode.stop_reason = "max_tokens"
        return
    episode.turns += answers
    if is_last:  # no prediction needs the ids of what nobody answers
        episode.stop_reason = "max_turns"
        return
    episode.token_ids = episode.token_ids + following
    episode.mask = episode.mask + [0] * len(following)


def _trajectory(episode: _Episode, task: Task) -> Trajectory:
    trajectory = Trajectory(
        turns=episode.turns,
        token_ids=episode.token_ids,
        mask=episode.mask,
        logprobs=episode.logprobs,
        prompt_tokens=episode.prompt_tokens,
        completion_tokens=sum(episode.mask),
        started_us=episode.started_us,
        duration_s=episode.duration_s,
    )
    if episode.exception is None:
        try:
            grade = task.grade(episode.problem, episode.turns)
            trajectory.reward, trajectory.rewards, trajectory.info = grade.reward, grade.rewards, grade.info
            trajectory.metrics = {
                **grade.metrics,
                "num_turns": float(sum(turn.role == "assistant" for turn in episode.turns)),
                "truncated": float(episode.stop_reason in ("length", "max_tokens")),
            }
        except Exception as error:  # noqa: BLE001 - a task's own code: the other episodes go on
            _failed(episode, error)
    trajectory.exception, trajectory.stop_reason = episode.exception, episode.stop_reason
    return trajectory


def _failed(episode: _Episode, error: Exception) -> None:
    log.debug("an episode failed", exc_info=error)
    episode.fail(f"{type(error).__name__}: {error}")
