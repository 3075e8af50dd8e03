"""What it costs to ask ten thousand runs: python -m tests.bench.asking ROOT RUNS

A question is asked as a person's script asks it, and its answer is fetched; of many times the median.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench import asking_peers, peers
from tests.bench.apart import measured
from tests.bench.many_runs import KEYS, LONG_RUNS, LONG_STEPS, name_of
from tests.bench.row import Row, at_most

RUNS = 10_000
REPEATS = 11
# What a peer is asked in turn; to fill a peer with as many runs takes an hour.
PEER_PART = 10
BEST = """
SELECT c.value AS lr, s.run_id, s.value
FROM summary s JOIN config c USING (project, run_id)
WHERE s.key = 'train/metric_0' AND c.key = 'lr' AND c.value::DOUBLE < 1e-4
ORDER BY s.value DESC LIMIT 10
"""
TABLE = "SELECT run_id, state, steps, last_step, config, summary FROM runs ORDER BY run_id"
# A row for each step, a column for each metric: what a person plots.
WIDE = f"""
SELECT run_id, step, {", ".join(f"max(value) FILTER (key = '{key}') AS '{key}'" for key in KEYS)}
FROM metrics_of(?) GROUP BY run_id, step
"""
AIMS_MS = {
    "connect": 100,
    "one curve": 20,
    "100 curves": 150,
    "best run by config": 50,
    "summary table": 200,
    "100 runs to pandas": 400,
}
PEAK_MB = 300


def rows(home: Path, scale: int) -> Iterator[Row]:
    runs, root = RUNS // scale, home / "runs"
    halves = [(0, runs // 2), (runs // 2, runs)]
    with ThreadPoolExecutor() as both:
        list(both.map(lambda half: measured("many_runs", root, *half, home=home), halves))
    _let_rest(root)
    size = f"{runs:,} runs"
    first = measured("asking", root, runs, 1, home=home)
    again = measured("asking", root, runs, REPEATS, home=home)
    yield Row("asking: first connect", "ours", {"ms_per_run": first["connect"] / runs}, size=size)
    few = runs // PEER_PART
    found, lacking = {"ours": again["ms"]}, {}
    for peer in asking_peers.PEERS:
        try:
            found[peer] = measured("asking_peers", peer, home / peer, few, home=home, python=peers.python())
        except peers.NotHad as why:
            lacking[peer] = str(why)
    for what, limit_ms in AIMS_MS.items():
        for peer, took in found.items():
            if what not in took:
                continue
            is_ours = peer == "ours"
            aims = (at_most(took[what], limit_ms, f"≤ {limit_ms} ms"),) if is_ours else ()
            ratio = None if is_ours else took[what] / found["ours"][what]
            of_size = size if is_ours else f"{few:,} runs"
            yield Row(f"asking: {what}", peer, {"p50_ms": took[what]}, ratio, "ours", aims, of_size)
        if what == "one curve":
            for peer, why in lacking.items():
                yield Row(f"asking: {what}", peer, skipped=why)
    peak = again["peak_mb"]
    yield Row("asking: memory", "ours", {"peak_mb": peak}, aims=(at_most(peak, PEAK_MB, f"≤ {PEAK_MB} MB"),))


def _let_rest(root: Path) -> None:
    """Let what was made have been there for an hour, as a sweep has been: what was just written is not kept."""
    then = time.time() - 3600
    for directory, _, _ in os.walk(root):
        os.utime(directory, (then, then))


def main() -> None:
    import analysis

    root, runs, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    draw = random.Random(0)
    some = draw.sample(range(min(LONG_RUNS, runs // 2), runs), min(100, runs // 2))
    long_runs = [name_of(run) for run in range(min(LONG_RUNS, runs))]
    if repeats == 1:
        # The first of all: what is kept is made now.
        begin_s = time.perf_counter()
        analysis.connect(root).close()
        print(json.dumps({"connect": (time.perf_counter() - begin_s) * 1000}))
        return
    ms: dict[str, list[float]] = {}

    def took(what: str, ask: Callable[[], Any], times: int = repeats) -> Any:
        answer = None
        for _ in range(times):
            del answer  # Nobody keeps two.
            begin_s = time.perf_counter()
            answer = ask()
            ms.setdefault(what, []).append((time.perf_counter() - begin_s) * 1000)
        return answer

    def curve() -> Any:
        return con.execute(
            "SELECT step, value FROM curve(?, ?)", [name_of(draw.choice(some)), KEYS[3]]
        ).fetchall()

    took("connect", lambda: analysis.connect(root).close())
    con = analysis.connect(root)
    assert len(took("one curve", curve, repeats * 10)) > 0
    hundred = [name_of(run) for run in some]
    many = took("100 curves", lambda: con.execute("FROM curves(?, ?)", [hundred, KEYS[3]]).fetchall())
    assert len({row[1] for row in many}) == len(hundred)
    assert len(took("best run by config", lambda: con.execute(BEST).fetchall())) == 10
    assert len(took("summary table", lambda: con.execute(TABLE).fetchall())) == runs
    frame = took(
        "100 runs to pandas",
        lambda: con.execute(WIDE, [long_runs]).df(),
    )
    assert frame.shape == (len(long_runs) * LONG_STEPS, 2 + len(KEYS))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        json.dumps({"ms": {what: statistics.median(each) for what, each in ms.items()}, "peak_mb": peak_mb})
    )


if __name__ == "__main__":
    main()
