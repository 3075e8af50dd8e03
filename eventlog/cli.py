"""The command `eventlog`: look at logs, follow them, prove that they are whole, make them small.

Invariants
----------
* Only `seal`, `clean` and `import` write anything, and no command repairs anything.
* `--json` prints one object a line, for programs, with what JSON has no word for as in FORMAT.md ("Values"); without it,
  the same for people.
* Exit codes: 0 it is so; 1 it ran, and the answer is bad (damage); 2 wrong usage, or no such run.

Memory is bounded whatever the size of a log: each command goes through it once, or reads its end only.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eventlog.errors import EventlogError, NotARun
from eventlog.overview import (
    Overview,
    Proof,
    contents_of,
    follow_run,
    name_of,
    newest,
    overview_of,
    proofs_of,
)
from eventlog.piece import RUN_FILE, RunIdentity
from eventlog.progress import progress
from eventlog.reader import find_runs
from eventlog.record import Record, encode_data, json_of
from eventlog.roots import root_of
from eventlog.segment import STREAMS

if TYPE_CHECKING:
    from eventlog.seal import Verdict

T = TypeVar("T")
# So many bad places of one stream are listed one by one.
_LISTED_MAX = 20
_FOUND, _DAMAGED, _WRONG_USAGE = 0, 1, 2

_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the runs are. [default: $EVENTLOG_ROOT, else ./runs]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidelog", prog_name="eventlog")
def main() -> None:
    """Look at the logs of training runs.  RUN is `project/id`, an id, or a run's directory."""


@main.command()
@_root_option
@_json_option
def ls(root: Path | None, as_json: bool) -> None:
    """List the runs: their state, records, last step, size and start."""
    run_dirs = list(find_runs(root_of(root)))
    overviews = _of_each(run_dirs, overview_of)
    if as_json:
        for overview in overviews:
            _print_json(asdict(overview))
    elif not run_dirs:
        click.echo(f"There is no run in {str(root_of(root))!r}. Give --root, or set EVENTLOG_ROOT.", err=True)
    else:
        _table_of_runs(overviews)
    sys.exit(_FOUND if len(overviews) == len(run_dirs) else _DAMAGED)


def _table_of_runs(overviews: list[Overview]) -> None:
    _table(
        ("run", "state", "pieces", "records", "last step", "size", "started"),
        [
            (
                each.run,
                each.state,
                str(each.pieces),
                f"{each.records:,}",
                "" if each.last_step is None else f"{each.last_step:,}",
                _size(each.size_bytes),
                _moment(each.started_us),
            )
            for each in overviews
        ],
        right=(2, 3, 4, 5),
    )


@main.command()
@click.argument("run")
@_root_option
@_json_option
def show(run: str, root: Path | None, as_json: bool) -> None:
    """Show one run: config, last values, pieces, damage."""
    run_dir = find(run, root_of(root))
    with _in_words(run_dir):
        overview = overview_of(run_dir)
        content = contents_of(run_dir)
    if as_json:
        _print_json(asdict(overview) | {"dir": str(run_dir)} | asdict(content))
        return
    click.echo(f"{overview.run}   {overview.state}   {run_dir}")
    click.echo(
        f"{overview.records:,} records, last step {overview.last_step}, {_size(overview.size_bytes)}, "
        f"started {_moment(overview.started_us)}\n"
    )
    if content.config:
        _table(("config", ""), [(key, _short(value)) for key, value in content.config.items()])
    if content.last:
        _table(("last value", ""), [(key, _short(value)) for key, value in content.last.items()])
    if content.summary:
        _table(("summary", ""), [(key, _short(value)) for key, value in content.summary.items()])
    _table(
        ("writer", "state", "events", "trajectories", "host", "pid"),
        [
            (
                each["writer"],
                each["state"],
                f"{each['events']:,}",
                f"{each['trajectories']:,}",
                str(each["host"] or ""),
                str(each["pid"] or ""),
            )
            for each in content.pieces
        ],
        right=(2, 3),
    )
    if content.dropped:
        click.echo(
            f"{content.dropped:,} records could not be written when they were logged (see the gap records)."
        )
    if content.damaged_places:
        click.echo(f"{content.damaged_places} damaged places: `eventlog verify {overview.run}` lists them.")


@main.command()
@click.argument("run")
@_root_option
@_json_option
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with what is logged from now, until the run is closed."
)
@click.option(
    "-n", "--lines", default=10, show_default=True, help="How many of the newest records come first."
)
@click.option("--stream", type=click.Choice(STREAMS), default="events", show_default=True)
def tail(run: str, root: Path | None, as_json: bool, follow: bool, lines: int, stream: str) -> None:
    """Print the newest records of a run, and follow them."""
    run_dir = find(run, root_of(root))
    with _in_words(run_dir):
        last = newest(run_dir, stream, max(lines, 0))
    for _, record in last:
        _print_record(record, as_json)
    if not follow:
        return
    with suppress(KeyboardInterrupt), _in_words(run_dir):
        for record in follow_run(run_dir, stream, last[-1] if last else None):
            _print_record(record, as_json)


@main.command()
@click.argument("runs", nargs=-1)
@_root_option
@_json_option
def verify(runs: tuple[str, ...], root: Path | None, as_json: bool) -> None:
    """Read every record of the runs (of all of them, if none is named) and report what is damaged.

    Bytes after the last whole record are normal after a crash: they were never committed.
    """
    run_dirs = _meant(runs, root)
    proofs = _of_each(run_dirs, lambda run_dir: list(proofs_of(run_dir)))
    unread = len(run_dirs) - len(proofs)
    results = [stream for found in proofs for stream in found]
    damaged = [result for result in results if result.damage]
    if as_json:
        for result in results:
            _print_json(asdict(result))
    else:
        for result in results:
            _print_proof(result)
        lost = sum(result.lost for result in results)
        click.echo(
            f"{len(proofs)} runs, {sum(result.records for result in results):,} records: "
            + (f"{lost:,} records are lost, in {len(damaged)} streams." if damaged else "all whole.")
            + (f" {unread} runs could not be read." if unread else "")
        )
    sys.exit(_DAMAGED if damaged or unread else _FOUND)


@main.command()
@click.argument("runs", nargs=-1)
@_root_option
@_json_option
def seal(runs: tuple[str, ...], root: Path | None, as_json: bool) -> None:
    """Seal what will not change any more: Parquet beside the log, a sixth of its size, proven equal to it.

    Without RUNS, all of them. The log itself stays; `eventlog clean` removes what is not needed any more.
    """
    from eventlog.parquet import NO_PYARROW, Unreadable
    from eventlog.seal import seal as seal_run
    from eventlog.seal import to_seal

    if find_spec("pyarrow") is None:
        raise click.ClickException(NO_PYARROW)
    run_dirs = _meant(runs, root)
    outcomes = []
    is_good = True
    with progress(lambda: sum(map(to_seal, run_dirs))) as advance:
        for run_dir in run_dirs:
            try:
                outcomes.append((name_of(run_dir), seal_run(run_dir, advance)))
            except (OSError, Unreadable) as error:
                is_good = False
                _complain(f"{name_of(run_dir)} could not be sealed: {error}. Its log is intact.")
    is_good = is_good and not any(outcome.is_busy or outcome.damage for _, outcome in outcomes)
    for run, outcome in outcomes:
        for each in outcome.damage:
            _complain(f"{run}: {each.path.name} is not sealed: {each.cause} (`eventlog verify {run}`).")
        if outcome.is_busy:
            _complain(f"{run}: another process is sealing it.")
    if as_json:
        for run, outcome in outcomes:
            content = {"run": run, **asdict(outcome), "sealed": [str(path) for path in outcome.sealed]}
            damage = [asdict(each) | {"path": str(each.path)} for each in outcome.damage]
            _print_json(content | {"damage": damage})
    else:
        _table(
            ("run", "records", "log", "sealed", ""),
            [
                (
                    run,
                    f"{outcome.records:,}",
                    _size(outcome.size_before),
                    _size(outcome.size_after),
                    f"{outcome.size_after / outcome.size_before:.0%}",
                )
                for run, outcome in outcomes
                if outcome.size_before
            ],
            right=(1, 2, 3, 4),
        )
        click.echo(
            f"{sum(outcome.records for _, outcome in outcomes):,} records of {len(run_dirs)} runs were sealed."
        )
    sys.exit(_FOUND if is_good else _DAMAGED)


@main.command()
@click.argument("runs", nargs=-1)
@_root_option
@_json_option
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed, and why not the rest.")
def clean(runs: tuple[str, ...], root: Path | None, as_json: bool, dry_run: bool) -> None:
    """Remove the segments that are sealed and that every destination has; nothing is lost by it.

    Without RUNS, those of all runs.
    """
    from eventlog.seal import clean as clean_run

    run_dirs = _meant(runs, root)
    verdicts = _of_each(
        run_dirs, lambda run_dir: [(name_of(run_dir), v) for v in clean_run(run_dir, dry_run)]
    )
    found = [each for of_run in verdicts for each in of_run]
    if as_json:
        for run, verdict in found:
            content = {"run": run, "path": str(verdict.path), "size": verdict.size}
            _print_json(
                content | {"removed": verdict.kept_because is None, "kept_because": verdict.kept_because}
            )
    else:
        _table_of_verdicts(found, dry_run)
    sys.exit(_FOUND if len(verdicts) == len(run_dirs) else _DAMAGED)


def _table_of_verdicts(found: list[tuple[str, Verdict]], dry_run: bool) -> None:
    groups: dict[tuple[str, str | None], list[int]] = {}
    for run, verdict in found:
        groups.setdefault((run, verdict.kept_because), []).append(verdict.size)
    goes = "would go" if dry_run else "removed"
    _table(
        ("run", "segments", "size", ""),
        [
            (run, f"{len(sizes):,}", _size(sum(sizes)), goes if why is None else f"stays: {why}")
            for (run, why), sizes in groups.items()
        ],
        right=(1, 2),
    )
    freed = sum(verdict.size for _, verdict in found if verdict.kept_because is None)
    click.echo(f"{_size(freed)} {'would be' if dry_run else 'were'} freed.")


@main.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@_root_option
@_json_option
@click.option("--project", help="The project of the runs. [default: $WANDB_PROJECT, else uncategorized]")
@click.option("--id", "run_id", help="The id of the run; only where PATHS hold one.")
@click.option(
    "--online", is_flag=True, help="Let the daemon upload them; without, `syncd sync` does when asked to."
)
def import_(
    paths: tuple[Path, ...],
    root: Path | None,
    as_json: bool,
    project: str | None,
    run_id: str | None,
    online: bool,
) -> None:
    """Import TensorBoard's event files: each directory below PATHS that has some becomes a run.

    What was imported before is not imported again: called once more, it adds what is new.
    """
    from eventlog.importers.tfevents import import_tfevents, sources_at

    runs = []
    with progress(lambda: sum(source.size for path in paths for source in sources_at(path))) as advance:
        for path in paths:
            done = [0]

            def tell(done_bytes: int, _: int, done: list[int] = done) -> None:
                advance(done_bytes - done[0])
                done[0] = done_bytes

            mode = "online" if online else "offline"
            try:
                runs += import_tfevents(path, root_of(root), project, run_id, mode=mode, progress=tell).runs
            except (FileNotFoundError, ValueError, EventlogError) as error:
                raise click.UsageError(str(error)) from None
            except OSError as error:
                raise click.ClickException(
                    f"{path} could not be imported: {error}. Call it again: what is there is not imported twice."
                ) from None
    if not runs:
        raise click.UsageError(
            f"there is no event file of TensorBoard's at {', '.join(map(repr, map(str, paths)))}."
        )
    for run in runs:
        name = run.name if run.run_dir is None else name_of(Path(run.run_dir))
        if run.damaged:
            _complain(f"{name}: {run.damaged:,} damaged places in the files of {run.source}.")
        for reason, times in run.not_taken.items():
            _complain(f"{name}: not taken, {times:,} ×: {reason}.")
        if run.past_steps:
            _complain(
                f"{name}: {run.past_steps:,} rows are of steps that were over, and are not shown by W&B."
            )
    if as_json:
        for run in runs:
            _print_json(run.as_json())
    else:
        _table(
            ("run", "from", "rows", "records", ""),
            [
                (
                    run.name if run.run_dir is None else name_of(Path(run.run_dir)),
                    run.source,
                    f"{run.rows:,}",
                    f"{run.records:,}",
                    "nothing yet"
                    if run.run_dir is None
                    else "new"
                    if run.is_new
                    else "added"
                    if run.records
                    else "known",
                )
                for run in runs
            ],
            right=(2, 3),
        )
    sys.exit(_DAMAGED if any(run.damaged for run in runs) else _FOUND)


# ── which run ────────────────────────────────────────────────────────────────────────────────────────────────


class NoSuchRun(click.ClickException):
    """What a person named is no run, or more than one."""

    exit_code = _WRONG_USAGE


def find(run: str, root: Path) -> Path:
    """Return the directory of the run that a person means, or raise `NoSuchRun` with the nearest names."""
    # An id may be longer than a file name.
    with suppress(OSError):
        if (Path(run) / RUN_FILE).is_file():
            return Path(run)
    known = {name: run_dir for run_dir in find_runs(root) if (name := _name_of(run_dir))}
    if run in known:
        return known[run]
    same_id = [name for name in known if name.partition("/")[2] == run]
    if len(same_id) == 1:
        return known[same_id[0]]
    if same_id:
        raise NoSuchRun(f"several runs have the id {run!r}. Say which: {', '.join(same_id)}.")
    candidates = [*known, *(name.partition("/")[2] for name in known)]
    near = list(dict.fromkeys(difflib.get_close_matches(run, candidates, n=5, cutoff=0.4)))
    hint = f"The nearest are: {', '.join(near)}." if near else "Give --root, or see `eventlog ls`."
    raise NoSuchRun(f"there is no run {run!r} in {str(root)!r}. {hint}")


def _name_of(run_dir: Path) -> str | None:
    try:
        identity = RunIdentity.load(run_dir)
    except NotARun as error:
        click.echo(f"eventlog: {error}", err=True)
        return None
    return f"{identity.project}/{identity.run_id}"


def _meant(runs: tuple[str, ...], root: Path | None) -> list[Path]:
    """Return the directories of the runs that were named; of all, if none was."""
    under = root_of(root)
    if not runs and not under.is_dir():
        raise NoSuchRun(f"there is no directory {str(under)!r}. Give --root, or set EVENTLOG_ROOT.")
    return [find(run, under) for run in runs] if runs else list(find_runs(under))


def _of_each(run_dirs: list[Path], look: Callable[[Path], T]) -> list[T]:
    """Return what `look` finds in each run; of one that cannot be read, say so, and leave it out."""
    found = []
    for run_dir in run_dirs:
        try:
            found.append(look(run_dir))
        except (OSError, EventlogError) as error:
            _complain(f"{name_of(run_dir)} is left out: {error}")
    return found


@contextmanager
def _in_words(run_dir: Path) -> Iterator[None]:
    """Say what of a run could not be read, instead of a traceback."""
    try:
        yield
    except BrokenPipeError:
        # Of the output, not of the run.
        raise
    except (OSError, EventlogError) as error:
        raise click.ClickException(f"{name_of(run_dir)}: {error}") from None


# ── printing ─────────────────────────────────────────────────────────────────────────────────────────────────


def _print_proof(proof: Proof) -> None:
    where = " ".join(filter(None, (proof.run, proof.writer, proof.stream)))
    for each in proof.damage[:_LISTED_MAX]:
        seqs = f"seq {each['first_seq']:,} to {each['last_seq']:,}" if each["lost"] else "no record lost"
        click.echo(
            f"{where}: damaged at byte {each['offset']:,} of {Path(each['path']).name}: {each['cause']} ({seqs})"
        )
    if len(proof.damage) > _LISTED_MAX:
        click.echo(f"{where}: and {len(proof.damage) - _LISTED_MAX:,} more places; --json lists all")
    if proof.torn_bytes:
        click.echo(
            f"{where}: {proof.torn_bytes:,} bytes after the last record: a write under way, or cut short by a crash"
        )
    if proof.dropped:
        click.echo(f"{where}: {proof.dropped:,} records could not be written when they were logged")


def _print_json(content: dict[str, Any]) -> None:
    encoded, as_text = encode_data(content)
    if as_text:
        encoded, _ = encode_data({"as_text": as_text, **content})
    click.echo(encoded.decode())


def _print_record(record: Record, as_json: bool) -> None:
    if as_json:
        content = {"seq": record.seq, "time": record.time_us, "kind": record.kind}
        if record.step is not None:
            content["step"] = record.step
        if record.commit:
            content["commit"] = True
        _print_json(content | {"data": record.data})
    else:
        step = "" if record.step is None else f" step {record.step}"
        click.echo(
            f"{_moment(record.time_us)}  {record.seq:>6}  {record.kind}{step}  {_short(record.data, 2000)}"
        )
    sys.stdout.flush()


def _complain(text: str) -> None:
    click.echo(f"eventlog: {text}", err=True)


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, heading in enumerate(headings):
        table.add_column(
            heading, justify="right" if at in right else "left", overflow="fold", no_wrap=at == 0
        )
    for row in rows:
        # As text: a key like `[bold]` is no markup.
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        # A pipe has no width to fit into.
        console = Console(width=10_000)
    console.print(table)
    console.print()


def _short(value: Any, chars: int = 120) -> str:
    text = value if isinstance(value, str) else json_of(value)
    return text if len(text) <= chars else text[: chars - 1] + "…"


def _size(size_bytes: int) -> str:
    """
    >>> _size(512), _size(2048), _size(3_000_000_000)
    ('512 B', '2.0 KiB', '2.8 GiB')
    """
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _moment(time_us: int | None) -> str:
    if time_us is None:
        return ""
    return datetime.fromtimestamp(time_us / 1e6, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
