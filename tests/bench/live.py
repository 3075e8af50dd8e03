"""How soon a row is on the server while its run goes on: by the daemon, and by `wandb beta sync --live`.

Invariants
----------
* A row carries the time at which it was given to `log()`, and closes its line; the server, on the same clock, says when it came.
* What is counted is logged well after the start and well before the end, which sends whatever there is.
* Every row arrives, or the benchmark ends.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from syncd.instance import Instance
from syncd.shipper import FLUSH_S
from tests.bench.apart import BIN, memory_of
from tests.bench.row import Row, percentile
from tests.contract.clients import World, finish, start_by_the_sdk, start_by_us, world
from tests.wandb_server.store import HISTORY
from tests.wandb_server.waiting import wait_for

EVERY_S = 0.1
# No row takes as long as the tail that is left out.
LONG_S, HEAD_S, TAIL_S = 80.0, 10.0, 30.0
# A daemon may be told so, and no more.
FLUSH_MAX_S = 60.0
THEIRS = "wandb beta sync --live"

SCRIPT = """
import time
run = wandb.init(project="p", id="r")
begin_s = time.monotonic()
for i in range(ROWS):
    run.log({"logged_s": time.time()} | {f"train/metric_{k}": 0.1234567 * i + k for k in range(10)})
    time.sleep(max(0.0, begin_s + (i + 1) * EVERY_S - time.monotonic()))
run.finish()
"""


class Live(NamedTuple):
    latencies_s: list[float]
    """In order of their size."""
    requests_per_s: float
    rss_bytes: int


def rows(home: Path, scale: int) -> Iterator[Row]:
    theirs = _live(home, THEIRS, scale, start_by_the_sdk, _beta_sync)
    as_often_s = min(FLUSH_MAX_S, 1 / theirs.requests_per_s)
    found = {
        peer: (_live(home, peer, scale, start_by_us, _daemon(flush_s)), flush_s)
        for peer, flush_s in (
            ("syncd", FLUSH_S),
            ("syncd, each second", 1.0),
            ("syncd, as often as wandb", as_often_s),
        )
    }
    what, size = "live", f"{len(theirs.latencies_s):,} rows, one each {EVERY_S:g} s"
    for peer, (live, flush_s) in found.items():
        ratio = percentile(live.latencies_s, 50) / percentile(theirs.latencies_s, 50)
        yield Row(what, peer, _values(live) | {"flush_s": flush_s}, ratio, "wandb's p50", size=size)
    yield Row(what, THEIRS, _values(theirs), size=size)


def _values(live: Live) -> dict[str, float]:
    return {
        "p50_s": percentile(live.latencies_s, 50),
        "p99_s": percentile(live.latencies_s, 99),
        "requests_per_minute": 60 * live.requests_per_s,
        "rss_mb": live.rss_bytes / 1e6,
    }


def _live(
    home: Path,
    name: str,
    scale: int,
    start: Callable[[World, str], Any],
    syncing: Callable[[World], AbstractContextManager[int]],
) -> Live:
    """Log at an even pace while something syncs; return how late what came."""
    count = int(LONG_S / scale / EVERY_S)
    with world(home, name, WANDB_MODE="offline" if start is start_by_the_sdk else "online") as there:
        script = start(there, f"ROWS, EVERY_S = {count}, {EVERY_S}\n{SCRIPT}")
        with syncing(there) as pid, memory_of(pid) as peak:
            finish(script)
            wait_for(lambda: _count(there) == count, f"that {name} brought all rows")
        arrived = _arrived(there)
    begin_s, end_s = arrived[0][0] + HEAD_S / scale, arrived[-1][0] - TAIL_S / scale
    latencies_s = sorted(came_s - logged_s for logged_s, came_s in arrived if begin_s <= logged_s < end_s)
    requests = sum(begin_s <= request.at_s < end_s for request in there.stream)
    # In a quick run, there may be none in so short a time.
    return Live(latencies_s, max(1, requests) / (end_s - begin_s), peak.rss_bytes)


def _count(there: World) -> int:
    return sum(len(run.history_lines) for run in there.server.runs())


def _arrived(there: World) -> list[tuple[float, float]]:
    """Return when each row was logged, and when it came."""
    return [
        (json.loads(line)["logged_s"], request.at_s)
        for request in there.stream
        for line in request.body.get("files", {}).get(HISTORY, {}).get("content", ())
    ]


@contextmanager
def _beta_sync(there: World) -> Iterator[int]:
    def found() -> list[Path]:
        return list(there.directory.glob("wandb/offline-run-*/*.wandb"))

    wait_for(found, "the SDK's file is there")
    (file,) = found()
    command = [str(BIN / "wandb"), "beta", "sync", "--live", str(file)]
    process = subprocess.Popen(
        command,
        env={**there.env, "WANDB_MODE": "online"},
        cwd=there.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


def _daemon(flush_s: float) -> Callable[[World], AbstractContextManager[int]]:
    @contextmanager
    def syncing(there: World) -> Iterator[int]:
        with daemon(there, "--flush", f"{flush_s:.2f}") as pid:
            yield pid

    return syncing


@contextmanager
def daemon(there: World, *options: str) -> Iterator[int]:
    """Start a daemon as a person does, and stop it in the end; its process is what there is of it."""
    there.command("-m", "syncd", "start", "--root", there.env["EVENTLOG_ROOT"], *options)
    try:
        pid = Instance(Path(there.env["TIDELOG_STATE_DIR"])).running_pid()
        assert pid, "the daemon said that it runs, and does not"
        yield pid
    finally:
        there.command("-m", "syncd", "stop")
