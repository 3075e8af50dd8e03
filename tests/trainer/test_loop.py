"""The GRPO loop: rows, steps, resuming, and what it does with groups and losses that teach nothing."""

import math
from dataclasses import replace

import pytest
import torch

from tests.trainer.doubles import OddLengthTask, RecordingRun, SayingProgress, learned_chat
from trainer import checkpoint, loop
from trainer.config import Settings
from trainer.loop import Course, Logged, State, train
from trainer.policy.transformers import TransformersEngine, tiny_qwen3
from trainer.problems import Problems
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


def course(state, directory, settings=SETTINGS, task=None, run=None, **others):
    engine = TransformersEngine(state.model, end_id=state.chat.end_id, pad_id=state.chat.pad_id)
    return Course(
        run=run or RecordingRun(),
        settings=settings,
        task=task or OddLengthTask(),
        problems=PROBLEMS,
        engine=engine,
        checkpoints=directory,
        progress=SayingProgress(),
        **others,
    )


def played(run):
    """The trajectories that were learnt from, with their steps; the others are of evaluations."""
    return [(step, t) for step, t in run.trajectories if t.info["split"] == "train"]


def trained(state, directory, settings=SETTINGS, task=None, **others):
    its = course(state, directory, settings, task, **others)
    train(its, state)
    return its.run, its.progress.said


def resumed(chat, directory, settings=SETTINGS, **others):
    """Another process: a state made anew, brought to the newest checkpoint, and trained on."""
    torch.manual_seed(12345)
    saved = checkpoint.load_newest(directory, warn=pytest.fail)
    state = State.start(chat, build(chat.vocab_size), settings.lr, [])
    its = course(state, directory, settings, **others)
    loop.restore(its, state, saved)
    train(its, state)
    return its.run, state


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
    logged = [trajectory.id for step, trajectory in played(run) if step == 0]
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

    assert [step for step, _ in played(run)] == [0] * 16 + [1] * 16 + [2] * 16
    assert len({t.id for _, t in played(run)}) == 48
    assert len({t.group for _, t in played(run)}) == 12
    for _, t in played(run):
        assert len(t.token_ids) == len(t.mask)
        assert len(t.logprobs) == sum(t.mask) > 0
        assert t.reward is not None
        assert t.advantage is not None


def test_training_changes_the_policy_and_leaves_the_reference_alone(chat, tmp_path):
    state = fresh_state(chat)
    before = weights(state)

    trained(state, tmp_path)

    assert not equal(before, weights(state))
    with state.reference.model() as reference:
        assert equal(before, list(reference.parameters()))


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
    assert [step for step, _ in played(run)] == [0] * 16 + [4] * 16


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_change_the_step_by_rounding_only(chat, tmp_path, variant):
    settings = replace(SETTINGS, steps=1, variant=variant)

    whole, _ = trained(fresh_state(chat), tmp_path / "whole", settings)
    parts, _ = trained(fresh_state(chat), tmp_path / "parts", replace(settings, micro_batch_size=3))

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
    with torch.no_grad(), state.reference.model() as reference:
        reference.model.norm.weight.fill_(math.nan)
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

    second, state = resumed(chat, tmp_path / "parts", settings)

    assert equal(weights(whole_state), weights(state))
    assert first.rows[:2] + second.rows == whole.rows
    assert [t.token_ids for _, t in played(first) + played(second)] == [t.token_ids for _, t in played(whole)]


class Killed(BaseException):
    pass


def test_a_step_killed_after_its_row_and_before_its_checkpoint_comes_out_the_same(chat, tmp_path):
    class DiesAfterRowOne(RecordingRun):
        def log(self, data, *, step=None):
            super().log(data, step=step)
            if step == 1:
                raise Killed

    run = DiesAfterRowOne()
    with pytest.raises(Killed):
        trained(fresh_state(chat), tmp_path, run=run)

    again, _ = resumed(chat, tmp_path)

    assert again.rows[0] == run.rows[1]
    assert [t.id for _, t in played(again)[:16]] == [t.id for _, t in played(run)[16:]]


def test_what_the_log_has_already_is_not_logged_again(chat, tmp_path):
    whole, _ = trained(fresh_state(chat), tmp_path / "whole")
    trained(fresh_state(chat), tmp_path / "parts", replace(SETTINGS, steps=1))
    known = frozenset(t.id for step, t in played(whole) if step == 1)

    again, _ = resumed(chat, tmp_path / "parts", logged=Logged(2, known))

    assert again.rows == whole.rows[2:]
    assert [t.id for _, t in played(again)] == [t.id for _, t in played(whole)[32:]]


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(chat, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")

    run, said = trained(fresh_state(chat), in_the_way)

    assert len(run.rows) == 4
    assert not any("checkpoint/saved" in row for _, row in run.rows)
    assert any("was not written" in line for line in said)


class Fails(OddLengthTask):
    """Raises for one member of each group, and for all of one problem."""

    def grade(self, problem, turns):
        self.graded = getattr(self, "graded", 0) + 1
        if self.graded % 4 == 1:
            raise RuntimeError("the judge is away")
        return super().grade(problem, turns)


def test_an_episode_that_fails_is_counted_and_the_others_are_learnt_from(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path, task=Fails())

    row = dict(run.rows)[1]
    failed = [t for step, t in played(run) if step == 1 and t.exception]
    assert [t.exception for t in failed] == ["RuntimeError: the judge is away"] * 4
    assert all(t.reward is None and t.advantage is None and t.stop_reason == "exception" for t in failed)
    assert row["rollouts/exceptions"] == 4
    assert "training_step/loss" in row
    assert run.rows[-1][1]["eval/exceptions"] == 1


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo"])
def test_the_loss_of_a_first_step_follows_from_the_trajectories(chat, tmp_path, variant):
    settings = replace(SETTINGS, steps=3, variant=variant, kl_weight=0.5)

    run, _ = trained(fresh_state(chat), tmp_path, settings)

    for step in range(3):
        learning = [t for s, t in played(run) if s == step and t.advantage]
        n_tokens = sum(sum(t.mask) for t in learning)
        loss = 0.0
        for t in learning:
            weight = {
                "grpo": 1 / (sum(t.mask) * len(learning)),
                "dr_grpo": 1 / (settings.max_sampled_tokens * len(learning)),
                "dapo": 1 / n_tokens,
            }[variant]
            for old, ref in zip(t.logprobs, t.ref_logprobs, strict=True):
                # The first step on a batch is taken by the policy that sampled it: every ratio is 1.
                loss += weight * (-t.advantage + 0.5 * (math.exp(ref - old) - (ref - old) - 1))
        assert dict(run.rows)[step]["training_step/loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)


def test_a_learning_rate_follows_its_schedule(chat, tmp_path):
    settings = replace(SETTINGS, steps=4, schedule="linear", lr_ramp_steps=2)

    run, _ = trained(fresh_state(chat), tmp_path, settings)

    rates = [row["training_step/learning_rate"] for _, row in run.rows[:4]]
    assert rates == pytest.approx([0.5e-2, 1e-2, 1e-2, 0.5e-2])


def test_epochs_set_the_number_of_batches(chat, tmp_path):
    # Ten problems, four of a batch: two batches of an epoch.
    run, _ = trained(fresh_state(chat), tmp_path, replace(SETTINGS, epochs=2))

    assert run.rows[-1][1]["final/total_batches"] == 4


def test_the_best_policy_may_be_the_one_at_the_end(chat, tmp_path, monkeypatch):
    rewards = iter([0.1, 0.9])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"eval/reward": next(rewards)})

    trained(fresh_state(chat), tmp_path, replace(SETTINGS, eval_interval=100))

    assert checkpoint.load(tmp_path / "best.pt")["totals"]["batches"] == SETTINGS.steps


def test_the_state_with_the_best_evaluation_is_kept(chat, tmp_path):
    run, _ = trained(fresh_state(chat), tmp_path, replace(SETTINGS, steps=6, eval_interval=1))

    rewards = [row["eval/reward"] for _, row in run.rows]
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["best_reward"] == max(rewards)
    assert best["totals"]["batches"] == rewards.index(max(rewards))
