"""How a pack grows: what it takes to make, how small it is, and what three questions take of it.

    python -m tests.bench.pack logs POINTS ROOT           runs of 100,000 values each, as logs
    python -m tests.bench.pack pack ROOT PACK             packs them, in this process
    python -m tests.bench.pack generated POINTS PACK      packs so many values that DuckDB makes up: no log is read
    python -m tests.bench.pack ask PACK ENGINE            the three questions, by `duckdb` or by a `local-cluster` of Spark
    python -m tests.bench.pack shaped PACK TO FILE_BYTES GROUP_ROWS      its metrics in files of another shape

Logs are made by `record.encode`, as a trainer's are, and packed as everybody's are.  Past `FROM_LOGS_MAX` the rows come from
DuckDB's own generator, in place of the views over logs: the sorting, the writing and the commit are the same code.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.apart import measured
from tests.bench.row import Row
from tests.bench.seal_cost import _peak_mb

SIZES = (10**5, 10**6, 10**7, 10**8)
FROM_LOGS_MAX = 10**7
VALUES_OF_A_RUN = 100_000
KEYS = 20
STEPS = VALUES_OF_A_RUN // KEYS
REPEATS = 5
MASTER = "local-cluster[2,1,2048]"
_MB = 2**20
# Of a file in bytes, and of a row group in rows.
SHAPES = (
    (32 * _MB, 1_000_000),
    (128 * _MB, 1_000_000),
    (256 * _MB, 1_000_000),
    (512 * _MB, 1_000_000),
    (256 * _MB, 100_000),
    (256 * _MB, 250_000),
)
# What a person asks: a curve, the best of each run, and something of all values.
QUESTIONS = {
    "curve": "SELECT step, value FROM metrics WHERE project = 'demo' AND run_id = 'run-00000' AND key = 'train/m03' ORDER BY step",
    "best": "SELECT run_id, max(value) AS best FROM metrics WHERE key = 'train/m03' GROUP BY run_id ORDER BY run_id",
    "scan": "SELECT key, count(*) AS n, min(value) AS low, max(value) AS high FROM metrics GROUP BY key ORDER BY key",
}


def rows(home: Path, scale: int) -> Iterator[Row]:
    for points in (size // scale for size in SIZES):
        size = f"{points:,} values"
        pack, root = home / "pack", home / "runs"
        from_logs = points <= FROM_LOGS_MAX // scale
        if from_logs:
            written = measured("pack", "logs", points, root, home=home)
            made = measured("pack", "pack", root, pack, home=home)
            made["of_logs_a_value_bytes"] = written["bytes"] / points
            shutil.rmtree(root)
        else:
            made = measured("pack", "generated", points, pack, home=home)
        yield Row("packing", "from logs" if from_logs else "generated", made, size=size)
        for engine in ("duckdb", "spark"):
            reason = _missing() if engine == "spark" else ""
            asked = {} if reason else measured("pack", "ask", pack, engine, home=home)
            yield Row("asking a pack", engine, asked, size=size, skipped=reason)
        if points == SIZES[-1] // scale:
            yield from _shapes(home, pack, size, scale)
        shutil.rmtree(pack)


def _shapes(home: Path, pack: Path, size: str, scale: int) -> Iterator[Row]:
    for file_bytes, group_rows in SHAPES:
        to = home / "shaped"
        found = measured("pack", "shaped", pack, to, file_bytes // scale, group_rows, home=home)
        yield Row(f"files of {file_bytes // _MB} MiB", f"row groups of {group_rows:,}", found, size=size)
        shutil.rmtree(to)


def _missing() -> str:
    from importlib.util import find_spec

    if find_spec("pyspark") is None:
        return "pyspark is not installed"
    return "" if shutil.which("java") else "there is no `java`"


def logs(points: int, root: Path) -> dict[str, float]:
    """Write runs, a segment each."""
    from eventlog.piece import RunIdentity, claim_primary
    from eventlog.record import encode
    from eventlog.segment import Header, Segment

    chance, size, begin_us = random.Random(7), 0, 1_763_712_000_000_000
    for number in range(max(1, points // VALUES_OF_A_RUN)):
        identity = RunIdentity.new("demo", f"run-{number:05d}", None)
        identity.publish(identity.directory(root))
        piece = claim_primary(identity.directory(root))
        path = piece.dir / Segment("events", 0).name
        with open(path, "wb") as file:
            file.write(Header(identity.log_id, piece.writer, piece.token, "events", 0, begin_us).encode())
            file.write(encode(0, begin_us, "start", {"config": {"lr": 10.0 ** -(number % 5)}}, None, False))
            steps = min(STEPS, points // KEYS)
            for step in range(steps):
                data = {f"train/m{key:02d}": _value(chance, key, step) for key in range(KEYS)}
                file.write(encode(step + 1, begin_us + step * 250_123, "metrics", data, step, False))
            file.write(encode(steps + 1, begin_us + steps * 250_123, "exit", {"exitcode": 0}, None, False))
        piece.release()
        size += path.stat().st_size
    return {"bytes": size}


def _value(chance: random.Random, key: int, step: int) -> float:
    """Losses that fall and are noisy, shares that somebody rounded, and counters."""
    if key < 16:
        return math.exp(-step / 1000) * (1 + 0.1 * chance.random())
    return round(chance.random(), 4) if key < 18 else step * key


def pack(root: Path, to: Path) -> dict[str, float]:
    from analysis.pack import Packing

    begin_s = time.perf_counter()
    with Packing.looked(root, to) as found:
        done = found.write()
    wall_s = time.perf_counter() - begin_s
    begin_s = time.perf_counter()
    with Packing.looked(root, to) as found:
        assert found.is_nothing
    return _cost(done, wall_s) | {"again_s": time.perf_counter() - begin_s}


def generated(points: int, to: Path) -> dict[str, float]:
    from analysis.manifest import Manifest, PackedRun, plan
    from analysis.pack import VIEWS, Packing

    runs = max(1, points // VALUES_OF_A_RUN)
    con = _views_of(runs)
    views = {view: {row[0]: row[1] for row in con.execute(f"DESCRIBE {view}").fetchall()} for view in VIEWS}
    found = {("demo", f"run-{number:05d}"): PackedRun("", [str(number)]) for number in range(runs)}
    # A log of such a run has 5.7 MB: chunks are what they would be.
    sizes = dict.fromkeys(found, 5_700_000)
    packing = Packing(Path(), to, False, con, Manifest(), None, views, found, sizes, plan(Manifest(), found))
    begin_s = time.perf_counter()
    done = packing.write()
    return _cost(done, time.perf_counter() - begin_s)


def _views_of(runs: int) -> Any:
    """Return a connection with the views of a root, of which `metrics` is made up."""
    import tempfile

    import analysis

    with tempfile.TemporaryDirectory() as nothing:
        con = analysis.connect(nothing)
    con.execute(
        f"""CREATE OR REPLACE MACRO metrics_of(ids) AS TABLE
        SELECT 'demo' AS project, printf('run-%05d', r) AS run_id, 'main-0001' AS writer, 0::INTEGER AS rank, s + 1 AS seq,
            s AS step, make_timestamptz(1763712000000000 + s * 250123) AS time, printf('train/m%02d', k) AS key,
            CASE WHEN k < 16 THEN exp(-s / 1000) * (1 + 0.1 * (hash(r, k, s) % 1000003) / 1000003)
                WHEN k < 18 THEN (hash(r, k, s) % 10000) / 10000 ELSE s * k END::DOUBLE AS value,
            CASE WHEN k >= 18 THEN s * k END AS int, NULL::VARCHAR AS text
        FROM range({runs}) runs (r), range({KEYS}) keys (k), range({STEPS}) steps (s)
        WHERE list_contains(ids, printf('run-%05d', r))"""
    )
    return con


def _cost(done: Any, wall_s: float) -> dict[str, float]:
    files = done.manifest.files_of("metrics")
    points = sum(file.rows for file in files)
    return {
        "wall_s": wall_s,
        "points_per_s": points / wall_s,
        "peak_mb": _peak_mb(),
        "a_value_bytes": sum(file.bytes for file in done.manifest.files) / points,
        "files": len(done.manifest.files),
    }


def ask(to: Path, engine: str) -> dict[str, float]:
    """Return the median wall of each question, the first time left out: starting is not what grows."""
    from analysis import pack as packs

    con = packs.connect(to)
    if engine == "duckdb":
        return _asked(con)
    from analysis import spark

    begin_s = time.perf_counter()
    with spark.session(to, MASTER) as session:
        asked = {name: spark.translated(con, query, {}) for name, query in QUESTIONS.items()}
        list(spark.rows_of(session, asked["curve"], "UTC"))
        start_s = time.perf_counter() - begin_s
        found = {
            f"{name}_ms": _median_ms(lambda query=query: list(spark.rows_of(session, query, "UTC")))
            for name, query in asked.items()
        }
    return found | {"start_s": start_s}


def _median_ms(work: Any) -> float:
    walls = []
    for _ in range(REPEATS + 1):
        begin_s = time.perf_counter()
        work()
        walls.append(1e3 * (time.perf_counter() - begin_s))
    return statistics.median(walls[1:])


def shaped(pack: Path, to: Path, file_bytes: int, group_rows: int) -> dict[str, float]:
    from analysis import pack as packs

    con = packs.connect(pack)
    # What is measured is what these should be.
    packs._GROUP_ROWS, packs._GROUP_BYTES = group_rows, 2**40
    begin_s = time.perf_counter()
    reader = con.cursor().sql("FROM metrics").to_arrow_reader(64 * 2048)
    with packs._Writer(to, "metrics", "demo", reader.schema, file_bytes) as writer:
        for batch in reader:
            writer.write(batch)
    wall_s = time.perf_counter() - begin_s
    files = [str(to / file.path) for file in writer.files]
    con.execute(f"CREATE OR REPLACE VIEW metrics AS FROM read_parquet({files}, hive_partitioning = false)")
    size = sum(file.bytes for file in writer.files)
    rows = sum(file.rows for file in writer.files)
    return {
        "files": len(files),
        "wall_s": wall_s,
        "peak_mb": _peak_mb(),
        "a_value_bytes": size / rows,
    } | _asked(con)


def _asked(con: Any) -> dict[str, float]:
    con.execute("SET threads = 2")
    return {
        f"{name}_ms": _median_ms(lambda query=query: con.execute(query).fetchall())
        for name, query in QUESTIONS.items()
    }


def main() -> None:
    what, *given = sys.argv[1:]
    found = {
        "logs": lambda: logs(int(given[0]), Path(given[1])),
        "pack": lambda: pack(Path(given[0]), Path(given[1])),
        "generated": lambda: generated(int(given[0]), Path(given[1])),
        "ask": lambda: ask(Path(given[0]), given[1]),
        "shaped": lambda: shaped(Path(given[0]), Path(given[1]), int(given[2]), int(given[3])),
    }[what]()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
