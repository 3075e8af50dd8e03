"""Plays episodes: the policy writes a turn, the task answers, until the task has nothing to say.

Invariants
----------
* `token_ids` is what the policy saw and wrote, id for id; `mask` is 1 on what it wrote; `logprobs` has one value for
  each 1, as recorded when it was drawn. Nothing is re-tokenised.
* All episodes advance together, one turn at a time: each engine call is one batch.
* An episode ends when the task is done, after `max_turns`, when a turn has no end token, or when the next prompt would
  leave no room in `max_tokens`.

No loss, advantage or log here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eventlog import Trajectory, Turn
from trainer.chat import Chat
from trainer.policy import Engine
from trainer.tasks import Task


@dataclass(frozen=True)
class Limits:
    max_turns: int
    max_new_tokens: int  # of one turn
    max_tokens: int  # of the whole trajectory


@dataclass
class _Episode:
    problem: Any
    turns: list[Turn]
    token_ids: list[int]
    mask: list[int]
    logprobs: list[float]
    prompt_tokens: int = 0
    duration_s: float = 0.0
    truncated: bool = False


def play(
    problems: Sequence[Any], task: Task, chat: Chat, engine: Engine, limits: Limits, *, temperature: float
) -> list[Trajectory]:
    """Return one graded trajectory for each problem, in order."""
    started_us, started_s = time.time_ns() // 1000, time.perf_counter()
    episodes = []
    for problem in problems:
        opening = task.opening(problem)
        ids = chat.encode_opening(opening)
        episodes.append(_Episode(problem, opening, ids, [0] * len(ids), []))
    playing = episodes
    for _ in range(limits.max_turns):
        if not playing:
            break
        turn_started_s = time.perf_counter()
        completions = engine.complete([e.token_ids for e in playing], limits.max_new_tokens, temperature)
        turn_s = time.perf_counter() - turn_started_s
        for episode, (ids, logprobs) in zip(playing, completions, strict=True):
            _append_turn(episode, ids, logprobs, chat)
            # The turns of one call are decoded together, and no share of its time is anyone's own.
            episode.turns[-1].duration_s = turn_s
            episode.duration_s = time.perf_counter() - started_s
        playing = [e for e in playing if _goes_on(e, task, chat, limits)]
    return [_trajectory(e, task, started_us) for e in episodes]


def _append_turn(episode: _Episode, ids: list[int], logprobs: list[float], chat: Chat) -> None:
    episode.prompt_tokens += len(episode.token_ids)
    episode.token_ids = episode.token_ids + ids
    episode.mask = episode.mask + [1] * len(ids)
    episode.logprobs = episode.logprobs + logprobs
    episode.turns.append(chat.decode_turn(ids))
    episode.truncated = not ids or ids[-1] != chat.end_id


def _goes_on(episode: _Episode, task: Task, chat: Chat, limits: Limits) -> bool:
    if episode.truncated:
        return False
    answers = task.respond(episode.problem, episode.turns)
    if not answers:
        return False
    following = chat.encode_following(answers)
    if len(episode.token_ids) + len(following) + limits.max_new_tokens > limits.max_tokens:
        episode.truncated = True
        return False
    episode.turns += answers
    episode.token_ids = episode.token_ids + following
    episode.mask = episode.mask + [0] * len(following)
    return True


def _trajectory(episode: _Episode, task: Task, started_us: int) -> Trajectory:
    grade = task.grade(episode.problem, episode.turns)
    # A trajectory that ran out of turns ends with the tool's answer, which no prediction needs: cut it.
    n = max(i for i, m in enumerate(episode.mask, start=1) if m)
    n_turns = sum(turn.role == "assistant" for turn in episode.turns)
    return Trajectory(
        turns=episode.turns,
        reward=grade.reward,
        token_ids=episode.token_ids[:n],
        mask=episode.mask[:n],
        logprobs=episode.logprobs,
        metrics={**grade.metrics, "num_turns": float(n_turns), "truncated": float(episode.truncated)},
        prompt_tokens=episode.prompt_tokens,
        completion_tokens=sum(episode.mask),
        started_us=started_us,
        duration_s=episode.duration_s,
        info=grade.info,
    )
