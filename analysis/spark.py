"""Asks a pack by Spark: the same SQL text, the same answer, on as many machines as its master has.

    text ──DuckDB binds it──▶ names and types of the answer
      └──portable.py──▶ Spark's SQL ──PySpark over the files of the pack──▶ rows of those types

Invariants
----------
* DuckDB, over the same pack, says what is wrong with a query, and what its columns are called; Spark is asked only what
  `portable` knows to be the same.
* The pack of the start is read to the end, whatever is packed meanwhile.
* Spark's own settings come from its master and its files; ours are those that meanings depend on.

The files must be where the executors see them: on a shared file system, or on this machine for `local[*]`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analysis.manifest import Manifest
from analysis.naming import NotFound
from analysis.pack import opened
from analysis.portable import NotPortable, portable
from analysis.printing import Result, unique

if TYPE_CHECKING:
    import duckdb

_TYPES = {
    "BIGINT": "bigint",
    "INTEGER": "int",
    "DOUBLE": "double",
    "VARCHAR": "string",
    "JSON": "string",
    "BOOLEAN": "boolean",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
    "VARCHAR[]": "array<string>",
}
# Spark takes these in a path for a pattern.
_PATTERN = re.compile(r"([\\\[\]{}*?])")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SETTINGS = {
    # An overflow is an error, as it is in DuckDB.
    "spark.sql.ansi.enabled": "true",
    "spark.sql.parser.escapedStringLiterals": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "false",
    # Else ${…} is replaced, in quotes too, by what its environment and its settings say.
    "spark.sql.variable.substitute": "false",
    # ORDER BY ALL and GROUP BY ALL are written as places.
    "spark.sql.orderByOrdinal": "true",
    "spark.sql.groupByOrdinal": "true",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


@dataclass(frozen=True, slots=True)
class Translated:
    """A query for Spark, and what DuckDB calls the columns of its answer."""

    sql: str
    names: list[str]
    types: list[str]
    notices: list[str]


def translated(con: duckdb.DuckDBPyConnection, text: str, values: Mapping[str, Any]) -> Translated:
    """Return the query in Spark's words; end the command where it is not portable. `con` is over a pack."""
    from analysis import asking, naming

    found = asking.statements(con, text, values)
    if len(found) != 1:
        raise NotFound("Spark is asked one query at a time.")
    (statement,) = found
    described = con.execute(
        f"DESCRIBE {statement.query.strip().rstrip(';')}", dict(values) or None
    ).fetchall()
    schema = {view: dict(naming.columns(con, view)) for view in naming.views(con)}
    try:
        query = portable(text, schema, values)
    except NotPortable as error:
        raise NotFound(f"{error} `--engine duckdb` answers it.") from None
    return Translated(
        query.sql, unique([row[0] for row in described]), [row[1] for row in described], query.notices
    )


@contextmanager
def answer(
    con: duckdb.DuckDBPyConnection, pack: Path, query: Translated, master: str | None
) -> Iterator[Result]:
    """Give what Spark at `master` answers; its session ends with this."""
    found = con.execute("SELECT current_setting('TimeZone')").fetchone()
    assert found is not None
    with session(pack, master or "local[*]") as spark:
        yield Result(query.names, query.types, rows_of(spark, query, found[0]))


@contextmanager
def session(pack: Path, master: str) -> Iterator[Any]:
    """Give a Spark session with the views over a pack."""
    snapshot = opened(pack)
    with _started(master) as spark:
        for view in snapshot.manifest.views:
            frame = spark.read.schema(schema_of(snapshot.manifest, view)).parquet(
                *map(_escaped, snapshot.files(view))
            )
            frame.createOrReplaceTempView(view)
        yield spark


def rows_of(spark: Any, query: Translated, time_zone: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the answer, as DuckDB hands them out."""
    import pytz
    from pyspark.sql import functions

    frame = spark.sql(query.sql)
    frame = frame.toDF(*(f"c{at}" for at in range(len(query.types))))
    # Spark hands times out in the zone of this process, without saying so.
    is_time = [kind == "TIMESTAMP WITH TIME ZONE" for kind in query.types]
    frame = frame.select(
        [functions.unix_micros(f"c{at}") if is_time[at] else f"c{at}" for at in range(len(query.types))]
    )
    zone = pytz.timezone(time_zone)
    for row in frame.toLocalIterator():
        yield tuple(_as_duckdb(value, kind, zone) for value, kind in zip(row, query.types, strict=True))


def schema_of(manifest: Manifest, view: str) -> str:
    """
    >>> schema_of(Manifest({"runs": {"run_id": "VARCHAR", "config": "JSON"}}), "runs")
    '`run_id` string, `config` string'
    """
    return ", ".join(f"`{name}` {_TYPES[kind]}" for name, kind in manifest.views[view].items())


def _as_duckdb(value: Any, kind: str, zone: Any) -> Any:
    if value is None:
        return None
    if kind == "TIMESTAMP WITH TIME ZONE":
        return (_EPOCH + timedelta(microseconds=value)).astimezone(zone)
    return int(value) if kind in ("HUGEINT", "BIGINT", "INTEGER") else value


def _escaped(path: str) -> str:
    return _PATTERN.sub(r"\\\1", path)


@contextmanager
def _started(master: str) -> Iterator[Any]:
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    if master.startswith("local"):
        # Else it looks for this machine's name in the network, which may have none.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master(master).appName("tidelog")
    for name, value in _SETTINGS.items():
        builder = builder.config(name, value)
    try:
        spark = builder.getOrCreate()
    except PySparkException as error:
        raise click.ClickException(
            f"Spark does not start: {error}. It needs Java 17 or newer, and its `java` in PATH."
        ) from None
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    except PySparkException as error:
        raise click.ClickException(f"Spark could not answer: {error}") from None
    finally:
        spark.stop()
