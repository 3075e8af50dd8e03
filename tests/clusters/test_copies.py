"""docs/clusters.md, "Carried by hand": a copy is the run that it was, wherever it is uploaded from."""

from __future__ import annotations

from pathlib import Path

from eventlog.cursor import cursors
from tests.clusters.arrived import assert_arrived, rows_of
from tests.clusters.conftest import NewHost
from tests.clusters.hosts import rows_printed
from tests.syncd.syncing import sync
from tests.wandb_server import WandbServer

JOB = ("-m", "tests.clusters.job")


def test_what_was_carried_to_a_laptop_and_uploaded_there_is_not_sent_again_from_the_original(
    server: WandbServer, host: NewHost, shared: Path
):
    node, laptop = host("node7", has_network=False), host("laptop")
    with node.process(*JOB, "40") as training:
        training.communicate(timeout=60)

    node.run("tar", "-czf", str(shared.parent / "runs.tgz"), "-C", str(shared.parent), "runs")
    laptop.run("tar", "-xzf", str(shared.parent / "runs.tgz"), "-C", str(laptop.home))
    there = laptop.syncd("sync", str(laptop.home / "runs"))
    server.clear_requests()
    sync(server, shared)

    assert there.returncode == 0, there.stdout + there.stderr
    assert [request for request in server.requests if "wandb-history.jsonl" in str(request.body)] == []
    assert_arrived(server, 40, shared / "demo" / "run")


def test_the_copy_of_a_run_that_goes_on_is_its_beginning_and_the_original_goes_on_behind_it(
    server: WandbServer, host: NewHost, shared: Path
):
    node, laptop = host("node7", has_network=False), host("laptop")

    with node.process(*JOB, "60", HOLD_AT="30") as training:
        rows_printed(training, 29)
        node.run("tar", "-czf", str(shared.parent / "runs.tgz"), "-C", str(shared.parent), "runs")
        laptop.run("tar", "-xzf", str(shared.parent / "runs.tgz"), "-C", str(laptop.home))
        laptop.syncd("sync", str(laptop.home / "runs"))
        early = rows_of(server)
        node.go()
        training.communicate(timeout=60)
    sync(server, shared)

    assert early == 29
    assert_arrived(server, 60, shared / "demo" / "run")


def test_a_copy_that_is_older_than_what_was_uploaded_sends_nothing_and_says_why(
    server: WandbServer, host: NewHost, shared: Path
):
    node, laptop = host("node7", has_network=False), host("laptop")
    with node.process(*JOB, "60", HOLD_AT="30") as training:
        rows_printed(training, 29)
        laptop.run("cp", "-r", str(shared), str(laptop.home / "runs"))
        node.go()
        training.communicate(timeout=60)
    sync(server, shared)

    sync(server, laptop.home / "runs")

    (older,) = cursors(laptop.home / "runs" / "demo" / "run")
    assert older.state == "parked"
    assert "--new-id" in (older.error or "")
    assert_arrived(server, 60, shared / "demo" / "run")


def test_a_copy_beside_its_original_is_named_and_only_one_is_sent(
    server: WandbServer, host: NewHost, shared: Path
):
    login = host("login1")
    with login.process(*JOB, "40") as training:
        training.communicate(timeout=60)
    login.run("cp", "-r", str(shared / "demo" / "run"), str(shared / "demo" / "run-copy"))

    done = login.syncd("sync", str(shared))

    assert (done.returncode, "a copy of another run" in done.stderr) == (1, True)
    assert "retry" in login.syncd("status", f"--root={shared}").stdout
    assert [run.run_id for run in server.runs()] == ["run"]
    assert_arrived(server, 40, shared / "demo" / "run")
