"""docs/clusters.md, "Another user": whose daemon may upload whose runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.arrived import assert_arrived
from tests.clusters.conftest import NewHost
from tests.clusters.hosts import Host
from tests.wandb_server import WandbServer

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def as_nobody(node: Host, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program as another user, who has a home of its own there and cannot look into others'."""
    return node.run(*AS_NOBODY, sys.executable, *command, **environment)


@pytest.fixture
def open_to_all(tmp_path: Path, host: NewHost) -> Path:
    """A place that other users reach; pytest's own is closed to them."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    for directory in (tmp_path, *tmp_path.parents):
        if directory == Path("/") or directory.stat().st_uid != 0 or directory.stat().st_mode & 0o1:
            continue
        directory.chmod(directory.stat().st_mode | 0o11)
    return tmp_path


def test_the_daemon_of_root_uploads_what_another_user_logs(
    server: WandbServer, host: NewHost, shared: Path, open_to_all: Path
):
    node, login = host("node7", has_network=False), host("login1")
    for directory in (shared, node.home):
        directory.mkdir(parents=True, exist_ok=True)
        os.chown(directory, NOBODY, NOBODY)

    trained = as_nobody(node, "-m", "tests.clusters.job", "40")
    done = login.syncd("sync", str(shared))

    assert trained.returncode == 0, trained.stderr
    assert (shared / "demo" / "run").stat().st_uid == NOBODY
    assert done.returncode == 0, done.stdout + done.stderr
    assert_arrived(server, 40, shared / "demo" / "run")


def test_a_user_who_may_not_read_a_run_is_told_so_and_uploads_nothing(
    server: WandbServer, host: NewHost, shared: Path, open_to_all: Path
):
    node, login = host("node7"), host("login1")
    with node.process("-m", "tests.clusters.job", "40") as training:
        training.communicate(timeout=60)
    os.chown(login.home, NOBODY, NOBODY)
    for directory in (shared, shared.parent):
        directory.chmod(0o755)

    refused = as_nobody(login, "-m", "syncd", "sync", str(shared))
    shared.parent.chmod(0o700)
    unseen = as_nobody(login, "-m", "syncd", "sync", str(shared))
    unseen_advice = as_nobody(login, "-m", "syncd", "doctor", "--json", f"--root={shared}")
    shared.parent.chmod(0o755)
    advice = as_nobody(login, "-m", "syncd", "doctor", f"--root={shared}")

    for each, closed in ((refused, shared / "demo"), (unseen, shared.parent)):
        assert each.returncode == 2
        assert f"'{closed}" in each.stderr
        assert "may not be looked into by this user" in each.stderr
    assert "not to be seen by this user" in unseen_advice.stdout
    assert advice.returncode == 1
    assert "may not be read and written" in " ".join(advice.stdout.split())
    assert server.runs() == []
