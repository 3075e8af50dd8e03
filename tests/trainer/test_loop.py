"""The GRPO loop: rows, steps, resuming, and what it does with groups and losses that teach nothing."""

import math
from dataclasses import replace

import pytest
import torch

from tests.trainer.doubles import OddLengthTask, RecordingRun, learned_chat
from trainer import checkpoint, loop
from trainer.config import Settings
from trainer.loop import Problems, State, problems_of_step, train
from trainer.policy.transformers import tiny_qwen3
from trainer.warmup import WarmupPoint

SETTINGS = Settings(
    steps=3,
    rollouts_per_step=4,
    group_size=4,
    lr=1e-2,
    max_turns=1,
    max_new_tokens=4,
    max_length=64,
    eval_interval=2,
    checkpoint_interval=1,
)
PROBLEMS = Problems(
    warmup=(), train=range(10), held_out=range(100, 104), source="numbers", fingerprint="f00d"
)
CURVE = [WarmupPoint(10, 2.0, 0.0), WarmupPoint(20, 1.0, 0.2)]


@pytest.fixture(scope="module")
def chat():
    return learned_chat()


def build(vocab_size):
    return tiny_qwen3(vocab_size, hidden=16, layers=1, max_tokens=64)


def fresh_state(chat, warmup=CURVE, settings=SETTINGS):
    torch.manual_seed(settings.seed)
    return State.start(chat, build(chat.vocab_size), settings.lr, warmup)


def trained(state, directory, settings=SETTINGS, task=None):
    run = RecordingRun()
    said = []
    train(run, settings, task or OddLengthTask(), PROBLEMS, state, directory, said.append)
    return run, said


def restored(directory, settings=SETTINGS):
    saved = checkpoint.load_newest(directory, warn=pytest.fail)
    return loop.from_checkpoint(saved, build, settings.lr)


def weights(state):
    return [p.detach().clone() for p in state.model.parameters()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_step_is_one_row_that_holds_its_global_step(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path)

    assert [step for step, _ in run.rows] == [0, 1, 2, 3]
    assert all(row["global_step"] == step for step, row in run.rows)


@pytest.mark.parametrize(("how", "rows"), [("off", None), ("sample", 3), ("all", None)])
def test_a_row_shows_the_newest_trajectories_of_its_rollout_batch(chat, tmp_path, how, rows):
    settings = replace(SETTINGS, trajectory_table=how, trajectory_table_rows=rows or 1)

    run, _ = trained(fresh_state(chat), tmp_path, settings)

    first = dict(run.rows)[0]
    logged = [trajectory.id for step, trajectory in run.trajectories if step == 0]
    shown = [row[0] for row in first.get("trajectories", [])]
    assert shown == {"off": [], "sample": logged[-3:], "all": logged}[how]


def test_a_row_has_the_metrics_of_the_rollout_the_update_and_the_epoch(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path)

    (_, row) = run.rows[1]
    prefixes = {key.split("/")[0] for key in row}
    assert prefixes == {
        "global_step", "rollouts", "batch_returns", "training_step", "training_epoch", "training", "system",
        "checkpoint", "warmup", "trajectories",
    }  # fmt: skip
    assert row["rollouts/total_rollouts"] == 32
    assert row["rollouts/batch_step"] == 1


def test_the_policy_is_evaluated_before_the_step_at_zero_at_the_interval_and_at_the_end(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path)

    assert [step for step, row in run.rows if "eval/reward" in row] == [0, 2, 3]
    assert run.rows[-1][1]["final/total_batches"] == 3
    assert not any("final/total_steps" in row for _, row in run.rows[:-1])


def test_every_rollout_is_logged_with_ids_mask_logprobs_reward_and_advantage(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path)

    assert [step for step, _ in run.trajectories] == [0] * 16 + [1] * 16 + [2] * 16
    assert len({t.id for _, t in run.trajectories}) == 48
    assert len({t.group for _, t in run.trajectories}) == 12
    for _, t in run.trajectories:
        assert len(t.token_ids) == len(t.mask)
        assert len(t.logprobs) == sum(t.mask) > 0
        assert t.reward is not None
        assert t.advantage is not None


def test_training_changes_the_policy_and_leaves_the_reference_alone(chat, tmp_path):
    state = fresh_state(chat)
    before = weights(state)

    trained(state, tmp_path)

    assert not equal(before, weights(state))
    assert equal(before, list(state.reference.parameters()))


def test_the_checkpoint_is_marked_by_the_row_that_follows_it(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path, replace(SETTINGS, checkpoint_interval=2))

    marks = {step: row["checkpoint/step"] for step, row in run.rows if row.get("checkpoint/saved")}
    assert marks == {0: 0, 2: 2, 3: 3}


def test_the_curve_of_the_warmup_rides_on_the_first_rows(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path)

    points = [
        (step, row["warmup/step"], row["warmup/loss"]) for step, row in run.rows if "warmup/step" in row
    ]
    assert points == [(0, 10, 2.0), (1, 20, 1.0)]


def test_a_curve_with_more_points_than_rows_is_thinned_and_keeps_its_end(chat, tmp_path):
    curve = [WarmupPoint(10 * i, 1.0, 0.1) for i in range(1, 9)]

    run, _ = trained(fresh_state(chat, curve), tmp_path)

    assert [row["warmup/step"] for _, row in run.rows if "warmup/step" in row] == [20, 50, 80]


def test_several_optimiser_steps_are_several_rows_and_the_rollout_is_in_the_first(chat, tmp_path):
    settings = replace(SETTINGS, steps=2, train_batch_size=8, epochs_per_step=2)

    run, _ = trained(fresh_state(chat), tmp_path, settings)

    assert [step for step, _ in run.rows] == list(range(9))
    assert [step for step, row in run.rows if "rollouts/returns_mean" in row] == [0, 4]
    assert [step for step, row in run.rows if "training_epoch/loss_mean" in row] == [1, 3, 5, 7]
    assert [step for step, _ in run.trajectories] == [0] * 16 + [4] * 16


def test_micro_batches_change_the_step_by_rounding_only(chat, tmp_path, monkeypatch):
    settings = replace(SETTINGS, steps=1)
    whole, _ = trained(fresh_state(chat), tmp_path / "whole", settings)

    monkeypatch.setattr(loop, "MICRO_BATCH_SIZE", 3)
    parts, _ = trained(fresh_state(chat), tmp_path / "parts", settings)

    for key in ("training_step/loss", "training_step/kl", "training_step/grad_norm"):
        assert parts.rows[0][1][key] == pytest.approx(whole.rows[0][1][key], rel=1e-4, abs=1e-6)


class EqualRewards(OddLengthTask):
    def grade(self, problem, turns):
        return replace(super().grade(problem, turns), reward=1.0)


def test_groups_without_variance_are_left_out_and_counted(chat, tmp_path):
    state = fresh_state(chat)
    before = weights(state)

    run, _ = trained(state, tmp_path, task=EqualRewards())

    row = run.rows[0][1]
    assert row["batch_returns/zero_std_group_fraction"] == 1.0
    assert row["system/replay_buffer_size"] == 0
    assert "training_step/loss" not in row
    assert equal(before, weights(state))


def test_a_loss_that_is_not_finite_is_skipped_and_counted(chat, tmp_path):
    # An infinite reference log-prob makes the KL, and with it the loss, infinite.
    state = fresh_state(chat)
    with torch.no_grad():
        state.reference.model.norm.weight.fill_(math.nan)
    before = weights(state)

    run, _ = trained(state, tmp_path)

    assert [row["training/invalid_loss_count"] for _, row in run.rows[:3]] == [1, 2, 3]
    assert not any("training_step/loss" in row for _, row in run.rows)
    assert run.rows[-1][1]["final/total_steps"] == 0
    assert equal(before, weights(state))


def test_a_resumed_training_is_bitwise_the_uninterrupted_one(chat, tmp_path):
    settings = replace(SETTINGS, steps=5)
    whole_state = fresh_state(chat)
    whole, _ = trained(whole_state, tmp_path / "whole", settings)
    first, _ = trained(fresh_state(chat), tmp_path / "parts", replace(settings, steps=2))

    torch.manual_seed(12345)  # another process has other random states
    state = restored(tmp_path / "parts")
    second, _ = trained(state, tmp_path / "parts", settings)

    assert equal(weights(whole_state), weights(state))
    assert first.rows[:2] + second.rows == whole.rows
    assert [t.token_ids for _, t in first.trajectories + second.trajectories] == [
        t.token_ids for _, t in whole.trajectories
    ]


class Killed(BaseException):
    pass


def test_a_step_killed_after_its_row_and_before_its_checkpoint_logs_the_same_row_again(chat, tmp_path):
    class DiesAfterRowOne(RecordingRun):
        def log(self, data, *, step=None):
            super().log(data, step=step)
            if step == 1:
                raise Killed

    run = DiesAfterRowOne()
    with pytest.raises(Killed):
        train(run, SETTINGS, OddLengthTask(), PROBLEMS, fresh_state(chat), tmp_path, lambda line: None)

    again, _ = trained(restored(tmp_path), tmp_path)

    assert again.rows[0] == run.rows[1]
    assert [t.id for _, t in again.trajectories[:16]] == [t.id for _, t in run.trajectories[16:]]


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(chat, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")

    run, said = trained(fresh_state(chat), in_the_way)

    assert len(run.rows) == 4
    assert not any("checkpoint/saved" in row for _, row in run.rows)
    assert any("was not written" in line for line in said)


def test_each_problem_is_seen_once_in_an_epoch():
    steps = [problems_of_step(step, 3, 9, seed=1) for step in range(6)]

    first, second = [i for step in steps[:3] for i in step], [i for step in steps[3:] for i in step]
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second


def test_a_step_may_need_more_problems_than_there_are():
    assert sorted(problems_of_step(0, 5, 2, seed=1))[:2] == [0, 0]
