"""The same rows from an offline run to one server, by `syncd sync` and by `wandb sync`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.apart import BIN, REPOSITORY, environment, output, seconds
from tests.bench.row import Row, at_most
from tests.wandb_server.server import API_KEY

ROWS = 10_000
REPEATS = 5
# A server that does not come up in so many seconds never does.
_UP_WITHIN_S = 60.0

SCRIPT = """
import {module} as wandb
run = wandb.init(project="bench", mode="offline", {where})
for i in range({rows}):
    run.log({{f"train/metric_{{k}}": 0.1234567 * i + k for k in range(10)}}, step=i)
run.finish()
"""


def rows(home: Path, scale: int) -> Iterator[Row]:
    count = ROWS // scale
    port_file = home / "port"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.wandb_server", "--forget-requests", "--port-file", str(port_file)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    try:
        env = environment(home) | {
            "WANDB_BASE_URL": f"http://127.0.0.1:{_port(port_file)}",
            "WANDB_API_KEY": API_KEY,
        }
        walls: dict[str, list[float]] = {"syncd sync": [], "wandb sync": []}
        for repeat in range(1 if scale > 1 else REPEATS):
            ours = _logged("eventlog", home / f"ours-{repeat}", count, env)
            walls["syncd sync"].append(seconds([str(BIN / "syncd"), "sync", "--json", str(ours)], env))
            theirs = _logged("wandb", home / f"wandb-{repeat}", count, env)
            (run,) = theirs.glob("wandb/offline-run-*")
            walls["wandb sync"].append(seconds([str(BIN / "wandb"), "sync", str(run)], env))
    finally:
        server.terminate()
        server.wait()
    ours_s, theirs_s = (statistics.median(found) for found in walls.values())
    what, size = "one run to one server", f"{count:,} rows"
    aims = (at_most(ours_s, 0.5 * theirs_s, "≤ 0.5 × wandb"),)
    yield Row(what, "syncd sync", {"wall_s": ours_s}, ours_s / theirs_s, "wandb", aims, size)
    yield Row(what, "wandb sync", {"wall_s": theirs_s}, size=size)


def _port(port_file: Path) -> str:
    deadline_s = time.monotonic() + _UP_WITHIN_S
    while not port_file.exists():
        assert time.monotonic() < deadline_s, "the server does not come up"
        time.sleep(0.01)
    return port_file.read_text()


def _logged(module: str, directory: Path, count: int, env: dict[str, str]) -> Path:
    directory.mkdir()
    argument = "root" if module == "eventlog" else "dir"
    script = SCRIPT.format(module=module, where=f"{argument}={str(directory)!r}", rows=count)
    output([sys.executable, "-c", script], env)
    return directory
