"""A pack answers as the logs do, costs what is new, and is whole whatever happens while it is written."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import analysis
import analysis.pack as packs
from analysis.cli import main
from analysis.manifest import SMALL_FILES_MAX, Manifest, PackedFile, rewrite
from analysis.pack import VIEWS, Packed, Packing
from eventlog.piece import RunIdentity
from tests.analysis.test_sealed import _plain, log_everything, seal_all
from tests.logs import HandmadePiece, handmade_run, resumed

REPOSITORY = Path(__file__).parents[2]


def pack(root: Path, to: Path, file_bytes: int = packs.FILE_BYTES, **options: Any) -> Packed:
    with Packing.looked(root, to, **options) as found:
        return found.write(file_bytes=file_bytes)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def answers(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Return each view's columns and rows; NaN is equal to itself in what `repr` makes of it."""
    return {
        view: (
            con.execute(f"DESCRIBE {view}").fetchall(),
            sorted(repr([_plain(cell) for cell in row]) for row in con.execute(f"FROM {view}").fetchall()),
        )
        for view in VIEWS
    }


def values_of(con: duckdb.DuckDBPyConnection) -> dict[str, list[float]]:
    rows = con.execute("SELECT run_id, list(value ORDER BY seq) FROM metrics GROUP BY run_id ORDER BY run_id")
    return dict(rows.fetchall())


def a_run(root: Path, run_id: str, *values: float, project: str = "demo") -> HandmadePiece:
    run = handmade_run(root, run_id, project)
    for step, value in enumerate(values):
        run.log(step=step, x=value)
    run.log("exit", exitcode=0)
    run.die()
    return run


def more_of(run: HandmadePiece, root: Path, *values: float) -> None:
    piece = resumed(run.identity, root)
    for value in values:
        piece.log(step=100, x=value)
    piece.die()


def state_of(directory: Path) -> dict[str, tuple[int, int]]:
    """Return what changes with any write: of each path its inode and its time."""
    paths = [directory, *sorted(directory.rglob("*"))]
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths}


def files_in(to: Path, view: str) -> list[Path]:
    return sorted((to / "current" / view).rglob("*.parquet"))


# ── what is in it ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_sealed", [False, True], ids=["live", "sealed"])
def test_every_view_of_a_pack_answers_as_the_logs_do(tmp_path: Path, is_sealed: bool) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    log_everything(root)
    odd = handmade_run(root, "ü b/'c'", "a/ö=\\", config={"\\": 1, "": "\u2028"})
    odd.log(step=2**63 - 1, **{"κ\\'": -(2**63), "x": math.inf, "": math.nan, "y": -0.0, "t": "\\n\x00"})
    odd.log("alert", title="t", level="WARN", text="x")
    odd.log("checkpoint", path="/c", step=3)
    odd.die()
    if is_sealed:
        seal_all(root)

    pack(root, to)

    assert answers(packs.connect(to)) == answers(analysis.connect(root))


def test_a_pack_of_nothing_has_the_views_with_nothing_in_them(tmp_path: Path) -> None:
    handmade_run(tmp_path / "runs", "bare").die()
    pack(tmp_path / "runs", tmp_path / "pack")

    con = packs.connect(tmp_path / "pack")

    assert answers(con) == answers(analysis.connect(tmp_path / "runs"))
    assert con.execute("SELECT count(*) FROM metrics").fetchone() == (0,)


def test_the_rows_of_a_run_and_a_key_stand_together_so_that_statistics_tell_where(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    for name in "ba":
        run = handmade_run(root, name)
        for step in range(50):
            run.log(step=step, y=step, x=step)
        run.die()

    pack(root, to)

    (file,) = files_in(to, "metrics")
    assert file.parent.name == "project=demo"
    rows = pq.read_table(file, columns=["run_id", "key", "step"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (run, key, step) for run in "ab" for key in "xy" for step in range(50)
    ]
    group = pq.read_metadata(file).row_group(0)
    stated = {group.column(at).path_in_schema: group.column(at).statistics for at in range(group.num_columns)}
    assert (stated["run_id"].min, stated["run_id"].max) == ("a", "b")
    assert (stated["step"].min, stated["step"].max) == (0, 49)
    assert {group.column(at).compression for at in range(group.num_columns)} == {"ZSTD"}


def test_a_large_part_is_several_files_and_each_row_is_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    for name in "abc":
        a_run(root, name, *range(700))
    monkeypatch.setattr(packs, "_GROUP_ROWS", 100)

    pack(root, to, file_bytes=1)

    assert len(files_in(to, "metrics")) == 21
    assert answers(packs.connect(to)) == answers(analysis.connect(root))


# ── again ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_nothing_changed_nothing_is_touched(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    log_everything(root)
    a_run(root, "live", 1)
    pack(root, to)
    before = state_of(to)

    again = pack(root, to)

    assert again.snapshot is None
    assert state_of(to) == before


def test_a_new_run_is_added_and_the_files_of_the_others_are_the_same_ones(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)
    pack(root, to)
    (old,) = files_in(to, "metrics")
    inode = old.stat().st_ino

    a_run(root, "b", 2)
    done = pack(root, to)

    assert (done.plan.new, done.plan.changed, done.plan.unchanged) == ([("demo", "b")], [], [("demo", "a")])
    assert inode in {file.stat().st_ino for file in files_in(to, "metrics")}
    assert values_of(packs.connect(to)) == {"a": [1], "b": [2]}


def test_a_run_that_grew_is_replaced_and_its_neighbours_stay_though_their_logs_are_gone(
    tmp_path: Path,
) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)
    grows = a_run(root, "b", 2)
    a_run(root, "c", 3)
    pack(root, to)
    kept = answers(packs.connect(to))
    shutil.rmtree(root / "demo" / "a")

    more_of(grows, root, 4)
    done = pack(root, to)

    con = packs.connect(to)
    assert (done.plan.changed, done.plan.gone) == ([("demo", "b")], [("demo", "a")])
    assert len(files_in(to, "metrics")) == 1
    assert values_of(con) == {"a": [1], "b": [2, 4], "c": [3]}
    assert [row for row in answers(con)["runs"][1] if "'b'" not in row] == [
        row for row in kept["runs"][1] if "'b'" not in row
    ]


def test_sealing_and_a_change_of_state_are_seen(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    run = handmade_run(root, "a")
    run.log(step=0, x=1)
    pack(root, to)
    live = packs.connect(to).execute("SELECT state FROM runs").fetchall()

    run.die()
    pack(root, to)
    dead = packs.connect(to).execute("SELECT state FROM runs").fetchall()

    assert (live, dead) == ([("live",)], [("crashed",)])


def test_prune_removes_what_is_no_longer_there(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)
    a_run(root, "b", 2)
    a_run(root, "c", 3, project="other")
    pack(root, to)
    shutil.rmtree(root / "demo" / "a")
    shutil.rmtree(root / "other")

    done = pack(root, to, prune=True)

    assert done.plan.removed == [("demo", "a"), ("other", "c")]
    assert answers(packs.connect(to)) == answers(analysis.connect(root))
    assert pack(root, to, prune=True).snapshot is None


def test_another_run_of_the_same_name_does_not_take_the_place_of_the_packed_one(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)
    pack(root, to)
    shutil.rmtree(root / "demo")
    a_run(root, "a", 2)

    result = call("pack", "--root", root, "-o", to)
    kept = values_of(packs.connect(to))
    pruned = call("pack", "--root", root, "-o", to, "--prune")

    assert result.exit_code == 1
    assert "demo/a is left out: the pack has another run of that name. --prune" in result.stderr
    assert kept == {"a": [1]}
    assert pruned.exit_code == 0
    assert values_of(packs.connect(to)) == {"a": [2]}


def test_two_roots_make_one_pack(tmp_path: Path) -> None:
    a_run(tmp_path / "here", "a", 1)
    a_run(tmp_path / "there", "b", 2)

    for root in ("here", "there", "here"):
        pack(tmp_path / root, tmp_path / "pack")

    assert values_of(packs.connect(tmp_path / "pack")) == {"a": [1], "b": [2]}


def test_a_run_that_was_copied_is_in_the_pack_as_often_as_in_the_logs(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)
    shutil.copytree(root / "demo" / "a", root / "demo" / "copy")

    done = pack(root, to)

    assert done.damaged == {}
    assert values_of(packs.connect(to)) == values_of(analysis.connect(root)) == {"a": [1, 1]}


def test_many_packs_leave_few_files(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    most = 0
    for at in range(SMALL_FILES_MAX + 4):
        a_run(root, f"r{at:02}", at)
        pack(root, to)
        most = max(most, len(files_in(to, "metrics")))

    assert most == SMALL_FILES_MAX
    assert len(files_in(to, "metrics")) < SMALL_FILES_MAX
    assert answers(packs.connect(to)) == answers(analysis.connect(root))


def test_files_of_a_good_size_are_never_merged() -> None:
    large = [PackedFile(str(at), "metrics", "p", 1, 10, [("p", str(at))]) for at in range(100)]

    made = rewrite(large, [("p", "new"), ("p", "7")], small_bytes=5)

    assert [file.path for file in made.merged] == ["7"]
    assert made.runs == [("p", "7"), ("p", "new")]
    assert made.carried == []


def test_a_pack_whose_views_had_other_columns_is_brought_up_to_date(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "gone", 1)
    pack(root, to)
    a_run(root, "here", 2)
    pack(root, to)
    shutil.rmtree(root / "demo" / "gone")
    # As an older version would have written it: without `text`, and with a column that is no more.
    for file in files_in(to, "metrics"):
        table = pq.read_table(file, partitioning=None).drop_columns(["text"])
        pq.write_table(table.append_column("old", table["key"]), file)
    manifest = to / "current" / "pack.json"
    said = json.loads(manifest.read_bytes())
    del said["views"]["metrics"]["text"]
    said["views"]["metrics"]["old"] = "VARCHAR"
    said["runs"][1]["digest"] = "of an older version"
    manifest.write_text(json.dumps(said))

    pack(root, to)

    con = packs.connect(to)
    assert (
        con.execute("DESCRIBE metrics").fetchall()
        == analysis.connect(root).execute("DESCRIBE metrics").fetchall()
    )
    assert values_of(con) == {"gone": [1], "here": [2]}
    assert pack(root, to).snapshot is None


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────────────────────

# Packs, and is killed before the file operation of this number; without one it prints them all.
_KILLED = """
import os, signal, sys
from pathlib import Path
import duckdb, pyarrow.parquet
import analysis.pack as packs

root, to, *limits = sys.argv[1:]
EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree"}

def pack(limit):
    seen = []
    def count(event, arguments):
        # Those that leave something behind; a descriptor is relative to what `rmtree` has opened.
        if event in EVENTS and (isinstance(arguments[0], int) or any("pack" in str(each) for each in arguments[:2])):
            if event == "open" and "w" not in str(arguments[1]) and not (arguments[2] or 0) & os.O_CREAT:
                return
            if len(seen) == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(event)
    sys.addaudithook(count)
    with packs.Packing.looked(Path(root), Path(to)) as found:
        found.write()
    return seen

if not limits:
    print(*pack(None))
for limit in limits:
    child = os.fork()
    if not child:
        pack(int(limit))
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
    sys.stdin.readline()
"""


def killed(root: Path, to: Path, *limits: int) -> subprocess.Popen[str]:
    arguments = [str(root), str(to), *map(str, limits)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", _KILLED, *arguments], cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True
    )


def test_killed_at_any_file_operation_it_leaves_the_old_pack_whole_or_the_new_one(tmp_path: Path) -> None:
    root, to, first = tmp_path / "runs", tmp_path / "pack", tmp_path / "first"
    grows = a_run(root, "a", 1)
    a_run(root, "b", 2)
    pack(root, first)
    old = answers(packs.connect(first))
    more_of(grows, root, 3)
    a_run(root, "c", 4)
    new = answers(analysis.connect(root))
    shutil.copytree(first, tmp_path / "pack-counted", symlinks=True)
    events = killed(root, tmp_path / "pack-counted").communicate()[0].split()
    commit = events.index("os.symlink")
    # Some of all, and each of those around the commit.
    limits = sorted({*range(0, len(events), 5), *range(commit - 3, commit + 4)})

    shutil.copytree(first, to, symlinks=True)
    process = killed(root, to, *limits)
    outcomes = []
    assert process.stdin is not None
    assert process.stdout is not None
    for limit, status in zip(limits, process.stdout, strict=True):
        found = answers(packs.connect(to))
        assert found in (old, new), (limit, events[limit])
        outcomes.append((int(status), found == new))
        # Every other time what was left behind is there for the next pack.
        if len(outcomes) % 2 or found == new:
            shutil.rmtree(to)
            shutil.copytree(first, to, symlinks=True)
        process.stdin.write("\n")
        process.stdin.flush()
    process.communicate()

    assert (signal.SIGKILL, False) in outcomes
    assert (signal.SIGKILL, True) in outcomes
    pack(root, to)
    assert answers(packs.connect(to)) == new
    assert not [path for path in to.iterdir() if path.name.startswith(".packing")]


def test_who_reads_a_pack_reads_it_to_the_end_whatever_comes_after(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    run = a_run(root, "a", 1)
    pack(root, to)
    con = packs.connect(to)

    for value in (2, 3, 4):
        more_of(run, root, value)
        pack(root, to)

    assert values_of(con) == {"a": [1]}
    assert len(list(to.glob("snapshot-*"))) == 3
    con.close()
    del con
    more_of(run, root, 5)
    pack(root, to)
    # The pack, and the one before it for those who read it without us.
    assert len(list(to.glob("snapshot-*"))) == 2


def test_a_snapshot_that_was_copied_is_a_pack(tmp_path: Path) -> None:
    a_run(tmp_path / "runs", "a", 1)
    pack(tmp_path / "runs", tmp_path / "pack")

    shutil.copytree(tmp_path / "pack" / "current", tmp_path / "elsewhere")

    assert values_of(packs.connect(tmp_path / "elsewhere")) == {"a": [1]}


def test_two_packs_at_once_do_not_mix(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)

    with packs._locked(to):
        result = call("pack", "--root", root, "-o", to)

    assert result.exit_code == 1
    assert "is being written by another process. Wait for it; nothing was changed." in result.stderr


def test_a_full_disk_leaves_the_old_pack(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)
    pack(root, to)
    a_run(root, "b", *(math.sin(step) for step in range(3000)))
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from analysis.cli import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, "pack", "--root", str(root), "-o", str(to)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert values_of(packs.connect(to)) == {"a": [1]}
    assert sorted(path.name for path in to.iterdir()) == [".lock", "current", "snapshot-000001"]


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_dry_run_says_what_is_new_and_writes_nothing(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)

    result = call("pack", "--root", root, "-o", to, "--dry-run")

    assert result.stdout == f"{to}: runs: 1 new. Nothing was written.\n"
    assert not to.exists()


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)

    first = call("pack", "--root", root, "-o", to, "--json")
    second = call("pack", "--root", root, "-o", to)

    said = json.loads(first.stdout)
    assert (said["snapshot"], said["runs"]["new"], said["views"]["metrics"]["rows"]) == (
        "snapshot-000001",
        ["demo/a"],
        1,
    )
    assert said["written"]["files"] > 0
    assert second.stdout == f"{to}: runs: 1 as before. Nothing to do.\n"


def test_damage_is_counted_and_said(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    run = handmade_run(root, "a")
    for step in range(5):
        run.log(step=step, x=step)
    run.overwrite(run.offset_of(2) + 20, b"\x00\x00")
    run.overwrite(run.offset_of(3) + 20, b"\x00\x00")
    run.die()

    result = call("pack", "--root", root, "-o", to)

    assert result.exit_code == 0
    assert "demo/a: 2 damaged records are left out. `eventlog verify demo/a` says where." in result.stderr
    assert values_of(packs.connect(to)) == {"a": [0, 3, 4]}


def test_a_root_without_runs_makes_no_pack_and_empties_none(tmp_path: Path) -> None:
    root, to, none = tmp_path / "runs", tmp_path / "pack", tmp_path / "none"
    a_run(root, "a", 1)

    first = call("pack", "--root", none, "-o", to)
    pack(root, to)
    pruned = call("pack", "--root", none, "-o", to, "--prune")

    assert (first.exit_code, pruned.exit_code) == (0, 2)
    assert f"There is no run in {str(none)!r}. Give --root" in first.stderr
    assert "--prune would empty the pack" in pruned.stderr
    assert values_of(packs.connect(to)) == {"a": [1]}


@pytest.fixture
def no_pack(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    yield tmp_path / "photos"
    assert os.listdir(tmp_path / "photos") == ["cat.png"]


def test_what_is_no_pack_is_neither_written_to_nor_asked(tmp_path: Path, no_pack: Path) -> None:
    a_run(tmp_path / "runs", "a", 1)

    written = call("pack", "--root", tmp_path / "runs", "-o", no_pack)
    asked = call("sql", "--pack", no_pack, "FROM runs")
    nowhere = call("sql", "--pack", tmp_path / "none", "FROM runs")
    both = call("sql", "--pack", no_pack, "--root", tmp_path / "runs", "FROM runs")

    assert (written.exit_code, asked.exit_code, nowhere.exit_code, both.exit_code) == (2, 2, 2, 2)
    assert "is no pack, and not empty. Give a name for a new directory." in written.stderr
    assert "Make one: analysis pack -o" in asked.stderr


def test_sql_asks_a_pack_by_the_same_names(tmp_path: Path) -> None:
    root, to = tmp_path / "runs", tmp_path / "pack"
    a_run(root, "a", 1)
    pack(root, to)

    query = (
        "SELECT run_id, key, value FROM metrics JOIN runs USING (project, run_id) WHERE state = 'finished'"
    )
    asked = call("sql", "--pack", to, query, "--json")
    nothing = call("sql", "--pack", to, "SELECT * FROM metrics WHERE key = 'y'")
    unknown = call("sql", "--pack", to, "FROM records")

    assert json.loads(asked.stdout) == {"run_id": "a", "key": "x", "value": 1.0}
    assert "No run has a key 'y'. There are: x." in nothing.stderr
    assert "There is no view 'records'." in unknown.stderr


def test_a_manifest_of_a_newer_version_is_not_read(tmp_path: Path) -> None:
    a_run(tmp_path / "runs", "a", 1)
    pack(tmp_path / "runs", tmp_path / "pack")
    manifest = tmp_path / "pack" / "current" / "pack.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"format": 1', b'"format": 2'))

    result = call("sql", "--pack", tmp_path / "pack", "FROM runs")

    assert result.exit_code == 2
    assert "has format 2, and this version reads format 1. Update tidelog to read it." in result.stderr


def test_a_manifest_says_the_same_after_it_was_written() -> None:
    run = ("p", "ü/")
    said = Manifest(
        {"runs": {"a": "INTEGER"}},
        {run: packs.PackedRun("m", ["l"])},
        [PackedFile("f", "runs", None, 1, 2, [run])],
    )

    assert Manifest.decode(said.encode(), "here") == said


def test_identities_decide_whether_a_run_is_the_same(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs", "a", 1)
    pack(tmp_path / "runs", tmp_path / "pack")

    packed = packs.opened(tmp_path / "pack").manifest.runs["demo", "a"]

    assert packed.log_ids == [RunIdentity.load(run.piece.dir.parent).log_id]
