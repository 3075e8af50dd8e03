"""What a training script pays before its first row: the import, and `init`.

python -m tests.bench.start PEER RUNS      prints the seconds of each `init`, the first one in a fresh process
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.apart import environment, measured, output, seconds
from tests.bench.log_calls import PEERS
from tests.bench.row import Row, at_most

REPEATS = 5
WARM_RUNS = 10


def rows(home: Path, scale: int) -> Iterator[Row]:
    repeats = 2 if scale > 1 else REPEATS
    yield from _imports(home, repeats)
    yield from _inits(home, repeats)


def _imports(home: Path, repeats: int) -> Iterator[Row]:
    """A fresh interpreter with `import eventlog`, less one without; the CPU time is what a busy machine does not stretch."""
    tell = "import time; print(time.process_time())"
    env = environment(home)
    walls: dict[str, float] = {}
    cpus: dict[str, float] = {}
    for code in ("pass", "import eventlog", "import wandb"):
        command = [sys.executable, "-c", f"{code}\n{tell}"]
        # The first one leaves bytecode behind for the others.
        output(command, env)
        walls[code] = min(seconds(command, env) for _ in range(repeats))
        cpus[code] = min(float(output(command, env)) for _ in range(repeats))
    wall_s, cpu_s = ({code: found[code] - found["pass"] for code in found} for found in (walls, cpus))
    for peer, code in (("ours", "import eventlog"), ("wandb", "import wandb")):
        values = {"wall_ms": wall_s[code] * 1e3, "cpu_ms": cpu_s[code] * 1e3}
        if peer == "ours":
            aims = (at_most(wall_s[code], 0.050, "wall ≤ 50 ms"),)
            yield Row("import", peer, values, wall_s[code] / wall_s["import wandb"], "wandb", aims)
        else:
            yield Row("import", peer, values)


def _inits(home: Path, repeats: int) -> Iterator[Row]:
    fresh: dict[str, list[float]] = {"ours": [], "wandb": []}
    warm: dict[str, list[float]] = {"ours": [], "wandb": []}
    for _ in range(repeats):
        for peer in fresh:
            runs = WARM_RUNS if peer == "ours" else 2
            first_s, *others_s = measured("start", peer, runs, home=home)
            fresh[peer].append(first_s)
            warm[peer] += others_s
    for how, found in (("fresh process", fresh), ("warm process", warm)):
        median_s = {peer: statistics.median(all_s) for peer, all_s in found.items()}
        for peer, wall_s in median_s.items():
            values = {"median_ms": wall_s * 1e3, "longest_ms": max(found[peer]) * 1e3}
            if peer == "ours":
                aims = (at_most(wall_s, 0.020, "median ≤ 20 ms"),)
                yield Row(f"init, {how}", peer, values, wall_s / median_s["wandb"], "wandb", aims)
            else:
                yield Row(f"init, {how}", peer, values)


def main() -> None:
    peer, runs = sys.argv[1], int(sys.argv[2])
    # What `init` imports is its own cost; what the import of the library does is measured by itself.
    __import__({"ours": "eventlog"}.get(peer, peer))
    took = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            begin_s = time.perf_counter()
            _, end = PEERS[peer](directory)
            took.append(time.perf_counter() - begin_s)
            end()
    print(json.dumps(took))


if __name__ == "__main__":
    main()
