"""What a policy did in one episode, as a trainer hands it over and as a record holds it.

Invariants
----------
* A record's `data` has every field of the dataclass, under its name, also those that are not known (null).
* `logprobs` has one number for each 1 in `mask`, `ref_logprobs` too or none, and `mask` one digit for each token id: said
  here, checked by whoever makes one.

There is no file here; nothing is counted, scored or tokenised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eventlog.record import TextMark, encode_data


@dataclass(slots=True)
class ToolCall:
    """One call of a tool by the policy, and what came of it."""

    name: str
    arguments: Any
    id: str | None = None
    result: str | None = None
    error: str | None = None
    duration_s: float | None = None


@dataclass(slots=True)
class Turn:
    """One message."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None
    duration_s: float | None = None
    prompt_tokens: int | None = None
    """What the policy read to write this turn, and how much it wrote; of its own turns only."""
    completion_tokens: int | None = None


@dataclass(slots=True)
class Trajectory:
    """The turns of one episode, and its reward."""

    turns: list[Turn]
    reward: float | None = None
    advantage: float | None = None
    group: str | None = None
    """The same for all trajectories of one prompt."""
    id: str | None = None
    token_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    """1 where the token was sampled by the policy."""
    logprobs: list[float] = field(default_factory=list)
    """One for each sampled token, in order: of the distribution that it was drawn from."""
    ref_logprobs: list[float] = field(default_factory=list)
    """The same of the reference policy, if there is one."""
    rewards: dict[str, float] = field(default_factory=dict)
    """What `reward` is made of, by name."""
    metrics: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int | None = None
    """Of all its turns together; so is `completion_tokens`."""
    completion_tokens: int | None = None
    policy_version: int | None = None
    """How many optimiser steps the policy had taken that sampled it."""
    stop_reason: str | None = None
    """Why it ended: `done`, `max_turns`, `max_tokens` (no room for another turn), `length` (a turn without an end), `exception`."""
    started_us: int | None = None
    duration_s: float | None = None
    exception: str | None = None
    info: dict[str, Any] = field(default_factory=dict)


def encode_trajectory(trajectory: Trajectory) -> tuple[bytes, list[TextMark]]:
    """Return the record's data as JSON, and the marks of what became text."""
    turns = [_turn(turn) for turn in trajectory.turns]
    description = {
        "id": trajectory.id,
        "group": trajectory.group,
        "reward": trajectory.reward,
        "advantage": trajectory.advantage,
        "rewards": trajectory.rewards,
        "turns": turns,
        "metrics": trajectory.metrics,
        "prompt_tokens": trajectory.prompt_tokens,
        "completion_tokens": trajectory.completion_tokens,
        "policy_version": trajectory.policy_version,
        "stop_reason": trajectory.stop_reason,
        "started_us": trajectory.started_us,
        "duration_s": trajectory.duration_s,
        "exception": trajectory.exception,
        "info": trajectory.info,
    }
    # In two parts: a null that nobody counted costs a walk through the values, and the second has 10,000s of them.
    nones = _nones(description) + sum(_nones(turn) + sum(map(_nones, turn["tool_calls"])) for turn in turns)
    described, marks = encode_data(description, nones)
    tokens, more_marks = encode_data(
        {
            "token_ids": trajectory.token_ids,
            "mask": trajectory.mask,
            "logprobs": trajectory.logprobs,
            "ref_logprobs": trajectory.ref_logprobs,
        }
    )
    return b"%b,%b" % (described[:-1], tokens[1:]), marks + more_marks


def _nones(fields: dict[str, Any]) -> int:
    return sum(value is None for value in fields.values())


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "role": turn.role,
        "content": turn.content,
        "tool_calls": [_call(call) for call in turn.tool_calls],
        "tool_call_id": turn.tool_call_id,
        "duration_s": turn.duration_s,
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": turn.completion_tokens,
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "result": call.result,
        "error": call.error,
        "duration_s": call.duration_s,
    }
