"""The command `analysis`: SQL over the logs, from a terminal.

Invariants
----------
* What was asked for is on stdout, and nothing else is: notices, warnings and errors are on stderr.
* `--json` prints one object a line, for programs; without it, what is printed is for people.
* Exit codes: 0 it ran; 1 the world failed; 2 wrong usage, a name that is not there, or a query that DuckDB refuses.

Here is what each command asks and in which order; how it is asked is in `asking`, what a name means in `naming` and
`fields`, and what an answer looks like in `printing` and `plots`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from analysis import asking, naming, printing, verdicts
from analysis.asking import connected
from analysis.naming import NotFound, Run, nearest
from analysis.sqltext import identifier, literal
from eventlog.progress import progress
from eventlog.record import json_of

if TYPE_CHECKING:
    import duckdb
    from rich.console import Console

    from analysis.compare import Comparison
    from analysis.curves import Curve
    from analysis.plots import Line

_OVERVIEW = "project, run_id, name, state, last_step, records, trajectories, backlog, started, duration_s"
_PICTURES = (".png", ".svg")

Command = TypeVar("Command", bound=Callable[..., Any])

_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the runs are. [default: $EVENTLOG_ROOT, else ./runs]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
_metric_option = click.option(
    "--metric", "metrics", metavar="KEY", multiple=True, help="May be given again; `train/*` is all of them."
)
_format_option = click.option(
    "--format", "shape", type=click.Choice(printing.SHAPES), help="[default: as FILE is called, else table]"
)
_output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it there."
)
_steps_option = click.option(
    "--steps",
    type=click.IntRange(1),
    default=verdicts.STEPS,
    show_default=True,
    help="What moves is over so many steps.",
)
_smooth_option = click.option(
    "--smooth",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    metavar="WEIGHT",
    help="Draw an exponential average instead, as W&B does: 0.9 is a lot.",
)


def _question_options(command: Command) -> Command:
    for option in (_json_option, _output_option, _format_option):
        command = option(command)
    return _root_option(command)


def _drawing_options(command: Command) -> Command:
    for option in (
        click.option("--log-x", is_flag=True, help="A logarithmic x axis."),
        click.option("--log-y", is_flag=True, help="A logarithmic y axis."),
        click.option(
            "--x",
            type=click.Choice(["step", "time"]),
            default="step",
            show_default=True,
            help="Over the steps, or over the time since the run began.",
        ),
    ):
        command = option(command)
    return _smooth_option(command)


class _Commands(click.Group):
    """Ends every command in words: where stdout takes no more, and where an error names what is called as it likes."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            try:
                return super().main(*args, **extra)
            finally:
                # When Python does it at its end, nobody is told.
                if sys.stdout:
                    sys.stdout.flush()
        except OSError as error:
            if error.filename is not None:
                raise
            # What is still in the buffer would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno != errno.EPIPE:
                asking.say(
                    f"Error: stdout could not be written to: {error.strerror or error}. It is not whole."
                )
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            said = io.StringIO()
            error.show(said)
            asking.say(said.getvalue().rstrip("\n"))
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidelog", prog_name="analysis")
def main() -> None:
    """Ask training runs anything, in SQL, while they run.

    RUN is an id, `project/id`, a display name, or a run's directory.
    """


@main.command()
@click.argument("query", required=False)
@_root_option
@click.option(
    "-f", "--file", "query_file", type=click.File("r"), help="Read the query from a file (`-`: stdin)."
)
@click.option(
    "-p",
    "--parameter",
    "given",
    metavar="NAME=VALUE",
    multiple=True,
    help="The value of $NAME in the query: a number if it looks like one, else text; '5' in quotes is text.",
)
@_format_option
@_output_option
@_json_option
@click.option(
    "--verify", is_flag=True, help="Check every record's checksum first, and leave out what is damaged."
)
@click.option(
    "--pack",
    type=click.Path(path_type=Path),
    metavar="PACK",
    help="Ask what `analysis pack` wrote, not the logs.",
)
@click.option("--engine", type=click.Choice(["duckdb", "spark"]), default="duckdb", help="Spark asks a pack.")
@click.option(
    "--master",
    metavar="URL",
    help="The Spark to ask: spark://…, local-cluster[2,1,1024].  [default: local[*]]",
)
@click.option("--show", is_flag=True, help="Print what Spark would be asked, and do not ask it.")
def sql(
    query: str | None,
    root: Path | None,
    query_file: Any,
    given: tuple[str, ...],
    shape: str | None,
    output: Path | None,
    as_json: bool,
    verify: bool,
    pack: Path | None,
    engine: str,
    master: str | None,
    show: bool,
) -> None:
    """Run QUERY and print what it finds; it may be several statements. Without one, a terminal gets a shell, and
    anything else the views and some queries to start from.

    \b
    analysis sql "SELECT run_id, state, last_step FROM runs"
    analysis sql 'SELECT step, value FROM curve($run, $key)' -p run=baseline -p key=train/loss --format csv
    analysis sql "FROM metrics" -o metrics.parquet
    """
    if query and query_file:
        raise click.UsageError("give the query or a file with it, not both.")
    shape = printing.shape_of("json" if as_json else shape, output)
    values = asking.parameters(given)
    try:
        text = query_file.read() if query_file else query
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"{query_file.name!r} is no text: {error.reason} at byte {error.start}."
        ) from None
    if pack is not None and (root is not None or verify):
        raise click.UsageError(
            "a pack is asked or the logs below a root; --verify belongs to `analysis pack`."
        )
    if engine == "duckdb" and (master or show):
        raise click.UsageError("--master and --show belong to --engine spark.")
    with connected(root, verify, pack) as con:
        if engine == "spark":
            _ask_spark(con, text, values, shape, output, pack, master, show)
        elif text and text.strip():
            _answer(con, text, values, shape, output)
        elif query_file is None and output is None and sys.stdin.isatty() and sys.stdout.isatty():
            _shell(con, values, shape)
        else:
            _print_guide(con)


@main.command()
@_root_option
@click.option(
    "--where",
    metavar="SQL",
    help='Only these, e.g. "state = \'live\' AND config.lr > 1e-5 AND summary.\\"eval/reward\\" > 0.5".',
)
@click.option(
    "--sort",
    metavar="COLUMN",
    help="By this column of `runs`, config.KEY or summary.KEY; a `-` before it is downwards.  [default: started]",
)
@_json_option
def runs(root: Path | None, where: str | None, sort: str | None, as_json: bool) -> None:
    """List the runs. `--json` has all columns, config and summary among them.

    config.KEY and summary.KEY are the values in those columns, and compare as what they are: `= true` is only what is true,
    `> 1` only a number. What is of another kind, and NaN, is unequal (`<>`), and neither more nor less; `isnan(summary.loss)`
    finds NaN.
    """
    from analysis.fields import Fields

    with connected(root) as con, asking.in_words(con):
        asking.refuse_unless_condition(con, where or "true")
        known = [name for name, _ in naming.columns(con, "runs")]
        fields = Fields()
        source = "runs"
        if any(f"{column}." in f"{where} {sort}".lower() for column in ("config", "summary")):
            # Its keys are looked at before it is asked: computed once.
            asking.execute(con, "CREATE TEMP TABLE seen AS SELECT * FROM runs")
            source = "temp.seen AS runs"
            fields = Fields.of(con.execute("SELECT config, summary FROM temp.seen").fetchall())
        condition = fields.condition(where or "true")
        column = (sort or "started").removeprefix("-")
        order = fields.order(sort or "")
        if order is None:
            if column not in known:
                raise NotFound(f"runs have no column {column!r}. {nearest(column, known)}")
            order = f'"{column}" {"DESC" if (sort or "").startswith("-") else "ASC"} NULLS LAST'
        shown = "".join(f", {sql} AS {identifier(name)}" for name, sql in fields.used.items())
        asking.execute(
            con,
            f"SELECT {'*' if as_json else _OVERVIEW + shown} FROM {source} WHERE ({condition}\n) "
            f"ORDER BY {order}, project, run_id",
        )
        _print(con, "json" if as_json else "table")
        asking.say_what_was_passed_over(con)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@_root_option
@_metric_option
@_drawing_options
@_json_option
def compare(
    runs: tuple[str, ...], root: Path | None, metrics: tuple[str, ...], as_json: bool, **drawing: Any
) -> None:
    """Say in which settings the RUNs differ, and what they came to; with --metric, also draw its curves.

    Of the metrics it is the last values, as W&B's summary has them.
    """
    from analysis.compare import compare as compared
    from analysis.curves import read_curves

    with connected(root) as con, asking.in_words(con):
        found = naming.find_runs(con, runs)
        keys = naming.find_keys(con, found, metrics)
        asking.say_what_is_lost(con, found)
        comparison = compared(con, found)
        curves = read_curves(con, found, keys) if keys else []
    if as_json:
        _print_comparison_as_json(comparison, curves)
    else:
        _print_comparison(comparison, keys)
        _draw(curves, **drawing)


@main.command()
@click.argument("words", nargs=-1, required=True, metavar="RUN… [KEY…]")
@_root_option
@_metric_option
@_drawing_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw into this file, .png or .svg, instead of the terminal.",
)
@_json_option
def plot(
    words: tuple[str, ...],
    root: Path | None,
    metrics: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    **drawing: Any,
) -> None:
    """Draw curves: one chart for each KEY, with all RUNs in it.

    A word that is the id or the directory of a run is a RUN; every other is a KEY if these runs have it, else the
    display name of a run. What follows --metric is always a KEY.

    \b
    analysis plot baseline lr-3e-6 train/reward eval/reward --smooth 0.9
    analysis plot baseline --metric 'train/*' -o curves.png
    """
    from analysis.curves import read_curves

    if output is not None and output.suffix.lower() not in _PICTURES:
        raise click.UsageError(f"{str(output)!r} is no picture. Give a name that ends in .png or .svg.")
    with connected(root) as con, asking.in_words(con):
        found, keys = naming.runs_and_keys(con, words)
        keys = list(dict.fromkeys([*keys, *naming.find_keys(con, found, metrics)]))
        if not keys:
            raise click.UsageError(f"which metric? {nearest('', naming.keys_of(con, found))}")
        asking.say_what_is_lost(con, found)
        curves = read_curves(con, found, keys)
    missing = [key for key in keys if key not in {curve.key for curve in curves}]
    for key in missing:
        asking.say(f"analysis: {key!r} has no numbers to draw.")
    if as_json:
        _print_curves_as_json(curves)
    elif output is not None:
        _save(curves, output, **drawing)
    else:
        _draw(curves, **drawing)
    sys.exit(2 if not curves else 0)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@_root_option
@_metric_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it there: .csv, .parquet or .jsonl.  [default: CSV on stdout]",
)
@click.option("--long", is_flag=True, help="One row for each value, of all ranks, as it was logged.")
@_json_option
def export(
    runs: tuple[str, ...],
    root: Path | None,
    metrics: tuple[str, ...],
    output: Path | None,
    long: bool,
    as_json: bool,
) -> None:
    """Export the metrics of the RUNs: one row for each step of a run, one column for each metric.

    Of several values at one step, the last one logged counts; --long has all of them.
    """
    from analysis import curves

    shape = printing.shape_of("json" if as_json else None if output else "csv", output)
    with connected(root) as con, asking.in_words(con):
        found = naming.find_runs(con, runs)
        keys = naming.find_keys(con, found, metrics) if metrics else naming.keys_of(con, found)
        if not keys:
            raise NotFound(f"{', '.join(run.full for run in found)} logged no metric.")
        asking.say_what_is_lost(con, found)
        query = curves.long(found, keys) if long else curves.wide(con, found, keys)
        _answer(con, query, {}, shape, output)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@_root_option
@click.option(
    "--keys",
    "--metric",
    "metrics",
    metavar="GLOB",
    multiple=True,
    help="Draw these only; may be given again; `train/*` is all of them.",
)
@_smooth_option
@click.option(
    "--trajectories",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    metavar="N",
    help="So many of the best and of the worst of each run.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    default=Path("report.html"),
    show_default=True,
    help="Write it there; `-` is stdout.",
)
def report(
    runs: tuple[str, ...],
    root: Path | None,
    metrics: tuple[str, ...],
    smooth: float,
    trajectories: int,
    output: Path,
) -> None:
    """Write a report on the RUNs: one HTML file that needs no network, to read, to keep, and to send to others.

    It has warnings, last values, settings that differ, curves, the best and the worst trajectories, and the upload. Runs that
    differ in nothing but their seed are drawn as their mean with its 95 % interval.
    """
    from analysis.report import read_report
    from analysis.report_page import made_by, page

    with connected(root) as con, asking.in_words(con):
        found = naming.find_runs(con, runs)
        keys = naming.find_keys(con, found, metrics) if metrics else None
        content = read_report(con, found, keys, smooth, trajectories)
    # Of what came from the command line, not all may be text.
    html = page(content, made_by(content, metrics, datetime.now().astimezone())).encode("utf-8", "replace")
    if str(output) == "-":
        sys.stdout.buffer.write(html)
    else:
        with printing.replacing(output) as file:
            file.write_bytes(html)


@main.command()
@click.argument("run", metavar="RUN")
@_question_options
@_steps_option
def gap(run: str, steps: int, **asked: Any) -> None:
    """Say how far mathematics (MATH) is behind arithmetic (GSM8K), in percentage points, and whether that changes.

    `trend` is the slope over the last steps, in points a step. RUN logs dataset/gsm8k/accuracy and dataset/math/accuracy.
    """
    _ask(verdicts.GAP, run, {"steps": steps}, **asked)


@main.command()
@click.argument("run", metavar="RUN")
@_question_options
@_steps_option
def judge(run: str, steps: int, **asked: Any) -> None:
    """Say whether the judge answers: where its success rate is below 0.8, since when, and the moving mean.

    RUN logs judge/success_rate.
    """
    _ask(verdicts.JUDGE, run, {"steps": steps}, **asked)


@main.command()
@click.argument("run", metavar="RUN")
@_question_options
def cost(run: str, **asked: Any) -> None:
    """Say what a right answer costs, the best step first.

    RUN logs cost/avg_cost_per_sample and train/accuracy.
    """
    _ask(verdicts.COST, run, {}, **asked)


@main.command()
@_root_option
@click.option(
    "-o",
    "--output",
    "to",
    type=click.Path(path_type=Path),
    metavar="PACK",
    required=True,
    help="Its directory.",
)
@click.option("--prune", is_flag=True, help="Remove from the pack what is no longer below the root.")
@click.option("--dry-run", is_flag=True, help="Say what is new, and write nothing.")
@click.option(
    "--verify", is_flag=True, help="Check every record's checksum first, and leave out what is damaged."
)
@_json_option
def pack(root: Path | None, to: Path, prune: bool, dry_run: bool, verify: bool, as_json: bool) -> None:
    """Write all runs as a few large Parquet files, for other machines and engines; again, only what is new.

    \b
    analysis pack -o /data/pack
    analysis sql --pack /data/pack "SELECT run_id, max FROM rollup WHERE key = 'eval/reward'"
    """
    with asking.needing("pyarrow"):
        from analysis import pack as packs

        with (
            asking.said_notices(),
            packs.in_words(),
            packs.Packing.looked(root, to, prune=prune, verify=verify) as found,
        ):
            if dry_run:
                done = found.dry()
            else:
                with asking.in_words(found.con), progress(lambda: found.bytes_to_read) as advance:
                    done = found.write(advance)
    for warning in packs.warned(done):
        asking.say(f"analysis: {warning}")
    if as_json:
        printing.print_json(packs.content_of(done))
    else:
        click.echo(packs.said(done, dry_run))
    sys.exit(1 if done.plan.another else 0)


# ── answering ────────────────────────────────────────────────────────────────────────────────────────────────


def _answer(
    con: duckdb.DuckDBPyConnection, text: str, values: asking.Values, shape: str, output: Path | None
) -> None:
    """Run the statements, and print those results that are rows, into the file if there is one."""
    with asking.in_words(con):
        statements = asking.statements(con, text, values)
        asking.refuse_unused(statements, values)
        answers = [statement for statement in statements if asking.has_rows(statement)]
        if output is not None and len(answers) != 1:
            raise click.UsageError(
                f"a file has one result, and the query has {len(answers)}. Ask each in a command of its own."
            )
        count = 0
        for statement in statements:
            if statement in answers and shape == "parquet":
                assert output is not None
                _write_parquet(con, statement, values, output)
                asking.say_what_was_passed_over(con)
                continue
            asking.execute(con, statement, values)
            if statement in answers:
                with _opened(output) as out:
                    if count and shape != "json":
                        click.echo(file=out)
                    rows = _print(con, shape, out)
                count += 1
                if not rows:
                    for reason in asking.why_nothing(con, statement.query):
                        asking.say(reason)
            asking.say_what_was_passed_over(con)


def _ask(
    question: verdicts.Question,
    word: str,
    more: asking.Values,
    root: Path | None,
    shape: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    shape = printing.shape_of("json" if as_json else shape, output)
    with connected(root) as con, asking.in_words(con):
        run = naming.find_run(con, word)
        asking.say_what_is_lost(con, [run])
        values = {"run": run.run_id, "project": run.project, **more}
        asking.execute(con, question.query, values)
        rows = con.fetchall()
        if not rows:
            verdicts.refuse_without(con, run, question)
        if shape == "table" and output is None and sys.stdout.isatty():
            click.echo(question.verdict(rows) + "\n")
        _answer(con, question.query, values, shape, output)


def _ask_spark(
    con: duckdb.DuckDBPyConnection,
    text: str | None,
    values: asking.Values,
    shape: str,
    output: Path | None,
    pack: Path | None,
    master: str | None,
    show: bool,
) -> None:
    if pack is None or not text or not text.strip():
        raise click.UsageError("Spark asks a pack: give --pack PACK and a query. `analysis pack` makes one.")
    if shape == "parquet":
        raise click.UsageError("Spark's answer is printed; for Parquet, ask DuckDB.")
    with asking.needing("pyspark", "sqlglot", extra="spark"), asking.in_words(con):
        from analysis import spark

        query = spark.translated(con, text, values)
        for notice in query.notices:
            asking.say(f"analysis: {notice}")
        if show:
            click.echo(query.sql)
            return
        with spark.answer(con, pack, query, master) as result, _opened(output) as out:
            printing.show(result, shape, out)


def _write_parquet(
    con: duckdb.DuckDBPyConnection, statement: duckdb.Statement, values: asking.Values, output: Path
) -> None:
    # On lines of its own, so that the query may end in a comment, and that an error shows nothing else.
    query = statement.query.strip().rstrip(";")
    with printing.replacing(output) as file, asking.in_the_line_before():
        (copy,) = con.extract_statements(
            # Into the file that is there, and not into another beside it.
            f"COPY (FROM (\n{query}\n)) TO {literal(str(file))} (FORMAT parquet, USE_TMP_FILE false)"
        )
        asking.execute(con, copy, values)


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with printing.replacing(output) as file, open(file, "w", encoding="utf-8", newline="") as out:
        yield out


def _print(con: duckdb.DuckDBPyConnection, shape: str, out: TextIO | None = None) -> int:
    """Print what was executed last, and return how many rows that was."""
    result = printing.result_of(con)
    if result is None:
        return 0
    printing.show(result, shape, out)
    return result.count


def _shell(con: duckdb.DuckDBPyConnection, values: asking.Values, shape: str) -> None:
    try:
        from analysis.shell import Shell
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name!r} is not installed, which the shell needs. Install `tidelog[analysis]`, "
            'or give the query: analysis sql "SELECT * FROM runs".'
        ) from None
    Shell(con, values, shape).run()


def _print_guide(con: duckdb.DuckDBPyConnection) -> None:
    from analysis.queries import QUERIES

    click.echo("The views:\n")
    for view in naming.views(con):
        click.echo(f"  {naming.signature(view, (name for name, _ in naming.columns(con, view)))}")
    for macro in naming.macros(con):
        click.echo(f"  {naming.signature(*macro)}")
    click.echo(naming.OF_SOME)
    click.echo("\nSome queries:")
    for question, query in QUERIES.items():
        click.echo(f"\n-- {question}{query.rstrip()};")


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────


def _print_comparison(comparison: Comparison, keys: Sequence[str]) -> None:
    differing = comparison.differing
    same = len(comparison.config) - len(differing)
    if differing:
        _print_side_by_side("config", {key: comparison.config[key] for key in differing}, comparison.runs)
    if comparison.config:
        what = "1 setting is" if same == 1 else f"{same} settings are"
        click.echo(f"{what} the same.\n" if differing else f"All {same} settings are the same.\n")
    chosen = {key: values for key, values in comparison.metrics.items() if not keys or key in keys}
    if chosen:
        _print_side_by_side("last value", chosen, comparison.runs)
        click.echo()


def _print_side_by_side(heading: str, table: dict[str, dict[Run, Any]], of_runs: Sequence[Run]) -> None:
    called = naming.labels(of_runs)
    rows = [
        (key, *(_written(values[run]) if run in values else "–" for run in of_runs))
        for key, values in table.items()
    ]
    names = [heading, *(called[run] for run in of_runs)]
    printing.show(printing.Result(names, ["VARCHAR"] + ["DOUBLE"] * len(of_runs), iter(rows)), "table")


def _written(value: Any) -> Any:
    """
    >>> _written(0.1), _written(True), _written(None), _written([1, 2])
    (0.1, 'true', 'null', '[1,2]')
    """
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return value
    return json_of(value)


def _print_comparison_as_json(comparison: Comparison, curves: Sequence[Curve]) -> None:
    from analysis.compare import differs

    for part, table in (("config", comparison.config), ("metric", comparison.metrics)):
        for key, values in table.items():
            printing.print_json(
                {
                    "part": part,
                    "key": key,
                    "differs": differs(values, comparison.runs),
                    "values": {run.full: value for run, value in values.items()},
                }
            )
    _print_curves_as_json(curves)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────


def _print_curves_as_json(curves: Sequence[Curve]) -> None:
    for curve in curves:
        printing.print_json(
            {
                "part": "curve",
                "key": curve.key,
                "run": curve.run.full,
                "step": curve.steps,
                "seconds": curve.seconds,
                "value": curve.values,
            }
        )


def _charts(
    curves: Sequence[Curve], x: str, smooth: float, log_x: bool, log_y: bool
) -> list[tuple[str, list[Line]]]:
    """Return the title and the lines of each chart; say what cannot be in it."""
    from analysis.curves import smoothed
    from analysis.plots import Line, not_drawn

    called = naming.labels(list(dict.fromkeys(curve.run for curve in curves)))
    charts: dict[str, list[Line]] = {}
    for curve in curves:
        drawn = smoothed(curve, smooth) if smooth else curve
        line = Line(
            printing.cell(called[curve.run]), curve.xs(x), drawn.values, curve.values if smooth else None
        )
        charts.setdefault(curve.key, []).append(line)
    for key, lines in charts.items():
        if count := not_drawn(lines, log_x, log_y):
            values = "1 value is" if count == 1 else f"{count:,} values are"
            why = "not above zero, NaN or infinite" if log_x or log_y else "NaN or infinite"
            asking.say(f"analysis: {key}: {values} not drawn: {why}.")
    return [(printing.cell(key), lines) for key, lines in charts.items()]


def _draw(curves: Sequence[Curve], x: str, smooth: float, log_x: bool, log_y: bool) -> None:
    from rich.console import Console

    from analysis.plots import drawn

    console = Console(highlight=False)
    for title, lines in _charts(curves, x, smooth, log_x, log_y):
        has_colours = console.color_system is not None and not console.no_color
        picture = drawn(
            title, lines, console.width, x, log_x, log_y, is_ascii=_is_plain(console), has_colours=has_colours
        )
        for text in picture:
            console.print(text, no_wrap=True, overflow="ignore", crop=False)
        console.print()


def _is_plain(console: Console) -> bool:
    """Whether nothing but ASCII can be trusted to be shown."""
    return console.is_dumb_terminal or not console.encoding.startswith("utf")


def _save(curves: Sequence[Curve], output: Path, x: str, smooth: float, log_x: bool, log_y: bool) -> None:
    from analysis.plots import save

    charts = _charts(curves, x, smooth, log_x, log_y)
    if charts:
        with printing.replacing(output) as file:
            save(file, output.suffix[1:].lower(), charts, x, log_x, log_y)
