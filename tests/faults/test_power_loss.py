"""Power loss: what was durable is on the disk when it is mounted again, whatever else is gone.

The disk is a real ext4, and the cut is ext4's own: nothing is written to it any more, and what had not been is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from eventlog.cli import main
from eventlog.piece import lock_owner_is_gone
from eventlog.reader import find_runs, read
from tests.faults.machine import Ext4, strace, trainer

pytestmark = pytest.mark.needs_root

# Logs rows and tells of each, until it has been told that the power is gone and sees that it is.
ALWAYS = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], durability="always", quiet=True)
i = 0
while run.dropped == 0:
    run.log({"i": i, "page": eventlog.Html(f"<p>{i}")} if i % 7 == 0 else {"i": i})
    if run.dropped == 0:
        tell(i=i)
    i += 1
"""

# Logs ten rows and says when they are durable; goes on with rows that nothing makes durable; and is cut off.
TEN_ROWS = """
import time
from eventlog import writer
durability, how = sys.argv[2:]
run = eventlog.init(project="demo", id="run", root=sys.argv[1], durability=durability, quiet=True)
if how == "flush after rotations":
    writer.ROTATE_BYTES = 600
for i in range(10):
    run.log({"i": i, "pad": "x" * 100})
    run.log_trajectory(eventlog.Trajectory([], info={"i": i}))
if how != "wait":
    assert run.flush(durable=True)
deadline_s = time.monotonic() + 100
while how == "wait" and any(each.is_dirty for each in run._writers()):
    assert time.monotonic() < deadline_s
    time.sleep(0.01)
tell()
ask()
for i in range(10, 20):
    run.log({"i": i, "pad": "x" * 100})
tell(dropped=run.dropped)
ask()
"""

GOING_ON = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], resume="must", quiet=True)
tell(step=run.step)
run.log({"i": "after"})
run.finish()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Ext4]:
    with Ext4(tmp_path) as mounted:
        yield mounted


def rows_on(disk: Ext4) -> list[int]:
    return [r.data["i"] for r in read(disk.path / "demo" / "run") if r.kind == "metrics"]


def assert_the_run_goes_on(disk: Ext4) -> None:
    """Fail unless the run is found, is whole, and is continued after its last row."""
    survivors = rows_on(disk)
    assert list(find_runs(disk.path)) == [disk.path / "demo" / "run"]
    # Or it would be shown as live for ever.
    assert lock_owner_is_gone(disk.path / "demo" / "run" / "main-0001")
    with trainer(GOING_ON, disk.path) as again:
        assert again.told() == {"step": len(survivors)}
        assert again.ended() == 0, again.said
    assert rows_on(disk) == [*survivors, "after"]
    verified = CliRunner().invoke(main, ["verify", "--root", str(disk.path)])
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize("keeps_journal", [False, True])
def test_always_means_that_a_row_is_on_the_disk_when_log_returns(disk: Ext4, keeps_journal: bool):
    # faults: 33, 57
    with trainer(ALWAYS, disk.path) as training:
        acknowledged = [training.told()["i"] for _ in range(30)]
        disk.cut_power(keeps_journal)
        in_the_cut = [told["i"] for told in training.rest()]

        assert training.ended() == 0, training.said
    disk.restart()

    survivors = rows_on(disk)
    assert survivors[:30] == acknowledged
    # Unlike a real cut, the one of the file system takes its time, and may let a sync that is under way succeed although
    # its row is lost: that of one row. Whatever is said to be durable after it would be ours.
    said = [*acknowledged, *in_the_cut]
    assert [i for i in said if i not in survivors] in ([], said[-1:])
    assert survivors == sorted(survivors)
    # What a row names is there as well.
    for record in read(disk.path / "demo" / "run", "files"):
        if record.data["path"] in pages_of(disk, acknowledged):
            assert (disk.path / "demo" / "run" / "files" / record.data["sha256"]).stat().st_size > 0
    assert_the_run_goes_on(disk)


def pages_of(disk: Ext4, rows: list[int]) -> set[str]:
    pages = {
        record.data["i"]: record.data["page"]["path"]
        for record in read(disk.path / "demo" / "run")
        if record.kind == "metrics" and "page" in record.data
    }
    return {pages[i] for i in rows if i in pages}


@pytest.mark.parametrize("keeps_journal", [False, True])
@pytest.mark.parametrize(
    ("durability", "how"),
    [
        ("interval", "wait"),
        ("interval", "flush"),
        ("none", "flush"),
        ("interval", "flush after rotations"),
        ("none", "flush after rotations"),
        ("always", "flush after rotations"),
    ],
)
def test_what_was_durable_survives_a_power_cut(disk: Ext4, durability: str, how: str, keeps_journal: bool):
    # faults: 33, 57
    with trainer(TEN_ROWS, disk.path, durability, how) as training:
        training.told()
        disk.cut_power(keeps_journal)
        training.ask()
        told = training.told()
        training.kill()
        training.ended()
    disk.restart()

    assert rows_on(disk) == list(range(10))
    assert [r.data["info"]["i"] for r in read(disk.path / "demo" / "run", "trajectories")] == list(range(10))
    # With the power the disk is gone, and the trainer is told so.
    assert told["dropped"] == 10
    assert_the_run_goes_on(disk)


@pytest.mark.parametrize("keeps_journal", [False, True])
def test_of_what_was_not_durable_a_power_cut_leaves_whole_records_or_nothing(disk: Ext4, keeps_journal: bool):
    # faults: 17, 57
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], durability="none", quiet=True)
for i in range(500):
    run.log({"i": i, "pad": "x" * 100})
tell(dropped=run.dropped)
ask()
"""
    with trainer(script, disk.path) as training:
        assert training.told() == {"dropped": 0}
        disk.cut_power(keeps_journal)
        training.kill()
        training.ended()
    disk.restart()

    survivors = rows_on(disk)
    assert survivors == list(range(len(survivors)))
    assert len(survivors) < 500
    assert_the_run_goes_on(disk)


def test_the_name_of_a_segment_is_durable_before_its_records_are(tmp_path: Path):
    # faults: 57
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], durability="none", quiet=True)
tell()
ask()
run.flush(durable=True)
tell()
ask()
"""
    # ext4 writes a new file's name with its content; other file systems promise that of no file.
    with trainer(script, tmp_path / "root") as training:
        training.told()
        with strace(training.pid, output=tmp_path / "calls"):
            training.ask()
            training.told()

    synced = re.findall(r"f(?:data)?sync\(\d+<(.*)>\) = 0", (tmp_path / "calls").read_text())
    piece = tmp_path / "root" / "demo" / "run" / "main-0001"
    assert synced == [str(piece), str(piece / "events-000000000000.jsonl")]
