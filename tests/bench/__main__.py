"""Prints one table: `python -m tests.bench [PART…]`, all parts without any.

Knows which topics make a part, and how much smaller `--quick` is; measures nothing itself.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console

from tests.bench import (
    asking,
    decoding,
    live,
    log_cost,
    pack,
    reading,
    restart,
    seal_cost,
    stalls,
    start,
    step,
    sync_cost,
    table,
    threads,
    trajectory,
    wandb_runs,
)
from tests.bench.row import Row

Measure = Callable[[Path, int], Iterator[Row]]

PARTS: dict[str, tuple[Measure, ...]] = {
    "log": (log_cost.rows, stalls.rows, start.rows, threads.rows, trajectory.rows),
    "seal": (seal_cost.rows, reading.rows),
    "ask": (asking.rows,),
    "pack": (pack.rows,),
    "sync": (sync_cost.rows, live.rows, restart.rows),
    "train": (decoding.rows, step.rows),
    "wandb-runs": (wandb_runs.rows,),
}
# Enough to see that all of it still runs; its numbers say little.
QUICK_SCALE = 20
_WIDTH = 150


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--quick", is_flag=True, help=f"Everything {QUICK_SCALE} times smaller: does it still run?")
@click.option(
    "--json", "as_json", is_flag=True, help="A line of JSON for each row, as soon as it is measured."
)
def main(parts: tuple[str, ...], quick: bool, as_json: bool) -> None:
    """Measure what Tidelog costs beside its peers and floors, on this machine, in this run."""
    scale = QUICK_SCALE if quick else 1
    rows: list[Row] = []
    begun = f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    console = Console(width=_WIDTH)
    with nullcontext() if as_json else console.status("measuring"):
        for measure in (measure for part in parts or PARTS for measure in PARTS[part]):
            with tempfile.TemporaryDirectory() as home:
                for row in measure(Path(home), scale):
                    rows.append(row)
                    if as_json:
                        print(table.json_of(row), flush=True)
    if not as_json:
        title = f"Tidelog, every measurement in one run on this machine ({begun})"
        console.print(table.table_of(rows, title))


if __name__ == "__main__":
    main()
