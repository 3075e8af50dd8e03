-- What is below the root, as catalog.py says it: what `refresh` found, and what is kept of settled runs (index.py), but
-- of those that have changed. The views read these; nobody else needs to.
CREATE SCHEMA internal;

CREATE TABLE internal.root (path VARCHAR, verify BOOLEAN, files VARCHAR);

CREATE TABLE internal.found_runs (run_dir VARCHAR, path VARCHAR, project VARCHAR, run_id VARCHAR, entity VARCHAR);

CREATE TABLE internal.found_pieces (
    run_dir VARCHAR, writer VARCHAR, number INTEGER, is_closed BOOLEAN, heartbeat_us BIGINT
);

-- The records of `file` that count are those from `first` to `last`; null: it may grow, so ask at the query.
CREATE TABLE internal.found_segments (
    file VARCHAR, run_dir VARCHAR, writer VARCHAR, stream VARCHAR, first BIGINT, last BIGINT
);

CREATE TABLE internal.found_cursors (
    run_dir VARCHAR, sink VARCHAR, base_url VARCHAR, sink_entity VARCHAR, sink_project VARCHAR, sink_run_id VARCHAR,
    state VARCHAR, error VARCHAR, url VARCHAR, finished BOOLEAN, next_number INTEGER, next_seq BIGINT,
    not_shown JSON, time_us BIGINT
);

-- What is kept and no longer so.
CREATE TABLE internal.changed (run_dir VARCHAR);

-- Lines that fail their checksum, known only where `verify` was asked for.
CREATE TABLE internal.damaged (file VARCHAR, crc VARCHAR);

CREATE VIEW internal.pieces AS
FROM internal.found_pieces UNION ALL BY NAME FROM kept.pieces ANTI JOIN internal.changed USING (run_dir);

CREATE VIEW internal.cursors AS
FROM internal.found_cursors UNION ALL BY NAME FROM kept.cursors ANTI JOIN internal.changed USING (run_dir);

-- A run's raw name: its directory's, but where `run.json` says otherwise; sources.py says then where.
CREATE MACRO internal.project_of(run_dir) AS split_part(run_dir, '/', 1);
CREATE MACRO internal.run_id_of(run_dir) AS split_part(run_dir, '/', 2);

-- Macros over runs are told which: a list of ids, or NULL for all. Before the ids this says: only of those of which nothing is
-- kept; and in place of ids, all of these.
CREATE MACRO internal.found() AS chr(30);
CREATE MACRO internal.found_of(runs) AS list_prepend(internal.found(), coalesce(runs, [internal.found()]));

CREATE MACRO internal.is_among(run_dir, runs) AS runs IS NULL OR list_contains(runs, internal.run_id_of(run_dir));
-- Of a run of which nothing is kept, and of one of which something is.
CREATE MACRO internal.is_found_asked(run_dir, runs) AS internal.is_among(run_dir, runs) OR runs = internal.found_of(NULL);
CREATE MACRO internal.is_kept_asked(run_dir, runs) AS
    internal.is_among(run_dir, runs) AND coalesce(runs[1] <> internal.found(), true);

CREATE MACRO internal.runs_asked(runs) AS TABLE
FROM internal.found_runs WHERE internal.is_found_asked(run_dir, runs)
UNION ALL BY NAME
SELECT run_dir, path, project, run_id, entity FROM kept.runs ANTI JOIN internal.changed USING (run_dir)
WHERE internal.is_kept_asked(run_dir, runs);

CREATE VIEW internal.runs AS FROM internal.runs_asked(NULL);

-- Which records of which file count, with what each file holds now.
CREATE MACRO internal.spans_of(runs) AS TABLE
SELECT file, run_dir, writer, stream, first, CASE WHEN last IS NULL THEN committed_seq(file) ELSE last END AS last
FROM internal.found_segments WHERE internal.is_found_asked(run_dir, runs)
UNION ALL
SELECT file, run_dir, writer, stream, first, last FROM kept.segments ANTI JOIN internal.changed USING (run_dir)
WHERE internal.is_kept_asked(run_dir, runs);

-- The rank of a writer, as far as its name says it.
CREATE MACRO internal.rank_of(writer) AS
    CASE WHEN starts_with(writer, 'main-') THEN 0
    ELSE TRY_CAST(regexp_extract(writer, '^rank(\d+)-', 1) AS INTEGER) END;

-- Microseconds since the epoch; what cannot be a moment (damage) is NULL rather than an error.
CREATE MACRO internal.moment(us) AS
    make_timestamp(CASE WHEN us BETWEEN 0 AND 253402300799999999 THEN us END) AT TIME ZONE 'UTC';

-- A JSON object of keys and values, in the order of the keys: what is equal is the same text.
CREATE MACRO internal.object(key, value) AS
    ('{' || string_agg(to_json(key)::VARCHAR || ':' || coalesce(value::VARCHAR, 'null'), ',' ORDER BY key) || '}')::JSON;

-- The keys and values of a JSON object, none for anything else. A null value is NULL.
CREATE MACRO internal.items(object) AS map_entries(TRY_CAST(object AS MAP(VARCHAR, JSON)));

-- The same with every object among the values replaced by its own items. The keys on the way to a value are joined by
-- chr(31), which no key that a person types contains: a dot would mix up {"a.b": 1} and {"a": {"b": 1}}.
CREATE MACRO internal.one_level_down(leaves) AS flatten(list_transform(leaves, lambda leaf:
    CASE WHEN starts_with(leaf.value::VARCHAR, '{')
    THEN list_transform(internal.items(leaf.value), lambda inner_leaf:
        {key: leaf.key || chr(31) || inner_leaf.key, value: inner_leaf.value})
    ELSE [leaf] END));

-- All the way down. An object is as deep as it has braces at most, and most have none but the outer.
CREATE MACRO internal.leaves(object) AS
    CASE WHEN contains(substr(object::VARCHAR, 2), '{')
    THEN list_reduce(
        range(least(200, len(object::VARCHAR) - len(replace(object::VARCHAR, '{', '')) - 1)),
        lambda leaves, level: internal.one_level_down(leaves),
        internal.items(object))
    ELSE internal.items(object) END;

-- What FORMAT.md's `as_text` says of a value: 'float', 'int', 'lossy' or NULL.
CREATE MACRO internal.mark(as_text, path) AS
    CASE WHEN as_text IS NOT NULL
    THEN list_filter(as_text, lambda mark: array_to_string(mark[2:], chr(31)) = path)[1][1] END;

-- A JSON value as a number: what is one, also if it is stored as text, and 1 or 0 for true or false.
CREATE MACRO internal.number_of(value, mark) AS coalesce(
    TRY_CAST(value::VARCHAR AS DOUBLE),
    CASE value::VARCHAR WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0
    ELSE CASE WHEN mark IN ('float', 'int') THEN TRY_CAST(value ->> '$' AS DOUBLE) END END);

CREATE MACRO internal.is_whole(value) AS NOT contains(value::VARCHAR, '.') AND NOT contains(value::VARCHAR, 'e');

CREATE MACRO internal.int_of(value) AS
    CASE WHEN internal.is_whole(value) THEN TRY_CAST(value::VARCHAR AS BIGINT) END;

-- A JSON value as text: strings, true and false, lists (as JSON), and integers that fit no BIGINT.
CREATE MACRO internal.text_of(value, mark) AS
    CASE left(value::VARCHAR, 1)
    WHEN '"' THEN CASE WHEN mark = 'float' THEN NULL ELSE value ->> '$' END
    WHEN '[' THEN value::VARCHAR WHEN '{' THEN value::VARCHAR WHEN 't' THEN value::VARCHAR WHEN 'f' THEN value::VARCHAR
    ELSE CASE WHEN internal.is_whole(value) AND TRY_CAST(value::VARCHAR AS BIGINT) IS NULL THEN value::VARCHAR END END;

-- The marks of a value in a sealed segment, where they are JSON.
CREATE MACRO internal.marks(as_text) AS CASE WHEN as_text IS NOT NULL THEN TRY_CAST(as_text::JSON AS VARCHAR[][]) END;

-- The tool calls of a sealed turn, their arguments as the JSON that they are.
CREATE MACRO internal.with_arguments(calls) AS list_transform(calls, lambda call: {id: call.id, name: call.name,
    arguments: call.arguments::JSON, result: call.result, error: call.error, duration_s: call.duration_s});
