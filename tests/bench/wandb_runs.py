"""The same run directories of W&B's SDK through `wandb sync` and `syncd sync`, to one kind of server."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.bench.apart import BIN
from tests.bench.row import Row, at_most
from tests.contract.clients import World, world
from tests.wandb_sync.logged import log_offline

COMMANDS = {
    "syncd sync": [str(BIN / "syncd"), "sync", "wandb", "--json"],
    "wandb sync": [str(BIN / "wandb"), "sync", "wandb"],
}
# How many runs, of how many rows.
WORKLOADS = ((1, 10_000), (50, 500))
REPEATS = 3
LOOK_S = 0.02

SCRIPT = """
for j in range({runs}):
    run = wandb.init(project="p", id=f"r{{j}}")
    for i in range({rows}):
        run.log({{f"train/metric_{{k}}": 0.1234567 * i + k for k in range(10)}}, step=i)
    run.finish()
"""


class Cost(NamedTuple):
    """What one command took; compared by its wall."""

    wall_s: float
    rss_bytes: int
    requests: int
    rows: int


def rows(home: Path, scale: int) -> Iterator[Row]:
    """What each command took for each workload: the best of some tries, in turns."""
    repeats = 1 if scale > 1 else REPEATS
    for runs, count in ((runs, count // scale) for runs, count in WORKLOADS):
        with tempfile.TemporaryDirectory(dir=home) as directory:
            logged = log_offline(Path(directory), [SCRIPT.format(runs=runs, rows=count)])
            costs: dict[str, list[Cost]] = {peer: [] for peer in COMMANDS}
            for repeat in range(repeats):
                for peer, command in COMMANDS.items():
                    place = f"{peer} {repeat}"
                    with world(Path(directory), place, logged, WANDB_MODE="online") as there:
                        costs[peer].append(cost_of(command, there))
                    shutil.rmtree(Path(directory) / place)
        best = {peer: min(tries) for peer, tries in costs.items()}
        theirs = best["wandb sync"]
        what, size = f"W&B's directories, {runs} of them", f"{count:,} rows each"
        for peer, cost in best.items():
            assert cost.rows == runs * count, f"{peer} brought {cost.rows} rows of {runs * count}"
            values = {"wall_s": cost.wall_s, "rss_mb": cost.rss_bytes / 1e6, "requests": cost.requests}
            if peer == "syncd sync":
                aims = (at_most(cost.wall_s, 0.5 * theirs.wall_s, "≤ 0.5 × wandb"),)
                yield Row(what, peer, values, cost.wall_s / theirs.wall_s, "wandb", aims, size)
            else:
                yield Row(what, peer, values, size=size)


def cost_of(command: list[str], there: World) -> Cost:
    """Run a command to its end; its memory is that of the process and of all that it started."""
    began_s = time.perf_counter()
    process = psutil.Popen(
        command, env=there.env, cwd=there.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    rss_bytes = 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            rss_bytes = max(rss_bytes, sum(member.memory_info().rss for member in family))
        time.sleep(LOOK_S)
    wall_s = time.perf_counter() - began_s
    assert process.returncode == 0, f"{' '.join(command)} failed"
    rows = sum(len(run.history_lines) for run in there.server.runs())
    return Cost(wall_s, rss_bytes, len(there.server.requests), rows)
