"""`eventlog.redirect`: all that is printed arrives twice, and the program cannot tell."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BEGIN = """
import ctypes, os, subprocess, sys, time
from pathlib import Path
from eventlog.redirect import Redirect

directory = Path(sys.argv[1])
kept = open(directory / "kept", "a")
def write(source, text):
    kept.write(f"{source}|{text}")
    kept.flush()
redirect = Redirect(write, directory)
assert redirect.start() == []
libc = ctypes.CDLL(None)
"""
END = "redirect.stop()\n"


def run(directory: Path, script: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + script, str(directory)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def kept(directory: Path) -> dict[str, str]:
    """What was passed on, by source."""
    found = {"stdout": "", "stderr": ""}
    source = ""
    for part in (
        (directory / "kept")
        .read_text()
        .replace("stdout|", "\0stdout\0")
        .replace("stderr|", "\0stderr\0")
        .split("\0")
    ):
        if part in found:
            source = part
        elif source:
            found[source] += part
    return found


def test_what_python_c_and_children_print_arrives_on_both_ways(tmp_path: Path):
    script = """
print("from Python")
libc.puts(b"from C")
libc.fflush(None)
subprocess.run(["sh", "-c", "echo from a child; echo and its errors >&2"])
print("ä half: €", file=sys.stderr)
"""
    done = run(tmp_path, script + END + "print('after')\n")

    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["after", "from C", "from Python", "from a child"]
    assert done.stderr.splitlines() == ["and its errors", "ä half: €"]
    assert sorted(kept(tmp_path)["stdout"].splitlines()) == ["from C", "from Python", "from a child"]
    assert kept(tmp_path)["stderr"] == done.stderr
    assert os.listdir(tmp_path) == ["kept"]


def test_a_library_that_prints_megabytes_while_it_holds_pythons_lock_does_not_hang(tmp_path: Path):
    # PyDLL keeps the lock during the call.
    script = """
locked = ctypes.PyDLL(None)
text = b"x" * 100 + b"\\n"
for _ in range(3):
    os.set_blocking(1, True)
    locked.write(1, text * 30_000, len(text) * 30_000)
"""
    done = run(tmp_path, script + END)

    assert done.stdout == ("x" * 100 + "\n") * 90_000
    assert kept(tmp_path)["stdout"] == done.stdout


def test_a_killed_program_loses_nothing_on_its_terminal(tmp_path: Path):
    script = """
for i in range(1000):
    print("line", i)
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""
    done = run(tmp_path, script)

    assert done.returncode == -signal.SIGKILL
    assert done.stdout.splitlines() == [f"line {i}" for i in range(1000)]
    assert (tmp_path / ".printed-stdout").read_text() == done.stdout


def test_a_terminal_stays_one_and_keeps_its_size(tmp_path: Path):
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
    script = "print(os.isatty(1), os.get_terminal_size(1).columns)\nprint('a\\tb')\n"
    command = [sys.executable, "-c", BEGIN + script + END, str(tmp_path)]

    done = subprocess.run(command, cwd=REPOSITORY, stdin=slave, stdout=slave, stderr=slave, check=False)

    assert done.returncode == 0
    assert os.read(master, 4096) == b"True 132\r\na\tb\r\n"
    assert kept(tmp_path)["stdout"] == "True 132\na\tb\n"
    os.close(master)
    os.close(slave)


def test_an_interrupt_from_the_keyboard_leaves_the_way_to_the_terminal_open(tmp_path: Path):
    script = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script + END, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    os.killpg(process.pid, signal.SIGINT)

    assert process.communicate()[0] == "interrupted\n"
    assert process.returncode == 0


def test_a_child_that_outlives_the_run_still_reaches_the_terminal(tmp_path: Path):
    script = """
child = subprocess.Popen(["sh", "-c", "read line; echo late"], stdin=subprocess.PIPE)
redirect.stop()
child.communicate(b"go\\n")
"""
    done = run(tmp_path, script)

    assert (done.returncode, done.stdout) == (0, "late\n")


def test_ctrl_c_while_the_end_waits_loses_nothing(tmp_path: Path):
    # What a child may still print is waited for.
    script = """
def interrupt(*args):
    raise KeyboardInterrupt
print("from Python", flush=True)
print("an error", file=sys.stderr, flush=True)
while any(stream.path.stat().st_size < 5 for stream in redirect._streams):
    time.sleep(0.01)
subprocess.Popen.wait = interrupt
try:
    redirect.stop()
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
"""
    done = run(tmp_path, script)

    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["from Python", "interrupted"])
    assert kept(tmp_path) == {"stdout": "from Python\n", "stderr": "an error\n"}
    assert os.listdir(tmp_path) == ["kept"]


def test_a_forked_child_leaves_the_parents_streams_alone(tmp_path: Path):
    script = """
child = os.fork()
if child == 0:
    print("in the child", flush=True)
    redirect.stop()
    os._exit(0)
os.waitpid(child, 0)
print("in the parent")
"""
    done = run(tmp_path, script + END)

    assert done.stdout.splitlines() == ["in the child", "in the parent"]
    assert kept(tmp_path)["stdout"] == done.stdout


@pytest.mark.parametrize("broken", ["no tee", "no directory"])
def test_what_cannot_be_set_up_changes_nothing(tmp_path: Path, broken: str):
    script = f"""
redirect.stop()
if {broken == "no tee"}:
    os.environ["PATH"] = ""
else:
    redirect._directory = directory / "gone"
assert redirect.start() == ["stdout", "stderr"]
print("as before")
redirect.flush()
"""
    done = run(tmp_path, script + END)

    assert (done.returncode, done.stdout) == (0, "as before\n")
