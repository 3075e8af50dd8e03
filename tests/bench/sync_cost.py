"""What it takes to bring runs to a server, and the rest of one that grew, by `syncd sync` and by `wandb sync`.

Invariants
----------
* Each try has a server and a directory of its own; a command that does not bring every row ends the benchmark.
* All that is logged is logged offline, by the client whose command then brings it.

`wandb beta sync` is here without `--live`; with it, it is in `live`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.apart import BIN, cost_of
from tests.bench.row import Aim, Row, at_most
from tests.contract.clients import World, finish, start_by_the_sdk, start_by_us, world
from tests.wandb_server.waiting import wait_for

OURS, THEIRS, BETA = "syncd sync", "wandb sync", "wandb beta sync"
COMMANDS = {
    OURS: [str(BIN / "syncd"), "sync", "--json", "runs"],
    THEIRS: [str(BIN / "wandb"), "sync", "wandb"],
    BETA: [str(BIN / "wandb"), "beta", "sync", "wandb"],
}
# To log a run by the SDK takes a quarter of a second: of a thousand, both bring a tenth, and then we all of them.
MANY, PART = 1_000, 10
# A row more for so many.
GROWTH = 100

_LOG = 'run.log({f"train/metric_{k}": 0.1234567 * i + k for k in range(10)})'
SCRIPT = f"""
for j in range(RUNS):
    run = wandb.init(project="p", id=f"r{{j}}")
    for i in range(ROWS):
        {_LOG}
    run.finish()
"""
# The rest is logged when the script is told to.
GROWING = f"""
run = wandb.init(project="p", id="r")
for i in range(ROWS):
    {_LOG}
open("logged", "w").close()
input()
for i in range(ROWS, ROWS + MORE):
    {_LOG}
run.finish()
"""
RESUMED = f"""
run = wandb.init(project="p", id="r", resume="must")
for i in range(ROWS, ROWS + MORE):
    {_LOG}
run.finish()
"""


class Sync(NamedTuple):
    """What one command took, and what the server then had; compared by its wall."""

    wall_s: float
    rss_bytes: int
    requests: int
    sent_bytes: int
    rows: int

    def values(self) -> dict[str, float]:
        return {
            "wall_s": self.wall_s,
            "rss_mb": self.rss_bytes / 1e6,
            "requests": self.requests,
            "sent_bytes": self.sent_bytes,
        }


def rows(home: Path, scale: int) -> Iterator[Row]:
    long, some, many = 10_000 // scale, max(2, 50 // scale), MANY // scale
    part = max(2, many // PART)
    repeats = 1 if scale > 1 else 5
    yield from _backlog(home, "backlog, one long run", (1, long), repeats, _third)
    yield from _backlog(home, "backlog, some runs", (some, 500), repeats, _third)
    yield from _backlog(home, "backlog, many short runs", (part, 100), 1)
    (sync,) = _tries(home, {OURS: _logged(home, OURS, many, 100)}, many * 100, 1)[OURS]
    yield Row("backlog, ten times as many", OURS, sync.values(), size=f"{many:,} × 100 rows")
    yield from _again(home, "re-sync, the run goes on", long, _grown, is_aimed=True)
    yield from _again(home, "re-sync, the run is resumed", long, _resumed, is_aimed=False)


# -- a backlog -------------------------------------------------------------------------------------------------


def _third(ours: Sync, theirs: Sync) -> Aim:
    return at_most(ours.wall_s, theirs.wall_s / 3, "wall ≤ ⅓ × wandb")


def _backlog(
    home: Path,
    what: str,
    workload: tuple[int, int],
    repeats: int,
    *more_aims: Callable[[Sync, Sync], Aim],
) -> Iterator[Row]:
    """What each command took: the best of some tries, in turns."""
    runs, count = workload
    with ThreadPoolExecutor() as both:
        logging = {peer: both.submit(_logged, home, peer, runs, count) for peer in (OURS, THEIRS)}
    logged = {peer: each.result() for peer, each in logging.items()}
    tries = _tries(home, {**logged, BETA: logged[THEIRS]}, runs * count, repeats)
    best = {peer: min(each) for peer, each in tries.items()}
    ours, theirs = best[OURS], best[THEIRS]
    aims = (
        *(aim(ours, theirs) for aim in more_aims),
        at_most(ours.rss_bytes, theirs.rss_bytes / 2, "memory ≤ ½ × wandb"),
    )
    size = f"{runs:,} × {count:,} rows"
    yield Row(what, OURS, ours.values(), ours.wall_s / theirs.wall_s, "wandb", aims, size)
    for peer in (THEIRS, BETA):
        yield Row(what, peer, best[peer].values(), size=size)


def _logged(home: Path, peer: str, runs: int, count: int) -> Path:
    """Log so many runs of so many rows; return the directory."""
    with _offline(home, f"{peer} logs {runs} of {count}") as there:
        finish(_start(peer, there, SCRIPT, RUNS=runs, ROWS=count))
        return there.directory


def _tries(home: Path, logged: dict[str, Path], count: int, repeats: int) -> dict[str, list[Sync]]:
    tries: dict[str, list[Sync]] = {peer: [] for peer in logged}
    for repeat in range(repeats):
        for peer, directory in logged.items():
            place = f"{peer} {repeat}"
            with world(home, place, directory) as there:
                sync = _sync(there, peer)
            assert sync.rows == count, f"{peer} brought {sync.rows} rows of {count}"
            tries[peer].append(sync)
            shutil.rmtree(home / place)
    for directory in set(logged.values()):
        shutil.rmtree(directory.parent)
    return tries


# -- a run that was synced before ------------------------------------------------------------------------------


def _again(
    home: Path, what: str, count: int, second: Callable[[Path, str, int], Sync], *, is_aimed: bool
) -> Iterator[Row]:
    more = count // GROWTH
    ours, theirs = second(home, OURS, count), second(home, THEIRS, count)
    assert ours.rows == count + more, f"{ours.rows} rows are there of {count + more}"
    aim = at_most(50 * ours.sent_bytes, theirs.sent_bytes, "sends ≤ 1 / 50 of wandb")
    size = f"{more:,} rows behind {count:,}"
    for peer, sync in ((OURS, ours), (THEIRS, theirs)):
        values = {**sync.values(), "rows_there": sync.rows}
        if peer == OURS:
            ratio = ours.sent_bytes / theirs.sent_bytes
            yield Row(what, peer, values, ratio, "wandb's bytes", (aim,) if is_aimed else (), size)
        else:
            yield Row(what, peer, values, size=size)


def _grown(home: Path, peer: str, count: int) -> Sync:
    """Sync while the run is logged, and again when it is over: W&B's command wants to be told that it is meant."""
    with _offline(home, f"{peer}, grown") as there:
        script = _start(peer, there, GROWING, ROWS=count, MORE=count // GROWTH)
        wait_for((there.directory / "logged").exists, "the first rows were logged")
        _sync(there, peer)
        script.stdin.write("\n")
        finish(script)
        return _sync(there, peer, *(["--include-synced"] if peer == THEIRS else []))


def _resumed(home: Path, peer: str, count: int) -> Sync:
    """Sync a run that is over, and again when another process has resumed it: W&B's has a directory for each."""
    with _offline(home, f"{peer}, resumed") as there:
        finish(_start(peer, there, SCRIPT.replace("r{j}", "r"), RUNS=1, ROWS=count))
        _sync(there, peer)
        finish(_start(peer, there, RESUMED, ROWS=count, MORE=count // GROWTH))
        return _sync(there, peer)


# -- processes -------------------------------------------------------------------------------------------------


def _offline(home: Path, name: str) -> AbstractContextManager[World]:
    return world(home, name, WANDB_MODE="offline", EVENTLOG_ROOT="runs")


def _start(peer: str, there: World, script: str, **numbers: int) -> Any:
    start = start_by_us if peer == OURS else start_by_the_sdk
    return start(there, "".join(f"{name} = {number}\n" for name, number in numbers.items()) + script)


def _sync(there: World, peer: str, *options: str) -> Sync:
    there.server.clear_requests()
    cost = cost_of([*COMMANDS[peer], *options], {**there.env, "WANDB_MODE": "online"}, there.directory)
    requests = there.server.requests
    there_rows = sum(len(run.history_lines) for run in there.server.runs())
    return Sync(*cost, len(requests), sum(request.bytes for request in requests), there_rows)
