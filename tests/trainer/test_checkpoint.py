"""A checkpoint is there whole or not at all, whatever happens while it is written."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import checkpoint
from trainer.checkpoint import RunFile
from trainer.errors import CheckpointError

RUN = RunFile(recipe="calculator", run_id="ab12", name="try", settings={"lr": 1e-4}, data="f00d")


def load(directory):
    warnings = []
    return checkpoint.load_newest(directory, warnings.append), warnings


def test_the_newest_checkpoint_comes_back_as_it_was_saved(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, {"step": step, "weights": torch.full((3,), float(step))}, kept=2)

    state, warnings = load(tmp_path)

    assert state["step"] == 10
    assert state["weights"].tolist() == [10.0, 10.0, 10.0]
    assert warnings == []


def test_only_the_newest_two_are_kept(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, step, {"step": step}, kept=2)

    assert sorted(os.listdir(tmp_path)) == ["step-00000003.pt", "step-00000004.pt"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / ".step-00000001.pt.4711.partial").write_bytes(b"half")

    checkpoint.save(tmp_path, 1, {"step": 1}, kept=2)

    assert os.listdir(tmp_path) == ["step-00000001.pt"]


def test_a_directory_without_checkpoints_has_no_state(tmp_path):
    assert load(tmp_path) == (None, [])
    assert load(tmp_path / "absent") == (None, [])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1}, kept=2)
    newest = checkpoint.save(tmp_path, 2, {"step": 2}, kept=2)
    newest.write_bytes(newest.read_bytes()[:100])

    state, (warning,) = load(tmp_path)

    assert state["step"] == 1
    assert "step-00000002.pt" in warning


def test_only_damaged_checkpoints_are_an_error_and_not_a_fresh_start(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1}, kept=2).write_bytes(b"")

    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        load(tmp_path)


def test_no_flipped_bit_becomes_another_weight(tmp_path):
    weights = torch.arange(1000, dtype=torch.float)
    path = checkpoint.save(tmp_path, 1, {"weights": weights}, kept=2)
    whole, chance = path.read_bytes(), random.Random(3)

    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        # What holds nothing, as what pads the parts, may be anything.
        with suppress(CheckpointError):
            assert torch.equal(checkpoint.load(path)["weights"], weights)


def test_garbage_is_passed_over_whatever_it_is(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1}, kept=9)
    chance = random.Random(1)
    whole = checkpoint.save(tmp_path, 2, {"step": 2, "weights": torch.arange(100)}, kept=9).read_bytes()
    for step in range(3, 40):
        damaged = bytearray(whole)
        for _ in range(50):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        (tmp_path / f"step-{step:08d}.pt").write_bytes(damaged)

    assert load(tmp_path)[0]["step"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk here that is always full")
def test_a_full_disk_is_an_error_of_the_disk_and_leaves_nothing_in_its_way(tmp_path, monkeypatch):
    def open_full(path, mode="r", *more, **options):
        path.touch()
        return open("/dev/full", mode)

    monkeypatch.setattr(Path, "open", open_full)

    with pytest.raises(OSError, match=r"not written|No space"):
        checkpoint.save(tmp_path, 1, {"weights": torch.arange(1_000_000)}, kept=2)

    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"trap": Trap()}, tmp_path / "step-00000001.pt")

    with pytest.raises(CheckpointError):
        load(tmp_path)

    assert not (tmp_path / "trapped").exists()


def test_a_write_that_fails_leaves_the_previous_checkpoint_newest(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1}, kept=2)

    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path, 2, {"step": lambda: None}, kept=2)

    assert load(tmp_path) == ({"step": 1}, [])


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.07])
def test_a_process_killed_while_saving_leaves_a_checkpoint_that_loads(tmp_path, delay_s):
    weights = torch.arange(500_000, dtype=torch.float)
    child = os.fork()
    if child == 0:
        for step in range(1, 1_000_000):
            checkpoint.save(tmp_path, step, {"step": step, "weights": weights}, kept=2)
        os._exit(0)
    deadline_s = time.monotonic() + 20
    while not list(tmp_path.glob("step-*.pt")) and time.monotonic() < deadline_s:
        time.sleep(0.001)
    time.sleep(delay_s)  # only moves the instant of the kill: every instant must do

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    state, warnings = load(tmp_path)
    assert torch.equal(state["weights"], weights)
    assert warnings == []


def test_the_random_generators_go_on_where_they_were():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()

    random.gauss(0, 1)  # leaves a second value waiting, which is part of the state
    states = checkpoint.random_states()
    first = draw()

    checkpoint.restore_random_states(states)

    assert draw() == first


def test_the_random_states_survive_a_file(tmp_path):
    checkpoint.save(tmp_path, 1, {"random": checkpoint.random_states()}, kept=2)
    expected = torch.rand(1), random.random(), np.random.rand()

    checkpoint.restore_random_states(load(tmp_path)[0]["random"])

    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_the_run_file_comes_back(tmp_path):
    checkpoint.write_run_file(tmp_path / "new", RUN)

    assert checkpoint.read_run_file(tmp_path / "new") == RUN
    assert checkpoint.read_run_file(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", '{"recipe": "calculator"}', "[]"])
def test_an_unreadable_run_file_is_an_error_and_not_a_fresh_start(tmp_path, text):
    (tmp_path / "run.json").write_text(text)

    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_run_file(tmp_path)


def test_a_second_process_is_kept_out_of_the_directory(tmp_path):
    second = checkpoint.locked(tmp_path)

    with checkpoint.locked(tmp_path), pytest.raises(CheckpointError, match="another process"), second:
        pass


def test_the_directory_is_free_again_after_the_lock(tmp_path):
    with checkpoint.locked(tmp_path):
        pass

    with checkpoint.locked(tmp_path):
        pass
