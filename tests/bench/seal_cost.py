"""What it costs to seal a full segment, and how small the values become.

    python -m tests.bench.seal_cost make DATA_SET BYTES ROOT     logs rows until the segment has so many bytes
    python -m tests.bench.seal_cost seal RUN_DIR                 seals it, in this process
    python -m tests.bench.seal_cost floor RUN_DIR                checks and parses each line, writes a column for each key
    python -m tests.bench.seal_cost imported                     imports what that needs, in a process with nothing else

The floor is what nobody can do without who turns lines that he does not trust into Parquet, by BYTE_STREAM_SPLIT and zstd:
no seq, step or time, nothing read back, nothing compared.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.apart import measured
from tests.bench.data_sets import DATA_SETS, rows_of
from tests.bench.row import Aim, Row, at_most

# A little less than makes a writer begin the next segment.
SEGMENT_BYTES = 64 * 1024 * 1024 - 64 * 1024
REPEATS = 3
_LOOK_EVERY = 100
_ZSTD_LEVEL = 3


def rows(home: Path, scale: int) -> Iterator[Row]:
    size = f"{SEGMENT_BYTES / scale / 2**20:.0f} MiB"
    costs: dict[str, tuple[dict[str, float], dict[str, float], int]] = {}
    for data_set in DATA_SETS:
        run = made(data_set, scale, home)
        run_dir = Path(run["run_dir"])
        sealed, floors = [], []
        for repeat in range(1 if scale > 1 else REPEATS):
            again = home / f"again-{repeat}"
            shutil.copytree(run_dir, again)
            sealed.append(measured("seal_cost", "seal", again, home=home))
            floors.append(measured("seal_cost", "floor", again, home=home))
            shutil.rmtree(again)
        shutil.rmtree(run_dir)
        costs[data_set] = _median(sealed), _median(floors), run["values"]
    yield from _imported(measured("seal_cost", "imported", home=home))
    for data_set, (ours, floor, _) in costs.items():
        yield from _wall(f"sealing, {data_set}", size, ours, floor)
    for data_set, (ours, floor, values) in costs.items():
        yield from _size(f"sealed, {data_set}", ours["bytes"] / values, floor["bytes"] / values)


def made(data_set: str, scale: int, home: Path) -> dict[str, Any]:
    """Return a new run whose one segment is nearly full, and how many records and values it has."""
    found: dict[str, Any] = measured("seal_cost", "make", data_set, SEGMENT_BYTES // scale, home, home=home)
    return found


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def _imported(found: dict[str, dict[str, float]]) -> Iterator[Row]:
    for library, values in found.items():
        yield Row("what sealing imports", library, values)


def _wall(what: str, size: str, ours: dict[str, float], floor: dict[str, float]) -> Iterator[Row]:
    wall_s = ours["wall_s"]
    names = ("wall_s", "cpu_s", "peak_mb")
    aims = (
        at_most(wall_s, 1.5, "wall ≤ 1.5 s, pyarrow imported before"),
        at_most(ours["peak_mb"], 150, "peak ≤ 150 MB"),
    )
    yield Row(what, "floor", {name: floor[name] for name in names}, size=size)
    yield Row(
        what, "ours", {name: ours[name] for name in names}, wall_s / floor["wall_s"], aims=aims, size=size
    )


def _size(what: str, value_bytes: float, floor_bytes: float) -> Iterator[Row]:
    limit = 1.05 * floor_bytes + 0.3
    yield Row(what, "floor", {"value_bytes": floor_bytes})
    aims: tuple[Aim, ...] = (at_most(value_bytes, limit, f"≤ 1.05 × floor + 0.3 B = {limit:.2f} B"),)
    yield Row(what, "ours", {"value_bytes": value_bytes}, value_bytes / floor_bytes, aims=aims)


# ── in processes of their own ────────────────────────────────────────────────────────────────────────────────


def make(data_set: str, size_bytes: int, root: str) -> dict[str, Any]:
    import eventlog

    run = eventlog.init(project="bench", root=root)
    records = values = 0
    for records, row in enumerate(rows_of(data_set), 1):
        run.log(row)
        values += len(row)
        if records % _LOOK_EVERY == 0 and os.stat(_segment(run.dir)).st_size >= size_bytes:
            break
    run.finish()
    return {"run_dir": str(run.dir), "records": records, "values": values}


def seal(run_dir: Path) -> dict[str, float]:
    import pyarrow.parquet  # noqa: F401

    from eventlog.seal import seal

    begin_s, cpu_s = time.perf_counter(), time.process_time()
    outcome = seal(run_dir)
    wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
    sealed = [path for path in outcome.sealed if path.name.startswith("events-")]
    assert sealed, f"not sealed: {outcome.damage}"
    size = sum(path.stat().st_size + path.with_suffix(".json").stat().st_size for path in sealed)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": _peak_mb(), "bytes": size}


def imported() -> dict[str, dict[str, float]]:
    """Return the time and memory of pyarrow, and of pandas, which pyarrow imports with the first array if it is there."""
    found = {}
    for library in ("pyarrow.parquet", "pandas"):
        before_mb, begin_s = _peak_mb(), time.perf_counter()
        if library in sys.modules or importlib.util.find_spec(library) is None:
            continue
        importlib.import_module(library)
        wall_s = time.perf_counter() - begin_s
        found[library] = {"wall_ms": wall_s * 1e3, "peak_mb": _peak_mb() - before_mb}
    return found


def floor(run_dir: Path) -> dict[str, float]:
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Lets pyarrow look for pandas now.
    pa.array([0.0])
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    rows = []
    for line in _segment(run_dir).read_bytes().splitlines():
        zlib.crc32(line)
        content = orjson.loads(line)
        if content.get("kind") == "metrics":
            rows.append(content["data"])
    columns = {
        key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)
    }
    path = run_dir / "floor.parquet"
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=False,
        column_encoding=dict.fromkeys(columns, "BYTE_STREAM_SPLIT"),
    )
    wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": _peak_mb(), "bytes": path.stat().st_size}


def _segment(run_dir: Path) -> Path:
    (segment,) = run_dir.glob("main-0001/events-*.jsonl")
    return segment


def _peak_mb() -> float:
    """Return the most memory that this process ever had resident: not what it inherited, as `getrusage` would say."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "make":
        print(json.dumps(make(arguments[0], int(arguments[1]), arguments[2])))
    elif what == "imported":
        print(json.dumps(imported()))
    else:
        print(json.dumps({"seal": seal, "floor": floor}[what](Path(arguments[0]))))


if __name__ == "__main__":
    main()
