"""docs/clusters.md, "The compute node has no network": it logs on the shared file system, the login node uploads."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.clusters.arrived import assert_arrived, is_complete, rows_of
from tests.clusters.conftest import NewHost
from tests.clusters.hosts import rows_printed
from tests.wandb_server import WandbServer, wait_for

JOB = ("-m", "tests.clusters.job")
DAEMON = ("-m", "syncd", "start", "--foreground", "--flush=0.2")
# As wandb-osh's hook writes it.
TRIGGER = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def test_what_a_node_without_network_logs_is_uploaded_by_the_login_node_while_it_trains(
    server: WandbServer, host: NewHost, shared: Path
):
    node, login = host("node7", has_network=False), host("login1")
    reach = f"import urllib.request; urllib.request.urlopen({server.base_url!r}, timeout=5)"
    assert "Network is unreachable" in node.run(sys.executable, "-c", reach).stderr

    with (
        login.process(*DAEMON, f"--root={shared}"),
        node.process(*JOB, "200", HOLD_AT="100"),
    ):
        # The newest row is open as long as no later one was logged.
        wait_for(lambda: rows_of(server) == 99, "the rows of a run that goes on")
        node.go()
        wait_for(lambda: is_complete(server), "the end of the run")

    assert_arrived(server, 200, shared / "demo" / "run")


def test_a_daemon_that_is_killed_while_the_node_trains_costs_nothing(
    server: WandbServer, host: NewHost, shared: Path
):
    node, login = host("node7", has_network=False), host("login1")

    with node.process(*JOB, "200", HOLD_AT="100"):
        with login.process(*DAEMON, f"--root={shared}") as daemon:
            wait_for(lambda: rows_of(server), "the first rows")
            daemon.kill()
        node.go()
        with login.process(*DAEMON, f"--root={shared}"):
            wait_for(lambda: is_complete(server), "the end of the run")

    assert_arrived(server, 200, shared / "demo" / "run")


def test_finish_on_the_node_waits_for_what_the_login_node_uploads(
    server: WandbServer, host: NewHost, shared: Path
):
    node, login = host("node7", has_network=False), host("login1")

    with (
        login.process(*DAEMON, f"--root={shared}"),
        node.process(*JOB, "50", SYNC_TIMEOUT="60") as training,
    ):
        said, _ = training.communicate(timeout=60)

    assert training.returncode == 0
    assert "is not uploaded" not in said
    assert is_complete(server)
    assert_arrived(server, 50, shared / "demo" / "run")


def test_a_node_that_cannot_reach_the_server_lets_a_later_login_node_have_the_run(
    server: WandbServer, host: NewHost, shared: Path
):
    node, login = host("node7", has_network=False), host("login1")

    with node.process(*JOB, "20", SYNC_TIMEOUT="14") as training:
        # From here on the node's own try may hold the run, and gets nowhere.
        rows_printed(training, 19)
        with login.process(*DAEMON, f"--root={shared}"):
            said, _ = training.communicate(timeout=60)

    assert "is not uploaded" not in said
    assert_arrived(server, 20, shared / "demo" / "run")


def test_a_trigger_on_the_shared_file_system_is_enough(
    server: WandbServer, host: NewHost, shared: Path, tmp_path: Path
):
    node, login = host("node7", has_network=False), host("login1")
    triggers = tmp_path / "shared" / "triggers"
    triggers.mkdir(parents=True)
    trigger = triggers / "0f1e2d.command"

    with login.process("-m", "syncd", "sync", "--watch", str(triggers)):
        with node.process(*JOB, "100", HOLD_AT="50") as training:
            rows_printed(training, 49)
            node.run(sys.executable, "-c", TRIGGER, str(trigger), str(shared / "demo" / "run"))
            # It stays until the newest row is there too, which is open as long as no later one was logged.
            wait_for(lambda: rows_of(server) == 49, "the rows of a run that goes on")
            node.go()
            training.communicate(timeout=60)
        node.run(sys.executable, "-c", TRIGGER, str(trigger), str(shared / "demo" / "run"))
        wait_for(lambda: not trigger.exists(), "the trigger to be followed")

    assert_arrived(server, 100, shared / "demo" / "run")
