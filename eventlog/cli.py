"""The command `eventlog`: look at logs, follow them, prove that they are whole.

Invariants
----------
* Nothing is written, repaired or deleted by any command here.
* `--json` prints one object a line, for programs, with what JSON has no word for as in FORMAT.md ("Values"); without it,
  the same for people.
* Exit codes: 0 it is so; 1 it ran, and the answer is bad (damage); 2 wrong usage, or no such run.

Memory is bounded whatever the size of a log: each command goes through it once, or reads its end only.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from eventlog.errors import NotARun
from eventlog.piece import RUN_FILE, RunIdentity, closed, lock_text, primaries, this_boot_id, this_host
from eventlog.reader import Damage, StreamReader, backwards, end_of, find_runs, writers
from eventlog.record import Record, encode_data
from eventlog.segment import STREAMS, segments_in

_POLL_S = 0.2
# Nothing heard for so long from another machine, whose lock cannot be seen: FORMAT.md, "Pieces and writers".
_STALE_S = 600.0
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
    overviews = [overview_of(run_dir) for run_dir in find_runs(_root(root))]
    if as_json:
        for overview in overviews:
            _print_json(asdict(overview))
        return
    if not overviews:
        click.echo(f"There is no run in {str(_root(root))!r}. Give --root, or set EVENTLOG_ROOT.", err=True)
        return
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
    run_dir = find(run, _root(root))
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
    run_dir = find(run, _root(root))
    newest = _newest(run_dir, stream, max(lines, 0))
    for _, record in newest:
        _print_record(record, as_json)
    if not follow:
        return
    with suppress(KeyboardInterrupt):
        for record in follow_run(run_dir, stream, newest[-1] if newest else None):
            _print_record(record, as_json)


@main.command()
@click.argument("runs", nargs=-1)
@_root_option
@_json_option
def verify(runs: tuple[str, ...], root: Path | None, as_json: bool) -> None:
    """Read every record of the runs (of all of them, if none is named) and report what is damaged.

    Bytes after the last whole record are normal after a crash: they were never committed.
    """
    under = _root(root)
    run_dirs = [find(run, under) for run in runs] if runs else list(find_runs(under))
    results = [stream for run_dir in run_dirs for stream in proofs_of(run_dir)]
    damaged = [result for result in results if result.damage]
    if as_json:
        for result in results:
            _print_json(asdict(result))
    else:
        for result in results:
            _print_proof(result)
        lost = sum(result.lost for result in results)
        click.echo(
            f"{len(run_dirs)} runs, {sum(result.records for result in results):,} records: "
            + (f"{lost:,} records are lost, in {len(damaged)} streams." if damaged else "all whole.")
        )
    sys.exit(_DAMAGED if damaged else _FOUND)


# ── which run ────────────────────────────────────────────────────────────────────────────────────────────────


class NoSuchRun(click.ClickException):
    """What a person named is no run, or more than one."""

    exit_code = _WRONG_USAGE


def find(run: str, root: Path) -> Path:
    """Return the directory of the run that a person means, or raise `NoSuchRun` with the nearest names."""
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


def _root(root: Path | None) -> Path:
    return root or Path(os.environ.get("EVENTLOG_ROOT") or "runs")


# ── what a run is, from its ends ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Overview:
    """One run in one line."""

    run: str
    state: str
    """`live`, `finished`, `failed`, `crashed`; `stale` if another machine's writer is silent and cannot be asked."""
    pieces: int
    records: int
    """Events of the run's history."""
    last_step: int | None
    size_bytes: int
    started_us: int | None


def overview_of(run_dir: Path) -> Overview:
    """Return a run's overview; reads the beginning and the end of its pieces."""
    names = primaries(run_dir)
    first = StreamReader(run_dir / names[0]).first() if names else None
    last_step = next(
        (step for name in reversed(names) if (step := _last_step(run_dir / name)) is not None), None
    )
    return Overview(
        run=_name_of(run_dir) or run_dir.name,
        state=state_of(run_dir, names[-1]) if names else "live",
        pieces=len(names),
        records=sum(end_of(run_dir / name)[0] for name in names),
        last_step=last_step,
        size_bytes=_size_of(run_dir),
        started_us=first.time_us if first else None,
    )


def state_of(run_dir: Path, writer: str) -> str:
    """Return the state of one piece."""
    # Asked before the end is read: a writer may write its exit in between.
    is_closed = closed(run_dir, writer)
    newest = next(_backwards(run_dir / writer), None)
    if newest is not None and newest.kind == "exit":
        return "failed" if newest.data.get("exitcode") else "finished"
    if is_closed:
        return "crashed"
    text = lock_text(run_dir / writer)
    if not text or text.get("host") == this_host() or text.get("boot_id") == this_boot_id():
        # Without a text, a writer is just being born.
        return "live"
    heard_us = max(text.get("heartbeat", 0), newest.time_us if newest else 0)
    return "stale" if time.time() - heard_us / 1e6 > _STALE_S else "live"


def _size_of(run_dir: Path) -> int:
    size_bytes = 0
    for directory, _, names in os.walk(run_dir):
        for name in names:
            # A cursor is replaced all the time.
            with suppress(FileNotFoundError):
                size_bytes += os.lstat(os.path.join(directory, name)).st_size
    return size_bytes


def _last_step(piece_dir: Path) -> int | None:
    return next((record.step for record in _backwards(piece_dir) if record.kind == "metrics"), None)


def _backwards(piece_dir: Path) -> Iterator[Record]:
    """Yield the piece's events from the newest on; what is damaged is passed over."""
    try:
        names = os.listdir(piece_dir)
    except (FileNotFoundError, NotADirectoryError):
        return
    for segment in reversed(segments_in(names, "events")):
        try:
            fd = os.open(piece_dir / segment.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        with open(fd, "rb"):
            yield from backwards(fd)


# ── what a run holds, in one pass ────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Contents:
    """What a run came to."""

    config: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """The last value of each metric."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What was set on `run.summary`."""
    pieces: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0
    damaged_places: int = 0

    def take(self, record: Record) -> None:
        """Go on by one record of the run's history."""
        if record.kind == "metrics":
            self.last.update(record.data)
        elif record.kind == "start":
            self.config.update(record.data.get("config") or {})
        elif record.kind == "config":
            self.config.update(record.data)
        elif record.kind == "summary":
            for path, value in record.data.get("set", ()):
                _set_in(self.summary, path, value)
            for path in record.data.get("delete", ()):
                _delete_in(self.summary, path)
        elif record.kind == "gap":
            self.dropped += record.data.get("dropped", 0)


def contents_of(run_dir: Path) -> Contents:
    """Read a run's events once."""
    contents = Contents()
    history = set(primaries(run_dir))
    for writer in writers(run_dir):
        reader = StreamReader(run_dir / writer)
        for chunk in _chunks(reader):
            contents.damaged_places += len(chunk.damage)
            for record in chunk.records if writer in history else ():
                contents.take(record)
        text = lock_text(run_dir / writer)
        contents.pieces.append(
            {
                "writer": writer,
                "state": state_of(run_dir, writer),
                "events": reader.next_seq,
                "trajectories": end_of(run_dir / writer, "trajectories")[0],
                "host": text.get("host"),
                "pid": text.get("pid"),
            }
        )
    return contents


def _set_in(mapping: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for key in parents:
        inner = mapping.get(key)
        mapping[key] = mapping = inner if isinstance(inner, dict) else {}
    mapping[last] = value


def _delete_in(mapping: Any, path: list[str]) -> None:
    *parents, last = path
    for key in parents:
        mapping = mapping.get(key) if isinstance(mapping, dict) else None
    if isinstance(mapping, dict):
        mapping.pop(last, None)


def _chunks(reader: StreamReader) -> Iterator[Any]:
    while True:
        chunk = reader.read()
        yield chunk
        if not chunk.more:
            return


# ── following ────────────────────────────────────────────────────────────────────────────────────────────────


def _newest(run_dir: Path, stream: str, count: int) -> list[tuple[str, Record]]:
    """Return the last `count` records of the run's history, with their writers."""
    found: list[tuple[str, Record]] = []
    for writer in reversed(primaries(run_dir)):
        missing = count - len(found)
        if missing <= 0:
            break
        end_seq, _ = end_of(run_dir / writer, stream)
        reader = StreamReader(run_dir / writer, stream, max(0, end_seq - missing))
        records = [record for chunk in _chunks(reader) for record in chunk.records][-missing:]
        found = [(writer, record) for record in records] + found
    return found


def follow_run(run_dir: Path, stream: str, after: tuple[str, Record] | None) -> Iterator[Record]:
    """Yield what comes after that record, piece after piece, until the run is closed."""
    names = primaries(run_dir)
    writer = after[0] if after else names[0] if names else None
    next_seq = after[1].seq + 1 if after else 0
    if after is None and names:
        # Nothing is to be repeated: from the end on.
        writer = names[-1]
        next_seq, _ = end_of(run_dir / writer, stream)
    while writer is None:
        time.sleep(_POLL_S)
        writer = next(iter(primaries(run_dir)), None)
    while True:
        yield from _follow_piece(run_dir, writer, stream, next_seq)
        names = primaries(run_dir)
        later = names[names.index(writer) + 1 :] if writer in names else []
        if not later:
            return
        writer, next_seq = later[0], 0


def _follow_piece(run_dir: Path, writer: str, stream: str, seq: int) -> Iterator[Record]:
    reader = StreamReader(run_dir / writer, stream, seq)
    while True:
        # Asked before the last read: a writer may append between a read and its death.
        is_closed = state_of(run_dir, writer) != "live"
        for chunk in _chunks(reader):
            yield from chunk.records
        if is_closed:
            return
        while not reader.has_grown() and state_of(run_dir, writer) == "live":
            time.sleep(_POLL_S)


# ── proving ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Proof:
    """What reading one stream of one writer to its end has shown."""

    run: str
    writer: str
    stream: str
    records: int = 0
    lost: int = 0
    dropped: int = 0
    """What the writer itself could not write, and said so."""
    torn_bytes: int = 0
    damage: list[dict[str, Any]] = field(default_factory=list)


def proofs_of(run_dir: Path) -> Iterator[Proof]:
    """Read all streams of all writers of a run."""
    run = _name_of(run_dir) or run_dir.name
    for writer in writers(run_dir):
        for stream in STREAMS:
            if segments_in(os.listdir(run_dir / writer), stream):
                yield _proof_of(run, run_dir, writer, stream)


def _proof_of(run: str, run_dir: Path, writer: str, stream: str) -> Proof:
    proof = Proof(run, writer, stream)
    is_closed = state_of(run_dir, writer) != "live"
    reader = StreamReader(run_dir / writer, stream)
    for chunk in _chunks(reader):
        proof.records += len(chunk.records)
        proof.dropped += sum(r.data.get("dropped", 0) for r in chunk.records if r.kind == "gap")
        _note_damage(proof, chunk.damage)
        if chunk.blocked is not None:
            # Nothing is known to be lost, but nothing from here on is known to be there either.
            at = reader.next_seq
            _note_damage(proof, [Damage(run_dir / writer, 0, at, at - 1, chunk.blocked)])
    if is_closed:
        _note_damage(proof, reader.end())
    proof.torn_bytes = reader.torn_bytes()
    return proof


def _note_damage(proof: Proof, damage: list[Damage]) -> None:
    for each in damage:
        proof.lost += each.lost
        proof.damage.append(asdict(each) | {"path": str(each.path), "lost": each.lost})


def _print_proof(proof: Proof) -> None:
    where = f"{proof.run} {proof.writer} {proof.stream}"
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


# ── printing ─────────────────────────────────────────────────────────────────────────────────────────────────


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


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
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
