"""Ten thousand runs of a sweep, as their trainers left them: sealed, ten metrics each.

    python -m tests.bench.many_runs ROOT FIRST LAST     makes those runs, in this process

The values are drawn from the run's number, so that whoever makes the same runs for a peer makes the same.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

KEYS = [f"train/metric_{k}" for k in range(10)]
# Some are long enough that to read them is work; to make 10,000 such takes hours.
LONG_RUNS, LONG_STEPS, STEPS = 100, 2_000, 100
_BEGAN_US = 1_763_712_000_000_000


def name_of(run: int) -> str:
    return f"run{run:05d}"


def config_of(run: int) -> dict[str, object]:
    draw = random.Random(f"config {run}")
    return {"lr": 10 ** -draw.uniform(3, 6), "seed": run % 5, "model": draw.choice("abc")}


def rows_of(run: int) -> Iterator[dict[str, float]]:
    draw = random.Random(run)
    values = [draw.random() for _ in KEYS]
    for _ in range(LONG_STEPS if run < LONG_RUNS else STEPS):
        values = [0.95 * value + 0.05 * draw.random() for value in values]
        yield dict(zip(KEYS, values, strict=True))


def main() -> None:
    from eventlog.piece import RunIdentity, claim_primary
    from eventlog.record import encode
    from eventlog.seal import clean, seal
    from eventlog.segment import Header, Segment

    root, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for run in range(first, last):
        identity = RunIdentity.new("sweep", name_of(run), None)
        run_dir = identity.directory(root)
        identity.publish(run_dir)
        piece = claim_primary(run_dir)
        began_us = _BEGAN_US + run * 1000
        lines = [
            Header(identity.log_id, piece.writer, piece.token, "events", 0, began_us).encode(),
            encode(0, began_us, "start", {"config": config_of(run), "name": f"run {run}", "step": 0}),
        ]
        for step, row in enumerate(rows_of(run)):
            lines.append(encode(step + 1, began_us + step * 1_000_000, "metrics", row, step, True))
        lines.append(encode(len(lines) - 1, began_us + len(lines) * 1_000_000, "exit", {"exitcode": 0}))
        (piece.dir / Segment("events", 0).name).write_bytes(b"".join(lines))
        piece.release()
        seal(run_dir)
        clean(run_dir)
    print(json.dumps({"runs": last - first}))


if __name__ == "__main__":
    main()
