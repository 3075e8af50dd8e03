"""What the daemon says stays small, is not lost, and can be followed."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

from syncd.daemon_log import tail

REPOSITORY = Path(__file__).parents[2]
MAX_BYTES = 4096

SAYING = """
import logging, sys
from pathlib import Path
from syncd import daemon_log
daemon_log.begin(Path(sys.argv[1]), max_bytes=4096)
for number in range(int(sys.argv[2])):
    logging.getLogger("syncd").info("line %d", number)
"""


def said_by(script: str, log: Path, lines: int) -> int:
    """Run a daemon that says so many lines, in the background; return its exit code."""
    log.parent.mkdir(exist_ok=True)
    with open(log, "ab") as file:
        log.chmod(0o600)
        command = [sys.executable, "-c", script, str(log), str(lines)]
        return subprocess.run(command, stdout=file, stderr=file, cwd=REPOSITORY, check=False).returncode


def test_however_much_the_daemon_says_two_small_files_hold_the_newest_of_it(tmp_path: Path):
    log = tmp_path / "syncd.log"

    said_by(SAYING, log, 2000)

    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["syncd.log", "syncd.log.1"]
    assert all(file.stat().st_size <= MAX_BYTES for file in files)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert log.read_text().splitlines()[-1].endswith("INFO line 1999")


def test_what_ended_the_daemon_is_in_the_log_however_often_that_was_turned_over(tmp_path: Path):
    log = tmp_path / "syncd.log"

    code = said_by(SAYING + "\nprint('stdout', flush=True)\nraise SystemError('the end')", log, 2000)

    assert code == 1
    assert log.read_text().splitlines()[-1] == "SystemError: the end"
    assert "stdout\n" in log.read_text()


def test_a_log_that_cannot_be_turned_over_goes_on_where_it_is(tmp_path: Path):
    log = tmp_path / "syncd.log"
    (tmp_path / "syncd.log.1" / "in the way").mkdir(parents=True)

    code = said_by(SAYING, log, 200)

    lines = log.read_text().splitlines()
    assert code == 0
    assert [line.rpartition(" ")[2] for line in lines] == [str(number) for number in range(200)]


def test_a_disk_that_takes_nothing_more_ends_no_daemon_and_what_is_said_when_it_does_again_is_kept(
    tmp_path: Path,
):
    log = tmp_path / "syncd.log"
    full = """
import resource
def room(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
room(1000)
"""

    code = said_by(full + SAYING + "room(-1)\nlogging.getLogger('syncd').info('room again')", log, 200)

    assert code == 0
    assert log.read_text().splitlines()[-1].endswith("room again")


def test_stderr_that_is_somebody_elses_makes_no_file(tmp_path: Path):
    log = tmp_path / "syncd.log"

    done = subprocess.run(
        [sys.executable, "-c", SAYING, str(log), "1000"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )

    assert len(done.stderr.splitlines()) == 1000
    assert list(tmp_path.iterdir()) == []


def test_the_last_lines_are_also_those_before_the_log_was_turned_over(tmp_path: Path):
    (tmp_path / "syncd.log.1").write_text("one\ntwo\n")
    (tmp_path / "syncd.log").write_text("three\n")

    assert list(tail(tmp_path / "syncd.log", 2)) == ["two", "three"]


def test_who_follows_the_log_misses_nothing_when_it_is_turned_over(tmp_path: Path):
    log = tmp_path / "syncd.log"
    log.write_text("old\n")
    following = tail(log, 1, follow=True)
    seen = [next(following)]

    with open(log, "a", encoding="utf-8") as file:
        file.write("its end\n")
    log.rename(tmp_path / "syncd.log.1")
    log.write_text("anew\n")
    seen += [next(following) for _ in range(2)]

    assert seen == ["old", "its end", "anew"]
