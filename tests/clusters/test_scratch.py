"""docs/clusters.md, "Scratch that is wiped" and "Scratch and no network": its scripts, as they stand there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import eventlog
from eventlog import writer
from eventlog.cursor import cursors
from tests.clusters.arrived import assert_arrived, is_complete, rows_of
from tests.clusters.conftest import NewHost
from tests.clusters.hosts import as_on_another_host, rows_printed
from tests.clusters.page import on, recipe
from tests.processes import group_of
from tests.syncd.syncing import sync, xs
from tests.wandb_server import WandbServer, wait_for

UPLOADS = recipe("Scratch that is wiped")
COPIES = recipe("Scratch and no network")
COPIES_ONCE = recipe("Scratch and no network", 1)
DAEMON = ("-m", "syncd", "start", "--foreground", "--flush=0.2")
# A copy that is not killed, of a run that goes on; and the one in which it ends.
NEVER, AT_THE_END = 0, -1
needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="there is no rsync here")


def wiped(scratch: Path, kept: Path) -> Path:
    """Take a scratch directory away from all processes; return where what was in it can be compared with."""
    shutil.move(scratch, kept)
    return kept / "runs" / "demo" / "run"


@pytest.mark.parametrize("ends", ["by itself", "at its limit"])
def test_the_batch_script_uploads_what_was_logged_before_scratch_is_wiped(
    server: WandbServer, host: NewHost, tmp_path: Path, ends: str
):
    node = host("node7")

    with node.script(UPLOADS, HOLD_AT="30") as script:
        rows_printed(script, 29)
        if ends == "by itself":
            node.go()
        else:
            # SLURM's, to the script alone.
            script.send_signal(signal.SIGTERM)
        said, _ = script.communicate(timeout=60)

    assert script.returncode == 0, said
    run_dir = wiped(node.scratch, tmp_path / "kept")
    assert_arrived(server, 60 if ends == "by itself" else 30, run_dir)
    assert is_complete(server) == (ends == "by itself")


@needs_rsync
@pytest.mark.parametrize("ends", ["by itself", "at its limit"])
def test_copies_of_a_run_that_grows_are_uploaded_while_it_does(
    server: WandbServer, host: NewHost, shared: Path, tmp_path: Path, ends: str
):
    node, login = host("node7", has_network=False), host("login1")

    with (
        login.process(*DAEMON, f"--root={shared}"),
        node.script(on(COPIES, str(shared)), HOLD_AT="30", COPY_EVERY="0.2") as script,
    ):
        wait_for(lambda: rows_of(server) == 29, "the rows of a run that goes on")
        if ends == "by itself":
            node.go()
        else:
            script.send_signal(signal.SIGTERM)
        said, _ = script.communicate(timeout=60)
        assert script.returncode == 0, said
        wiped(node.scratch, tmp_path / "kept")
        if ends == "by itself":
            wait_for(lambda: is_complete(server), "the end of the run")

    if ends != "by itself":
        # The login node cannot know that the job is gone; who does says so.
        login.syncd("retry", str(shared / "demo" / "run"), "--ended")
        assert rows_of(server) == 29
        return
    run = assert_arrived(server, 60, shared / "demo" / "run")
    assert "wandb-summary.json" in run.files


# Says each call, and waits for leave to do it.
_STEPPED_RSYNC = """#!/bin/sh
echo step; read leave && exec {rsync} "$@"
"""


@contextmanager
def copying(scratch: Path, shared: Path, bin_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Copy once as the page does, one `rsync` after the other, each when it is told to."""
    bin_dir.mkdir(exist_ok=True)
    (bin_dir / "rsync").write_text(_STEPPED_RSYNC.format(rsync=shutil.which("rsync")))
    (bin_dir / "rsync").chmod(0o755)
    function = COPIES[COPIES.index("copy_runs()") : COPIES.index("python train.py")]
    with group_of(
        ["bash", "-c", f'{function}\ncopy_runs "$0" "$1"', str(scratch), str(shared)],
        env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as copy:
        yield copy


@needs_rsync
@pytest.mark.parametrize("ends_at", range(1, 6))
def test_a_run_may_grow_end_and_be_uploaded_at_each_step_of_a_copy_and_the_copy_be_killed(
    server: WandbServer, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, ends_at: int
):
    # A segment for each few records, as in a run of hours.
    monkeypatch.setattr(writer, "ROTATE_BYTES", 700)
    scratch = tmp_path / "scratch"
    run = eventlog.init(project="demo", id="run", root=scratch, quiet=True)
    as_on_another_host(run.dir)
    files = 0

    def grow() -> None:
        nonlocal files
        note = tmp_path / f"note-{files}.txt"
        note.write_text(f"note {files}")
        run.save(str(note), base_path=str(tmp_path), policy="now")
        files += 1
        for _ in range(3):
            run.log({"x": run.step}, step=run.step, commit=True)

    for killed_at in (NEVER, 1, 2, 3, 4, 5, AT_THE_END):
        with copying(scratch, shared, tmp_path / "bin") as copy:
            assert copy.stdout is not None
            assert copy.stdin is not None
            for step, _ in enumerate(copy.stdout, 1):
                if killed_at != AT_THE_END or step <= ends_at:
                    grow()
                if killed_at == AT_THE_END and step == ends_at:
                    run.finish()
                if shared.exists():
                    sync(server, shared)
                if step == killed_at:
                    break
                copy.stdin.write("go\n")
                copy.stdin.flush()
    sync(server, shared)
    with copying(scratch, shared, tmp_path / "bin") as copy:
        copy.communicate("go\n" * 5, timeout=60)
    sync(server, shared)

    (cursor,) = cursors(shared / "demo" / "run")
    there = server.run("ent", "demo", "run")
    assert server.violations == []
    assert cursor.not_shown == {}
    assert there.complete
    assert xs(there) == list(range(3 * files))
    assert {f"note-{i}.txt": f"note {i}".encode() for i in range(files)}.items() <= there.files.items()


def test_without_rsync_a_copy_gets_its_name_when_it_is_whole(
    server: WandbServer, host: NewHost, shared: Path, tmp_path: Path
):
    node = host("node7", has_network=False)
    scratch = {"EVENTLOG_ROOT": str(node.scratch / "runs")}
    with node.process("-m", "tests.clusters.job", "60", **scratch) as training:
        training.communicate(timeout=60)
    # A copy that was cut off: half of a segment, and nothing of the rest.
    cut = Path(f"{shared}.part.run") / "main-0001"
    cut.mkdir(parents=True)
    (segment,) = (node.scratch / "runs" / "demo" / "run" / "main-0001").glob("events-*")
    (cut / segment.name).write_bytes(segment.read_bytes()[:1000])

    copied = node.run("bash", "-c", COPIES_ONCE, SHARED=str(shared), **scratch)
    wiped(node.scratch, tmp_path / "kept")
    sync(server, shared)

    assert copied.returncode == 0, copied.stderr
    assert is_complete(server)
    assert_arrived(server, 60, shared / "demo" / "run")
