"""SIGKILL at every system call that counts, while a run of W&B's own is read and brought to the server.

The way they are tried is that of `test_every_syscall`, which also tries the network's calls; here the cycle begins with
a `.wandb` file, whose log is written first.  What was killed is repaired by nobody but the next `syncd sync`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncd import wandb_files, wandb_runs
from syncd.daemon import Daemon
from syncd.wandb_api import WandbApi
from tests.contract.scripts import EVERYTHING
from tests.exactly_once.test_every_syscall import (
    AT_ONCE,
    Setting,
    lines_in_flight,
    needs_strace,
    setting,
)
from tests.wandb_server import API_KEY
from tests.wandb_server.store import StoredRun
from tests.wandb_sync.framing import framed, placed
from tests.wandb_sync.logged import ALL_ON, log_offline

__all__ = ["setting"]
DEADLINE_S = 60.0
ON_THE_DISK = ["write", "fsync", "rename", "link", "unlink", "mkdir", "flock"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with everything, as the SDK left it."""
    script = EVERYTHING.replace("run.alert(", "0 and run.alert(")
    here = log_offline(tmp_path_factory.mktemp("logged"), [script], **ALL_ON)
    (directory,) = here.glob("wandb/offline-run-*")
    return directory


def copied(logged: Path, root: Path, run_id: str) -> None:
    """Lay that run under another id into `root`."""
    directory = root / "wandb" / f"offline-run-20260102_030405-{run_id}"
    shutil.copytree(logged, directory, symlinks=True)
    (old,) = directory.glob("*.wandb")
    records = [record for record, _, _ in placed(old.read_bytes())]
    old.unlink()
    for record in records:
        if record.WhichOneof("record_type") == "run":
            record.run.run_id = run_id
        if record.WhichOneof("record_type") == "artifact":
            # Each attempt its own: the server has no content twice.
            for field in ("client_id", "sequence_client_id", "name"):
                setattr(record.artifact, field, f"{run_id}-{getattr(record.artifact, field)}")
    (directory / f"run-{run_id}.wandb").write_bytes(framed(r.SerializeToString() for r in records))


def ended(setting: Setting, root: Path) -> None:
    """Run the sync again, as a process of its own would; the server is honest, so that nothing is waited for."""
    files, _ = wandb_files.files_at(root)
    taken = [wandb_runs.take(file, wandb_files.head(file), wandb_files.Writers()) for file in files]
    assert all(one.is_whole for one in taken)
    daemon = Daemon(
        roots=list,
        api=WandbApi(setting.server.base_url, lambda: API_KEY),
        asked_for=[one.run_dir for one in taken],
        until_synced=True,
        steady_s=0.0,
    )
    asyncio.run(asyncio.wait_for(daemon.run(), DEADLINE_S))


def assert_same(run: StoredRun, model: StoredRun, setting: Setting, why: str) -> None:
    assert setting.server.violations == [], why
    # Tables are known by their artifacts, whose names differ.
    assert [row.keys() for row in run.history] == [row.keys() for row in model.history], why
    assert [row["_timestamp"] for row in run.history] == [row["_timestamp"] for row in model.history], why
    assert run.events == model.events, why
    assert run.console_lines == model.console_lines, why
    assert run.summary.keys() == model.summary.keys(), why
    assert set(run.uploaded) == set(model.uploaded), why
    assert run.files["output.log"] == model.files["output.log"], why
    assert (run.complete, run.exitcode) == (True, 0), why
    assert run.replayed_lines <= lines_in_flight(setting.server, run), why
    artifacts = [
        a for a in list(setting.server.store.artifacts.by_id.values()) if a.name.startswith(f"{run.run_id}-")
    ]
    assert sorted(a.state for a in artifacts) == ["COMMITTED"] * 4, why


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("call", ON_THE_DISK)
def test_a_wandb_run_survives_a_kill_at_every(call: str, setting: Setting, logged: Path, tmp_path: Path):
    copied(logged, tmp_path / "model", f"model-{call}")
    ended(setting, tmp_path / "model")
    model = setting.server.run("ent", "p", f"model-{call}")

    def is_killed(number: int) -> bool:
        root, run_id = tmp_path / str(number), f"{call}{number}"
        copied(logged, root, run_id)
        code, said = setting.run(
            root, "--output=/dev/null", f"--trace={call}", f"--inject={call}:signal=KILL:when={number}"
        )
        assert code in (0, -signal.SIGKILL), f"not killed at {call} {number}: {said}"
        ended(setting, root)
        assert_same(setting.server.run("ent", "p", run_id), model, setting, f"killed at {call} {number}")
        return code != 0

    kills, number = 0, 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while all(found := list(pool.map(is_killed, range(number, number + AT_ONCE)))):
            kills += AT_ONCE
            number += AT_ONCE
    assert kills + sum(found) > 0
