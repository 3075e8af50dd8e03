"""The command `syncd`: start, stop and watch the daemon, or sync once and return.

Exit codes: 0 done; 1 it ran and not everything is uploaded; 2 wrong usage; 3 another daemon runs.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from eventlog import child
from eventlog import cursor as cursors
from eventlog import roots as known_roots
from eventlog.cursor import APPEND, Sink
from eventlog.errors import NotARun
from eventlog.piece import RUN_FILE, RunIdentity
from eventlog.progress import counting
from eventlog.reader import find_runs
from syncd import credentials, daemon_log, service
from syncd.instance import LINGER_S, UNKNOWN, AlreadyRunning, Holder, Instance, NotToBeSeen
from syncd.metadata import Edits
from syncd.shipper import FLUSH_S
from syncd.status import A_COPY, NOTHING_HEARD, Looking, RunStatus, Trend, as_json
from syncd.sync import FORCE, NothingThere, Outcome, Plan, Watcher, Wishes, plan, upload_as_new
from syncd.sync import sync as run_sync
from syncd.wandb_files import default_directory
from syncd.wandb_runs import Taken

if TYPE_CHECKING:
    from syncd.doctor import Finding
    from syncd.http import Answer

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
# Most requests are answered within that.
LET_GO_TIMEOUT_S = 5.0
# `stop` and systemd wait for longer than that.
LINGER_MAX_S = 15.0
PATIENCE_S = 30.0
# What `wandb sync --clean` had left alone, and how many runs are listed before they are uploaded.
CLEAN_OLD_HOURS = 24.0
LISTED_MAX = 20
# What `syncd` would read in this shell, and a unit does not have; the key is never among them.
_UNIT_VARIABLES = (
    "WANDB_BASE_URL",
    "WANDB_CONFIG_DIR",
    "NETRC",
    "TIDELOG_STATE_DIR",
    "XDG_STATE_HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
)
# Addresses are for a screen of runs, not for a thousand.
URLS_MAX = 10
# More runs than these are no answer: those that are synced are counted.
SHOWN_MAX = 40

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
@click.option(
    "--linger",
    "linger_s",
    type=click.FloatRange(0, LINGER_MAX_S),
    default=LINGER_S,
    show_default=True,
    help="When it is stopped, go on for so many seconds at most to send what was logged until then.",
)
@click.option(
    "--seal/--no-seal",
    "seals",
    default=True,
    help="Seal runs that are over and uploaded, as `eventlog seal` does.  [default: seal]",
)
def start(roots: tuple[Path, ...], foreground: bool, flush_s: float, linger_s: float, seals: bool) -> None:
    """Start the daemon. It returns at once; being offline is fine."""
    instance = Instance(known_roots.state_dir())
    for root in roots:
        if not root.is_dir():
            click.echo(f"--root {str(root)!r} is not there. It is watched as soon as it is.", err=True)
    if foreground:
        _serve(instance, roots, flush_s, linger_s, seals)
        return
    _refuse_a_second(instance)
    _warn_without_key()
    try:
        instance.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_file = open(daemon_log.open_log(instance.log_path), "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _no_state_dir(instance, error) from None
    arguments = [f"--flush={flush_s}", f"--linger={linger_s}", "--seal" if seals else "--no-seal"]
    arguments += [f"--root={root.absolute()}" for root in roots]
    with log_file:
        begin = os.fstat(log_file.fileno()).st_size
        daemon = subprocess.Popen(
            child.command("syncd", "start", "--foreground", *arguments),
            env=child.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and daemon.poll() is None:
        if _is_up(instance, daemon.pid):
            click.echo(f"syncd is running (process {daemon.pid}). `syncd status` shows what it does.")
            return
        time.sleep(0.02)
    said = "\n".join(daemon_log.said_since(instance.log_path, begin)[-5:])
    if daemon.poll() is None:
        click.echo(
            f"syncd (process {daemon.pid}) was started, and has not said how it is for {START_TIMEOUT_S:.0f} s. `syncd stop` "
            f"ends it. The end of its log, {instance.log_path}:\n{said}",
            err=True,
        )
        sys.exit(1)
    if said:
        click.echo(f"syncd did not start. The end of its log, {instance.log_path}:\n{said}", err=True)
    else:
        click.echo(
            f"syncd did not start, and could not write why into {instance.log_path}. `syncd start --foreground` shows it.",
            err=True,
        )
    sys.exit(3 if daemon.poll() == 3 else 1)


def _is_up(instance: Instance, pid: int) -> bool:
    """Whether that process is the daemon by now: a page of its own says so, or, where the disk is full, its socket."""
    from syncd.control import SOCKET, listening_pid

    page = instance.page()
    if page.get("state", UNKNOWN) != UNKNOWN:
        return bool(page.get("pid") == pid)
    return bool(page) and listening_pid(instance.directory / SOCKET) == pid


def _refuse_a_second(instance: Instance) -> None:
    holder = _holder(instance)
    if holder is not None:
        click.echo(str(AlreadyRunning(holder, instance.only_roots())), err=True)
        sys.exit(3)


def _no_state_dir(instance: Instance, error: OSError) -> click.ClickException:
    return click.ClickException(
        f"syncd cannot keep its state in {str(instance.directory)!r}: {error.strerror or error}. Set TIDELOG_STATE_DIR to a "
        "directory that can be written."
    )


@main.command()
def stop() -> None:
    """Stop the daemon. It sends what was just logged, if that takes no longer than a moment; the rest stays here."""
    from syncd.control import SOCKET, ask

    instance = Instance(known_roots.state_dir())
    holder = _holder(instance)
    if holder is None:
        click.echo("syncd is not running.")
        return
    # First by its own socket: a process id may be another process's here.
    if not ask(instance.directory / SOCKET, "stop"):
        _terminate(holder)
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while _holder(instance) == holder:
        if time.monotonic() > deadline_s:
            way_out = f"`kill -9 {holder.pid}`" if holder.is_here else "To kill it, where it runs,"
            click.echo(f"syncd ({holder}) does not stop. {way_out} costs nothing but time.", err=True)
            sys.exit(1)
        time.sleep(0.02)
    click.echo(f"syncd ({holder}) has stopped.")


def _holder(instance: Instance) -> Holder | None:
    try:
        return instance.holder()
    except NotToBeSeen as error:
        raise click.ClickException(str(error)) from None


def _terminate(holder: Holder) -> None:
    """Signal the daemon, if its process id is its own here."""
    if not holder.is_here:
        raise click.ClickException(
            f"syncd is running ({holder}), and cannot be reached from here. Run `syncd stop` there."
            if holder.pid
            else "a syncd is running, and neither answers nor could say which process it is: its disk was full. "
            "`pgrep -f 'syncd start'` finds it; a `kill` stops it."
        )
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        # It ends at this moment.
        return
    except PermissionError:
        raise click.ClickException(
            f"syncd ({holder}) is another user's: only that user, or root, can stop it."
        ) from None


@main.command()
@_root_option
@click.option("--json", "as_json_", is_flag=True, help="For scripts.")
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again every second, with rates, until Ctrl-C; with --json, a line each.",
)
@click.option("--all", "shows_all", is_flag=True, help="Of many runs, show also those that are synced.")
def status(roots: tuple[Path, ...], as_json_: bool, watch: bool, shows_all: bool) -> None:
    """Show what is uploaded, what is not, and why.

    With --watch, what is no terminal gets the table, or a line of JSON, again and again. Exit code 1: which roots there
    are cannot be read.
    """
    look = _looker(Instance(known_roots.state_dir()), roots)
    error = None if roots else known_roots.unreadable()
    with counting("looking at", "runs") as progress:
        daemon, runs = look(progress)
    if watch:
        with suppress(KeyboardInterrupt), _shower(as_json_, shows_all) as show:
            while True:
                show(daemon, runs, error)
                time.sleep(1.0)
                daemon, runs = look()
                error = None if roots else known_roots.unreadable()
    elif as_json_:
        click.echo(orjson.dumps(as_json(daemon, runs, error), option=orjson.OPT_INDENT_2))
    else:
        from rich.console import Console

        Console().print(_table(daemon, runs, error=error, shows_all=shows_all))
    sys.exit(0 if error is None else 1)


@main.command()
@_root_option
@click.argument("paths", nargs=-1)
@click.option("-p", "--project", help="Upload to this project instead of the one logged to.")
@click.option("-e", "--entity", help="Upload to this entity instead of the one logged to.")
@click.option("--id", "run_id", help="Upload W&B's runs as this one run, in the order in which they began.")
@click.option("--job-type", help="Upload with this job type instead of the one logged.")
@click.option("--replace-tags", metavar="OLD=NEW,…", help="Rename tags on the way.")
@click.option(
    "--include-online/--no-include-online",
    "--no-skip-online/--skip-online",
    "includes_online",
    help="In a wandb directory, also take runs that were logged online: those that were killed are completed.",
)
@click.option(
    "--include-synced/--no-include-synced",
    "--no-skip-synced/--skip-synced",
    "includes_synced",
    help="In a wandb directory, also look at runs that are marked as synced. Nothing is sent twice.",
)
@click.option(
    "--force",
    type=click.Choice(FORCE),
    help="Where W&B has other rows than expected: send this run behind them, take them for its beginning, or upload it "
    "under a new id.",
)
@click.option("-n", "parallel", type=click.IntRange(1), help="So many runs at a time.")
@click.option("--yes", "-y", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded, and upload nothing.")
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
@click.option(
    "--mark-synced/--no-mark-synced", "marks_synced", default=True, help="Write W&B's marker `.synced`."
)
@click.option(
    "--watch",
    "watched",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Sync a run whenever a trigger file of wandb-osh's in DIR asks for it, until Ctrl-C.",
)
@click.option("--json", "as_json_", is_flag=True, help="For scripts.")
# What scripts for older releases of `wandb sync` say.
@click.option("--sync-all", is_flag=True, hidden=True)
@click.option("--include-offline/--no-include-offline", "includes_offline", default=True, hidden=True)
@click.option("--append", is_flag=True, hidden=True)
@click.option("--clean", "cleans", is_flag=True, hidden=True)
@click.option("--clean-old-hours", type=click.FloatRange(0), default=CLEAN_OLD_HOURS, hidden=True)
@click.option("--clean-force", is_flag=True, hidden=True)
def sync(
    roots: tuple[Path, ...],
    paths: tuple[str, ...],
    is_sure: bool,
    dry_run: bool,
    drain: bool,
    patience_s: float,
    watched: Path | None,
    as_json_: bool,
    replace_tags: str | None,
    job_type: str | None,
    append: bool,
    force: str | None,
    sync_all: bool,
    includes_offline: bool,
    cleans: bool,
    clean_old_hours: float,
    clean_force: bool,
    **wished: Any,
) -> None:
    """Upload runs and return when everything is acknowledged. Replaces `wandb sync`.

    PATH is a run directory or a root; a wandb directory, an offline-run-… or run-… directory or a .wandb file of
    W&B's; or a pattern. Without one: what is not synced in every root that a run was logged to, and below ./wandb.

    Exit code 0: everything there was is acknowledged, and nothing was damaged. Of a run that is being written, the row
    that its next call may still add to follows later.
    """
    if watched is not None and (paths or dry_run or cleans or as_json_):
        raise click.UsageError(
            "with --watch, the triggers say what is synced: give no PATH, and none of --dry-run, --json and --clean."
        )
    if cleans and not paths and not sync_all:
        _clean((), clean_old_hours, clean_force or is_sure, dry_run, as_json_)
        return
    wishes = Wishes(
        edits=Edits(job_type, _replacements(replace_tags)),
        force=force or (APPEND if append else None),
        patience_s=float("inf") if drain else patience_s,
        **wished,
    )
    if watched is not None:
        _key_or_usage_error()
        _follow_triggers(watched, wishes)
        return
    try:
        planned = plan(paths, _roots(roots), wishes)
    except NothingThere as error:
        raise click.UsageError(str(error)) from None
    if not paths and not roots and (damaged := known_roots.unreadable()) is not None:
        planned.errors.append(damaged)
    if not includes_offline:
        planned.files = [file for file in planned.files if not file.is_offline]
    if wishes.run_id is not None and planned.run_dirs:
        raise click.UsageError(
            f"--id is for W&B's runs, and {str(planned.run_dirs[0])!r} is not one of them: name those that are meant."
        )
    if planned.is_empty:
        _say_nothing_there(planned, as_json_)
        return
    if dry_run:
        _say_plan(planned, as_json_)
        return
    if not paths and not is_sure and not sync_all and not as_json_ and sys.stdin.isatty():
        _say_plan(planned, as_json_)
        click.confirm("Upload them?", abort=True)
    _key_or_usage_error()
    if as_json_:
        outcome = run_sync(planned, wishes, Watcher())
        click.echo(json.dumps(_outcome_as_json(outcome, planned)))
    else:
        with ProgressBar() as bar:
            outcome = run_sync(planned, wishes, bar)
        _say_outcome(outcome, planned)
    if cleans and outcome.is_good:
        _clean(paths, clean_old_hours, clean_force or is_sure, dry_run, as_json_)
    sys.exit(0 if outcome.is_good else 1)


@main.command()
@click.argument("paths", nargs=-1)
@click.option(
    "--older-than",
    "older_than_hours",
    type=click.FloatRange(0),
    default=0.0,
    help="Only runs that began so many hours ago or earlier.",
)
@click.option("--yes", "-y", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--json", "as_json_", is_flag=True, help="For scripts.")
def clean(
    paths: tuple[str, ...], older_than_hours: float, is_sure: bool, dry_run: bool, as_json_: bool
) -> None:
    """Remove W&B's run directories of which W&B has everything.

    PATH is a wandb directory (./wandb if none is given) or one run's. W&B is asked before anything is removed; the log
    that `syncd sync` made of a run stays, and can be queried.
    """
    _clean(paths, older_than_hours, is_sure, dry_run, as_json_)


@main.command()
@_root_option
@click.argument("run")
@click.option("--json", "as_json_", is_flag=True, help="For scripts.")
def verify(roots: tuple[Path, ...], run: str, as_json_: bool) -> None:
    """Read a run back from W&B and compare it with the log, row for row.

    RUN is a run directory, or `project/id` as in `syncd status`. Exit code 1: they differ, or it cannot be told.
    """
    from syncd.read_back import CannotRead
    from syncd.verify import verify as verify_run

    run_dir = _find_run(run, roots)
    url = _key_or_usage_error()
    key = credentials.api_key(url)
    assert key is not None
    try:
        found = verify_run(run_dir, url, key)
    except (CannotRead, NotARun) as error:
        raise click.ClickException(str(error)) from None
    if as_json_:
        click.echo(
            orjson.dumps([verification.as_json() for verification in found], option=orjson.OPT_INDENT_2)
        )
    else:
        click.echo("\n".join(verification.describe() for verification in found))
    sys.exit(0 if all(verification.is_good for verification in found) else 1)


@main.command()
@_root_option
@click.argument("run")
@click.option("--append", is_flag=True, help="Upload it behind the rows that another log left under its id.")
@click.option("--new-id", is_flag=True, help="Upload it as a run of its own, under a new id.")
@click.option(
    "--ended", is_flag=True, help="Take my word that its writer, on another host, is gone for good."
)
def retry(roots: tuple[Path, ...], run: str, append: bool, new_id: bool, ended: bool) -> None:
    """Try again to upload a run that stands still.

    RUN is a run directory, or `project/id` as in `syncd status`.
    """
    if append and new_id:
        raise click.UsageError("--append and --new-id are two ways out: choose one.")
    run_dir = _find_run(run, roots)
    try:
        identity = RunIdentity.load(run_dir)
    except NotARun as error:
        raise click.ClickException(str(error)) from None
    standing = [cursor for cursor in cursors.cursors(run_dir) if cursor.state == "parked" or cursor.error]
    if new_id:
        there = upload_as_new(run_dir)
        click.echo(f"{identity.project}/{identity.run_id} is uploaded as {there} from now on.")
    elif not standing:
        click.echo("Nothing keeps this run from being uploaded: `syncd status` shows how far it is.")
        return
    elif any((cursor.error or "").startswith(A_COPY) for cursor in standing):
        # Tried again it would stand still again: the other one goes on.
        raise click.ClickException("; ".join(cursor.error for cursor in standing if cursor.error))
    elif ended:
        _vouch(run_dir, standing)
    else:
        for cursor in standing:
            _try_again(run_dir, cursor, append)
    _let_daemon_look(run_dir)


def _vouch(run_dir: Path, standing: Iterable[cursors.Cursor]) -> None:
    """Take the user's word that the writer of which nothing was heard is gone; of one that is heard of, nobody's."""
    unheard = [cursor for cursor in standing if (cursor.error or "").startswith(NOTHING_HEARD)]
    reasons = "; ".join(cursor.error or cursor.state for cursor in standing)
    if not unheard:
        raise click.ClickException(
            f"{run_dir.name} does not stand still for a writer of which nothing is heard, but: {reasons}\n"
            "`syncd retry` without --ended tries again."
        )
    for cursor in unheard:
        if cursor.fold is not None:
            cursors.vouch_for_end(run_dir, cursor.fold["writer"])


def _try_again(run_dir: Path, cursor: cursors.Cursor, append: bool) -> None:
    """Take back that the run stands still; with `append`, let it be uploaded behind what is there."""
    lease = _lease(run_dir, cursor.sink)
    try:
        # Who had the run may have written a newer one when it let go.
        cursor = cursors.load(run_dir, cursor.sink) or cursor
        choice = APPEND if append else None
        tried = replace(cursor, state="waiting", error=None, choice=choice)
        if append:
            # It is attached to anew; what another log has to do with it counts for nothing.
            tried = cursors.Cursor(cursor.sink, cursor.rank, choice=choice, generation=cursor.generation)
        cursors.save(run_dir, tried, time.time_ns() // 1000, durable=True)
    finally:
        lease.release()


def _lease(run_dir: Path, sink: Sink) -> cursors.Lease:
    """Hold the run; a daemon that only waits with it, for its next try, lets it go."""
    from syncd.control import SOCKET, ask

    socket_path = known_roots.state_dir() / SOCKET
    deadline_s = time.monotonic() + LET_GO_TIMEOUT_S
    while True:
        lease = cursors.Lease.take(run_dir, sink, time.time_ns() // 1000)
        if lease is not None:
            return lease
        lets_go = ask(socket_path, "let-go", run_dir)
        if lets_go is None and known_roots.daemon_is_watching():
            raise click.ClickException(
                "syncd has this run, and does not answer: `syncd stop`, then the same `syncd retry`, then `syncd start`."
            )
        if time.monotonic() > deadline_s:
            raise click.ClickException(
                "syncd is in the middle of a request for this run: `syncd stop`, then the same `syncd retry`, then "
                "`syncd start`."
                if lets_go is False
                else "this run is being uploaded at this moment by a `syncd sync`, or by a syncd on another host: let it "
                "end, or end it, and type the same `syncd retry` again (after one that was killed, in three minutes)."
            )
        time.sleep(0.05)


def _let_daemon_look(run_dir: Path) -> None:
    """Let a daemon that watches the run look at it now, and not only when it would have."""
    from syncd.control import SOCKET, ask

    # To one that rests, nothing is as it was.
    os.utime(run_dir / RUN_FILE)
    looks = ask(known_roots.state_dir() / SOCKET, "look", run_dir)
    # A daemon on another host, or one without a socket, hears of a file that is made, or sees that one was.
    with suppress(OSError):
        tempfile.NamedTemporaryFile(dir=run_dir, prefix=".look-").close()
    if looks is False:
        click.echo(
            f"The syncd that runs does not watch this run's root: `syncd sync {run_dir}` uploads it now."
        )
    elif not known_roots.daemon_is_watching():
        click.echo(f"No syncd is running: `syncd sync {run_dir}` uploads it now.")


@main.command()
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="So many of its last lines."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what it says, until Ctrl-C.")
def logs(lines: int, follow: bool) -> None:
    """Show what the daemon wrote into its log."""
    path = Instance(known_roots.state_dir()).log_path
    if not path.exists() and not follow:
        click.echo(f"There is no log yet: {path}. `syncd start` begins one.", err=True)
        return
    with suppress(KeyboardInterrupt, BrokenPipeError):
        for line in daemon_log.tail(path, lines, follow):
            click.echo(line)


@main.command()
@_root_option
@click.option("--json", "as_json_", is_flag=True, help="For scripts.")
@click.option(
    "--forget",
    "forgotten",
    multiple=True,
    metavar="ROOT",
    type=click.Path(path_type=Path),
    help="Do nothing but take this root, which is gone for good, out of the list of roots. May be given again.",
)
def doctor(roots: tuple[Path, ...], as_json_: bool, forgotten: tuple[Path, ...]) -> None:
    """Look for what may keep uploads from happening here, and say how each thing is mended."""
    if forgotten:
        _forget(forgotten)
        return
    from syncd.doctor import BAD, findings
    from syncd.wandb_api import WandbApi

    url = credentials.base_url()

    def probe() -> Answer:
        return asyncio.run(WandbApi(url, lambda: credentials.api_key(url)).probe())

    found = list(findings(Instance(known_roots.state_dir()), _roots(roots), url, probe))
    if as_json_:
        click.echo(orjson.dumps([asdict(each) for each in found], option=orjson.OPT_INDENT_2))
    else:
        _say_findings(found)
    sys.exit(1 if any(each.state == BAD for each in found) else 0)


@main.command("service")
@_root_option
@click.option("--install", is_flag=True, help="Write the unit where systemd looks for it.")
def service_(roots: tuple[Path, ...], install: bool) -> None:
    """Show a systemd user unit for the daemon, and what to type where there is no systemd."""
    given = [root.absolute() for root in roots]
    passed = {name: os.environ[name] for name in _UNIT_VARIABLES if os.environ.get(name)}
    text = service.unit(sys.executable, given, passed)
    if not install:
        click.echo(text)
        click.echo(service.without_systemd(sys.executable, given), err=True)
        return
    try:
        path = service.install(text, service.unit_directory(dict(os.environ)))
    except service.NotOurs as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"the unit cannot be written ({error}). `syncd service` shows it: put it where systemd of yours looks for it."
        ) from None
    click.echo(
        f"{path} is written. Now:\n\n  systemctl --user daemon-reload\n  systemctl --user enable --now syncd"
    )
    click.echo("  loginctl enable-linger      # so that it runs while you are logged out\n")
    click.echo("The key is not in it: it comes from `wandb login`.")


# -- the daemon's process --------------------------------------------------------------------------------------


def _serve(instance: Instance, roots: tuple[Path, ...], flush_s: float, linger_s: float, seals: bool) -> None:
    from eventlog.decoder import decode_beside
    from syncd.control import SOCKET, Control
    from syncd.daemon import Daemon
    from syncd.sealing import Sealer, can_seal
    from syncd.wandb_api import WandbApi
    from syncd.watch import Watch

    daemon_log.begin(instance.log_path)
    try:
        instance.acquire()
    except AlreadyRunning as error:
        click.echo(str(error), err=True)
        sys.exit(3)
    except OSError as error:
        raise _no_state_dir(instance, error) from None
    url = credentials.base_url()
    watched = _roots(roots)
    _raise_file_limit()
    decode_beside()

    def say(daemon: Daemon, watch: Watch) -> None:
        gate = daemon.gate
        service.notify(f"READY=1\nSTATUS={'uploads to' if gate.is_open else 'cannot reach'} {url}")
        instance.write_page(
            {
                "state": "online" if gate.is_open else "offline",
                "since": time.time(),
                "next_try_s": None
                if gate.is_open
                else round(max(0.0, gate.next_try_s - time.monotonic()), 1),
                "error": gate.reason,
                "degraded": watch.degraded,
                "base_url": url,
                "roots": [os.fsencode(root).decode(errors="replace") for root in watched],
                "has_chosen_roots": bool(roots),
            }
        )

    def look_after(watch: Watch, known: list[Path]) -> bool:
        nonlocal watched
        is_new, watched = known != watched, known
        return watch.look_after(known) or is_new

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        watch = Watch(lambda run_dir: daemon.hint(run_dir), loop.call_soon_threadsafe)
        daemon = Daemon(
            roots=lambda: _roots(roots),
            api=WandbApi(url, lambda: credentials.api_key(url)),
            flush_s=flush_s,
            linger_s=linger_s,
            lost_place=instance.lost,
            on_change=lambda daemon: say(daemon, watch),
            watch_roots=lambda known: look_after(watch, known),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, daemon.stop)
        sealer = Sealer()
        sealing = asyncio.ensure_future(sealer.run())
        if seals and can_seal():
            daemon.on_over = sealer.offer

        def look(run_dir: Path) -> bool:
            if run_dir.parent.parent not in watched:
                return False
            # A person asks: how long it meant to wait, after a failure say, counts for nothing any more.
            daemon.let_go(run_dir)
            daemon.hint(run_dir)
            return True

        control = Control(
            instance.directory / SOCKET,
            _looker(instance, roots),
            {"stop": daemon.stop},
            {"look": look, "let-go": daemon.let_go},
            lambda: daemon.api.sent,
        )
        try:
            async with control:
                await daemon.run()
        finally:
            service.notify("STOPPING=1")
            sealing.cancel()
            await asyncio.gather(sealing, return_exceptions=True)
            watch.stop()

    logging.getLogger("syncd").info("syncd %d uploads to %s", os.getpid(), url)
    asyncio.run(serve())
    if instance.lost() is not None:
        # For systemd: one that stopped since nobody wants it is not started again, and this one may have to be.
        sys.exit(1)


def _raise_file_limit() -> None:
    """Let the daemon have as many files open as it may: each live run is one, and the usual 1,024 are soon reached."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where there is no limit, some systems take no number for it.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _warn_without_key() -> None:
    url = credentials.base_url()
    if credentials.api_key(url) is None:
        click.echo(
            f"There is no API key for {url} yet. Run `wandb login` or set WANDB_API_KEY; until then nothing is "
            "uploaded, and nothing is lost.",
            err=True,
        )


# -- syncing once ----------------------------------------------------------------------------------------------


class ProgressBar(Watcher):
    """Shows on a terminal how far a sync is."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.looks = sys.stderr.isatty()
        self._read_bytes = self._total_bytes = 0
        self._reading: Any = None
        self._uploading: Any = None

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def reading(self, total_bytes: int) -> None:
        if total_bytes:
            self._total_bytes = total_bytes
            self._reading = self._progress.add_task("reading W&B's files", total=total_bytes, said="")

    def has_read(self, size_bytes: int) -> None:
        if self._reading is None:
            return
        self._read_bytes += size_bytes
        said = f"{self._read_bytes / 1e6:,.1f} of {self._total_bytes / 1e6:,.1f} MB"
        self._progress.update(self._reading, completed=self._read_bytes, said=said)

    def uploading(self, total: int, done: int, sent_bytes: int, trouble: str | None) -> None:
        if self._uploading is None:
            self._uploading = self._progress.add_task("uploading", total=None, said="")
        description = "uploading" if trouble is None else f"waiting: {trouble}"
        said = f"{done:,}/{total:,} records, {sent_bytes / 1e6:,.1f} MB"
        self._progress.update(
            self._uploading, total=total, completed=done, description=description, said=said
        )


def _key_or_usage_error() -> str:
    """Return W&B's address, for which there is a key."""
    url = credentials.base_url()
    if credentials.api_key(url) is None:
        raise click.UsageError(f"there is no API key for {url}. Run `wandb login`, or set WANDB_API_KEY.")
    return url


def _follow_triggers(directory: Path, wishes: Wishes) -> None:
    """Sync what is asked for, and say a line about each."""
    from syncd.triggers import UntilStopped, plan_of, watch

    def follow(path: Path) -> str | None:
        outcome = run_sync(plan_of(path, wishes), wishes, UntilStopped())
        if not outcome.is_good or outcome.open:
            # The trigger stays until there is nothing more to bring.
            return outcome.why_not or "; ".join(outcome.open)
        if not outcome.runs:
            return f"{str(path)!r}: there is nothing in it yet."
        say(
            "; ".join(
                f"{run.run}: {run.acked:,} of {run.records:,} records are there" for run in outcome.runs
            )
        )
        return None

    def say(line: str) -> None:
        click.echo(f"{time.strftime('%H:%M:%S')} {line}")

    say(f"following the triggers in {directory}; Ctrl-C ends it")
    watch(directory, follow, say, time.monotonic)


def _replacements(text: str | None) -> dict[str, str]:
    """
    >>> _replacements("old=new, a = b")
    {'old': 'new', 'a': 'b'}
    """
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair]
    wrong = [old for old, sign, _ in pairs if not sign]
    if wrong:
        raise click.UsageError(f"--replace-tags wants OLD=NEW, and found {wrong[0]!r}.")
    return {old.strip(): new.strip() for old, _, new in pairs}


def _say_nothing_there(planned: Plan, as_json_: bool) -> None:
    if as_json_:
        click.echo(json.dumps({"runs": [], "skipped": planned.skipped}))
        return
    click.echo("There are no runs to sync here.")
    _say_skipped(planned)


def _say_plan(planned: Plan, as_json_: bool) -> None:
    names = [str(run_dir) for run_dir in planned.run_dirs] + [str(file.directory) for file in planned.files]
    if as_json_:
        # Not orjson, which has no word for a path that is no UTF-8.
        click.echo(json.dumps({"would_sync": names, "skipped": planned.skipped, "errors": planned.errors}))
        return
    click.echo("1 run is to be uploaded:" if len(names) == 1 else f"{len(names):,} runs are to be uploaded:")
    for name in names[:LISTED_MAX]:
        click.echo(f"  {name}")
    if len(names) > LISTED_MAX:
        click.echo(f"  and {len(names) - LISTED_MAX:,} more")
    _say_skipped(planned)
    for error in planned.errors:
        click.echo(error, err=True)


def _say_skipped(planned: Plan) -> None:
    for reason, count in planned.skipped.items():
        click.echo(f"Left out: {count:,} of W&B's runs, {reason}.")


def _outcome_as_json(outcome: Outcome, planned: Plan) -> dict[str, Any]:
    return {
        **as_json({}, outcome.runs),
        "error": outcome.error,
        "remarks": [*outcome.open, *outcome.remarks],
        "taken": [taken.as_json() for taken in outcome.taken],
        "skipped": planned.skipped,
    }


def _say_outcome(outcome: Outcome, planned: Plan) -> None:
    from rich.console import Console

    console = Console()
    if outcome.taken:
        console.print(_taken_view(outcome.taken))
    console.print(_runs_view(outcome.runs))
    for remark in (*outcome.open, *outcome.remarks):
        click.echo(remark)
    _say_skipped(planned)
    if outcome.error is not None:
        click.echo(f"Not everything is uploaded: {outcome.error}", err=True)


def _taken_view(all_taken: list[Taken]) -> Any:
    """A line for each of W&B's files, and below them what could not be had of some, and where."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("W&B's run", overflow="fold")
    for name in ("records", "rows", "damaged"):
        table.add_column(name, justify="right")
    remarks: list[Text] = []
    for taken in all_taken:
        damaged = f"{sum(damage.size for damage in taken.damage):,} B" if taken.damage else ""
        name = taken.file.name
        table.add_row(Text(name), f"{taken.records:,}", f"{taken.rows:,}", damaged)
        remarks += [
            Text(f"{name}: bytes {d.offset:,} to {d.offset + d.size:,} are damaged: {d.cause}", style="red")
            for d in taken.damage
        ]
        if taken.is_empty and not taken.damage:
            remarks.append(
                Text(f"{name}: there is nothing in it: its writer was killed before it had written any")
            )
        elif taken.torn is not None:
            remarks.append(
                Text(f"{name}: {taken.torn.size:,} bytes at the end were never finished: the run was killed")
            )
        remarks += [
            Text(f"{name}: {count:,} × {what}", style="yellow") for what, count in taken.not_taken.items()
        ]
    return Group(table, *remarks)


def _clean(
    paths: tuple[str, ...], older_than_hours: float, is_sure: bool, dry_run: bool, as_json_: bool
) -> None:
    from syncd.clean import confirmed, remove

    if as_json_ and not is_sure and not dry_run:
        raise click.UsageError("with --json nobody can be asked: add --yes or --dry-run.")
    url = _key_or_usage_error()
    found = confirmed(
        paths or (str(default_directory() or "wandb"),),
        older_than_hours,
        url,
        lambda: credentials.api_key(url),
    )
    removable = [candidate for candidate in found if candidate.objection is None]
    if not as_json_:
        for candidate in found:
            said = "removable" if candidate.objection is None else f"kept: {candidate.objection}"
            click.echo(f"{candidate.directory}  {said}")
        if not removable:
            click.echo("There is nothing to remove.")
    if removable and not dry_run:
        if not is_sure:
            click.confirm(
                "Remove this directory?"
                if len(removable) == 1
                else f"Remove {len(removable):,} directories?",
                abort=True,
            )
        for candidate in removable:
            remove(candidate)
    if as_json_:
        removed = [] if dry_run else [str(candidate.directory) for candidate in removable]
        kept = {str(c.directory): c.objection for c in found if c.objection is not None}
        click.echo(json.dumps({"removed": removed, "kept": kept}))


def _roots(given: Iterable[Path]) -> list[Path]:
    """Return the roots to look at: those that were given, else all that are known; each once, whatever its names."""
    return list(dict.fromkeys(Path(os.path.realpath(root)) for root in given or known_roots.registered()))


def _forget(forgotten: Iterable[Path]) -> None:
    for root in forgotten:
        try:
            was_known = known_roots.forget(root)
        except OSError as error:
            raise click.ClickException(
                f"{str(root)!r} stays in the list in {str(known_roots.state_dir())!r}: {error.strerror}."
            ) from None
        if not was_known:
            listed = ", ".join(map(str, known_roots.registered())) or "none"
            raise click.UsageError(f"{str(root)!r} is not in the list of roots; there are: {listed}.")
        click.echo(f"{root} is no longer looked at; it is again when a run is logged there.")


def _find_run(run: str, roots: tuple[Path, ...]) -> Path:
    """Return the directory of the run that a person named."""
    if (Path(run) / RUN_FILE).is_file():
        return Path(run).resolve()
    below = [d for root in _roots(roots) for d in find_runs(root)]
    found = [d for d in below if run in (d.name, f"{d.parent.name}/{d.name}")]
    # Under another id, say, after `retry --new-id`.
    found = found or [d for d in below if any(run in _names_of(cursor.sink) for cursor in cursors.cursors(d))]
    if len(found) == 1:
        return found[0]
    if found:
        places = "\n  ".join(map(str, found))
        raise click.UsageError(f"{run!r} names {len(found)} runs. Give the directory of one:\n  {places}")
    near = difflib.get_close_matches(run, [f"{d.parent.name}/{d.name}" for d in below], n=3)
    hint = f" Did you mean {', '.join(near)}?" if near else " `syncd status` lists them."
    raise click.UsageError(f"there is no run {run!r}.{hint}")


def _names_of(sink: Sink) -> tuple[str, str]:
    return sink.run_id, f"{sink.project}/{sink.run_id}"


# -- showing ---------------------------------------------------------------------------------------------------


def _looker(
    instance: Instance, roots: tuple[Path, ...]
) -> Callable[..., tuple[dict[str, Any], list[RunStatus]]]:
    """Return what looks at the daemon's page and at the runs, again and again."""
    looking = Looking()

    def look(
        progress: Callable[[int, int], object] = lambda done, of: None,
    ) -> tuple[dict[str, Any], list[RunStatus]]:
        daemon = instance.page()
        online = daemon.get("state") == "online"
        there = _roots(roots)
        unwatched = {root for root in there if daemon and not known_roots.is_watched(root, daemon)}
        return daemon, looking.look(there, time.time_ns() // 1000, online, progress, unwatched)

    return look


@contextmanager
def _shower(as_json_: bool, shows_all: bool) -> Iterator[Callable[..., None]]:
    """Give what shows one look after the other: in place on a terminal, else each below the one before."""
    from rich.console import Console
    from rich.live import Live

    trend = Trend()
    console = Console()

    def table(daemon: dict[str, Any], runs: list[RunStatus], error: str | None) -> Any:
        trend.note(time.monotonic(), runs)
        return _table(daemon, runs, trend, shows_all, error)

    if as_json_:
        yield lambda daemon, runs, error: click.echo(orjson.dumps(as_json(daemon, runs, error)))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda *seen: live.update(table(*seen), refresh=True)
    else:
        yield lambda *seen: console.print(table(*seen), "")


def _table(
    daemon: dict[str, Any],
    runs: list[RunStatus],
    trend: Trend | None = None,
    shows_all: bool = False,
    error: str | None = None,
) -> Any:
    from rich.console import Group
    from rich.text import Text

    state = daemon.get("state", "stopped")
    line = f"syncd: {state}"
    if daemon.get("pid"):
        line += f", process {daemon['pid']}"
    if daemon.get("base_url"):
        line += f", to {daemon['base_url']}"
    if not daemon:
        line += " (`syncd start` starts it)"
    if daemon.get("error"):
        line += f"\n{daemon['error']}"
        if daemon.get("next_try_s") is not None:
            line += f" (asked again in {_duration(daemon['next_try_s'])})"
    if error is not None:
        line += f"\n{error}"
    if daemon.get("degraded"):
        line += f"\ndegraded, some seconds slower: {daemon['degraded']}"
    shown = runs
    if not shows_all and len(runs) > SHOWN_MAX:
        shown = [run for run in runs if run.state != "synced" or run.lacks_something]
        line += f"\n{_counted(runs)}"
    return Group(Text(line, style="green" if state == "online" else "yellow"), _runs_view(shown, trend))


def _counted(runs: Sequence[RunStatus]) -> str:
    """Return how many runs are how far, in a sentence."""
    states = Counter(run.state for run in runs)
    said = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    return f"{len(runs):,} runs: {said}; {sum(run.backlog for run in runs):,} records to go. --all shows the synced ones."


def _runs_view(runs: Sequence[RunStatus], trend: Trend | None = None) -> Any:
    """A line of numbers for each run, and below them what is to be said about some."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in ("records", "acked", "backlog", "lag", *(("a second", "left") if trend else ())):
        table.add_column(name, justify="right")
    remarks: list[Text] = []
    for run in runs:
        style = {"parked": "red", "crashed": "yellow", "waiting": "yellow"}.get(run.state, "")
        lag = _duration(run.lag_s) if run.backlog else ""
        numbers = [f"{run.records:,}", f"{run.acked:,}", f"{run.backlog:,}", lag]
        if trend:
            rate, left_s = trend.rate(run.run), trend.left_s(run)
            numbers += [f"{rate:,.0f}" if rate else "", "" if left_s is None else _duration(left_s)]
        table.add_row(Text(run.run), Text(run.state, style=style), *numbers)
        said = [f"{count:,} not shown there: {reason}" for reason, count in run.not_shown.items()]
        if run.files_left:
            said.append(f"{run.files_left:,} files and artifacts are still to be uploaded")
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


def _say_findings(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    signs = {"well": ("✓", "green"), "odd": ("!", "yellow"), "bad": ("✗", "red")}
    table = Table(box=None, pad_edge=False, show_header=False)
    for each in found:
        sign, style = signs[each.state]
        said = Text(each.said)
        if each.mend is not None:
            said.append(f"\n→ {each.mend}", style="bold")
        table.add_row(Text(sign, style=style), Text(each.what), said)
    Console(soft_wrap=False).print(table)
