"""What is logged for the benchmarks of sealing and reading: endless rows, the same in every process.

* `random doubles`: all 52 bits of them are noise; nothing makes them small.
* `float32 values`: what `.item()` of a tensor gives.
* `4-digit values`: what somebody rounded.
* `realistic`: a training by GRPO: losses and rewards that go smoothly, a schedule, integers, an evaluation each 50 steps.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
KEYS = [f"train/metric_{k}" for k in range(10)]
_EVAL_EVERY = 50
_GROUP, _PROMPTS = 8, 32


def rows_of(data_set: str) -> Iterator[Row]:
    return DATA_SETS[data_set](random.Random(7))


def _random_doubles(chance: random.Random) -> Iterator[Row]:
    while True:
        yield {key: chance.random() for key in KEYS}


def _float32_values(chance: random.Random) -> Iterator[Row]:
    while True:
        yield {key: _float32(chance.random()) for key in KEYS}


def _four_digit_values(chance: random.Random) -> Iterator[Row]:
    while True:
        yield {key: round(chance.random(), 4) for key in KEYS}


def _realistic(chance: random.Random) -> Iterator[Row]:
    loss = reward = kl = entropy = length = 0.0
    tokens = step = 0
    while True:
        learned = 1 - math.exp(-step / 20_000)
        loss = 0.95 * loss + 0.05 * chance.gauss(0.3 * (1 - learned), 0.05)
        reward = 0.9 * reward + 0.1 * chance.gauss(0.3 + 0.5 * learned, 0.1)
        kl = 0.97 * kl + 0.03 * abs(chance.gauss(0.02 * learned, 0.005))
        entropy = 0.97 * entropy + 0.03 * chance.gauss(1.2 - 0.7 * learned, 0.1)
        length = 0.9 * length + 0.1 * chance.gauss(200 + 150 * learned, 30)
        batch_tokens = int(_GROUP * _PROMPTS * abs(length))
        tokens += batch_tokens
        row = {
            "train/loss": _float32(loss),
            "train/grad_norm": _float32(abs(chance.gauss(0.8, 0.2))),
            "train/lr": 1e-6 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / 200_000)),
            "train/reward": round(_GROUP * _PROMPTS * reward) / (_GROUP * _PROMPTS),
            "train/reward_std": _float32(0.3 + 0.1 * math.sin(step / 1000) + chance.gauss(0, 0.01)),
            "train/kl": _float32(kl),
            "train/entropy": _float32(entropy),
            "rollout/completion_tokens": batch_tokens,
            "rollout/tokens": tokens,
            "perf/step_s": chance.gauss(4.2, 0.3),
        }
        if step % _EVAL_EVERY == 0:
            row |= {"eval/accuracy": round(200 * (0.3 + 0.5 * learned)) / 200, "eval/loss": _float32(loss)}
        yield row
        step += 1


def _float32(value: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


DATA_SETS = {
    "random doubles": _random_doubles,
    "float32 values": _float32_values,
    "4-digit values": _four_digit_values,
    "realistic": _realistic,
}
