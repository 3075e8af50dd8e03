"""Rows of Python into a table of DuckDB, many at once.  What they mean is their callers' business."""

from __future__ import annotations

from collections.abc import Iterable

import duckdb
import orjson


def fill(con: duckdb.DuckDBPyConnection, schema: str, table: str, rows: Iterable[object]) -> None:
    """Add rows to `<schema>.<table>`: dataclasses or dicts with its columns.  `schema` may be a database."""
    content = list(rows)
    if not content:
        return
    columns = con.execute(
        """SELECT column_name, data_type FROM duckdb_columns()
        WHERE table_name = $table AND (schema_name = $schema OR database_name = $schema AND schema_name = 'main')""",
        {"table": table, "schema": schema},
    ).fetchall()
    con.execute(
        f"INSERT INTO {schema}.{table} BY NAME SELECT unnest(from_json(?, ?), recursive := true)",
        [orjson.dumps(content).decode(), orjson.dumps([dict(columns)]).decode()],
    )
