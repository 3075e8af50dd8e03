"""How fast records come back: python -m tests.bench.reading RUN_DIR SEALED_RUN_DIR

The floor checks and parses each line, and makes no record of it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.apart import measured
from tests.bench.row import Row, at_least
from tests.bench.seal_cost import made

REPEATS = 5
DATA_SET = "random doubles"


def rows(home: Path, scale: int) -> Iterator[Row]:
    run_dir = Path(made(DATA_SET, scale, home)["run_dir"])
    sealed_dir = home / "sealed"
    shutil.copytree(run_dir, sealed_dir)
    found = measured("reading", run_dir, sealed_dir, home=home)
    shutil.rmtree(run_dir)
    shutil.rmtree(sealed_dir)
    per_s = {peer: found["records"] / statistics.median(walls) for peer, walls in found["walls"].items()}
    what, size = "reading", f"{found['records']:,} records"
    for peer, speed in per_s.items():
        aims = (at_least(speed, 300_000, "≥ 300,000/s"),) if peer == "ours" else ()
        ratio = None if peer == "floor" else speed / per_s["floor"]
        yield Row(what, peer, {"records_per_s": speed}, ratio, aims=aims, size=size)


def main() -> None:
    import orjson

    import eventlog
    from eventlog.seal import clean, seal

    run_dir, sealed_dir = map(Path, sys.argv[1:])
    seal(sealed_dir)
    clean(sealed_dir)
    assert not list(sealed_dir.glob("main-0001/events-*.jsonl")), "what is sealed is still there unsealed"
    (segment,) = run_dir.glob("main-0001/events-*.jsonl")

    def floor() -> int:
        count = 0
        with open(segment, "rb") as lines:
            for line in lines:
                zlib.crc32(line)
                orjson.loads(line)
                count += 1
        # The header is a line, and no record.
        return count - 1

    ways: dict[str, Callable[[], int]] = {
        "floor": floor,
        "ours": lambda: sum(1 for _ in eventlog.read(run_dir)),
        "sealed": lambda: sum(1 for _ in eventlog.read(sealed_dir)),
    }
    walls: dict[str, list[float]] = {peer: [] for peer in ways}
    counts = set()
    for _ in range(REPEATS):
        for peer, way in ways.items():
            begin_s = time.perf_counter()
            counts.add(way())
            walls[peer].append(time.perf_counter() - begin_s)
    (records,) = counts
    print(json.dumps({"records": records, "walls": walls}))


if __name__ == "__main__":
    main()
