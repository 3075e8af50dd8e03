"""Calls a peer's `log()` of ten floats, and prints what each call took.

    python -m tests.bench.log_calls PEER ROWS PERIOD_S SETTLE_S

A call each PERIOD_S, or as fast as it goes if that is 0; the first comes SETTLE_S after `init`. A peer's interpreter may
have nothing but that peer: its library, and what it needs, are imported by its own function.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Logging = tuple[Callable[[Row, int], object], Callable[[], object]]


def row_of(i: int) -> Row:
    return {f"train/metric_{k}": 0.1234567 * i + k for k in range(10)}


def floor(directory: str) -> Logging:
    import orjson

    fd = os.open(f"{directory}/floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda row, step: os.write(fd, orjson.dumps(row) + b"\n"), lambda: os.close(fd)


def ours(directory: str) -> Logging:
    import eventlog

    run = eventlog.init(project="bench", root=directory)
    return lambda row, step: run.log(row, step=step), run.finish


def wandb(directory: str) -> Logging:
    import wandb

    run = wandb.init(project="bench", dir=directory, mode="offline")
    return lambda row, step: run.log(row, step=step), run.finish


def trackio(directory: str) -> Logging:
    os.environ["TRACKIO_DIR"] = directory
    import trackio

    trackio.init(project="bench")
    return lambda row, step: trackio.log(row, step=step), trackio.finish


def tensorboard(directory: str) -> Logging:
    from tensorboard.summary import Writer

    writer = Writer(directory)

    def log(row: Row, step: int) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


PEERS = {"floor": floor, "ours": ours, "wandb": wandb, "trackio": trackio, "tensorboard": tensorboard}


def main() -> None:
    peer, rows = sys.argv[1], int(sys.argv[2])
    period_s, settle_s = map(float, sys.argv[3:])
    seconds = []
    with tempfile.TemporaryDirectory() as directory:
        log, end = PEERS[peer](directory)
        time.sleep(settle_s)
        due_s = time.perf_counter()
        for i in range(rows):
            row = row_of(i)
            due_s += period_s
            while period_s and (early_s := due_s - time.perf_counter()) > 0:
                time.sleep(early_s)
            begin_s = time.perf_counter()
            log(row, i)
            seconds.append(time.perf_counter() - begin_s)
        end()
        # Ours keeps what it found out of the machine beside the log.
        files = Path(directory).rglob("events-*" if peer == "ours" else "*")
        size = sum(path.stat().st_size for path in files if path.is_file())
    print(json.dumps({"seconds": seconds, "bytes": size}))


if __name__ == "__main__":
    main()
