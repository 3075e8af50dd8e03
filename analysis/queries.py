"""Questions that people ask of their runs, as SQL to start from.  `analysis sql` without a query prints them.

Each names its runs by what is in them (a key, a tag), so it runs as it is on any root; and each is run by the tests.  What
is asked of one run by its id is in `macros.sql`.
"""

from __future__ import annotations

QUERIES = {
    "Which run is best, and with which learning rate?": """
SELECT run_id, config ->> 'lr' AS lr, value AS reward, last_step, state
FROM runs JOIN summary USING (project, run_id)
WHERE key = 'train/reward'
ORDER BY reward DESC
""",
    "Where was each run at its best, and is it still there?": """
SELECT run_id, max AS best, max_step, last, last_step
FROM rollup
WHERE key = 'train/reward'
ORDER BY best DESC
""",
    "How do the seeds of each setting agree? (the last mean, and its 95 % interval)": """
SELECT setting, max_by(n, step) AS seeds, max_by(mean, step) AS mean, max_by(high - mean, step) AS plus_minus
FROM seeds_ci('train/reward')
GROUP BY project, setting
ORDER BY mean DESC
""",
    "How far is mathematics behind arithmetic, in percentage points?": """
SELECT run_id, max(value) FILTER (key = 'dataset/gsm8k/accuracy')
    - max(value) FILTER (key = 'dataset/math/accuracy') AS gap
FROM summary
GROUP BY project, run_id
HAVING gap IS NOT NULL
ORDER BY gap DESC
""",
    "Whose judge fails too often?": """
SELECT run_id, value AS success_rate
FROM summary
WHERE key = 'judge/success_rate' AND value < 0.8
""",
    "At which step did accuracy cost the least?": """
SELECT c.run_id, arg_min(step, c.value / (a.value / 100)) AS step, min(c.value / (a.value / 100)) AS cost_per_correct
FROM metrics c JOIN metrics a USING (project, run_id, writer, step)
WHERE c.key = 'cost/avg_cost_per_sample' AND a.key = 'train/accuracy' AND a.value > 0
GROUP BY c.project, c.run_id
""",
    "Of how many prompts was at least one answer right? (pass@group)": """
SELECT run_id, step, avg(solved) AS pass_at_group, avg(mean_reward) AS mean_reward
FROM (
    SELECT run_id, step, "group", max((reward > 0)::INTEGER) AS solved, avg(reward) AS mean_reward
    FROM trajectories
    WHERE info ->> 'split' IS DISTINCT FROM 'eval'
    GROUP BY project, run_id, step, "group"
)
GROUP BY run_id, step
ORDER BY run_id, step
""",
    "Which tools fail?": """
SELECT name, count(*) AS calls, avg((error IS NOT NULL)::INTEGER) AS failure_rate, avg(duration_s) AS mean_s
FROM tool_calls
GROUP BY name
ORDER BY failure_rate DESC
""",
    "What did the worst episode say?": """
SELECT turn, role, content
FROM messages
WHERE (project, run_id, writer, seq) = (
    SELECT (project, run_id, writer, seq) FROM trajectories WHERE reward IS NOT NULL ORDER BY reward LIMIT 1
)
ORDER BY turn
""",
    "What were we warned of?": """
SELECT run_id, time, step, title, text
FROM alerts
WHERE level IN ('WARN', 'ERROR')
ORDER BY time DESC
""",
    "What is not uploaded yet, and why?": """
SELECT run_id, state, backlog, error
FROM sync_state
WHERE backlog > 0 OR error IS NOT NULL
ORDER BY backlog DESC
""",
}
