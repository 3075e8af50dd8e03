"""`log()` of ten floats beside its peers: how long a call takes, and how many bytes a record."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import peers
from tests.bench.apart import measured
from tests.bench.log_calls import PEERS, row_of
from tests.bench.row import Aim, Row, at_most, percentile


@dataclass(frozen=True)
class Pace:
    """How a script logs."""

    what: str
    rows: int
    """In one round."""
    period_s: float
    """From one call to the next; 0: as fast as it goes."""
    settle_s: float
    """From `init` to the first call."""
    rounds: int


# In its first half second a run looks at the machine and the installed packages, in threads: they hold the interpreter.
TIGHT = Pace("log() tight", 20_000, 0.0, 1.0, 2)
PACES = (
    TIGHT,
    Pace("log() at 1 kHz", 4000, 0.001, 1.0, 2),
    Pace("log() tight, right after init", 5000, 0.0, 0.0, 4),
)
# They are not of the project's own environment.
_ELSEWHERE = ("trackio", "tensorboard")


def rows(home: Path, scale: int) -> Iterator[Row]:
    """The peers take turns, some rounds of each, so that a busy moment of the machine is nobody's own."""
    interpreters: dict[str, str | peers.NotHad] = {peer: _interpreter(peer) for peer in PEERS}
    for pace in PACES:
        count, rounds = pace.rows // scale, 1 if scale > 1 else pace.rounds
        seconds: dict[str, list[float]] = {peer: [] for peer in PEERS}
        size_bytes = dict.fromkeys(PEERS, 0)
        for _ in range(rounds):
            for peer, python in interpreters.items():
                if isinstance(python, str):
                    asked = (peer, count, pace.period_s, pace.settle_s)
                    found = measured("log_calls", *asked, home=home, python=python)
                    seconds[peer] += found["seconds"]
                    size_bytes[peer] += found["bytes"]
        size = f"{rounds * count:,} rows"
        for peer, python in interpreters.items():
            if isinstance(python, str):
                yield _latency(pace, peer, size, sorted(seconds[peer]), sorted(seconds["floor"]))
            else:
                yield Row(pace.what, peer, size=size, skipped=str(python))
        if pace is TIGHT:
            to_wandb = percentile(sorted(seconds["ours"]), 50) / percentile(sorted(seconds["wandb"]), 50)
            aims = (at_most(to_wandb, 1 / 20, "p50 ≤ 1 / 20 of wandb"),)
            yield Row(pace.what, "ours to wandb", ratio=to_wandb, of="wandb", aims=aims, size=size)
            for peer, python in interpreters.items():
                if isinstance(python, str):
                    yield _size(peer, size_bytes[peer] / (rounds * count), count)


def _interpreter(peer: str) -> str | peers.NotHad:
    if peer not in _ELSEWHERE:
        return sys.executable
    try:
        return peers.python()
    except peers.NotHad as why:
        return why


def _latency(pace: Pace, peer: str, size: str, ordered: list[float], floor: list[float]) -> Row:
    p50_s, p99_s = percentile(ordered, 50), percentile(ordered, 99)
    ratio = p50_s / percentile(floor, 50)
    aims: tuple[Aim, ...] = ()
    if peer == "ours" and pace.settle_s:
        aims = (at_most(ratio, 5, "p50 ≤ 5 × floor"), at_most(p99_s, 50e-6, "p99 ≤ 50 µs"))
    return Row(pace.what, peer, {"p50_us": p50_s * 1e6, "p99_us": p99_s * 1e6}, ratio, aims=aims, size=size)


def _size(peer: str, record_bytes: float, count: int) -> Row:
    data_bytes = sum(len(json.dumps(row_of(i), separators=(",", ":"))) for i in range(count)) / count
    more_bytes = record_bytes - data_bytes
    aims = (at_most(more_bytes, 100, "≤ data + 100 B"),) if peer == "ours" else ()
    return Row(
        "bytes a record",
        peer,
        {"record_bytes": record_bytes, "beyond_data_bytes": more_bytes},
        aims=aims,
    )
