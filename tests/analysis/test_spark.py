"""What Spark answers over a pack is what DuckDB answers, or it is refused by name."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

import analysis
import analysis.pack as packs
from analysis.cli import main
from analysis.manifest import Manifest
from analysis.pack import VIEWS, Packing
from tests.analysis.test_sealed import log_everything
from tests.logs import handmade_run

pytest.importorskip("sqlglot")

from analysis import spark
from analysis.portable import NotPortable, portable

REPOSITORY = Path(__file__).parents[2]
MISSING = (
    "pyspark is not installed"
    if importlib.util.find_spec("pyspark") is None
    else "there is no `java`"
    if shutil.which("java") is None
    else ""
)
needs_spark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
# Two executors in processes of their own, as on a cluster.
MASTER = "local-cluster[2,1,1024]"

EXTREMES = [2**63 - 1, -(2**63), 0, -1, 7, 2**53 + 1]
FLOATS = [0.1, -0.25, 1e300, 5e-324, math.nan, math.inf, -math.inf, 0.1 + 0.2, 1 / 3]
KEYS = ["train/loss", "κ-ключ-键-😀", "e\u0301", "é", "a\\b", "it's", "a%b_c", "Loss", "", "\u2028"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    log_everything(root)
    for project, run_id in (("demo", "a"), ("demo", "ü b"), ("other", "a"), ("001", "007")):
        run = handmade_run(root, run_id, project, config={"lr": 0.1}, tags=["x", "ü"], name=f"n {run_id}")
        for step in range(30):
            data: dict[str, Any] = {key: FLOATS[(step + at) % len(FLOATS)] for at, key in enumerate(KEYS)}
            data |= {
                "n": step % 4,
                "big": EXTREMES[step % len(EXTREMES)],
                "text": KEYS[step % len(KEYS)],
                "ok": step % 3 == 0,
            }
            run.log(step=step // 2, **data)
        run.log("alert", title="t", level="WARN", text="x")
        run.die()
    handmade_run(root, "bare", "empty").die()
    return root


@pytest.fixture(scope="module")
def pack(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("pack[1]*") / "p {a}"
    with Packing.looked(root, to) as found:
        found.write()
    return to


@pytest.fixture(scope="module")
def over_logs(root: Path) -> duckdb.DuckDBPyConnection:
    return analysis.connect(root)


@pytest.fixture(scope="module")
def over_pack(pack: Path) -> duckdb.DuckDBPyConnection:
    return packs.connect(pack)


@pytest.fixture(scope="module")
def session(pack: Path) -> Iterator[Any]:
    with spark.session(pack, MASTER) as found:
        yield found


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    # Read out at once: a result that is open is in the way of the next query.
    return [repr(tuple(map(_plain, row))) for row in con.execute(query).fetchall()]


def rows_of_spark(session: Any, con: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    asked = spark.translated(con, query, {})
    zone = con.execute("SELECT current_setting('TimeZone')").fetchall()[0][0]
    return [repr(tuple(map(_plain, row))) for row in spark.rows_of(session, asked, zone)]


def _plain(value: Any) -> Any:
    """0.0 and -0.0 are one value, and so are the moments that two zones call otherwise."""
    if isinstance(value, float):
        return value + 0.0
    if isinstance(value, str) and value[:1] == "{":
        return json.dumps(json.loads(value), sort_keys=True)
    return value.timestamp() if hasattr(value, "timestamp") else value


SAME = [
    *(f"SELECT * FROM {view}" for view in VIEWS),
    "FROM metrics",
    "SELECT * EXCLUDE (time, seq) FROM metrics WHERE rank = 0",
    "SELECT count(*), count(value), count(int), count(text), count(DISTINCT key), count(DISTINCT value) FROM metrics",
    "SELECT run_id, key, min(value) AS lowest, max(value) AS highest, min(step) AS f, max(time) AS t FROM metrics GROUP BY run_id, key",
    "SELECT key, sum(int) AS total, sum(int) FILTER (WHERE step > 3) AS late FROM metrics GROUP BY ALL",
    "SELECT sum(int) / nullif(count(int), 0) AS mean FROM metrics WHERE key = 'n'",
    "SELECT project, run_id, max FROM rollup WHERE key = 'train/loss' ORDER BY max DESC, project, run_id LIMIT 3",
    "SELECT DISTINCT project, key FROM metrics ORDER BY ALL LIMIT 20 OFFSET 3",
    "SELECT DISTINCT value FROM metrics",
    "SELECT value, count(*) FROM metrics GROUP BY value",
    "SELECT value FROM metrics WHERE value > 0.1 AND value <= 1e300",
    "SELECT value FROM metrics WHERE isnan(value) OR isinf(value)",
    "SELECT value FROM metrics WHERE NOT isfinite(value)",
    "SELECT isnan(value), isfinite(value), isinf(value), value IS NULL FROM metrics",
    "SELECT value = value, value > 1, value <> 0, value < -1e-3 FROM metrics",
    "SELECT value IS DISTINCT FROM int, value IS NOT DISTINCT FROM 0.1 FROM metrics",
    "SELECT int = 9223372036854775807, int < 0, int BETWEEN -1 AND 7, int IN (0, 7) FROM metrics WHERE key = 'big'",
    "SELECT value * 2 + 1, -value, abs(value), value - int FROM metrics",
    "SELECT value / 3, value / -0.5, int / 7, step / nullif(rank, 0) FROM metrics",
    "SELECT step % 3, -step % 3, step * 2 - 1 FROM metrics",
    "SELECT CASE WHEN value > 0 THEN 'up' WHEN isnan(value) THEN NULL ELSE text END FROM metrics",
    "SELECT CASE key WHEN 'n' THEN int ELSE value END AS v FROM metrics",
    "SELECT coalesce(value, int, 0), coalesce(text, key), nullif(step, 3), greatest(value, 1), least(value, step, 0.5) FROM metrics",
    "SELECT if(value > 0, 1, 0), IF(step > 2, value, NULL) FROM metrics",
    "SELECT key || ':' || text, length(key), length(text) FROM metrics",
    "SELECT key FROM metrics WHERE key LIKE 'a%' OR key LIKE '%''%' OR key LIKE '_' OR key = 'a\\b'",
    "SELECT key FROM metrics WHERE starts_with(key, 'train/') OR ends_with(key, '😀') OR contains(key, '\\')",
    "SELECT key FROM metrics WHERE key NOT IN ('n', 'é', NULL)",
    "SELECT key FROM metrics WHERE key >= 'e' AND key < '😀' ORDER BY key DESC",
    "SELECT int::DOUBLE, CAST(int AS VARCHAR), (value > 0)::BIGINT, CAST(0.5 AS DOUBLE) FROM metrics",
    "SELECT value FROM metrics ORDER BY value, key, step, project, run_id, writer, seq",
    "SELECT text FROM metrics ORDER BY text DESC NULLS FIRST",
    "SELECT m.key, r.name, r.state FROM metrics m JOIN runs r USING (project, run_id) WHERE r.state = 'crashed'",
    "SELECT r.run_id, m.key FROM runs r LEFT JOIN metrics m ON r.project = m.project AND r.run_id = m.run_id AND m.key = 'n'",
    "SELECT run_id, m.key, a.title FROM metrics m FULL JOIN alerts a USING (project, run_id, step)",
    "SELECT a.key, b.key FROM config a CROSS JOIN config b",
    "WITH best AS (SELECT run_id, max(value) AS top FROM metrics WHERE isfinite(value) GROUP BY run_id) SELECT b.run_id, m.step FROM metrics m JOIN best b ON m.run_id = b.run_id AND m.value = b.top",
    "SELECT run_id FROM runs WHERE run_id IN (SELECT run_id FROM alerts)",
    "SELECT key FROM metrics WHERE value = (SELECT max(value) FROM metrics WHERE isfinite(value))",
    "SELECT key, c FROM (SELECT key, count(*) AS c FROM metrics GROUP BY key) x WHERE c > 10",
    "SELECT key FROM metrics UNION SELECT key FROM config",
    "SELECT value FROM metrics UNION ALL SELECT int FROM metrics",
    "SELECT key, count(*) AS c FROM metrics GROUP BY key HAVING count(*) > 50 AND max(step) > 2",
    "SELECT key, step, rank() OVER (PARTITION BY project, run_id, key ORDER BY value DESC) AS place FROM metrics",
    "SELECT key, max(value) OVER (PARTITION BY key) AS top, sum(int) OVER (PARTITION BY key) AS total FROM metrics",
    "SELECT state, count(*) FROM runs GROUP BY state",
    "SELECT min(time), max(time) FROM metrics WHERE project = 'nowhere'",
    "SELECT sum(int), max(key), count(*) FROM checkpoints c JOIN metrics m USING (run_id)",
    "SELECT project FROM runs WHERE project = '001' AND run_id = '007'",
    "SELECT finished, not_shown FROM sync_state WHERE finished",
    "SELECT '${env:HOME}' AS a, '${spark.app.name}' AS b, '$${x}' AS c",
    "SELECT key, count(*) AS c FROM metrics WHERE ((step > 1) = (value > 1)) IN (true, NULL) GROUP BY key",
    "SELECT (step > 1) < ((step > 2) NOT BETWEEN false AND false) AS c, ('x' || step::VARCHAR IN ('x1')) = true AS d FROM metrics",
    "WITH best AS (SELECT run_id AS r, max(step) AS top FROM metrics GROUP BY run_id) SELECT r, 0 - top AS worst FROM best ORDER BY 0 - top, r LIMIT 3",
    "SELECT key FROM metrics UNION SELECT key FROM config ORDER BY key DESC",
    "SELECT key AS a, text AS b FROM metrics UNION ALL SELECT text AS b, key AS a FROM metrics ORDER BY 2, a LIMIT 9",
    "SELECT key, step FROM metrics UNION SELECT key, 1 FROM config ORDER BY ALL LIMIT 20",
    "SELECT 3 AS c, key, count(*) AS counted FROM metrics GROUP BY 1, 2",
    "SELECT length(key) * 1000000000 AS a, rank() OVER (ORDER BY step) * 1000000000 AS b FROM metrics",
    "SELECT -2147483648 - 1 AS a, - -2147483648 AS b",
    "SELECT count(*) AS c FROM metrics m, runs r, config c WHERE m.run_id = r.run_id AND c.run_id = r.run_id",
    "SELECT key FROM metrics WHERE text IN (SELECT text FROM metrics) AND NOT step IN (SELECT step FROM metrics WHERE step > 2)",
    "SELECT key FROM metrics GROUP BY key HAVING key NOT IN (SELECT key FROM config) AND count(*) > 1",
    "SELECT config FROM runs UNION ALL SELECT summary FROM runs",
]  # fmt: skip


@needs_spark
@pytest.mark.parametrize("query", SAME)
def test_the_answers_are_the_same(
    query: str, over_logs: duckdb.DuckDBPyConnection, over_pack: duckdb.DuckDBPyConnection, session: Any
) -> None:
    of_logs, of_pack = rows(over_logs, query), rows(over_pack, query)
    of_spark = rows_of_spark(session, over_pack, query)

    assert sorted(of_pack) == sorted(of_logs)
    assert sorted(of_spark) == sorted(of_logs)
    if "ORDER BY" in query and "OVER" not in query:
        # In the order that was asked for, where equal rows are one.
        assert of_spark == of_logs


# ── any query of the grammar ─────────────────────────────────────────────────────────────────────────────────────


class Grammar:
    """Makes queries that are portable, of metrics: few words, in any combination."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def query(self) -> str:
        if self._random.random() < 0.5:
            columns = [f"{self.value()} AS c{at}" for at in range(self._random.randint(1, 4))]
            query = f"SELECT {', '.join(columns)} FROM metrics WHERE {self.condition()}"
        else:
            keys = self._random.sample(
                ["project", "run_id", "key", "step", "value", "text", "int"], self._random.randint(1, 2)
            )
            made = [f"{self.aggregate()} AS c{at}" for at in range(self._random.randint(1, 3))]
            query = f"SELECT {', '.join([*keys, *made])} FROM metrics WHERE {self.condition()} GROUP BY ALL"
            if self._random.random() < 0.3:
                query += " HAVING count(*) > 2"
        return (
            f"{query} ORDER BY ALL LIMIT {self._random.randint(1, 50)}"
            if self._random.random() < 0.4
            else query
        )

    def value(self) -> str:
        return self._random.choice([self.number, self.number, self.text, self.condition])()

    def number(self, depth: int = 0) -> str:
        if depth > 2:
            return self._random.choice(["value", "step", "1", "0.5", "-2", "1e-3"]) if depth % 2 else "value"
        deeper = [self.number(depth + 1) for _ in range(2)]
        return self._random.choice(
            [
                "value", "step::DOUBLE", "int::DOUBLE",
                f"({deeper[0]} + value)", f"(value * {deeper[0]})", f"(value - {deeper[1]})",
                f"coalesce({deeper[0]}, value, 0)", f"abs({deeper[0]} + value)", f"(value / nullif({deeper[0]} + value, 0))",
                f"greatest(value, {deeper[0]})", f"CASE WHEN {self.condition(2)} THEN value ELSE {deeper[1]} END",
            ]
        )  # fmt: skip

    def text(self) -> str:
        return self._random.choice(
            ["key", "text", "key || text", "coalesce(text, key)", "nullif(key, 'n')", "int::VARCHAR"]
        )

    def condition(self, depth: int = 0) -> str:
        word = self._random.choice(KEYS).replace("'", "''")
        plain = [
            f"value > {self._random.choice(['0', '0.1', '-1e-3', '1e300'])}", "value IS NOT NULL", "isfinite(value)",
            "NOT isnan(value)", f"step % {self._random.randint(2, 5)} = 1", f"key = '{word}'", "text IS NULL", "int IN (0, 7, -1)",
            f"step BETWEEN {self._random.randint(0, 5)} AND 9", f"starts_with(key, '{word[:1]}')", f"text <> '{word}'", "value = int",
        ]  # fmt: skip
        if depth > 1:
            return self._random.choice(plain)
        return self._random.choice(
            [*plain, f"({self.condition(depth + 1)} AND {self.condition(depth + 1)})", f"({self.condition(depth + 1)} OR NOT ({self.condition(depth + 1)}))"]
        )  # fmt: skip

    def aggregate(self) -> str:
        made = self._random.choice(
            ["count(*)", "count(text)", "count(DISTINCT value)", f"min({self.number(1)} + value)", f"max({self.number(1)} + value)", "sum(int)", f"max({self.text()})", "min(time)"]
        )  # fmt: skip
        return f"{made} FILTER (WHERE {self.condition(1)})" if self._random.random() < 0.3 else made


@needs_spark
@pytest.mark.parametrize("seed", range(40))
def test_the_answers_to_any_portable_query_are_the_same(
    seed: int, over_logs: duckdb.DuckDBPyConnection, over_pack: duckdb.DuckDBPyConnection, session: Any
) -> None:
    query = Grammar(seed).query()

    of_logs, of_pack = rows(over_logs, query), rows(over_pack, query)
    of_spark = rows_of_spark(session, over_pack, query)

    assert sorted(of_pack) == sorted(of_logs), query
    assert sorted(of_spark) == sorted(of_logs), query


@needs_spark
def test_sums_and_means_of_doubles_differ_in_their_last_digits_at_most_and_it_is_said(
    over_logs: duckdb.DuckDBPyConnection, over_pack: duckdb.DuckDBPyConnection, session: Any
) -> None:
    query = (
        "SELECT sum(value), avg(value), sum(abs(value)), count(*) FROM metrics WHERE value BETWEEN -1 AND 1"
    )

    (total, mean, magnitude, n) = over_logs.execute(query).fetchall()[0]
    (row,) = spark.rows_of(session, spark.translated(over_pack, query, {}), "UTC")

    ulps = n * math.ulp(magnitude)
    assert abs(row[0] - total) <= ulps
    assert abs(row[1] - mean) <= ulps / n
    assert "last digits may differ" in spark.translated(over_pack, query, {}).notices[0]


@needs_spark
def test_what_overflows_is_an_error_in_both(over_pack: duckdb.DuckDBPyConnection, session: Any) -> None:
    query = "SELECT int + 1 FROM metrics WHERE key = 'big'"

    with pytest.raises(duckdb.OutOfRangeException):
        over_pack.execute(query).fetchall()
    with pytest.raises(Exception, match="ARITHMETIC_OVERFLOW"):
        rows_of_spark(session, over_pack, query)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "SELECT approx_count_distinct(key) FROM metrics": "approximate",
    "SELECT approx_quantile(value, 0.5) FROM metrics": "approximate",
    "SELECT median(value) FROM metrics": "interpolate",
    "SELECT quantile_cont(value, 0.9) FROM metrics": "interpolate",
    "SELECT stddev(value) FROM metrics": "other formulas",
    "SELECT avg(step) FROM metrics": "write sum",
    "SELECT arg_max(step, value) FROM metrics": "several rows with the same value",
    "SELECT first(value) FROM metrics": "several rows with the same value",
    "SELECT any_value(key) FROM metrics": "several rows with the same value",
    "SELECT row_number() OVER (ORDER BY step) FROM metrics": "several rows with the same value",
    "SELECT lag(value) OVER (ORDER BY step) FROM metrics": "several rows with the same value",
    "SELECT sum(int) OVER (ORDER BY step ROWS 2 PRECEDING) FROM metrics": "spec",
    "SELECT key FROM metrics LIMIT 3": "put all columns into ORDER BY",
    "SELECT key, step FROM metrics ORDER BY key LIMIT 3": "put all columns into ORDER BY",
    "SELECT step // 2 FROM metrics": "rounds down",
    "SELECT value / step FROM metrics": "by zero",
    "SELECT value / 0 FROM metrics": "by zero",
    "SELECT step % rank FROM metrics": "by zero",
    "SELECT round(value, 2) FROM metrics": "round it otherwise",
    "SELECT floor(value) FROM metrics": "round it otherwise",
    "SELECT sqrt(value) FROM metrics": "last digit",
    "SELECT lower(key) FROM metrics": "capitals",
    "SELECT key ILIKE 'a%' FROM metrics": "capitals",
    "SELECT key LIKE 'a\\%' FROM metrics": "backslash",
    "SELECT key LIKE text FROM metrics": "backslash",
    "SELECT regexp_matches(key, 'a') FROM metrics": "regular expressions",
    "SELECT key ~ 'a' FROM metrics": "regular expressions",
    "SELECT key SIMILAR TO 'a' FROM metrics": "not known",
    "SELECT config ->> 'lr' FROM runs": "JSON",
    "SELECT value -> '$.a' FROM config": "JSON",
    "SELECT count(*) FROM config GROUP BY value": "of JSON",
    "SELECT tags[1] FROM runs": "lists and structs",
    "SELECT unnest(tags) FROM runs": "lists and structs",
    "SELECT list_contains(tags, 'x') FROM runs": "lists and structs",
    "SELECT list(key) FROM metrics": "lists and structs",
    "SELECT {a: key} FROM metrics": "lists and structs",
    "SELECT string_agg(key, ',') FROM metrics": "lists and structs",
    "SELECT date_trunc('day', time) FROM metrics": "time zone",
    "SELECT time FROM metrics WHERE time > '2025-01-01'": "CAST them yourself",
    "SELECT time FROM metrics WHERE time > TIMESTAMPTZ '2025-01-01'": "CAST",
    "SELECT time + INTERVAL 1 DAY FROM metrics": "time zone",
    "SELECT epoch(time) FROM metrics": "time zone",
    "SELECT now()": "time zone",
    "SELECT random() FROM metrics": "random",
    "SELECT key FROM metrics QUALIFY rank() OVER (ORDER BY step) = 1": "Spark has no QUALIFY",
    "SELECT DISTINCT ON (key) key, step FROM metrics": "DISTINCT ON",
    "SELECT key FROM metrics USING SAMPLE 10": "sample",
    "FROM curve('a', 'n')": "macros are DuckDB's",
    "SELECT key FROM metrics WHERE step = '3'": "CAST them yourself",
    "SELECT coalesce(text, int) FROM metrics": "CAST them yourself",
    "SELECT value::INTEGER FROM metrics": "CAST",
    "SELECT value::VARCHAR FROM metrics": "CAST",
    "SELECT text::DOUBLE FROM metrics": "CAST",
    "SELECT try_cast(text AS DOUBLE) FROM metrics": "not known",
    "SELECT 0.5 FROM metrics": "DECIMAL",
    "SELECT step * 0.5 FROM metrics": "DECIMAL",
    "SELECT 0.1 + 0.2 FROM metrics": "DECIMAL",
    "SELECT key FROM metrics WHERE value > 0.12345678901234567": "more digits",
    "SELECT step + 99999999999999999999 FROM metrics": "beyond BIGINT",
    "SELECT NULL FROM metrics": "NULL alone",
    "SELECT step & 3 FROM metrics": "not known",
    "SELECT step ** 2 FROM metrics": "last digit",
    "SELECT substr(key, 0, 2) FROM metrics": "other places",
    "SELECT trim(key) FROM metrics": "space",
    "SELECT key FROM metrics EXCEPT SELECT key FROM config": "not known",
    "SELECT key FROM metrics UNION BY NAME SELECT key FROM config": "by_name",
    "SELECT key FROM metrics m ASOF JOIN alerts a ON m.step >= a.step": "method",
    "SELECT key FROM metrics m SEMI JOIN alerts a USING (run_id)": "SEMI JOIN",
    "SELECT key FROM metrics m WHERE EXISTS (SELECT 1 FROM alerts a WHERE a.run_id = m.run_id)": "query around this one",
    "SELECT (SELECT key FROM config) FROM metrics": "aggregate without GROUP BY",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT n FROM t": "WITH RECURSIVE",
    "SELECT 1 FROM (VALUES (1)) t": "types are guessed",
    "SELECT max(step) AS step FROM metrics GROUP BY run_id ORDER BY step": "two columns have it",
    "SELECT max(value, 2) FROM metrics": "not known",
    "SELECT fsum(value) FROM metrics": "order",
    "SELECT count(DISTINCT (key, step)) FROM metrics": "not known",
    "SELECT -x AS x FROM (SELECT DISTINCT step AS x FROM metrics) ORDER BY -x": "two columns have it",
    "WITH best AS (SELECT run_id AS r, max(step) AS top FROM metrics GROUP BY run_id) SELECT r, 0 - top AS top FROM best ORDER BY 0 - top, top, r LIMIT 3": "two columns have it",
    "SELECT p AS q, q AS p FROM (SELECT run_id AS p, project AS q FROM runs) ORDER BY p || '', p, q LIMIT 3": "two columns have it",
    "WITH x AS (WITH runs AS (SELECT step AS s FROM metrics WHERE key = 'ok') SELECT s FROM runs) SELECT count(*) FROM x, runs": "write it at the beginning",
    "SELECT count(*) AS c FROM (WITH metrics AS (SELECT * FROM metrics WHERE key = 'ok') SELECT * FROM metrics) a CROSS JOIN (SELECT 1 AS one FROM metrics) b": "write it at the beginning",
    "WITH a AS MATERIALIZED (SELECT key FROM metrics) SELECT key FROM a": "materialized",
    "SELECT count(*) FROM metrics WHERE (value > 1) = (value > 2) IN (true, false)": "into parentheses",
    "SELECT (step > 1) < (step > 2) NOT BETWEEN false AND false AS x FROM metrics": "into parentheses",
    "SELECT (value > 1) = (value > 2) BETWEEN false AND true AS x FROM metrics": "into parentheses",
    "SELECT 'x' || step::VARCHAR IN ('x1') = true AS x FROM metrics": "into parentheses",
    "SELECT key LIKE 'a' = ok FROM (SELECT key, step > 1 AS ok FROM metrics)": "into parentheses",
    "SELECT value IS NULL IS NULL FROM metrics": "into parentheses",
    "SELECT m.a FROM metrics AS m(a, b)": "with AS",
    "WITH t(a, b) AS (SELECT key, value FROM metrics) SELECT a, b FROM t": "with AS",
    "SELECT b.s FROM (SELECT 1 AS m) a, (SELECT 2 AS s) b FULL JOIN (SELECT 3 AS c) c ON b.s = c.c": "write CROSS JOIN",
    "SELECT m.key FROM metrics m JOIN (config c JOIN runs r ON lower(c.run_id) = r.run_id) ON m.run_id = r.run_id": "JOIN in parentheses",
    "SELECT run_id FROM runs NATURAL JOIN sync_state": "method",
    "SELECT count(DISTINCT text) OVER () FROM metrics": "of a window",
    "SELECT DISTINCT key FROM metrics ORDER BY step": "of equal rows",
    "SELECT DISTINCT key FROM metrics GROUP BY key ORDER BY count(*)": "of equal rows",
    "SELECT key FROM metrics ORDER BY sum(step) OVER (PARTITION BY key), key": "ORDER BY of a window",
    "SELECT key FROM metrics UNION SELECT key FROM config ORDER BY key || 'x'": "first side",
    "SELECT key FROM metrics UNION SELECT key FROM config LIMIT 3": "put all columns into ORDER BY",
    "SELECT 3 AS c FROM metrics GROUP BY ALL": "write GROUP BY out",
    "SELECT count(*) OVER () AS c FROM metrics GROUP BY ALL": "write GROUP BY out",
    "SELECT (SELECT max(step) FROM metrics) AS c FROM metrics GROUP BY ALL": "write GROUP BY out",
    "SELECT step % 3 AS k FROM metrics GROUP BY ALL HAVING rank = 0": "write GROUP BY out",
    "SELECT key, count(*) AS c FROM metrics GROUP BY ALL ORDER BY step": "write GROUP BY out",
    "SELECT key IN (SELECT text FROM metrics) AS c FROM metrics": "NULL for false",
    "SELECT key FROM metrics WHERE step > 1 OR key IN (SELECT text FROM metrics)": "NULL for false",
    "SELECT count(*) FILTER (WHERE key NOT IN (SELECT text FROM metrics)) AS c FROM metrics": "NULL for false",
    "SELECT step IS TRUE FROM metrics": "IS of whole numbers",
    "SELECT coalesce(config, tags) FROM runs": "JSON and a list",
    "COPY metrics TO 'x.parquet'": "SELECT",
    "SELECT 1; SELECT 2": "one query at a time",
}  # fmt: skip


@pytest.mark.parametrize("query", REFUSED)
def test_what_would_be_something_else_is_refused_with_the_reason(
    query: str, over_pack: duckdb.DuckDBPyConnection
) -> None:
    schema = {
        view: {row[0]: row[1] for row in over_pack.execute(f"DESCRIBE {view}").fetchall()} for view in VIEWS
    }

    with pytest.raises(NotPortable) as refused:
        portable(query, schema)

    assert REFUSED[query] in str(refused.value)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sql", *map(str, arguments)], catch_exceptions=False)


@needs_spark
def test_the_command_prints_the_same_by_both_engines(pack: Path) -> None:
    query = "SELECT project, run_id, key, max AS best, max_step FROM rollup WHERE key = $key ORDER BY ALL"
    asked = (query, "--pack", pack, "-p", "key=train/loss", "--json")

    by_duckdb, by_spark = call(*asked), call(*asked, "--engine", "spark", "--master", "local[2]")

    assert by_spark.exit_code == 0
    assert by_spark.stdout == by_duckdb.stdout
    assert len(by_spark.stdout.splitlines()) == 4


def test_show_prints_what_spark_would_be_asked(pack: Path) -> None:
    result = call(
        "SELECT count(*) AS n FROM runs WHERE run_id = $id",
        "-p",
        "id=it's",
        "--pack",
        pack,
        "--engine",
        "spark",
        "--show",
    )

    assert result.stdout == "SELECT COUNT(*) AS `n` FROM `runs` AS `runs` WHERE `runs`.`run_id` = 'it\\'s'\n"


def test_a_refusal_says_the_way_out(pack: Path) -> None:
    result = call("SELECT median(value) FROM metrics", "--pack", pack, "--engine", "spark")

    assert result.exit_code == 2
    assert "median is not portable: between two values" in result.stderr
    assert "`--engine duckdb` answers it." in result.stderr


@pytest.mark.parametrize(
    ("query", "value", "reason"),
    [
        ("SELECT key FROM metrics WHERE value > $x", "1e999", "$x is not portable: it is beyond DOUBLE"),
        (";", "2", "one query at a time"),
    ],
)
def test_a_value_or_a_text_that_spark_could_not_take_is_refused(
    query: str, value: str, reason: str, pack: Path
) -> None:
    result = call(query, "-p", f"x={value}", "--pack", pack, "--engine", "spark")

    assert result.exit_code == 2
    assert reason in result.stderr


def test_what_duckdb_refuses_is_refused_in_its_words(pack: Path) -> None:
    result = call("SELECT vlaue FROM metrics", "--pack", pack, "--engine", "spark")

    assert result.exit_code == 2
    assert 'Referenced column "vlaue" not found' in result.stderr


def test_spark_asks_a_pack(root: Path) -> None:
    result = call("FROM runs", "--root", root, "--engine", "spark")

    assert result.exit_code == 2
    assert "give --pack PACK and a query. `analysis pack` makes one." in result.stderr


def test_every_type_of_a_view_has_one_in_spark(pack: Path) -> None:
    manifest = packs.opened(pack).manifest

    assert isinstance(manifest, Manifest)
    for view in manifest.views:
        assert spark.schema_of(manifest, view)


def test_without_pyspark_it_says_what_to_install(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    for name in [name for name in sys.modules if name.startswith("pyspark.")]:
        monkeypatch.delitem(sys.modules, name)

    result = call("FROM runs", "--pack", pack, "--engine", "spark")

    assert result.exit_code == 1
    assert "'pyspark' is not installed. Install `tidelog[spark]`." in result.stderr


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed")
def test_without_java_it_says_so(pack: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PATH", "JAVA_HOME")}

    done = subprocess.run(
        [sys.executable, "-m", "analysis", "sql", "FROM runs", "--pack", str(pack), "--engine", "spark"],
        env={**environment, "PATH": "", "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert "Spark does not start" in done.stderr
    assert "It needs Java 17 or newer, and its `java` in PATH." in done.stderr
    assert "Traceback" not in done.stderr


@needs_spark
def test_a_pack_that_is_replaced_meanwhile_is_read_to_its_end(root: Path, tmp_path: Path) -> None:
    with Packing.looked(root, tmp_path / "pack") as found:
        found.write()
    con = packs.connect(tmp_path / "pack")
    asked = spark.translated(con, "SELECT count(*) FROM metrics", {})

    with spark.answer(con, tmp_path / "pack", asked, "local[1]") as result:
        for name in ("later-1", "later-2", "later-3"):
            handmade_run(tmp_path / "more", name).die()
            with Packing.looked(tmp_path / "more", tmp_path / "pack") as found:
                found.write()
        counted = list(result.rows)

    assert counted == con.execute("SELECT count(*) FROM metrics").fetchall()
