-- The views. Every one has the columns
--     project, run_id   as they were given to `init`, whatever the directories are called
-- and, where it shows records,
--     writer            main-0001, main-0002, … are the pieces of the run's history; rank3-…, fork-…, second-… wrote beside it
--     rank              0 for a main piece, R for a rankR writer, NULL for the others
--     seq               the record's place in its writer's stream
--     time              TIMESTAMP WITH TIME ZONE: shown, and understood in a query, in the session's time zone
-- `WHERE writer LIKE 'main-%' ORDER BY writer, seq` is the run's history, in order.
-- A filter on project, run_id, writer or rank decides which files are opened at all. Of each view there is a macro besides,
-- `metrics_of(['a', 'b'])`, `runs_of([…])`, …: the same of the runs with these ids, without a look at any other run.
-- Lines that begin with `-- >` are examples, which the tests run.


-- How many records each writer has committed to each stream.
CREATE MACRO internal.ends_of(runs) AS TABLE
SELECT run_dir, writer, stream, max(last) + 1 AS records FROM internal.spans_of(runs) GROUP BY ALL;

-- Records as their writers wrote them, and those that are sealed: there, metrics are rows of their own, one for each value,
-- and `data` is NULL.
CREATE MACRO internal.events_of(runs) AS TABLE
SELECT run_dir, writer, number, place, seq, time, kind, step, commit, as_text, data FROM internal.live_events_of(runs)
UNION ALL
SELECT run_dir, writer, number, place, seq, time, kind, step, commit, as_text, json::JSON
FROM internal.sealed_events_of(runs) WHERE nth = 0;

-- A value of a sealed record as the JSON that it was.
CREATE MACRO internal.json_of(value, int, text, json) AS coalesce(json,
    CASE WHEN value IS NOT NULL THEN CASE WHEN isfinite(value) THEN to_json(value)::VARCHAR
        ELSE CASE WHEN isnan(value) THEN '"NaN"' WHEN value > 0 THEN '"Infinity"' ELSE '"-Infinity"' END END
    WHEN int IS NOT NULL THEN int::VARCHAR ELSE to_json(text)::VARCHAR END);

CREATE MACRO internal.sealed_data_of(runs) AS TABLE
SELECT run_dir, writer, place,
    ('{' || string_agg(to_json(key)::VARCHAR || ':' || internal.json_of(value, int, text, json), ',' ORDER BY nth) || '}')::JSON
        AS data,
    nullif(flatten(list(coalesce(as_text, CASE WHEN isfinite(value) IS FALSE THEN [['float', key]] END) ORDER BY nth)), [])
        AS as_text
FROM internal.sealed_events_of(runs) WHERE key IS NOT NULL
GROUP BY run_dir, writer, place;

-- Of the stream `files`, and so of `console`.
CREATE MACRO internal.files_of(runs) AS TABLE
SELECT run_dir, writer, seq, time, kind, step, commit, as_text, data FROM internal.live_files_of(runs)
UNION ALL
SELECT run_dir, writer, seq, time, kind, step, commit, as_text, json::JSON FROM internal.sealed_files_of(runs);

CREATE MACRO internal.console_of(runs) AS TABLE
SELECT run_dir, writer, seq, time, kind, step, commit, as_text, data FROM internal.live_console_of(runs)
UNION ALL
SELECT run_dir, writer, seq, time, kind, step, commit, as_text, json::JSON FROM internal.sealed_console_of(runs);

-- Every record of every stream, its data as JSON. `as_text` says what in it is stored as text (FORMAT.md, "Values").
-- > SELECT stream, kind, count(*) FROM records WHERE run_id = 'first' GROUP BY ALL
CREATE MACRO records_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, 'events' AS stream, seq, time, kind, step, commit, as_text, data FROM internal.live_events_of(runs)
UNION ALL
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, 'events', seq, time, kind, step, commit, coalesce(d.as_text, e.as_text),
    coalesce(d.data, e.json::JSON)
FROM internal.sealed_events_of(runs) e LEFT JOIN internal.sealed_data_of(runs) d USING (run_dir, writer, place)
WHERE nth = 0
UNION ALL
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, 'trajectories', seq, time, kind, step, commit, as_text, data
FROM internal.live_trajectories_as_json_of(runs)
UNION ALL
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, 'trajectories', seq, time, kind, step, commit, as_text,
    coalesce(json::JSON, to_json({id: id, "group": "group", reward: reward, advantage: advantage, rewards: rewards::JSON,
        turns: list_transform(turns, lambda turn: {role: turn.role, content: turn.content,
            tool_calls: internal.with_arguments(turn.tool_calls), tool_call_id: turn.tool_call_id,
            duration_s: turn.duration_s, prompt_tokens: turn.prompt_tokens, completion_tokens: turn.completion_tokens}),
        metrics: metrics::JSON, prompt_tokens: prompt_tokens, completion_tokens: completion_tokens,
        policy_version: policy_version, stop_reason: stop_reason, started_us: started_us, duration_s: duration_s,
        exception: exception, info: info::JSON, token_ids: token_ids, mask: mask, logprobs: logprobs,
        ref_logprobs: ref_logprobs}))
FROM internal.sealed_trajectories_of(runs)
UNION ALL
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, 'console', seq, time, kind, step, commit, as_text, data FROM internal.console_of(runs)
UNION ALL
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, 'files', seq, time, kind, step, commit, as_text, data FROM internal.files_of(runs);

CREATE VIEW records AS FROM records_of(NULL);


-- The values of metrics; of a nested dict, those in it. Of these runs; of all, if that is NULL.
CREATE MACRO internal.leaf_of(runs) AS TABLE
SELECT v.* EXCLUDE (time), coalesce(v.time, head.time) AS time
FROM (
    SELECT run_dir, writer, number, place, seq, step, time, path, json, mark,
        internal.number_of(json, mark) AS value, internal.int_of(json) AS int, internal.text_of(json, mark) AS text
    FROM (
        SELECT * EXCLUDE (item), item.key AS path, item.value AS json, internal.mark(as_text, item.key) AS mark
        FROM (
            SELECT * EXCLUDE (data), unnest(internal.leaves(data)) AS item
            FROM (
                SELECT run_dir, writer, number, place, seq, step, time, as_text, data FROM internal.live_events_of(runs)
                WHERE kind = 'metrics'
                UNION ALL
                SELECT run_dir, writer, number, place, seq, step, time, as_text,
                    ('{' || to_json(key)::VARCHAR || ':' || json || '}')::JSON
                FROM internal.sealed_events_of(runs) WHERE kind = 'metrics' AND key IS NOT NULL AND json IS NOT NULL
            )
        )
    )
    UNION ALL
    SELECT run_dir, writer, number, place, seq, step, time, key, internal.json_of(value, int, text, NULL)::JSON,
        CASE WHEN isfinite(value) IS FALSE THEN 'float' ELSE as_text[1][1] END, coalesce(value, int::DOUBLE), int, text
    FROM internal.sealed_events_of(runs) WHERE kind = 'metrics' AND key IS NOT NULL AND json IS NULL
) v
-- Of a sealed record the first value alone has the time. Grouped, DuckDB knows that there is one, and leaves out the join where
-- nobody asks for the time.
LEFT JOIN (
    SELECT run_dir, writer, place, any_value(time) AS time FROM internal.sealed_events_of(runs) WHERE nth = 0 GROUP BY ALL
) head USING (run_dir, writer, place);

-- Every logged value, one row each; also those that W&B's step rule leaves out.
--     key     as logged; of a nested dict `outer.inner`. An empty dict is nothing, as it is to W&B
--     value   the number, NaN and the infinities included; 1 or 0 for a bool; NULL for anything else
--     int     the same without rounding, where an integer was logged that fits
--     text    a string; `true` or `false`; a list as JSON; an integer beyond BIGINT in full
-- > SELECT step, value FROM metrics WHERE run_id = 'first' AND key = 'train/loss' ORDER BY writer, seq
-- > SELECT run_id, key, count(*), max(step) FROM metrics_of(['first', 'second']) GROUP BY ALL
CREATE MACRO metrics_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, seq, step, time, replace(path, chr(31), '.') AS key, value, int, text
FROM internal.leaf_of(runs);

CREATE VIEW metrics AS FROM metrics_of(NULL);

-- What each metric came to, by writer: for "the best of each run" without reading every value. Of a sealed segment this is
-- what its brief says (FORMAT.md), of all else it is computed here, and the two agree; but `sum` and `mean` may in the last digit.
-- It is of floats and of integers that fit: not of a bool, a text, an integer beyond BIGINT, nor of what is in a nested dict.
--     n, sum, mean, min, max   of the finite numbers; min and max are NULL where there was none
--     min_step, max_step       where it had that first
--     last                     the last number, NaN and the infinities included; with its step and seq
-- > SELECT run_id, max AS best, max_step FROM rollup WHERE key = 'train/accuracy' ORDER BY best DESC
CREATE MACRO internal.numbers_of(runs) AS TABLE
SELECT run_dir, writer, seq, step, item.key AS key, internal.number_of(item.value, mark) AS value
FROM (
    SELECT *, internal.mark(as_text, item.key) AS mark
    FROM (
        SELECT run_dir, writer, seq, step, as_text, unnest(internal.items(data)) AS item
        FROM internal.live_events_of(runs) WHERE kind = 'metrics'
    )
)
WHERE mark = 'float' OR regexp_matches(item.value::VARCHAR, '^[-0-9]')
    AND (NOT internal.is_whole(item.value) OR internal.int_of(item.value) IS NOT NULL)
UNION ALL
SELECT run_dir, writer, seq, step, key, coalesce(value, int::DOUBLE)
FROM internal.events_without_brief_of(runs)
WHERE kind = 'metrics' AND key IS NOT NULL AND (value IS NOT NULL OR int IS NOT NULL);

CREATE MACRO internal.rollup_read(runs) AS TABLE
SELECT run_dir, writer, key, sum(n)::BIGINT AS n, fsum(sum) AS sum, fsum(sum) / nullif(sum(n), 0) AS mean,
    min(min) AS min, arg_min(min_step, {value: min, seq: last_seq}) FILTER (min IS NOT NULL) AS min_step,
    max(max) AS max, arg_min(max_step, {value: -max, seq: last_seq}) FILTER (max IS NOT NULL) AS max_step,
    arg_max(last, last_seq) AS last, arg_max(last_step, last_seq) AS last_step, max(last_seq) AS last_seq
FROM (
    SELECT run_dir, writer, item.key AS key, unnest(item.value)
    FROM (SELECT run_dir, writer, unnest(map_entries(metrics)) AS item FROM internal.briefs_of(runs))
    UNION ALL BY NAME
    SELECT run_dir, writer, key, isfinite(value)::BIGINT AS n, CASE WHEN isfinite(value) THEN value ELSE 0 END AS sum,
        CASE WHEN isfinite(value) THEN value END AS min, step AS min_step,
        CASE WHEN isfinite(value) THEN value END AS max, step AS max_step,
        value AS last, step AS last_step, seq AS last_seq
    FROM internal.numbers_of(runs)
)
GROUP BY run_dir, writer, key;

CREATE MACRO rollup_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, * EXCLUDE (run_dir, writer)
FROM (
    FROM internal.rollup_read(internal.found_of(runs))
    UNION ALL FROM kept.rollup ANTI JOIN internal.changed USING (run_dir) WHERE internal.is_among(run_dir, runs)
);

CREATE VIEW rollup AS FROM rollup_of(NULL);


-- What the run was started with: what each piece began with, laid over what was before, and what was set since.
--     value   JSON; what JSON has no word for is text in it
-- > SELECT run_id, value FROM config WHERE key = 'lr'
CREATE MACRO internal.config_read(runs) AS TABLE
SELECT run_dir, item.key AS key, arg_max({json: item.value}, place).json AS value
FROM (
    SELECT run_dir, place,
        unnest(internal.items(CASE kind WHEN 'start' THEN data -> 'config' ELSE data END)) AS item
    FROM internal.events_of(runs)
    WHERE number IS NOT NULL AND kind IN ('start', 'config')
)
GROUP BY run_dir, item.key;

CREATE MACRO internal.config_of(runs) AS TABLE
FROM internal.config_read(internal.found_of(runs))
UNION ALL FROM kept.config ANTI JOIN internal.changed USING (run_dir) WHERE internal.is_among(run_dir, runs);

CREATE MACRO config_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, key, value FROM internal.config_of(runs);

CREATE VIEW config AS FROM config_of(NULL);


-- Records that W&B's step rule leaves out: their step was over when they were logged.
CREATE MACRO internal.repeated_of(runs) AS TABLE
SELECT run_dir, place, true AS is_repeated
FROM (
    SELECT run_dir, place, kind, step, max(next_step) OVER (
        PARTITION BY run_dir ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS current_step
    FROM (
        SELECT *, CASE kind WHEN 'start' THEN TRY_CAST(data ->> 'step' AS BIGINT)
            ELSE step + coalesce(commit, false)::INTEGER END AS next_step
        FROM internal.events_of(runs)
        WHERE number IS NOT NULL AND kind IN ('start', 'metrics')
    )
)
WHERE kind = 'metrics' AND step < current_step;

-- Everything that ever was the last word on a key. `said_at` orders it: within a record, deleting comes after setting.
CREATE MACRO internal.said_of(runs) AS TABLE
SELECT run_dir, 2 * place AS said_at, path, json, mark, false AS is_deleted, step, time
FROM internal.leaf_of(runs) LEFT JOIN internal.repeated_of(runs) USING (run_dir, place)
WHERE number IS NOT NULL AND is_repeated IS NULL
UNION ALL
SELECT run_dir, 2 * place, path, json, internal.mark(as_text, 'set' || chr(31) || nth || chr(31) || '1'),
    false, NULL, time
FROM (
    SELECT *, array_to_string(TRY_CAST(item -> 0 AS VARCHAR[]), chr(31)) AS path, nullif(item -> 1, 'null') AS json
    FROM (
        SELECT *, unnest(TRY_CAST(data -> 'set' AS JSON[])) AS item,
            generate_subscripts(TRY_CAST(data -> 'set' AS JSON[]), 1) - 1 AS nth
        FROM internal.events_of(runs) WHERE number IS NOT NULL AND kind = 'summary'
    )
)
UNION ALL
SELECT run_dir, 2 * place + 1, array_to_string(path, chr(31)), NULL, NULL, true, NULL, time
FROM (
    SELECT *, unnest(TRY_CAST(data -> 'delete' AS VARCHAR[][])) AS path
    FROM internal.events_of(runs) WHERE number IS NOT NULL AND kind = 'summary'
);

-- The last value of each key of the run's history, as W&B's summary has it: repeated steps do not count, what was set on or
-- deleted from `run.summary` does, a null is no value, and a value where a dict was (or the reverse) takes its place.
-- A value set on `run.summary` counts when it was set, also while the row of that step is open. What `define_metric(summary=…)`
-- asks for (min, max, mean, …) is not applied: ask `metrics` for it.
--     step    of the row that it is from; NULL if it was set on `run.summary`
-- > SELECT run_id, value, step FROM summary WHERE key = 'train/accuracy' ORDER BY value DESC
CREATE MACRO internal.summary_read(runs) AS TABLE
SELECT run_dir, replace(path, chr(31), '.') AS key, last.json AS json, last.mark AS mark,
    last.step AS step, last.time AS time
FROM (
    SELECT *,
        max(CASE WHEN node = path THEN said_at END) OVER same_node AS said_here,
        max(CASE WHEN node <> path AND NOT last.is_deleted THEN said_at END) OVER same_node AS said_below
    FROM (
        -- Every path once for itself, and once for each path above it.
        SELECT *, unnest(list_transform(range(1, len(string_split(path, chr(31))) + 1),
            lambda n: array_to_string(string_split(path, chr(31))[1:n], chr(31)))) AS node
        FROM (
            SELECT run_dir, path, max(said_at) AS said_at,
                arg_max({json: json, mark: mark, is_deleted: is_deleted, step: step, time: time}, said_at) AS last
            FROM internal.said_of(runs)
            GROUP BY run_dir, path
        )
    )
    WINDOW same_node AS (PARTITION BY run_dir, node)
)
WHERE NOT last.is_deleted AND last.json IS NOT NULL
GROUP BY run_dir, path, said_at, last
HAVING NOT coalesce(bool_or(CASE WHEN node = path THEN said_below > said_at ELSE said_here > said_at END), false);

CREATE MACRO internal.summary_of(runs) AS TABLE
FROM internal.summary_read(internal.found_of(runs))
UNION ALL FROM kept.summary ANTI JOIN internal.changed USING (run_dir) WHERE internal.is_among(run_dir, runs);

CREATE MACRO summary_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, key,
    internal.number_of(json, mark) AS value, internal.int_of(json) AS int,
    internal.text_of(json, mark) AS text, step, time
FROM internal.summary_of(runs);

CREATE VIEW summary AS FROM summary_of(NULL);


-- Episodes.
--     n_tokens   of the whole episode; the tokens themselves are in `records`
--     started    NULL if the trainer did not say
-- > SELECT step, avg(reward) FROM trajectories WHERE run_id = 'first' GROUP BY step ORDER BY step
CREATE MACRO internal.trajectories_of(runs) AS TABLE
SELECT run_dir, writer, seq, time, kind, step, data FROM internal.live_trajectories_of(runs)
UNION ALL
SELECT run_dir, writer, seq, time, kind, step, CASE WHEN json IS NOT NULL THEN internal.trajectory_of(json) ELSE {
    id: id, "group": "group", reward: reward, advantage: advantage, rewards: rewards::JSON,
    turns: list_transform(turns, lambda turn: {role: turn.role, content: turn.content, tool_call_id: turn.tool_call_id,
        duration_s: turn.duration_s, prompt_tokens: turn.prompt_tokens, completion_tokens: turn.completion_tokens,
        tool_calls: internal.with_arguments(turn.tool_calls)}),
    token_ids: token_ids, metrics: metrics::JSON, prompt_tokens: prompt_tokens, completion_tokens: completion_tokens,
    policy_version: policy_version, stop_reason: stop_reason, started_us: started_us, duration_s: duration_s, exception: exception, info: info::JSON} END
FROM internal.sealed_trajectories_of(runs);

CREATE MACRO trajectories_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, seq, step, time, data.id AS id, data."group" AS "group", data.reward AS reward,
    data.advantage AS advantage, data.rewards AS rewards, len(data.turns) AS n_turns, len(data.token_ids) AS n_tokens,
    data.prompt_tokens AS prompt_tokens, data.completion_tokens AS completion_tokens,
    internal.moment(data.started_us) AS started, data.duration_s AS duration_s, data.exception AS exception,
    data.policy_version AS policy_version, data.stop_reason AS stop_reason, data.metrics AS metrics, data.info AS info
FROM internal.trajectories_of(runs)
WHERE kind = 'trajectory';

CREATE VIEW trajectories AS FROM trajectories_of(NULL);

-- Their turns, one row each; `seq` is the trajectory's, `turn` counts from 0.
-- > SELECT turn, role, content FROM messages WHERE run_id = 'first' AND trajectory_id = '1.0.0' ORDER BY turn
CREATE MACRO internal.turns_of(runs) AS TABLE
SELECT run_dir, writer, seq, data.id AS trajectory_id, step, time, data.info AS info, unnest(data.turns) AS message,
    generate_subscripts(data.turns, 1) - 1 AS turn
FROM internal.trajectories_of(runs)
WHERE kind = 'trajectory';

CREATE MACRO messages_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, seq, trajectory_id, step, time, turn, message.role AS role, message.content AS content,
    to_json(message.tool_calls) AS tool_calls, message.tool_call_id AS tool_call_id,
    message.prompt_tokens AS prompt_tokens, message.completion_tokens AS completion_tokens, message.duration_s AS duration_s
FROM internal.turns_of(runs);

CREATE VIEW messages AS FROM messages_of(NULL);

-- The tool calls of their turns, one row each; `call` counts from 0 in its turn.
-- > SELECT name, arguments, error FROM tool_calls WHERE error IS NOT NULL
CREATE MACRO tool_calls_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, seq, trajectory_id, step, time, turn, call, made.id AS id, made.name AS name,
    made.arguments AS arguments, made.result AS result, made.error AS error, made.duration_s AS duration_s
FROM (
    SELECT *, unnest(message.tool_calls) AS made, generate_subscripts(message.tool_calls, 1) - 1 AS call FROM internal.turns_of(runs)
);

CREATE VIEW tool_calls AS FROM tool_calls_of(NULL);


-- What the machine was busy with: a row for each number of each sample.
--     key   W&B's name without its `system.`: cpu, memory_percent, gpu.0.gpu, …
-- > SELECT key, avg(value), max(value) FROM system WHERE run_id = 'first' GROUP BY key
CREATE MACRO system_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, seq, time, key, value
FROM (
    SELECT * EXCLUDE (item, as_text), item.key AS key,
        internal.number_of(item.value, internal.mark(as_text, item.key)) AS value
    FROM (
        SELECT run_dir, writer, seq, time, as_text, unnest(internal.items(data)) AS item
        FROM internal.live_events_of(runs) WHERE kind = 'system'
    )
    UNION ALL BY NAME
    SELECT e.run_dir, e.writer, e.seq, head.time, e.key,
        coalesce(e.value, e.int::DOUBLE, internal.number_of(e.json::JSON, e.as_text[1][1])) AS value
    FROM internal.sealed_events_of(runs) e
    LEFT JOIN (SELECT run_dir, writer, seq, time FROM internal.sealed_events_of(runs) WHERE kind = 'system' AND nth = 0) head
        USING (run_dir, writer, seq)
    WHERE e.kind = 'system' AND e.key IS NOT NULL
);

CREATE VIEW system AS FROM system_of(NULL);

-- What `run.alert` said.
--     step   the highest that its writer had logged metrics of by then; NULL before the first
-- > SELECT run_id, step, title, text FROM alerts WHERE level IN ('WARN', 'ERROR') ORDER BY time
CREATE MACRO internal.alerts_read(runs) AS TABLE
SELECT run_dir, writer, seq, step, time, data ->> 'level' AS level, data ->> 'title' AS title,
    data ->> 'text' AS text, TRY_CAST(data ->> 'wait_s' AS DOUBLE) AS wait_s
FROM (
    SELECT run_dir, writer, seq, time, kind, data, max(CASE WHEN kind = 'metrics' THEN step END) OVER (
        PARTITION BY run_dir, writer ORDER BY seq
    ) AS step
    FROM (
        SELECT run_dir, writer, seq, time, kind, step, CASE WHEN kind = 'alert' THEN data END AS data
        FROM internal.events_of(runs) WHERE kind IN ('alert', 'metrics')
    )
)
WHERE kind = 'alert';

CREATE MACRO alerts_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, * EXCLUDE (run_dir, writer)
FROM (
    FROM internal.alerts_read(internal.found_of(runs))
    UNION ALL FROM kept.alerts ANTI JOIN internal.changed USING (run_dir) WHERE internal.is_among(run_dir, runs)
);

CREATE VIEW alerts AS FROM alerts_of(NULL);

-- Where which state was kept (`run.log_checkpoint`): that before `step`. What else was said of it is in `data`.
-- > SELECT run_id, step, path FROM checkpoints ORDER BY time
-- > SELECT value AS checkpoint_step, time FROM metrics WHERE run_id = 'first' AND key = 'checkpoint/step'
CREATE MACRO internal.checkpoints_read(runs) AS TABLE
SELECT run_dir, writer, seq, coalesce(step, TRY_CAST(data ->> 'step' AS BIGINT)) AS step, time,
    data ->> 'path' AS path, data
FROM internal.events_of(runs) WHERE kind = 'checkpoint';

CREATE MACRO checkpoints_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, * EXCLUDE (run_dir, writer)
FROM (
    FROM internal.checkpoints_read(internal.found_of(runs))
    UNION ALL FROM kept.checkpoints ANTI JOIN internal.changed USING (run_dir) WHERE internal.is_among(run_dir, runs)
);

CREATE VIEW checkpoints AS FROM checkpoints_of(NULL);

-- What the program printed, a row for each line; `line` counts from 0 in its record.
--     source   stdout or stderr
--     text     without its newline, with all other control characters. What was printed without a newline is a row of its
--              own, and the rest of that line the next one; `records` has the text as it was
-- > SELECT time, source, text FROM console WHERE run_id = 'first' AND rank = 0 ORDER BY writer, seq, line
CREATE MACRO console_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer,
    internal.rank_of(writer) AS rank, seq, time, source, unnest(lines) AS text, generate_subscripts(lines, 1) - 1 AS line
FROM (
    SELECT *, string_split(CASE WHEN ends_with(text, chr(10)) THEN left(text, length(text) - 1) ELSE text END, chr(10)) AS lines
    FROM (
        SELECT run_dir, writer, seq, time, data ->> 'source' AS source, data ->> 'text' AS text
        FROM internal.console_of(runs) WHERE kind = 'console'
    )
);

CREATE VIEW console AS FROM console_of(NULL);

-- What was logged as a file or as an artifact, a row for each record; of a name the last one counts.
--     kind      file or artifact
--     name      of a file its path among the run's
--     size      in bytes; `sha256` of the content; of an artifact of its manifest, which is a list of files
--     content   where that is on this machine
--     type, digest, description, metadata, aliases, tags, step   of an artifact
-- > SELECT name, size, content FROM files WHERE run_id = 'first' AND kind = 'file'
-- > QUALIFY row_number() OVER (PARTITION BY name ORDER BY time DESC, seq DESC) = 1
CREATE MACRO files_of(runs) AS TABLE
SELECT internal.project_of(f.run_dir) AS project, internal.run_id_of(f.run_dir) AS run_id, f.writer,
    internal.rank_of(f.writer) AS rank, f.seq, f.time, f.kind,
    CASE f.kind WHEN 'file' THEN data ->> 'path' ELSE data ->> 'name' END AS name,
    TRY_CAST(data ->> 'size' AS BIGINT) AS size, sha256, r.path || '/files/' || sha256 AS content, data ->> 'type' AS type,
    data ->> 'digest' AS digest, data ->> 'description' AS description, data -> 'metadata' AS metadata,
    TRY_CAST(data -> 'aliases' AS VARCHAR[]) AS aliases, TRY_CAST(data -> 'tags' AS VARCHAR[]) AS tags,
    TRY_CAST(data ->> 'step' AS BIGINT) AS step
FROM (
    SELECT *, CASE kind WHEN 'file' THEN data ->> 'sha256' ELSE data ->> 'manifest' END AS sha256
    FROM internal.files_of(runs) WHERE kind IN ('file', 'artifact')
) f
LEFT JOIN internal.runs_asked(runs) r USING (run_dir);

CREATE VIEW files AS FROM files_of(NULL);


-- How many records are missing between others, by stream. Seqs have no gaps, so what is not there was there.
CREATE MACRO internal.lost_of(runs) AS TABLE
SELECT run_dir, stream, sum(lost)::BIGINT AS lost
FROM (
    SELECT run_dir, writer, stream, max(seq) + 1 - count(*) AS lost
    FROM (
        SELECT run_dir, writer, seq, 'events' AS stream FROM internal.events_of(runs)
        UNION ALL SELECT run_dir, writer, seq, 'trajectories' FROM internal.live_trajectories_as_json_of(runs)
        UNION ALL SELECT run_dir, writer, seq, 'trajectories' FROM internal.sealed_trajectories_of(runs)
        UNION ALL SELECT run_dir, writer, seq, 'console' FROM internal.console_of(runs)
        UNION ALL SELECT run_dir, writer, seq, 'files' FROM internal.files_of(runs)
    )
    GROUP BY run_dir, writer, stream
)
GROUP BY run_dir, stream
HAVING sum(lost) > 0;


-- How far each destination has come, as its cursor says; one row per run and sink.
--     records, acked, backlog   events of the run's history: committed, acknowledged, the difference
--     not_shown                 records that are not on the server and stay here, by reason
-- > SELECT run_id, state, backlog, error FROM sync_state WHERE backlog > 0
CREATE MACRO internal.progress_of(runs) AS TABLE
SELECT sink, c.run_dir, coalesce(sum(e.records), 0)::BIGINT AS records,
    coalesce(sum(CASE WHEN p.number < next_number THEN e.records
        WHEN p.number = next_number THEN least(next_seq, e.records) ELSE 0 END), 0)::BIGINT AS acked
FROM internal.cursors c
LEFT JOIN internal.pieces p ON p.run_dir = c.run_dir AND p.number IS NOT NULL
LEFT JOIN internal.ends_of(runs) e ON e.run_dir = p.run_dir AND e.writer = p.writer AND e.stream = 'events'
GROUP BY sink, c.run_dir;

CREATE MACRO sync_state_of(runs) AS TABLE
SELECT internal.project_of(r.run_dir) AS project, internal.run_id_of(r.run_dir) AS run_id, c.base_url, coalesce(c.sink_entity, r.entity) AS entity, c.sink_project, c.sink_run_id, c.state,
    n.records, n.acked, n.records - n.acked AS backlog, c.error, c.url, c.finished, c.not_shown,
    internal.moment(c.time_us) AS time
FROM internal.runs_asked(runs) r
JOIN internal.cursors c USING (run_dir)
JOIN internal.progress_of(runs) n USING (run_dir, sink);

CREATE VIEW sync_state AS FROM sync_state_of(NULL);


-- One row per run.
--     state             live | finished | failed (exit code not 0) | crashed (its writer is gone without a word) | stale
--                       (another machine's writer, not heard for 10 minutes: it may come back)
--     started           when its first piece began; `last_time` is that of its newest record
--     duration_s        how long its pieces ran, without the time between them
--     steps             with metrics, counted for each piece; `last_step` is the highest
--     records           events of its history; `trajectories`: those of all its writers
--     acked, backlog    of its slowest destination; NULL if it has none yet
--     config, summary   JSON objects, by key; what JSON has no word for is text in them
-- > SELECT run_id, state, last_step, config ->> 'lr' AS lr FROM runs ORDER BY started DESC
CREATE MACRO internal.last_told(kind, data, fact, place) AS
    (arg_max({text: data ->> fact}, place) FILTER (data ->> fact IS NOT NULL OR kind = 'facts' AND json_exists(data, fact))).text;

-- Beside the columns of `runs`: the step and time of its newest metrics, and whether it defined a metric, or set its summary.
CREATE MACRO internal.facts_read(runs) AS TABLE
WITH by_piece AS (
    SELECT run_dir, number, arg_max(kind, place) AS last_kind,
        any_value(CASE WHEN kind = 'exit' THEN TRY_CAST(data ->> 'exitcode' AS INTEGER) END) AS exitcode,
        min(time) AS started, max(time) AS last_time,
        count(DISTINCT CASE WHEN kind = 'metrics' THEN step END) AS steps,
        max(CASE WHEN kind = 'metrics' THEN step END) AS last_step,
        arg_max({step: step, time: time}, place) FILTER (kind = 'metrics') AS newest,
        bool_or(kind IN ('define_metric', 'summary')) AS has_said
    FROM internal.events_of(runs) WHERE number IS NOT NULL
    GROUP BY run_dir, number
), facts AS (
    SELECT run_dir,
        arg_max({kind: last_kind, exitcode: exitcode}, number) AS last, min(started) AS started,
        max(last_time) AS last_time, sum(epoch(last_time) - epoch(started)) AS duration_s, sum(steps)::BIGINT AS steps,
        max(last_step) AS last_step, arg_max(newest, number) AS newest, bool_or(has_said) AS has_said
    FROM by_piece GROUP BY run_dir
), told AS (
    -- What a resumed piece leaves out stays; what is said to be nothing is nothing.
    SELECT run_dir, internal.last_told(kind, data, 'name', place) AS name,
        internal.last_told(kind, data, 'notes', place) AS notes,
        TRY_CAST(internal.last_told(kind, data, 'tags', place) AS VARCHAR[]) AS tags,
        internal.last_told(kind, data, 'group', place) AS "group",
        internal.last_told(kind, data, 'job_type', place) AS job_type,
        internal.last_told(kind, data, 'host', place) AS host
    FROM internal.events_of(runs) WHERE number IS NOT NULL AND kind IN ('start', 'facts')
    GROUP BY run_dir
), pieces AS (
    SELECT run_dir, count(number) AS pieces, arg_max(is_closed, number) AS is_closed,
        arg_max(internal.moment(heartbeat_us), number) AS heard
    FROM internal.pieces GROUP BY run_dir
), counts AS (
    SELECT run_dir, sum(CASE WHEN stream = 'events' AND writer LIKE 'main-%' THEN records END)::BIGINT AS records,
        sum(CASE WHEN stream = 'trajectories' THEN records END)::BIGINT AS trajectories
    FROM internal.ends_of(runs) GROUP BY run_dir
), syncs AS (
    SELECT run_dir, min(acked) AS acked, max(records - acked) AS backlog FROM internal.progress_of(runs) GROUP BY run_dir
)
SELECT r.run_dir, t.name,
    CASE WHEN f.last.kind = 'exit' THEN CASE WHEN coalesce(f.last.exitcode, 0) = 0 THEN 'finished' ELSE 'failed' END
        WHEN p.is_closed THEN 'crashed'
        WHEN p.heard IS NOT NULL AND greatest(p.heard, f.last_time) < now() - INTERVAL 10 MINUTE THEN 'stale'
        ELSE 'live' END AS state,
    t.tags, t."group", t.job_type, t.notes, f.started, f.last_time, f.duration_s, coalesce(f.steps, 0) AS steps, f.last_step,
    coalesce(c.records, 0) AS records, coalesce(c.trajectories, 0) AS trajectories, coalesce(p.pieces, 0) AS pieces, s.acked,
    s.backlog, t.host, r.entity, r.path, f.newest.step AS newest_step, f.newest.time AS newest_time,
    coalesce(f.has_said, false) AS has_said
FROM internal.runs_asked(runs) r
LEFT JOIN facts f USING (run_dir)
LEFT JOIN told t USING (run_dir)
LEFT JOIN pieces p USING (run_dir)
LEFT JOIN counts c USING (run_dir)
LEFT JOIN syncs s USING (run_dir);

CREATE MACRO internal.facts_of(runs) AS TABLE
FROM internal.facts_read(internal.found_of(runs))
UNION ALL FROM kept.facts ANTI JOIN internal.changed USING (run_dir) WHERE internal.is_among(run_dir, runs);

-- The config and the summary of each run as objects.
CREATE MACRO internal.objects_of(runs) AS TABLE
SELECT run_dir, coalesce(config, '{}') AS config, coalesce(summary, '{}') AS summary
FROM internal.found_runs
LEFT JOIN (
    SELECT run_dir, internal.object(key, value) AS config
    FROM internal.config_read(internal.found_of(runs)) GROUP BY run_dir
) USING (run_dir)
LEFT JOIN (
    SELECT run_dir, internal.object(key, json) AS summary
    FROM internal.summary_read(internal.found_of(runs)) GROUP BY run_dir
) USING (run_dir)
WHERE internal.is_among(run_dir, runs)
UNION ALL FROM kept.objects ANTI JOIN internal.changed USING (run_dir) WHERE internal.is_among(run_dir, runs);

CREATE MACRO runs_of(runs) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, name, state, tags, "group", job_type,
    notes, started, last_time, duration_s, steps, last_step, records, trajectories, pieces, acked, backlog, config, summary,
    host, entity, path
FROM internal.facts_of(runs) JOIN internal.objects_of(runs) USING (run_dir);

CREATE VIEW runs AS FROM runs_of(NULL);
