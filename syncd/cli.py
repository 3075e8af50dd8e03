"""The command `syncd`: start, stop and watch the daemon, or sync once and return.

Exit codes: 0 done; 1 it ran and not everything is uploaded; 2 wrong usage; 3 another daemon runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import orjson

from eventlog import roots as known_roots
from eventlog.cursor import Sink
from syncd import credentials
from syncd.instance import AlreadyRunning, Instance
from syncd.shipper import FLUSH_S
from syncd.status import RunStatus, as_json, run_status, run_statuses

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
PATIENCE_S = 30.0
# Addresses are for a screen of runs, not for a thousand.
URLS_MAX = 10

_root_option = click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A root to look at instead of every root that a run was logged to. May be given again.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidelog")
def main() -> None:
    """Upload event logs to Weights & Biases whenever the network is there, each line exactly once."""


@main.command()
@_root_option
@click.option("--foreground", is_flag=True, help="Stay in the foreground, as systemd wants it.")
@click.option(
    "--flush",
    "flush_s",
    type=click.FloatRange(0.1, 60),
    default=FLUSH_S,
    show_default=True,
    help="Send a live run's rows every so many seconds.",
)
def start(roots: tuple[Path, ...], foreground: bool, flush_s: float) -> None:
    """Start the daemon. It returns at once; being offline is fine."""
    instance = Instance(known_roots.state_dir())
    if foreground:
        _serve(instance, roots, flush_s)
        return
    pid = instance.running_pid()
    if pid is not None:
        click.echo(str(AlreadyRunning(pid)), err=True)
        sys.exit(3)
    _warn_without_key()
    instance.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    arguments = [f"--root={root.absolute()}" for root in roots]
    with open(os.open(instance.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log_file:
        child = subprocess.Popen(
            [sys.executable, "-m", "syncd", "start", "--foreground", f"--flush={flush_s}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if instance.page().get("pid") == child.pid:
            click.echo(f"syncd is running (process {child.pid}). `syncd status` shows what it does.")
            return
        if child.poll() is not None:
            break
        time.sleep(0.02)
    click.echo(f"syncd did not start. The end of its log, {instance.log_path}:", err=True)
    click.echo("\n".join(_tail(instance.log_path, 5)), err=True)
    sys.exit(3 if child.poll() == 3 else 1)


@main.command()
def stop() -> None:
    """Stop the daemon. What is not uploaded yet stays where it is."""
    instance = Instance(known_roots.state_dir())
    pid = instance.running_pid()
    if not pid:
        click.echo("syncd is not running.")
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while instance.running_pid() == pid:
        if time.monotonic() > deadline_s:
            click.echo(
                f"syncd (process {pid}) does not stop. `kill -9 {pid}` costs nothing but time.", err=True
            )
            sys.exit(1)
        time.sleep(0.02)
    click.echo(f"syncd (process {pid}) has stopped.")


@main.command()
@_root_option
@click.option("--json", "as_json_", is_flag=True, help="For scripts.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
def status(roots: tuple[Path, ...], as_json_: bool, watch: bool) -> None:
    """Show what is uploaded, what is not, and why."""
    instance = Instance(known_roots.state_dir())
    if as_json_:
        daemon, runs = _look(instance, roots)
        click.echo(orjson.dumps(as_json(daemon, runs), option=orjson.OPT_INDENT_2))
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not watch:
        console.print(_table(*_look(instance, roots)))
        return
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_table(*_look(instance, roots)), refresh=True)
            time.sleep(1.0)


@main.command()
@_root_option
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--project", help="Upload to this project instead of the one logged to.")
@click.option("--entity", help="Upload to this entity instead of the one logged to.")
@click.option(
    "--drain", is_flag=True, help="However long the network stays away, wait until all is uploaded."
)
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(0),
    default=PATIENCE_S,
    show_default=True,
    help="Without --drain: give up when the server was away for so many seconds, or nothing got on.",
)
@click.option("--json", "as_json_", is_flag=True, help="For scripts.")
def sync(
    roots: tuple[Path, ...],
    paths: tuple[Path, ...],
    project: str | None,
    entity: str | None,
    drain: bool,
    patience_s: float,
    as_json_: bool,
) -> None:
    """Upload runs and return when everything is acknowledged.

    PATH is a run directory or a root; without one, every root that a run was logged to.
    """
    run_dirs = _run_dirs(paths, roots)
    if not run_dirs:
        click.echo("There are no runs to sync here." if not as_json_ else '{"runs":[]}')
        return
    url = credentials.base_url()
    if credentials.api_key(url) is None:
        raise click.UsageError(f"there is no API key for {url}. Run `wandb login`, or set WANDB_API_KEY.")
    error, sinks = asyncio.run(
        _sync(run_dirs, url, project, entity, float("inf") if drain else patience_s, quiet=as_json_)
    )
    now_us = time.time_ns() // 1000
    runs = [run_status(run_dir, sink, now_us, online=error is None) for run_dir, sink in sinks.items()]
    left_out = [str(run_dir) for run_dir in run_dirs if run_dir not in sinks]
    if left_out and error is None:
        error = f"{', '.join(left_out)}: a copy of another run's directory, or not readable."
    missing = error is not None or any(run.backlog or run.state == "parked" for run in runs)
    if as_json_:
        click.echo(orjson.dumps({**as_json({}, runs), "error": error}))
    else:
        from rich.console import Console

        Console().print(_runs_view(runs))
        if error is not None:
            click.echo(f"Not everything is uploaded: {error}", err=True)
    sys.exit(1 if missing else 0)


# -- the daemon's process --------------------------------------------------------------------------------------


def _serve(instance: Instance, roots: tuple[Path, ...], flush_s: float) -> None:
    from syncd.daemon import Daemon
    from syncd.wandb_api import WandbApi
    from syncd.watch import Watch

    _log_to_stderr()
    try:
        instance.acquire()
    except AlreadyRunning as error:
        click.echo(str(error), err=True)
        sys.exit(3)
    url = credentials.base_url()

    def say(daemon: Daemon) -> None:
        gate = daemon.gate
        instance.write_page(
            {
                "state": "online" if gate.is_open else "offline",
                "since": time.time(),
                "next_try_s": None
                if gate.is_open
                else round(max(0.0, gate.next_try_s - time.monotonic()), 1),
                "error": gate.reason,
                "base_url": url,
            }
        )

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        watch = Watch(lambda run_dir: loop.call_soon_threadsafe(daemon.hint, run_dir))
        daemon = Daemon(
            roots=lambda: [root.absolute() for root in roots or known_roots.registered()],
            api=WandbApi(url, lambda: credentials.api_key(url)),
            flush_s=flush_s,
            on_change=say,
            watch_root=watch.add,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, daemon.stop)
        try:
            await daemon.run()
        finally:
            watch.stop()

    logging.getLogger("syncd").info("syncd %d uploads to %s", os.getpid(), url)
    asyncio.run(serve())


def _log_to_stderr() -> None:
    """Write the daemon's log to stderr, which `start` has pointed at its log file."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("syncd")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _warn_without_key() -> None:
    url = credentials.base_url()
    if credentials.api_key(url) is None:
        click.echo(
            f"There is no API key for {url} yet. Run `wandb login` or set WANDB_API_KEY; until then nothing is "
            "uploaded, and nothing is lost.",
            err=True,
        )


# -- syncing once ----------------------------------------------------------------------------------------------


async def _sync(
    run_dirs: list[Path], url: str, project: str | None, entity: str | None, patience_s: float, quiet: bool
) -> tuple[str | None, dict[Path, Sink]]:
    """Upload the runs with a progress bar; return why not everything got there (or None), and where each went."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from syncd.daemon import Daemon
    from syncd.wandb_api import WandbApi

    daemon = Daemon(
        roots=list,
        api=WandbApi(url, lambda: credentials.api_key(url)),
        asked_for=run_dirs,
        entity=entity,
        project=project,
        until_synced=True,
    )
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("records"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet,
    )
    work = asyncio.ensure_future(daemon.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    error: str | None = None
    with progress:
        bar = progress.add_task("uploading", total=None)
        while not (await asyncio.wait([work], timeout=0.2))[0]:
            runs = [] if quiet else [entry.sync.progress() for entry in daemon.entries.values()]
            progress.update(
                bar, total=sum(run.records for run in runs), completed=sum(run.acked for run in runs)
            )
            gate = daemon.gate
            progress.update(bar, description="uploading" if gate.is_open else f"waiting: {gate.reason}")
            if gate.needs_a_person or time.monotonic() - daemon.last_good_s > patience_s:
                error = daemon.complaint()
                daemon.stop()
    work.result()
    if error is None and not daemon.finished:
        error = "interrupted. Run it again to go on from here."
    return error, {run_dir: entry.sync.sink for run_dir, entry in daemon.entries.items()}


def _run_dirs(paths: tuple[Path, ...], roots: tuple[Path, ...]) -> list[Path]:
    from eventlog.piece import RUN_FILE
    from eventlog.reader import find_runs

    if not paths:
        return sorted({d for root in roots or known_roots.registered() for d in find_runs(root.absolute())})
    found: list[Path] = []
    for path in paths:
        path = path.resolve()
        if (path / RUN_FILE).is_file():
            found.append(path)
            continue
        below = [*find_runs(path), *(d for d in sorted(path.glob("*")) if (d / RUN_FILE).is_file())]
        if not below:
            reason = (
                "there is no such path"
                if not path.exists()
                else "it is neither a run nor a root with runs in it"
            )
            raise click.UsageError(f"cannot sync {str(path)!r}: {reason}.")
        found += below
    return sorted(set(found))


# -- showing ---------------------------------------------------------------------------------------------------


def _look(instance: Instance, roots: Iterable[Path]) -> tuple[dict[str, Any], list[RunStatus]]:
    daemon = instance.page()
    looked_at = [root.absolute() for root in roots or known_roots.registered()]
    return daemon, run_statuses(looked_at, time.time_ns() // 1000, daemon.get("state") == "online")


def _table(daemon: dict[str, Any], runs: list[RunStatus]) -> Any:
    from rich.console import Group
    from rich.text import Text

    state = daemon.get("state", "stopped")
    line = f"syncd: {state}"
    if daemon:
        line += f", process {daemon['pid']}, to {daemon['base_url']}"
    else:
        line += " (`syncd start` starts it)"
    if daemon.get("error"):
        line += f"\n{daemon['error']}"
    return Group(Text(line, style="green" if state == "online" else "yellow"), _runs_view(runs))


def _runs_view(runs: list[RunStatus]) -> Any:
    """A line of numbers for each run, and below them what is to be said about some."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in ("records", "acked", "backlog", "lag"):
        table.add_column(name, justify="right")
    remarks: list[Text] = []
    for run in runs:
        style = {"parked": "red", "crashed": "yellow", "waiting": "yellow"}.get(run.state, "")
        lag = _duration(run.lag_s) if run.backlog else ""
        numbers = (f"{run.records:,}", f"{run.acked:,}", f"{run.backlog:,}", lag)
        table.add_row(Text(run.run), Text(run.state, style=style), *numbers)
        said = [f"{count:,} not shown there: {reason}" for reason, count in run.not_shown.items()]
        if run.error is not None:
            said.insert(0, run.error)
        remarks += [Text(f"{run.run}: {remark}", style=style) for remark in said]
        if run.url is not None and len(runs) <= URLS_MAX:
            remarks.append(Text(run.url, style="dim", no_wrap=True, overflow="ignore"))
    return Group(table, *remarks)


def _duration(seconds: float) -> str:
    """
    >>> _duration(5), _duration(200), _duration(86400 * 3)
    ('5 s', '3 min', '3 d')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _tail(path: Path, lines: int) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
