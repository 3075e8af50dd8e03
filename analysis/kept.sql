-- What index.py keeps of settled runs: what catalog.py says of them, and what the views compute, so that nobody computes it again.
CREATE TABLE runs (
    run_dir VARCHAR, path VARCHAR, project VARCHAR, run_id VARCHAR, entity VARCHAR,
    -- Its directories, what their times came to, and its files: index.py knows how these are written.
    dirs VARCHAR, times BIGINT, files VARCHAR,
    -- Of such a run nothing else is kept: who asks for it is to come upon the damage.
    is_damaged BOOLEAN
);

CREATE TABLE pieces (run_dir VARCHAR, writer VARCHAR, number INTEGER, is_closed BOOLEAN, heartbeat_us BIGINT);

CREATE TABLE segments (file VARCHAR, run_dir VARCHAR, writer VARCHAR, stream VARCHAR, first BIGINT, last BIGINT);

CREATE TABLE cursors (
    run_dir VARCHAR, sink VARCHAR, base_url VARCHAR, sink_entity VARCHAR, sink_project VARCHAR, sink_run_id VARCHAR,
    state VARCHAR, error VARCHAR, url VARCHAR, finished BOOLEAN, next_number INTEGER, next_seq BIGINT,
    not_shown JSON, time_us BIGINT
);

CREATE TABLE config (run_dir VARCHAR, key VARCHAR, value JSON);

CREATE TABLE summary (
    run_dir VARCHAR, key VARCHAR, json JSON, mark VARCHAR, step BIGINT, time TIMESTAMP WITH TIME ZONE
);

CREATE TABLE rollup (
    run_dir VARCHAR, writer VARCHAR, key VARCHAR, n BIGINT, sum DOUBLE, mean DOUBLE, min DOUBLE, min_step BIGINT,
    max DOUBLE, max_step BIGINT, last DOUBLE, last_step BIGINT, last_seq BIGINT
);

CREATE TABLE alerts (
    run_dir VARCHAR, writer VARCHAR, seq BIGINT, step BIGINT, time TIMESTAMP WITH TIME ZONE, level VARCHAR,
    title VARCHAR, text VARCHAR, wait_s DOUBLE
);

CREATE TABLE checkpoints (
    run_dir VARCHAR, writer VARCHAR, seq BIGINT, step BIGINT, time TIMESTAMP WITH TIME ZONE, path VARCHAR, data JSON
);

-- The row of the view `runs`: these, and the objects of `config` and `summary`.
CREATE TABLE facts (
    run_dir VARCHAR, name VARCHAR, state VARCHAR, tags VARCHAR[], "group" VARCHAR, job_type VARCHAR, notes VARCHAR,
    started TIMESTAMP WITH TIME ZONE, last_time TIMESTAMP WITH TIME ZONE, duration_s DOUBLE, steps BIGINT,
    last_step BIGINT, records BIGINT, trajectories BIGINT, pieces BIGINT, acked BIGINT, backlog BIGINT, host VARCHAR,
    entity VARCHAR, path VARCHAR, newest_step BIGINT, newest_time TIMESTAMP WITH TIME ZONE, has_said BOOLEAN
);

CREATE TABLE objects (run_dir VARCHAR, config JSON, summary JSON);
