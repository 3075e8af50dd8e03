"""The same run directories of W&B's SDK through `wandb sync` and `syncd sync`, to one kind of server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.apart import BIN, Cost, cost_of
from tests.bench.row import Row, at_most
from tests.contract.clients import world
from tests.wandb_sync.logged import log_offline

COMMANDS = {
    "syncd sync": [str(BIN / "syncd"), "sync", "wandb", "--json"],
    "wandb sync": [str(BIN / "wandb"), "sync", "wandb"],
}
# How many runs, of how many rows.
WORKLOADS = ((1, 10_000), (50, 500))
REPEATS = 3

SCRIPT = """
for j in range({runs}):
    run = wandb.init(project="p", id=f"r{{j}}")
    for i in range({rows}):
        run.log({{f"train/metric_{{k}}": 0.1234567 * i + k for k in range(10)}}, step=i)
    run.finish()
"""


def rows(home: Path, scale: int) -> Iterator[Row]:
    """What each command took for each workload: the best of some tries, in turns."""
    repeats = 1 if scale > 1 else REPEATS
    for runs, count in ((runs, count // scale) for runs, count in WORKLOADS):
        with tempfile.TemporaryDirectory(dir=home) as directory:
            logged = log_offline(Path(directory), [SCRIPT.format(runs=runs, rows=count)])
            costs: dict[str, list[tuple[Cost, int]]] = {peer: [] for peer in COMMANDS}
            for repeat in range(repeats):
                for peer, command in COMMANDS.items():
                    place = f"{peer} {repeat}"
                    with world(Path(directory), place, logged, WANDB_MODE="online") as there:
                        cost = cost_of(command, there.env, there.directory)
                        found = sum(len(run.history_lines) for run in there.server.runs())
                        assert found == runs * count, f"{peer} brought {found} rows of {runs * count}"
                        costs[peer].append((cost, len(there.server.requests)))
                    shutil.rmtree(Path(directory) / place)
        best = {peer: min(tries) for peer, tries in costs.items()}
        theirs, _ = best["wandb sync"]
        what, size = f"W&B's directories, {runs} of them", f"{count:,} rows each"
        for peer, (cost, requests) in best.items():
            values = {"wall_s": cost.wall_s, "rss_mb": cost.rss_bytes / 1e6, "requests": requests}
            if peer == "syncd sync":
                aims = (at_most(cost.wall_s, 0.5 * theirs.wall_s, "≤ 0.5 × wandb"),)
                yield Row(what, peer, values, cost.wall_s / theirs.wall_s, "wandb", aims, size)
            else:
                yield Row(what, peer, values, size=size)
