"""A trajectory of 5 MB, against `orjson.dumps` and `os.write` of the same: python -m tests.bench.trajectory TOKENS"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tests.bench.apart import measured
from tests.bench.row import Row, at_most

if TYPE_CHECKING:
    from eventlog import Trajectory

# With their mask, log-probabilities and text: 5 MB.
TOKENS = 222_000
TURNS = 32
CHARACTERS_PER_TOKEN = 4
REPEATS = 15


def rows(home: Path, scale: int) -> Iterator[Row]:
    found = measured("trajectory", TOKENS // scale, home=home)
    median_s = {peer: statistics.median(found[peer]) for peer in ("floor", "ours")}
    ratio = median_s["ours"] / median_s["floor"]
    what, size = "log_trajectory()", f"{found['bytes'] / 1e6:.2f} MB"
    yield Row(what, "floor", {"median_ms": median_s["floor"] * 1e3}, size=size)
    aims = (at_most(ratio, 3, "≤ 3 × floor"),)
    yield Row(what, "ours", {"median_ms": median_s["ours"] * 1e3}, ratio, aims=aims, size=size)


def trajectory_of(tokens: int) -> Trajectory:
    """Return one in which the policy sampled every second turn, as an agent with tools does."""
    from eventlog import Trajectory, Turn
    from eventlog.trajectory import ToolCall

    chance = random.Random(7)
    words = [
        f"{chance.choice(['the', 'of', 'and', 'to', 'in', 'is', 'that', 'for', 'it', 'was'])} "
        for _ in range(1000)
    ]
    text = "".join(chance.choices(words, k=2 * tokens))
    each = tokens // TURNS
    turns = [
        Turn(
            role="tool" if turn % 2 else "assistant",
            content=text[turn * each * CHARACTERS_PER_TOKEN : (turn + 1) * each * CHARACTERS_PER_TOKEN],
            tool_calls=[]
            if turn % 2
            else [ToolCall("search", {"query": text[turn : turn + 40]}, id=f"call-{turn}")],
        )
        for turn in range(TURNS)
    ]
    mask = [1 - token // each % 2 for token in range(each * TURNS)]
    return Trajectory(
        turns,
        reward=0.5,
        advantage=0.1,
        group="prompt-7",
        id="episode-1",
        token_ids=[chance.randrange(150_000) for _ in mask],
        mask=mask,
        logprobs=[-chance.expovariate(2) for _ in range(sum(mask))],
        metrics={"tools": 16.0},
        prompt_tokens=1000,
        completion_tokens=sum(mask),
    )


def main() -> None:
    import eventlog

    trajectory = trajectory_of(int(sys.argv[1]))
    plain = asdict(trajectory)
    took: dict[str, list[float]] = {"floor": [], "ours": []}
    with tempfile.TemporaryDirectory() as directory:
        fd = os.open(f"{directory}/floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        run = eventlog.init(project="bench", root=directory)
        for step in range(REPEATS):
            begin_s = time.perf_counter()
            os.write(fd, orjson.dumps(plain) + b"\n")
            floor_s = time.perf_counter()
            run.log_trajectory(trajectory, step=step)
            end_s = time.perf_counter()
            took["floor"].append(floor_s - begin_s)
            took["ours"].append(end_s - floor_s)
        run.finish()
    print(json.dumps({**took, "bytes": len(orjson.dumps(plain))}))


if __name__ == "__main__":
    main()
