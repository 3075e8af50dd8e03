"""What one `log()` of ten floats costs, in a process of its own: `python -m tests.bench.logging_cost PEER ROWS`.

Prints the seconds of each call as a JSON list. PEER: floor (`os.write(orjson.dumps(row))`), ours, or wandb.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import orjson

Row = dict[str, Any]


def row_of(i: int) -> Row:
    return {f"train/metric_{k}": 0.1234567 * i + k for k in range(10)}


def floor(directory: str) -> tuple[Callable[[Row, int], None], Callable[[], None]]:
    fd = os.open(f"{directory}/floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda row, step: void(os.write(fd, orjson.dumps(row) + b"\n")), lambda: os.close(fd)


def ours(directory: str) -> tuple[Callable[[Row, int], None], Callable[[], None]]:
    import eventlog

    run = eventlog.init(project="bench", root=directory)
    return lambda row, step: void(run.log(row, step=step)), run.finish


def wandb(directory: str) -> tuple[Callable[[Row, int], None], Callable[[], None]]:
    import wandb

    run = wandb.init(project="bench", dir=directory, mode="offline")
    return lambda row, step: run.log(row, step=step), run.finish


def void(_: object) -> None:
    """All peers pay for one more call, so that none returns anything."""


def main() -> None:
    peer, rows = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as directory:
        log, end = {"floor": floor, "ours": ours, "wandb": wandb}[peer](directory)
        seconds = []
        for i in range(rows):
            row = row_of(i)
            begin_s = time.perf_counter()
            log(row, i)
            seconds.append(time.perf_counter() - begin_s)
        end()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
