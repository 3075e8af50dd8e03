"""docs/clusters.md, "Requeued and preempted": one id over all requeues makes one run, on whatever hosts it goes on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from eventlog.cursor import cursors
from eventlog.piece import lock_text, primaries
from tests.clusters.arrived import assert_arrived, is_complete, rows_of
from tests.clusters.conftest import NewHost
from tests.clusters.hosts import Host, rows_printed, silent_for
from tests.clusters.page import recipe
from tests.syncd.syncing import sync
from tests.wandb_server import WandbServer, wait_for

JOB = ("-m", "tests.clusters.job", "60")
# Two minutes without a heartbeat are enough for another host: sooner it waits 45 s for one.
QUEUED_S = 180.0
DAEMON = ("-m", "syncd", "start", "--foreground", "--flush=0.2")


@pytest.mark.parametrize("killed_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_killed_and_requeued_on_another_host_is_one_run(
    server: WandbServer, host: NewHost, shared: Path, killed_by: signal.Signals
):
    login, first, second = host("login1"), host("node1", has_network=False), host("node2", has_network=False)
    run_dir = shared / "demo" / "run"

    with login.process(*DAEMON, f"--root={shared}"):
        with first.process(*JOB, HOLD_AT="30") as training:
            rows_printed(training, 29)
            wait_for(lambda: rows_of(server) == 29, "the rows of the first piece")
            training.send_signal(killed_by)
            training.wait(60)
        assert not is_complete(server)
        silent_for(run_dir, QUEUED_S)
        with second.process(*JOB) as training:
            training.communicate(timeout=60)
        wait_for(lambda: is_complete(server), "the end of the run")

    assert [lock_text(run_dir / name)["host"] for name in primaries(run_dir)] == ["node1", "node2"]
    assert len(server.runs()) == 1
    run = assert_arrived(server, 60, run_dir)
    assert [row["_step"] for row in run.history] == list(range(60))


def test_the_batch_script_ends_the_job_when_it_is_warned_and_goes_on_elsewhere(
    server: WandbServer, host: NewHost, shared: Path
):
    first, second = host("node1", has_network=False), host("node2", has_network=False)
    script, run_dir = recipe("Requeued and preempted"), shared / "demo" / "4711"
    scontrol = first.home / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "asked to $*"\n')
    scontrol.chmod(0o755)

    with first.script(script, SLURM_JOB_ID="4711", HOLD_AT="30") as batch:
        rows_printed(batch, 29)
        batch.send_signal(signal.SIGUSR1)
        said, _ = batch.communicate(timeout=60)
    silent_for(run_dir, QUEUED_S)
    with second.script(script, SLURM_JOB_ID="4711") as batch:
        batch.communicate(timeout=60)
    sync(server, shared)

    assert "asked to requeue 4711" in said
    assert primaries(run_dir) == ["main-0001", "main-0002"]
    assert_arrived(server, 60, run_dir, "4711")


def killed_on_scratch(node: Host, scratch: Path, shared: Path) -> None:
    """Let a job log 30 rows on the node's own disk and be killed, and copy them to the shared file system."""
    with node.process(*JOB, EVENTLOG_ROOT=str(scratch), HOLD_AT="30") as training:
        rows_printed(training, 29)
        training.kill()
        training.wait(60)
    silent_for(scratch / "demo" / "run", QUEUED_S)
    node.run("sh", "-c", f"mkdir -p {shared.parent} && cp -r {scratch} {shared}")


def test_with_the_earlier_pieces_brought_to_its_scratch_a_requeued_job_is_one_run(
    server: WandbServer, host: NewHost, shared: Path
):
    first, second = host("node1", has_network=False), host("node2", has_network=False)
    killed_on_scratch(first, first.home / "scratch", shared)
    run_dir, scratch = shared / "demo" / "run", second.home / "scratch"
    sync(server, shared)
    early = rows_of(server)

    brought = recipe("Requeued and preempted", 1)
    if shutil.which("rsync") is None:
        brought = f"cp -r {shared} {scratch} && rm -r {scratch}/demo/run/sync"
    second.run("bash", "-c", brought, SHARED=str(shared), EVENTLOG_ROOT=str(scratch))
    with second.process(*JOB, EVENTLOG_ROOT=str(scratch)) as training:
        training.communicate(timeout=60)
    second.run("cp", "-r", f"{scratch}/.", str(shared))
    sync(server, shared)

    assert early == 29
    assert primaries(run_dir) == ["main-0001", "main-0002"]
    assert_arrived(server, 60, run_dir)


def test_without_them_the_second_log_is_not_mixed_with_the_first_and_append_puts_it_behind(
    server: WandbServer, host: NewHost, shared: Path
):
    first, second = host("node1", has_network=False), host("node2", has_network=False)
    killed_on_scratch(first, first.home / "scratch", shared)
    sync(server, shared)
    other = second.home / "scratch"
    with second.process(*JOB, EVENTLOG_ROOT=str(other)) as training:
        training.communicate(timeout=60)

    sync(server, other)
    (parked,) = cursors(other / "demo" / "run")
    there = rows_of(server)
    second.syncd("retry", str(other / "demo" / "run"), "--append")
    sync(server, other)

    assert (parked.state, there) == ("parked", 29)
    assert "--append" in (parked.error or "")
    # Its steps begin at 0 again, and W&B's only go up: what comes behind is counted on from there.
    rows = server.run("ent", "demo", "run").history[there:]
    assert [row["x"] for row in rows] == list(range(60))
    assert [row["_step"] for row in rows] == list(range(29, 89))
