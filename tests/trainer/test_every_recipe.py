"""Every recipe, as a person starts it, and what it logs: the names that dashboards are built on, with their formulas.

The formulas are computed again by SQL, from the trajectories in the log: none of the trainer's own code is asked.
`--quick` is shortened here: fewer steps, and a warm-up that ends where the policy succeeds now and then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest

import analysis

GRPO = [
    "rollouts/returns_sum",
    "rollouts/returns_mean",
    "rollouts/returns_std",
    "rollouts/returns_max",
    "rollouts/returns_min",
    "rollouts/returns_best_mean",
    "rollouts/kl_mean",
    "rollouts/kl_std",
    "rollouts/kl_max",
    "rollouts/advantages_mean",
    "rollouts/advantages_std",
    "rollouts/total_rollouts",
    "rollouts/batch_step",
    "training_step/loss",
    "training_step/kl",
    "training_step/grad_norm",
    "training_step/learning_rate",
    "training_epoch/loss_mean",
    "training_epoch/kl_mean",
    "training_epoch/grad_norm_mean",
    "training_epoch/grad_norm_max",
    "system/replay_buffer_size",
    "checkpoint/saved",
    "checkpoint/step",
    "final/total_steps",
    "final/total_batches",
    "final/total_rollouts",
    "final/best_mean_return",
    "training/invalid_loss_count",
]
BATCH_RETURNS = [
    f"batch_returns/{name}"
    for name in [
        "mean",
        "std",
        "min",
        "max",
        "p10",
        "p50",
        "p90",
        "nonzero_fraction",
        "zero_std_group_fraction",
    ]
]
EVALUATION = (
    "reward answer_correct sources_correct num_turns duration prompt_tokens completion_tokens n_trajectories"
)
SPREAD = [f"Train/{name}_{kind}" for name in ("Reward", "Accuracy", "Latency") for kind in ("Mean", "Std")]


@dataclass(frozen=True)
class Case:
    recipe: str
    project: str
    names: list[str] = field(default_factory=list)
    sets: tuple[str, ...] = ()


# `rollouts/*` → SQL over the trajectories of a step.
ROLLOUTS = {
    "returns_sum": "sum(reward)",
    "returns_mean": "avg(reward)",
    "returns_std": "stddev_samp(reward)",
    "returns_max": "max(reward)",
    "returns_min": "min(reward)",
    "advantages_mean": "avg(advantage)",
    "advantages_std": "stddev_samp(advantage)",
    "total_rollouts": "sum(count(*)) OVER (ORDER BY step)",
    "returns_best_mean": "max(avg(reward)) OVER (ORDER BY step)",
}
CASES = [
    Case("base", "tiny_grpo"),
    Case(
        "drgrpo",
        "drgrpo_experiment",
        [
            "dr_grpo/advantages_variance",
            "dr_grpo/advantages_skewness",
            "training_step/dr_component_policy",
            "training_step/dr_component_kl",
            "training_step/dr_component_clip_fraction",
        ],
    ),
    Case("accelerate", "accelerate_grpo", ["accelerate/sync_gradients"]),
    Case("multiturn_qa", "tiny_grpo_multiturn_qa", BATCH_RETURNS, ("train_batch_size=0",)),
    Case("multiturn_tool_calling", "tiny_grpo_multiturn_tool_calling", BATCH_RETURNS),
    Case(
        "email_agent",
        "qwen3-email-agent",
        [f"{part}/{name}" for part in ("eval", "final_eval") for name in EVALUATION.split()]
        + [
            "train/total_trajectories",
            "train/avg_reward",
            "train/epoch",
            "train/epoch_step",
            "train/answer_correct",
            "train/attempted_answer",
            "train/num_turns",
            "train/prompt_tokens",
            "train/completion_tokens",
            "eval/exceptions",
        ],
    ),
    Case(
        "mixture_judge",
        "grpo-mixture",
        [
            "train/accuracy",
            "train/accuracy_math",
            "train/accuracy_qa",
            "train/accuracy_code",
            "train/step",
            "cost/total_cost",
            "cost/avg_cost_per_sample",
            "cost/executor_calls",
            "cost/judge_calls",
        ],
    ),
    Case(
        "joint_controller",
        "molmo-controller",
        ["Train/Loss", *SPREAD, "Train/Budget_Violation_Rate"]
        + [
            f"Val/{name}"
            for name in ("Reward_Mean", "Accuracy_Mean", "Latency_Mean", "Budget_Violation_Rate")
        ],
        ("adaptive_steps=30", "train_size=32", "epochs=2"),
    ),
]
SHORT = ("steps=3", "eval_size=24", "eval_interval=2", "checkpoint_interval=2", "rollouts_per_step=8")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.recipe)
def trained(request, tmp_path_factory):
    """The log of a short training, and its case."""
    case: Case = request.param
    directory = tmp_path_factory.mktemp(case.recipe)
    sets = [f"--set={pair}" for pair in (*SHORT, "warmup_max_steps=60", "threads=1", *case.sets)]
    command = [sys.executable, "-W", "ignore", "-m", "trainer", "train", case.recipe, "--quick", *sets]
    env = {
        **os.environ,
        "HOME": str(directory),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.getcwd(),
        "HF_HUB_OFFLINE": "1",
    }
    for name in ("WANDB_PROJECT", "WANDB_NAME", "RUN_ID", "TIDELOG_DATA"):
        env.pop(name, None)
    done = subprocess.run(
        [*command, "--run-name", "short"], cwd=directory, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return case, Log(analysis.connect(directory / "runs")), done.stdout, directory


@dataclass
class Log:
    con: duckdb.DuckDBPyConnection

    def curve(self, key: str) -> dict[int, float]:
        return dict(
            self.con.execute("SELECT step, value FROM metrics WHERE key = ? ORDER BY step", [key]).fetchall()
        )

    def by_step(self, expression: str, source: str = "played") -> dict[int, float]:
        """Return an aggregate over each step's trajectories: `played` to learn from, or `held_out`."""
        query = f"""
            WITH every AS (
                SELECT t.*, e.data->>'$.info.split' AS split, (e.data->'$.logprobs')::DOUBLE[] AS old,
                    (e.data->'$.ref_logprobs')::DOUBLE[] AS ref,
                    list_transform(list_zip(old, ref), lambda p: exp(p[2] - p[1]) - (p[2] - p[1]) - 1) AS k3
                FROM trajectories t
                    JOIN records e ON e.writer = t.writer AND e.seq = t.seq AND e.kind = 'trajectory'
                WHERE t.exception IS NULL
            ), played AS (FROM every WHERE split = 'train'), held_out AS (FROM every WHERE split = 'eval')
            SELECT step, {expression} FROM {source} GROUP BY step ORDER BY step
        """
        return dict(self.con.execute(query).fetchall())


def same(found: dict[int, float], wanted: dict[int, float], **tolerance: float) -> None:
    assert found, "it was never logged"
    assert found == pytest.approx(
        {step: wanted[step] for step in found}, **({"rel": 1e-9, "abs": 1e-12} | tolerance)
    )


def test_every_name_is_logged_and_the_project_is_the_old_one(trained):
    case, log, _, directory = trained

    logged = {key for (key,) in log.con.execute("SELECT DISTINCT key FROM metrics").fetchall()}
    assert [name for name in [*GRPO, *case.names] if name not in logged] == []
    assert [path.name for path in (directory / "runs").iterdir() if not path.is_symlink()] == [case.project]


def test_rollouts_are_what_the_trajectories_say(trained):
    _, log, _, _ = trained

    for name, formula in ROLLOUTS.items():
        same(log.curve(f"rollouts/{name}"), log.by_step(formula))
    for name, formula in {"kl_mean": "avg", "kl_max": "max", "kl_std": "stddev_samp"}.items():
        found = log.curve(f"rollouts/{name}")
        # Added up in float32: what is left of two numbers that nearly cancel has seven digits of theirs, not of its own.
        per_step = log.by_step(f"(SELECT {formula}(x) FROM (SELECT unnest(flatten(list(k3))) AS x))")
        same(found, per_step, rel=1e-3, abs=1e-6)


def test_the_spread_of_the_returns_is_what_the_trajectories_say(trained):
    _, log, _, _ = trained

    for name, formula in {
        "mean": "avg(reward)",
        "std": "stddev_samp(reward)",
        "min": "min(reward)",
        "max": "max(reward)",
        "p10": "quantile_cont(reward, 0.1)",
        "p50": "quantile_cont(reward, 0.5)",
        "p90": "quantile_cont(reward, 0.9)",
        "nonzero_fraction": "avg((reward != 0)::INT)",
    }.items():
        same(log.curve(f"batch_returns/{name}"), log.by_step(formula))


def test_the_loss_is_that_of_the_trajectories(trained):
    """One optimiser step of each batch, by the policy that sampled it: every ratio is 1, and the loss follows."""
    case, log, _, _ = trained
    config = {
        k: json.loads(v) for k, v in log.con.execute("SELECT key, value::VARCHAR FROM config").fetchall()
    }
    beta, variant = config["kl_weight"], config["variant"]
    l_max = min(config["max_turns"] * config["max_new_tokens"], config["max_length"])
    weight = f"1.0 / {l_max}" if variant == "dr_grpo" else "1.0 / len(old)"
    formula = (
        f"sum({weight} * (-advantage * len(old) + {beta} * list_sum(k3))) FILTER (advantage != 0) "
        "/ count(*) FILTER (advantage != 0)"
    )

    same(log.curve("training_step/loss"), log.by_step(formula), rel=1e-3, abs=1e-5)
    if case.recipe == "drgrpo":
        policy, kl = (
            log.curve("training_step/dr_component_policy"),
            log.curve("training_step/dr_component_kl"),
        )
        assert {step: policy[step] + kl[step] for step in policy} == log.curve("training_step/loss")


def test_the_last_row_says_what_was_done(trained):
    _, log, _, _ = trained

    ((_, total),) = log.curve("final/total_rollouts").items()
    assert total == sum(log.by_step("count(*)").values())
    ((_, best),) = log.curve("final/best_mean_return").items()
    assert best == pytest.approx(max(log.by_step("avg(reward)").values()))
    ((_, steps),) = log.curve("final/total_steps").items()
    assert steps == len(log.curve("training_step/loss"))


def test_an_evaluation_is_what_its_episodes_say(trained):
    _, log, _, _ = trained

    same(log.curve("eval/reward"), log.by_step("avg(reward)", "held_out"))
    same(log.curve("eval/n_trajectories"), log.by_step("count(*)", "held_out"))


def test_the_console_says_what_scripts_look_for(trained):
    _, _, output, _ = trained

    for line in (
        "Starting training: short",
        "--- Evaluating at Global Step 0 ---",
        "Evaluating on",
        "Generating 8 trajectory groups...",
        "Average reward:",
        "Training finished for short",
    ):
        assert line in output
    assert "Training step skipped" not in output


def test_the_email_agents_rows_are_what_its_trajectories_say(trained):
    case, log, _, _ = trained
    if case.recipe != "email_agent":
        pytest.skip("of another recipe")

    for name, formula in {
        "answer_correct": "avg((metrics->>'answer_correct')::DOUBLE)",
        "num_turns": "avg((metrics->>'num_turns')::DOUBLE)",
        "prompt_tokens": "avg(prompt_tokens)",
        "completion_tokens": "avg(completion_tokens)",
    }.items():
        same(log.curve(f"train/{name}"), log.by_step(formula))
        same(log.curve(f"eval/{name}"), log.by_step(formula, "held_out"))
    same(log.curve("train/avg_reward"), log.by_step("avg(reward)"))
    same(log.curve("train/total_trajectories"), log.by_step("count(*)"))
    same(log.curve("eval/duration"), log.by_step("avg(duration_s)", "held_out"))
    rewards = [reward for (reward,) in log.con.execute("SELECT reward FROM trajectories").fetchall()]
    assert -2.0 <= min(rewards) <= max(rewards) <= 1.5


def test_the_mixtures_rows_are_what_its_trajectories_say(trained):
    case, log, _, _ = trained
    if case.recipe != "mixture_judge":
        pytest.skip("of another recipe")

    same(log.curve("train/accuracy"), log.by_step("100 * avg(reward)"))
    for source in ("gsm8k", "math", "hotpotqa", "humaneval", "commonsenseqa", "mmlu"):
        of_source = f"FILTER (info->>'source' = '{source}')"
        same(log.curve(f"dataset/{source}/accuracy"), log.by_step(f"100 * avg(reward) {of_source}"))
        same(log.curve(f"dataset/{source}/count"), log.by_step(f"count(*) {of_source}"))
        same(log.curve(f"dataset/{source}/avg_reward"), log.by_step(f"avg(reward) {of_source}"))
        same(log.curve(f"val/{source}/accuracy"), log.by_step(f"100 * avg(reward) {of_source}", "held_out"))
        same(log.curve(f"val/{source}/count"), log.by_step(f"count(*) {of_source}", "held_out"))


def test_the_controllers_rows_are_what_its_trajectories_say(trained):
    case, log, _, directory = trained
    if case.recipe != "joint_controller":
        pytest.skip("of another recipe")

    # Its two epochs have four batches each, and their rows stand at the last one's.
    epochs = {3: (0, 3), 7: (4, 7)}
    for name, formula in {
        "Reward_Mean": "avg(reward)",
        "Reward_Std": "stddev_pop(reward)",
        "Accuracy_Mean": "avg((metrics->>'accuracy')::DOUBLE)",
        "Accuracy_Std": "stddev_pop((metrics->>'accuracy')::DOUBLE)",
        "Latency_Mean": "avg((metrics->>'latency_ms')::DOUBLE)",
        "Latency_Std": "stddev_pop((metrics->>'latency_ms')::DOUBLE)",
        "Budget_Violation_Rate": "avg(((metrics->>'latency_ms')::DOUBLE > (metrics->>'budget_ms')::DOUBLE)::INT)",
    }.items():
        wanted = {}
        for step, (first, last) in epochs.items():
            (wanted[step],) = log.con.execute(
                f"SELECT {formula} FROM trajectories WHERE info->>'split' = 'train' AND step BETWEEN {first} AND {last}"
            ).fetchone()
        same(log.curve(f"Train/{name}"), wanted)
    assert list(Path(directory).rglob("events.out.tfevents.*")), "TensorBoard is its default sink"
