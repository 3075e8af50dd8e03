"""The calculator's recipe with TRL's real trainer: as a person starts it, and what it logs, computed again from the log."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

import analysis
from tests.trainer.test_every_recipe import BATCH_RETURNS, GRPO, ROLLOUTS, SHORT, Log, same
from trainer import recipes
from trainer.cli import main
from trainer.config import with_overrides
from trainer.errors import SettingsError

# As the recipe's module says.
TRL_CANNOT_SAY = {"rollouts/kl_std", "rollouts/kl_max", "training/invalid_loss_count"}


def command(*arguments, cwd):
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB", "RUN_ID", "TIDELOG"))
    }
    env |= {"HOME": str(cwd), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "trainer", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def train(*arguments, cwd):
    return command("train", "calculator_trl", "--quick", *arguments, "--run-name", "short", cwd=cwd)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where a short training was."""
    directory = tmp_path_factory.mktemp("trl")
    # Two micro-batches of 16.
    sets = (*SHORT, "warmup_max_steps=60", "threads=1", "micro_batch_size=20")
    done = train(*(f"--set={pair}" for pair in sets), cwd=directory)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.fixture(scope="module")
def log(directory):
    return Log(analysis.connect(directory / "runs"))


def test_every_name_is_logged_but_those_that_trl_cannot_say(log):
    logged = {key for (key,) in log.con.execute("SELECT DISTINCT key FROM metrics").fetchall()}

    assert {name for name in [*GRPO, *BATCH_RETURNS, "eval/reward"] if name not in logged} == TRL_CANNOT_SAY


def test_a_row_has_our_names_and_trls_for_the_same_numbers(log):
    for ours, theirs in {
        "rollouts/returns_mean": "reward",
        "rollouts/returns_std": "reward_std",
        "rollouts/kl_mean": "kl",
        "batch_returns/zero_std_group_fraction": "frac_reward_zero_std",
        "training_step/loss": "loss",
        "training_step/kl": "kl",
        "training_step/grad_norm": "grad_norm",
        "training_step/learning_rate": "learning_rate",
        "training_step/clip_fraction": "clip_ratio/region_mean",
        "training_step/entropy": "entropy",
        "training_epoch/loss_mean": "loss",
    }.items():
        found = log.curve(ours)
        assert sorted(found) == [0, 1, 2]
        # TRL computes in float32.
        same(found, log.curve(f"train/{theirs}"), rel=1e-6)


def test_rollouts_are_what_the_trajectories_say(log):
    for name, formula in ROLLOUTS.items():
        same(log.curve(f"rollouts/{name}"), log.by_step(formula))


def test_advantages_are_the_rewards_less_the_groups_mean_over_its_std(log):
    found = log.con.execute("""
        SELECT advantage, reward, avg(reward) OVER g AS middle, stddev_samp(reward) OVER g AS spread
        FROM trajectories WHERE info->>'split' = 'train' WINDOW g AS (PARTITION BY "group")
    """).fetchall()

    assert len(found) == 3 * 8 * 4
    assert any(reward != middle for _, reward, middle, _ in found)
    for advantage, reward, middle, spread in found:
        assert advantage == pytest.approx((reward - middle) / (spread + 1e-4), rel=1e-4, abs=1e-6)


def test_what_trl_learns_from_is_the_tokens_that_were_sampled(log):
    per_step = log.by_step("avg(list_sum((info->'mask')::INT[]))")

    same(log.curve("train/completions/mean_length"), per_step, rel=1e-6)


def test_the_policy_that_takes_the_first_step_is_the_reference(log):
    assert log.curve("training_step/kl")[0] == pytest.approx(0.0, abs=1e-6)
    assert log.curve("training_step/kl")[2] > 0.0


def test_a_trajectory_is_a_conversation_with_its_calls(log):
    ((turns, n_ids, n_masks, n_sampled, n_logprobs),) = log.con.execute("""
        SELECT turns, len((info->'token_ids')::INT[]), len((info->'mask')::INT[]),
            list_sum((info->'mask')::INT[]), len((info->'logprobs')::DOUBLE[])
        FROM trajectories JOIN (
            SELECT writer, seq, list(role ORDER BY turn) AS turns FROM messages GROUP BY writer, seq
        ) USING (writer, seq)
        WHERE info->>'split' = 'train' AND reward = 1 LIMIT 1
    """).fetchall()

    assert turns[:3] == ["user", "assistant", "tool"]
    assert turns[-1] == "assistant"
    assert (n_ids, n_sampled) == (n_masks, n_logprobs)


def test_an_evaluation_is_what_its_episodes_say(log):
    same(log.curve("eval/reward"), log.by_step("avg(reward)", "held_out"))
    assert sorted(log.curve("eval/reward")) == [0, 2, 3]


def test_the_last_row_says_what_was_done(log):
    assert log.curve("final/total_steps") == {3: 3}
    assert log.curve("final/total_rollouts") == {3: 3 * 8 * 4}
    assert log.curve("final/best_mean_return") == {3: max(log.curve("rollouts/returns_mean").values())}


def test_what_it_trained_can_be_evaluated(log, directory):
    arguments = ("--run-name", "short", "--checkpoint", "newest", "--json")

    done = command("eval", "calculator_trl", *arguments, cwd=directory)

    assert done.returncode == 0, done.stderr
    assert f'"eval/reward": {log.curve("eval/reward")[3]}' in done.stdout


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_a_second_start_under_the_same_name_is_refused_and_resume_too(directory, flags):
    done = train(*flags, cwd=directory)

    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "cannot continue one" in said
    assert "Choose another --run-name" in said


@pytest.mark.parametrize(
    "pair", ["epochs_per_step=2", "train_batch_size=8", "kl_estimator=k1", "lora_rank=4"]
)
def test_a_setting_that_trl_has_no_place_for_is_refused(pair):
    key, value = pair.split("=")

    with pytest.raises(SettingsError, match=f"{key}.*by the recipe 'calculator'"):
        with_overrides(recipes.load("calculator_trl").settings(), {key: value})


def test_without_trl_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "trainer.recipes.calculator_trl", raising=False)

    result = CliRunner().invoke(main, ["train", "calculator_trl", "--quick"])

    assert result.exit_code == 2
    assert "Install `trl>=1.16`" in result.output
    assert list(tmp_path.iterdir()) == []


def test_without_a_weight_for_the_kl_none_is_logged(tmp_path):
    sets = (*SHORT, "steps=1", "kl_weight=0", "warmup_max_steps=10", "hidden=16", "layers=1")
    done = train(*(f"--set={pair}" for pair in sets), cwd=tmp_path)

    assert done.returncode == 0, done.stderr[-3000:]
    log = Log(analysis.connect(tmp_path / "runs"))
    assert [k for (k,) in log.con.execute("SELECT DISTINCT key FROM metrics").fetchall() if "/kl" in k] == []
    assert log.curve("training_step/grad_norm").keys() == {0}


def test_it_differs_from_our_loops_recipe_in_nothing_but_who_trains():
    ours, trls = recipes.load("calculator"), recipes.load("calculator_trl")
    differing = {
        field.name
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(trls, field.name)
    }

    assert differing == {"name", "settings", "quick", "tags", "train", "resumes"}
    assert {**trls.quick, "steps": 0} == {**ours.quick, "steps": 0}
    assert trls.settings.__annotations__ == {}
