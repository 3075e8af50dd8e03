-- Questions with parameters. A run is given by its id; one id in several projects is several runs, told apart by `project`.
-- A macro over one run opens that run's files only, and so does one over a list of runs that is written out.
-- Lines that begin with `-- >` are examples, which the tests run.


-- ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- One metric of a run's history, in order.
-- > FROM curve('first', 'train/loss')
CREATE MACRO curve(run, metric) AS TABLE
SELECT internal.project_of(run_dir) AS project, step, time, value, int, text
FROM internal.leaf_of([run])
WHERE replace(path, chr(31), '.') = metric AND number IS NOT NULL
ORDER BY run_dir, place;

-- One metric of several runs, run by run.
-- > FROM curves(['first', 'second'], 'train/loss')
CREATE MACRO curves(runs, metric) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, step, time, value, int, text
FROM internal.leaf_of(runs)
WHERE replace(path, chr(31), '.') = metric AND number IS NOT NULL
ORDER BY run_dir, place;

-- A curve smoothed by W&B's "exponential moving average", which is debiased: with x₁, x₂, … the finite values in order,
--     sₙ = alpha · sₙ₋₁ + (1 − alpha) · xₙ,  s₀ = 0,        emaₙ = sₙ / (1 − alphaⁿ)
-- `alpha` is W&B's slider: from 0, which smooths nothing, to below 1. What is no finite number has no row.
-- > SELECT step, value, ema FROM ema('first', 'train/loss', 0.9)
CREATE MACRO ema(run, metric, alpha) AS TABLE
WITH points AS (
    -- Within a block the values are summed with growing weights, alpha^0, alpha^-1, …, and scaled back. A block is so long
    -- that these stay below 1e100, and what came before the last block weighs less than 1e-100.
    SELECT *, n // size AS block, n % size AS nth
    FROM (
        SELECT run_dir, place, step, time, value, row_number() OVER (PARTITION BY run_dir ORDER BY place) - 1 AS n,
            CASE WHEN alpha >= 0 AND alpha < 1
                THEN CASE WHEN alpha > 0 THEN greatest(1, floor(-230 / ln(alpha)))::BIGINT ELSE 1 END
                ELSE error('alpha of ema is from 0 to below 1') END AS size
        FROM internal.leaf_of([run])
        WHERE replace(path, chr(31), '.') = metric AND number IS NOT NULL
            AND isfinite(value)
    )
), sums AS (
    SELECT *, pow(alpha, nth) * sum(value * pow(alpha, -nth)) OVER (PARTITION BY run_dir, block ORDER BY n) AS within
    FROM points
), blocks AS (
    SELECT run_dir, block + 1 AS block, arg_max(within, n) AS before FROM sums GROUP BY ALL
)
SELECT internal.project_of(run_dir) AS project, step, time, value,
    (1 - alpha) * (within + coalesce(before * pow(alpha, nth + 1), 0)) / (1 - pow(alpha, n + 1)) AS ema
FROM sums LEFT JOIN blocks USING (run_dir, block)
ORDER BY run_dir, place;


-- ── runs against each other ──────────────────────────────────────────────────────────────────────────────────────

-- The last values of two runs side by side, and b − a; what only one has is there too.
-- > FROM compare_runs('first', 'second')
CREATE MACRO compare_runs(a, b) AS TABLE
SELECT key, one.value AS value_a, other.value AS value_b, other.value - one.value AS difference,
    one.text AS text_a, other.text AS text_b, one.step AS step_a, other.step AS step_b
FROM summary_of([a]) one FULL JOIN summary_of([b]) other USING (key)
ORDER BY key;

-- Every leaf of a run's config: of a nested dict `outer.inner`.
CREATE MACRO internal.config_leaves(run) AS TABLE
SELECT run_dir, replace(item.key, chr(31), '.') AS key, coalesce(item.value, 'null') AS value
FROM (
    SELECT run_dir, unnest(internal.leaves(('{' || to_json(key)::VARCHAR || ':' || coalesce(value, 'null') || '}')::JSON)) AS item
    FROM internal.config_of([run])
);

-- What is configured otherwise, of a nested dict by `outer.inner`. 1 and 1.0 are the same.
--     value_a, value_b   JSON; NULL where the run has no such key, and null where that is its value
-- > FROM config_diff('first', 'second')
CREATE MACRO config_diff(a, b) AS TABLE
SELECT key, one.value AS value_a, other.value AS value_b
FROM (FROM internal.config_leaves(a)) one FULL JOIN (FROM internal.config_leaves(b)) other USING (key)
WHERE one.value IS DISTINCT FROM other.value AND coalesce(TRY_CAST(one.value::VARCHAR AS DOUBLE)
    <> TRY_CAST(other.value::VARCHAR AS DOUBLE) OR internal.is_whole(one.value) AND internal.is_whole(other.value), true)
ORDER BY key;

-- The 0.975 quantile of Student's t with so many degrees of freedom; beyond 30 by its expansion at the normal one, which is
-- right to 6 digits there.
CREATE MACRO internal.t_975(df) AS CASE WHEN df < 1 THEN NULL WHEN df <= 30 THEN [
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272][df]
    ELSE 1.959964 + 2.372271 / df + 2.822498 / df ** 2 + 2.556 / df ** 3 END;

-- One metric over the seeds, by step: the mean over the runs that are configured alike but for the key `seed`, and its 95 %
-- interval by Student's t. `alike` says in which keys, if not in all.
--     setting     the config that they share, JSON
--     n           how many runs have the metric at that step; of one, there is no interval
--     low, high   of a run that logged the metric more than once in a step, the last value counts; no finite number, no value
-- > SELECT step, n, mean, low, high FROM seeds_ci('train/accuracy') WHERE project = 'demo'
-- > SELECT setting ->> 'lr' AS lr, step, n, mean, low, high FROM seeds_ci('train/accuracy', alike := ['lr'])
CREATE MACRO seeds_ci(metric, alike := NULL, seed := 'seed') AS TABLE
WITH settings AS (
    SELECT r.run_dir, coalesce(setting, '{}') AS setting
    FROM internal.runs r LEFT JOIN (
        SELECT run_dir, internal.object(key, value) AS setting
        FROM internal.config_of(NULL) WHERE CASE WHEN alike IS NULL THEN key <> seed ELSE list_contains(alike, key) END
        GROUP BY run_dir
    ) USING (run_dir)
), points AS (
    SELECT run_dir, step, arg_max(value, place) AS value
    FROM internal.leaf_of(NULL)
    WHERE replace(path, chr(31), '.') = metric AND number IS NOT NULL AND isfinite(value)
    GROUP BY run_dir, step
)
SELECT project, setting, step, n, mean, mean - half AS low, mean + half AS high
FROM (
    SELECT internal.project_of(run_dir) AS project, setting, step, count(*) AS n, avg(value) AS mean,
        internal.t_975(count(*) - 1) * stddev_samp(value) / sqrt(count(*)) AS half
    FROM points JOIN settings USING (run_dir)
    GROUP BY ALL
)
ORDER BY project, setting, step;


-- ── a mixture with a judge, and what it costs ────────────────────────────────────────────────────────────────────

-- Several metrics of a run as columns-to-be: the last finite value of each key at each step.
CREATE MACRO internal.at_steps(run, metrics) AS TABLE
SELECT run_dir, step, path AS key, arg_max(value, place) AS value
FROM internal.leaf_of([run])
WHERE list_contains(metrics, path) AND number IS NOT NULL AND isfinite(value)
GROUP BY run_dir, step, path;

-- How far mathematics is behind arithmetic, in percentage points, at each step that has both.
-- > FROM dataset_gap('first')
CREATE MACRO dataset_gap(run) AS TABLE
SELECT internal.project_of(run_dir) AS project, step, max(value) FILTER (key = 'dataset/gsm8k/accuracy') AS gsm8k,
    max(value) FILTER (key = 'dataset/math/accuracy') AS math, gsm8k - math AS gap
FROM internal.at_steps(run, ['dataset/gsm8k/accuracy', 'dataset/math/accuracy'])
GROUP BY run_dir, step
HAVING count(*) = 2
ORDER BY run_dir, step;

-- Does the judge answer? A success rate below 0.8 is bad.
--     mean             of this and the steps before it, `steps` in all
--     first_bad_step   of the run; NULL if it has none
-- > SELECT step, success_rate, mean FROM judge_health('first') WHERE is_bad
CREATE MACRO judge_health(run, steps := 10) AS TABLE
SELECT internal.project_of(run_dir) AS project, step, value AS success_rate,
    avg(value) OVER (PARTITION BY run_dir ORDER BY step ROWS BETWEEN steps - 1 PRECEDING AND CURRENT ROW) AS mean,
    value < 0.8 AS is_bad, min(step) FILTER (value < 0.8) OVER (PARTITION BY run_dir) AS first_bad_step
FROM internal.at_steps(run, ['judge/success_rate'])
ORDER BY run_dir, step;

-- What a right answer costs: cost / (accuracy / 100). The best step first; those with nothing right last, without a value.
-- > SELECT step, cost_per_correct FROM cost_efficiency('first') LIMIT 1
CREATE MACRO cost_efficiency(run) AS TABLE
SELECT internal.project_of(run_dir) AS project, step, max(value) FILTER (key = 'cost/avg_cost_per_sample') AS cost,
    max(value) FILTER (key = 'train/accuracy') AS accuracy, cost / (nullif(accuracy, 0) / 100) AS cost_per_correct
FROM internal.at_steps(run, ['cost/avg_cost_per_sample', 'train/accuracy'])
GROUP BY run_dir, step
HAVING count(*) = 2
ORDER BY cost_per_correct NULLS LAST, step;


-- ── trajectories ─────────────────────────────────────────────────────────────────────────────────────────────────

-- Those of a training: evaluations (info.split is eval) are left out. A reward that is NaN is none.
CREATE MACRO internal.trained(run) AS TABLE
SELECT run_dir, writer, seq, step, data, CASE WHEN NOT isnan(data.reward) THEN data.reward END AS reward
FROM internal.trajectories_of([run])
WHERE kind = 'trajectory' AND data.info ->> 'split' IS DISTINCT FROM 'eval';

-- What the groups of a step came to; a trajectory without a group is one by itself. All writers' together.
--     prompts, trajectories   how many
--     pass_at_group           the share of prompts with at least one right answer: one whose reward is above `above`
--     dead_groups             the share of prompts whose rewards are all equal (or none): they teach nothing
--     mean_reward             over the trajectories
-- > FROM pass_at_group('first')
-- > SELECT step, pass_at_group FROM pass_at_group('first', above := 0.5)
CREATE MACRO pass_at_group(run, above := 0) AS TABLE
SELECT internal.project_of(run_dir) AS project, step, count(*) AS prompts, sum(n)::BIGINT AS trajectories,
    avg(coalesce(best > above, false)::INTEGER) AS pass_at_group,
    avg((best IS NOT DISTINCT FROM worst)::INTEGER) AS dead_groups, sum(total) / sum(rewarded) AS mean_reward
FROM (
    SELECT run_dir, step, count(*) AS n, max(reward) AS best, min(reward) AS worst, sum(reward) AS total,
        nullif(count(reward), 0) AS rewarded
    FROM internal.trained(run)
    GROUP BY run_dir, step, data."group", CASE WHEN data."group" IS NULL THEN (writer, seq) END
)
GROUP BY run_dir, step
ORDER BY run_dir, step;

-- Reward by where the problems are from, over time; `field` is where a trajectory's info says that.
--     correct   the share with a reward above 0
-- > FROM reward_by_source('first')
-- > FROM reward_by_source('first', field := 'domain')
CREATE MACRO reward_by_source(run, field := 'source') AS TABLE
SELECT internal.project_of(run_dir) AS project, step, data.info ->> field AS source, count(*) AS trajectories,
    avg(reward) AS mean_reward, avg((reward > 0)::INTEGER) AS correct
FROM internal.trained(run)
GROUP BY run_dir, step, source
ORDER BY run_dir, step, source;

-- How often each tool fails, by step; evaluations are left out.
-- > SELECT step, failure_rate FROM tool_failures('first') WHERE name = 'calculator'
CREATE MACRO tool_failures(run) AS TABLE
SELECT internal.project_of(run_dir) AS project, step, call.name AS name, count(*) AS calls, count(call.error) AS failures,
    count(call.error) / count(*) AS failure_rate, avg(call.duration_s) AS mean_s
FROM (
    SELECT run_dir, step, unnest(message.tool_calls) AS call
    FROM internal.turns_of([run])
    WHERE info ->> 'split' IS DISTINCT FROM 'eval'
)
GROUP BY run_dir, step, call.name
ORDER BY run_dir, step, name;

-- How long trajectories are, by step; evaluations are left out.
--     cut_off   the share that ended for want of room: stop_reason is length or max_tokens
-- > SELECT step, median_tokens, max_tokens, cut_off FROM trajectory_lengths('first')
CREATE MACRO trajectory_lengths(run) AS TABLE
SELECT internal.project_of(run_dir) AS project, step, count(*) AS trajectories,
    avg(len(data.turns)) AS mean_turns, max(len(data.turns)) AS max_turns,
    avg(data.completion_tokens) AS mean_completion_tokens, max(data.completion_tokens) AS max_completion_tokens,
    avg(len(data.token_ids)) AS mean_tokens, median(len(data.token_ids)) AS median_tokens,
    quantile_cont(len(data.token_ids), 0.9) AS p90_tokens, max(len(data.token_ids)) AS max_tokens,
    avg(data.duration_s) AS mean_s, avg(coalesce(data.stop_reason IN ('length', 'max_tokens'), false)::INTEGER) AS cut_off
FROM internal.trained(run)
GROUP BY run_dir, step
ORDER BY run_dir, step;

-- The prompts that both steps have, and what became of them, the greatest loss first; evaluations are in here: their prompts are
-- those that come back. A prompt is all that was said before the first turn of the assistant.
--     split                info.split: train, eval, …
--     reward_a, reward_b   means over the trajectories of that prompt
--     answer_a, answer_b   how the first of them ended
-- > SELECT prompt, reward_a, reward_b, answer_b FROM same_prompts('first', 0, 1) WHERE split = 'eval'
CREATE MACRO same_prompts(run, a, b) AS TABLE
WITH asked AS (
    SELECT run_dir, step, data.info ->> 'split' AS split, prompt, count(*) AS n,
        avg(CASE WHEN NOT isnan(data.reward) THEN data.reward END) AS reward,
        arg_min({text: data.turns[-1].content}, (writer, seq)).text AS answer
    FROM (
        SELECT *, array_to_string(list_transform(data.turns[:coalesce(
            list_position(list_transform(data.turns, lambda turn: turn.role), 'assistant') - 1, len(data.turns))],
            lambda turn: turn.role || ': ' || turn.content), chr(10)) AS prompt
        FROM internal.trajectories_of([run])
        WHERE kind = 'trajectory' AND step IN (a, b)
    )
    GROUP BY ALL
)
SELECT internal.project_of(before.run_dir) AS project, before.split, before.prompt, before.n AS n_a, before.reward AS reward_a, after.n AS n_b,
    after.reward AS reward_b, after.reward - before.reward AS difference, before.answer AS answer_a, after.answer AS answer_b
FROM (FROM asked WHERE step = a) before JOIN (FROM asked WHERE step = b) after
    ON before.run_dir = after.run_dir AND before.prompt = after.prompt AND before.split IS NOT DISTINCT FROM after.split
ORDER BY difference NULLS LAST, before.prompt;

-- The trajectories that match all that is given; without `run`, of all runs.
--     words              somewhere in what was said, in capitals or not
--     tool               one of this name was called
--     failed             true: a tool call failed, or the episode did; false: nothing did
--     lowest, highest    of the reward, both included
--     first_turn         (a column) the first turn with these words; its text is in `messages`
-- > FROM find_trajectories(run := 'first', words := 'sorry', highest := 0)
-- > SELECT run_id, step, id, reward FROM find_trajectories(tool := 'calculator', failed := true) ORDER BY reward
CREATE MACRO find_trajectories(run := NULL, words := NULL, tool := NULL, failed := NULL, lowest := NULL, highest := NULL) AS TABLE
SELECT internal.project_of(run_dir) AS project, internal.run_id_of(run_dir) AS run_id, writer, seq, step, time, data.id AS id,
    data."group" AS "group", data.reward AS reward, len(data.turns) AS n_turns,
    list_position(list_transform(data.turns, lambda turn: contains(lower(turn.content), lower(words))), true) - 1 AS first_turn,
    data.exception AS exception, data.info AS info
FROM (
    SELECT *, flatten(list_transform(data.turns, lambda turn: coalesce(turn.tool_calls, []))) AS calls
    FROM internal.trajectories_of(CASE WHEN run IS NOT NULL THEN [run] END)
    WHERE kind = 'trajectory'
)
WHERE (words IS NULL OR first_turn >= 0)
    AND (tool IS NULL OR coalesce(list_contains(list_transform(calls, lambda call: call.name), tool), false))
    AND (failed IS NULL OR failed = (data.exception IS NOT NULL
        OR coalesce(len(list_filter(calls, lambda call: call.error IS NOT NULL)) > 0, false)))
    AND (lowest IS NULL OR data.reward >= lowest) AND (highest IS NULL OR data.reward <= highest)
ORDER BY run_dir, writer, seq;
