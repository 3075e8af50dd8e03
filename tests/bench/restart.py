"""What a restart of the daemon costs, and a look at a run that stands still, however long the run's log is.

    python -m tests.bench.restart RUN_DIR URL      looks at a run as the daemon does, again and again

Invariants
----------
* All of a log was brought to the server before; what a restart has to send is a few rows behind it, in the same piece.
* Logs are made by `record.encode`, in segments as large as a writer's, and none of them is sealed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from eventlog import record
from eventlog.cursor import Sink
from eventlog.piece import RunIdentity, claim_primary
from eventlog.segment import ROTATE_BYTES, Header, Segment
from tests.bench.apart import measured
from tests.bench.live import daemon
from tests.bench.row import Aim, Row, at_most
from tests.contract.clients import World, world
from tests.wandb_server import API_KEY
from tests.wandb_server.store import HISTORY
from tests.wandb_server.waiting import wait_for

SIZES = {"a short log": 10**6, "a long log": 10**8, "a huge log": 10**9}
KEYS = 10
# A row has some text beside its numbers: a gigabyte of numbers would take many minutes to bring.
TEXT = "x" * 2000
REPEATS = 5
SWEEPS = 100
MORE, AT_ONCE = 10, 40
# What is flat on a machine that others use too: twice, and what the start of a process varies by.
FLAT, NOISE_S, NOISE_MS = 2.0, 0.3, 0.5


class Log:
    """The log of a run that goes on."""

    def __init__(self, root: Path) -> None:
        self.identity = RunIdentity.new("p", "r", None)
        self.run_dir = self.identity.directory(root)
        self.identity.publish(self.run_dir)
        self.size_bytes = 0
        self._piece = claim_primary(self.run_dir)
        self._seq = 0
        self._rotate()
        self._write([self._line("start", {"config": {"lr": 0.1}, "mode": "online"})])

    def grow(self, rows: int) -> None:
        if os.stat(self._path).st_size > ROTATE_BYTES:
            self._rotate()
        self._write([self._row() for _ in range(rows)])

    def close(self) -> None:
        """Let it be over, as if its writer had been killed."""
        self._piece.release()

    def _rotate(self) -> None:
        log_id, piece = self.identity.log_id, self._piece
        self._path = piece.dir / Segment("events", self._seq).name
        self._write([Header(log_id, piece.writer, piece.token, "events", self._seq, _now_us()).encode()])

    def _row(self) -> bytes:
        row = {f"train/metric_{k}": 0.1234567 * self._seq + k for k in range(KEYS)}
        return self._line("metrics", {**row, "sample": TEXT}, self._seq - 1)

    def _line(self, kind: str, data: dict[str, Any], step: int | None = None) -> bytes:
        line = record.encode(self._seq, _now_us(), kind, data, step, step is not None)
        self._seq += 1
        return line

    def _write(self, lines: list[bytes]) -> None:
        with open(self._path, "ab") as file:
            self.size_bytes += file.write(b"".join(lines))


def rows(home: Path, scale: int) -> Iterator[Row]:
    short: dict[str, float] = {}
    for name, size_bytes in SIZES.items():
        found = _of_a_log(home, name, size_bytes // scale, 1 if scale > 1 else REPEATS)
        what, size = "restart and sweep", f"{size_bytes / scale / 1e6:,g} MB"
        if not short:
            short = found
            yield Row(what, name, found, size=size)
            continue
        aims = (
            _flat("batch", found["first_batch_s"], short["first_batch_s"], NOISE_S, "s"),
            _flat("sweep", found["sweep_ms"], short["sweep_ms"], NOISE_MS, "ms"),
        )
        ratio = found["first_batch_s"] / short["first_batch_s"]
        yield Row(what, name, found, ratio, "the short log's batch", aims, size)


def _flat(what: str, found: float, short: float, noise: float, unit: str) -> Aim:
    return at_most(found, FLAT * short + noise, f"{what} ≤ {FLAT:g} × short + {noise:g} {unit}")


def _of_a_log(home: Path, name: str, size_bytes: int, repeats: int) -> dict[str, float]:
    with world(home, name, WANDB_MODE="online") as there:
        # Nobody looks at them, and they are as large as the log.
        there.server.app.keep_requests = False
        log = Log(Path(there.env["EVENTLOG_ROOT"]))
        while log.size_bytes < size_bytes:
            log.grow(AT_ONCE)
        _sync(there)
        there.server.app.keep_requests = True
        batches_s, reads_bytes = zip(*(_restart(there, log) for _ in range(repeats)), strict=True)
        log.close()
        _sync(there)
        swept = measured("restart", log.run_dir, there.server.base_url, home=there.home)
    shutil.rmtree(there.home)
    return {
        "first_batch_s": statistics.median(batches_s),
        "read_bytes": statistics.median(reads_bytes),
        "sweep_ms": swept["ms"],
        "sweep_read_bytes": swept["read_bytes"],
    }


def _sync(there: World) -> None:
    there.command("-m", "syncd", "sync", "--json", there.env["EVENTLOG_ROOT"])


def _restart(there: World, log: Log) -> tuple[float, int]:
    """Return how long after the start the first new row comes, and how much the daemon read until then."""
    there.server.clear_requests()
    log.grow(MORE)
    begin_s = time.time()

    def came() -> list[float]:
        return [request.at_s for request in there.stream if HISTORY in request.body.get("files", {})]

    with daemon(there) as pid:
        wait_for(came, "the first batch came")
        read_bytes = psutil.Process(pid).io_counters().read_chars
    return came()[0] - begin_s, read_bytes


async def sweep(run_dir: Path, url: str) -> dict[str, float]:
    """Look at a run that is over and sent, from its cursor on, as the daemon does once a minute."""
    from syncd.run_sync import RunSync
    from syncd.wandb_api import WandbApi

    identity = RunIdentity.load(run_dir)
    sync = RunSync(
        run_dir,
        Sink(url, identity.entity, identity.project, identity.run_id),
        WandbApi(url, lambda: API_KEY),
    )
    walls, process = [], psutil.Process()
    begin_bytes = process.io_counters().read_chars
    for _ in range(SWEEPS):
        begin_s = time.perf_counter()
        await sync.turn(time.monotonic())
        assert sync.caught_up, sync.error or sync.trouble
        sync.close()
        walls.append(time.perf_counter() - begin_s)
    read_bytes = process.io_counters().read_chars - begin_bytes
    return {"ms": statistics.median(walls) * 1000, "read_bytes": read_bytes / SWEEPS}


def _now_us() -> int:
    return time.time_ns() // 1000


def main() -> None:
    print(json.dumps(asyncio.run(sweep(Path(sys.argv[1]), sys.argv[2]))))


if __name__ == "__main__":
    main()
