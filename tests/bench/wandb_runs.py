"""The same run directories of W&B's SDK through `wandb sync` and `syncd sync`, to one kind of server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.table import Table

from tests.contract.clients import World, world
from tests.wandb_sync.logged import log_offline

BIN = Path(sys.executable).parent
COMMANDS = {
    "syncd sync": [str(BIN / "syncd"), "sync", "wandb", "--json"],
    "wandb sync": [str(BIN / "wandb"), "sync", "wandb"],
}
WORKLOADS = {"1 run × 10,000 rows": (1, 10_000), "50 runs × 500 rows": (50, 500)}
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


def wandb_runs_cost(table: Table) -> None:
    """Add what each command took for each workload: the best of some tries, in turns."""
    for name, (runs, rows) in WORKLOADS.items():
        with tempfile.TemporaryDirectory() as directory:
            logged = log_offline(Path(directory), [SCRIPT.format(runs=runs, rows=rows)])
            costs: dict[str, list[Cost]] = {peer: [] for peer in COMMANDS}
            for repeat in range(REPEATS):
                for peer, command in COMMANDS.items():
                    home = f"{peer} {repeat}"
                    with world(Path(directory), home, logged, WANDB_MODE="online") as there:
                        costs[peer].append(cost_of(command, there))
                    shutil.rmtree(Path(directory) / home)
        best = {peer: min(tries) for peer, tries in costs.items()}
        theirs = best["wandb sync"]
        for peer, cost in best.items():
            assert cost.rows == runs * rows, f"{peer} brought {cost.rows} rows of {runs * rows}"
            value = f"{cost.wall_s:.2f} s, {cost.rss_bytes / 2**20:.0f} MiB, {cost.requests} requests"
            ratio = f"{cost.wall_s / theirs.wall_s:.2f} × wandb" if peer == "syncd sync" else ""
            aim = "≤ 0.5 × wandb" if peer == "syncd sync" else ""
            table.add_row(f"W&B's directories, {name}", peer, value, ratio, aim)


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
