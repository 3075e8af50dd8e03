"""`eventlog.trajectory`: an episode comes back whole."""

from __future__ import annotations

import math
import time

import orjson

from eventlog import ToolCall, Trajectory, Turn
from eventlog.record import decode, frame_record
from eventlog.trajectory import encode_trajectory


def stored(trajectory: Trajectory):
    return decode(frame_record(0, 1, "trajectory", *encode_trajectory(trajectory), step=2)[:-1])


def test_every_field_of_an_episode_comes_back():
    call = ToolCall("add", {"a": 1, "b": [2]}, id="c1", result="3", duration_s=0.25)
    trajectory = Trajectory(
        turns=[
            Turn("system", "Calculate."),
            Turn("user", "1 + 2?"),
            Turn("assistant", "", tool_calls=[call], duration_s=1.5),
            Turn("tool", "3", tool_call_id="c1"),
            Turn("assistant", "3 \U0001f600"),
        ],
        reward=1.0,
        advantage=-0.5,
        group="prompt 7",
        id="t1",
        token_ids=[5, 6, 7],
        mask=[0, 1, 1],
        logprobs=[-0.1, -0.2],
        metrics={"length": 3},
        prompt_tokens=1,
        completion_tokens=2,
        started_us=1_763_712_000_000_000,
        duration_s=2.0,
        exception=None,
        info={"seed": 1},
    )

    record = stored(trajectory)

    assert record.step == 2
    assert record.lossy == ()
    assert record.data == orjson.loads(orjson.dumps(trajectory))


def test_what_is_not_known_is_null_and_not_missing():
    data = stored(Trajectory([])).data

    assert set(data) == set(Trajectory.__dataclass_fields__)
    assert data["reward"] is None


def test_numbers_that_json_lacks_survive_in_every_part():
    trajectory = Trajectory(
        [Turn("assistant", tool_calls=[ToolCall("f", {"x": math.inf})])],
        reward=math.nan,
        logprobs=[-math.inf],
    )

    data = stored(trajectory).data

    assert math.isnan(data["reward"])
    assert data["turns"][0]["tool_calls"][0]["arguments"] == {"x": math.inf}
    assert data["logprobs"] == [-math.inf]


def test_an_argument_that_cannot_be_stored_does_not_cost_the_episode():
    record = stored(
        Trajectory([Turn("assistant", tool_calls=[ToolCall("f", {"x": b"\xff"})])], token_ids=[1])
    )

    assert record.lossy == (("turns", 0, "tool_calls", 0, "arguments", "x"),)
    assert record.data["token_ids"] == [1]


def test_a_hundred_thousand_tokens_are_encoded_without_a_walk_through_them():
    trajectory = Trajectory([], token_ids=list(range(100_000)), logprobs=[-0.5] * 100_000)
    began_s = time.perf_counter()

    encode_trajectory(trajectory)

    # A walk in Python takes some 100 ms; generous, because machines are shared.
    print(f"{1e3 * (time.perf_counter() - began_s):.1f} ms")
