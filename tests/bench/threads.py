"""Many threads that log at once, against one: python -m tests.bench.threads ROWS

Afterwards every record is read back: fast and incomplete would be worth nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.apart import measured
from tests.bench.row import Row

THREADS = 64
ROWS = 128_000
REPEATS = 3


def rows(home: Path, scale: int) -> Iterator[Row]:
    count = ROWS // scale
    found = measured("threads", count, home=home)
    per_s = {threads: count / statistics.median(walls) for threads, walls in found.items()}
    what, size = "threads at once, all read back", f"{count:,} rows"
    yield Row(what, "1 thread", {"records_per_s": per_s["1"]}, size=size)
    many = per_s[str(THREADS)]
    yield Row(what, f"{THREADS} threads", {"records_per_s": many}, many / per_s["1"], "1 thread", size=size)


def wall_s(threads: int, count: int) -> float:
    """Log so many rows by so many threads, and return how long that took."""
    import eventlog

    each = count // threads
    ready = threading.Barrier(threads + 1)
    with tempfile.TemporaryDirectory() as root:
        run = eventlog.init(project="bench", root=root)

        def log(thread: int) -> None:
            ready.wait()
            for i in range(each):
                run.log(
                    {f"train/metric_{k}": 0.1234567 * i + k for k in range(8)} | {"thread": thread, "i": i}
                )

        workers = [threading.Thread(target=log, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        ready.wait()
        begin_s = time.perf_counter()
        for worker in workers:
            worker.join()
        took_s = time.perf_counter() - begin_s
        run.finish()
        found = [
            (record.data["thread"], record.data["i"])
            for record in eventlog.read(run.dir)
            if record.kind == "metrics"
        ]
    expected = {(thread, i) for thread in range(threads) for i in range(each)}
    assert len(found) == len(expected), f"{len(found)} records of {len(expected)}"
    assert set(found) == expected, "some records are there twice, and some not at all"
    return took_s


def main() -> None:
    count = int(sys.argv[1])
    walls: dict[int, list[float]] = {1: [], THREADS: []}
    for _ in range(REPEATS):
        for threads, found in walls.items():
            found.append(wall_s(threads, count))
    print(json.dumps(walls))


if __name__ == "__main__":
    main()
