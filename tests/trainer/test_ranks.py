"""Several processes that train one policy: what they agree on, what each logs, and that their steps are one step."""

import json
import math
import subprocess
import sys

import pytest

import eventlog
from eventlog.reader import find_runs, pieces_of
from tests.trainer.doubles import small_training

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def train(directory, recipe, *more, launcher=(), check=True):
    command, env = small_training(
        directory, recipe, "pair", *more, launcher=launcher, steps=3, eval_interval=1
    )
    return subprocess.run(command, env=env, check=check, capture_output=True, text=True)


def of_rank(run_dir, rank, stream="events"):
    return [r for piece in pieces_of(run_dir, rank) for r in eventlog.read(run_dir, stream, piece)]


def rows_of(run_dir, rank):
    return {r.step: r.data for r in of_rank(run_dir, rank) if r.kind == "metrics"}


@pytest.mark.slow
def test_two_ranks_train_one_policy_and_both_log(tmp_path):
    train(tmp_path, "accelerate_ddp", launcher=TORCHRUN)

    (run_dir,) = find_runs(tmp_path / "runs")
    rows = [rows_of(run_dir, rank) for rank in (0, 1)]
    everything = [of_rank(run_dir, rank, "trajectories") for rank in (0, 1)]
    episodes = [[r for r in each if r.data["info"]["split"] == "train"] for each in everything]
    # The held-out problems are shared out too: each is played once.
    assert [sum(r.step == 0 and r.data["info"]["split"] == "eval" for r in each) for each in everything] == [
        4,
        4,
    ]
    for rank in (0, 1):
        for row in rows[rank].values():
            assert row["ddp/process_index"] == row["ddp/local_process_index"] == rank
            assert row["ddp/num_processes"] == 2
    # Each played half of each batch, and samples of its own.
    assert [len(each) for each in episodes] == [3 * 8, 3 * 8]
    assert not {r.data["id"] for r in episodes[0]} & {r.data["id"] for r in episodes[1]}
    assert episodes[0][0].data["token_ids"] != episodes[1][0].data["token_ids"]

    # The first rank's rows are those of both.
    both = [r for each in episodes for r in each]
    first_steps = sorted({r.step for r in both})
    for step in first_steps:
        rewards = [r.data["reward"] for r in both if r.step == step]
        assert rows[0][step]["rollouts/returns_mean"] == pytest.approx(sum(rewards) / 16)
        assert rows[0][step]["rollouts/total_rollouts"] == 16 * (first_steps.index(step) + 1)
    assert any(row.get("ddp/sync_gradients") == 1 for row in rows[0].values())
    assert not any("rollouts/returns_mean" in row for row in rows[1].values())


@pytest.mark.slow
def test_the_loss_of_two_ranks_is_that_of_all_their_trajectories(tmp_path):
    """One optimiser step of each batch, taken by the policy that sampled it: the logged loss follows from both logs."""
    train(tmp_path, "accelerate_ddp", "--set=train_batch_size=0", "--set=kl_weight=0.5", launcher=TORCHRUN)

    (run_dir,) = find_runs(tmp_path / "runs")
    rows = rows_of(run_dir, 0)
    compared = 0
    for step in range(3):
        learning = [
            r.data for rank in (0, 1) for r in of_rank(run_dir, rank, "trajectories")
            if r.step == step and r.data["advantage"]
        ]  # fmt: skip
        if not learning:
            assert "training_step/loss" not in rows[step]
            continue
        loss = 0.0
        for t in learning:
            pairs = zip(t["logprobs"], t["ref_logprobs"], strict=True)
            kl = sum(math.exp(ref - old) - (ref - old) - 1 for old, ref in pairs)
            loss += (-t["advantage"] * len(t["logprobs"]) + 0.5 * kl) / len(t["logprobs"]) / len(learning)
        assert rows[step]["training_step/loss"] == pytest.approx(loss, rel=1e-3, abs=1e-6)
        compared += 1
    assert compared


@pytest.mark.slow
def test_ranks_that_go_on_repeat_nothing_and_must_be_as_many(tmp_path):
    train(tmp_path, "accelerate_ddp", "--set=steps=2", launcher=TORCHRUN)
    train(tmp_path, "accelerate_ddp", "--set=steps=3", "--resume", launcher=TORCHRUN)

    (run_dir,) = find_runs(tmp_path / "runs")
    for rank in (0, 1):
        steps = [r.step for r in of_rank(run_dir, rank) if r.kind == "metrics"]
        ids = [r.data["id"] for r in of_rank(run_dir, rank, "trajectories")]
        assert len(set(steps)) == len(steps)
        assert len(set(ids)) == len(ids)
    three = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
    refused = train(tmp_path, "accelerate_ddp", "--set=steps=3", "--resume", launcher=three, check=False)
    assert refused.returncode != 0
    assert "the checkpoint is of 2 processes, and 3 were started" in refused.stderr


def test_one_process_is_refused_where_several_are_meant(tmp_path):
    result = train(tmp_path, "accelerate_ddp", check=False)

    assert result.returncode == 2
    assert "torchrun" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_several_processes_are_refused_where_one_is_meant(tmp_path):
    result = train(tmp_path, "base", launcher=TORCHRUN, check=False)

    assert result.returncode != 0
    assert "accelerate_ddp" in result.stderr


@pytest.mark.slow
def test_accelerate_alone_says_its_device_and_that_it_stepped(tmp_path):
    train(tmp_path, "accelerate")

    (run_dir,) = find_runs(tmp_path / "runs")
    rows = rows_of(run_dir, 0)
    assert any(row.get("accelerate/sync_gradients") == 1 for row in rows.values())
    shown = subprocess.run(
        [sys.executable, "-m", "eventlog", "show", "pair", "--root", str(tmp_path / "runs"), "--json"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert json.loads(shown)["summary"]["accelerate/device"] == "cpu"


def test_what_a_rank_has_to_play_is_a_fair_share():
    from trainer.compute import AcceleratedCompute

    class Two:
        device, local_process_index, num_processes, sync_gradients = "cpu", 0, 2, True

        def __init__(self, index):
            self.process_index = index

    shares = [AcceleratedCompute(Two(index)).share(range(5)) for index in (0, 1)]

    assert [list(share) for share in shares] == [[0, 1, 2], [3, 4]]
