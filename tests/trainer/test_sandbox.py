"""What a program may do in the sandbox, and what it may not: all of it really run."""

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from trainer import sandbox
from trainer.sandbox import Limits, run

# Of a program that is to be stopped by something else: what is slow here is the machine.
PATIENT = Limits(wall_s=120.0, cpu_s=60)


def works(*command, **how):
    try:
        return subprocess.run(command, capture_output=True, **how).returncode == 0
    except (FileNotFoundError, PermissionError):
        return False


CUTS_OFF_NETWORKS = works("unshare", "--net", "true") or works("unshare", "--map-root-user", "--net", "true")
LIMITS_PROCESSES = os.getuid() != 0 or works("setpriv", "--reuid=65534", "true")
IS_NOBODY = os.getuid() == 0 and LIMITS_PROCESSES
LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else -1
KEEPS_WRITES_IN = IS_NOBODY or LANDLOCK >= 1
KEEPS_SIGNALS_IN = IS_NOBODY or LANDLOCK >= 6
USER = {"user": 12345, "group": 12345, "extra_groups": [], "cwd": "/"}
USERS_PYTHON = next(
    (python for python in (sys.executable, "/usr/bin/python3") if works(python, "-c", "", **USER)), None
)
needs_no_network = pytest.mark.skipif(
    not CUTS_OFF_NETWORKS, reason="this machine lets this user cut off no network"
)
needs_no_processes = pytest.mark.skipif(not LIMITS_PROCESSES, reason="root here cannot become another user")


def test_a_program_that_comes_to_its_end_passes():
    outcome = run("import math\nassert math.comb(5, 2) == 10", PATIENT)

    assert (outcome.passed, outcome.error) == (True, None)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("assert 1 + 1 == 3, 'sums'", "AssertionError: sums"),
        ("def f(:", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(n):\n    return f(n)\nf(1)", "RecursionError"),
        ("import torch", "ModuleNotFoundError"),
        ("print(input())", "EOFError"),
    ],
)
def test_a_program_that_raises_fails_and_its_error_is_told(program, error):
    outcome = run(program, PATIENT)

    assert not outcome.passed
    assert error in outcome.error


def test_what_no_file_can_hold_is_replaced_and_raises_nothing_here():
    assert run("assert '\ud800' == '?'", PATIENT).passed


@pytest.mark.parametrize(
    "leave",
    ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit(0)", "import os; os.abort()"],
)
def test_leaving_before_the_tests_is_not_passing_them(leave):
    outcome = run(f"{leave}\nassert False", PATIENT)

    assert not outcome.passed


def test_what_a_program_writes_to_every_open_file_is_no_pass():
    program = (
        "import os\n"
        "for fd in range(64):\n"
        "    try: os.write(fd, b'passed')\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    )

    assert not run(program, PATIENT).passed


def test_printing_a_lot_neither_fails_nor_fills_our_memory():
    assert run("print('x' * 50_000_000)", PATIENT).passed


def test_a_loop_without_an_end_is_stopped_by_its_cpu_time():
    outcome = run("while True: pass", Limits(wall_s=120.0, cpu_s=1))

    assert "CPU time" in outcome.error


def test_a_program_that_only_waits_is_stopped_by_the_clock():
    outcome = run("import time; time.sleep(1000)", Limits(wall_s=0.5))

    assert outcome.error == "it was still running after 0.5 s"


def test_memory_beyond_the_limit_is_refused():
    outcome = run("x = bytearray(2**31)", PATIENT)

    assert "MemoryError" in outcome.error


def test_a_file_beyond_the_limit_is_refused():
    assert run("open('small', 'w').write('x' * 1000)", PATIENT).passed
    assert "File too large" in run("open('big', 'w').write('x' * 2**21)", PATIENT).error


def test_its_directory_is_its_own_and_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.chmod(tmp_path, 0o711)

    assert run(
        "import os; assert sorted(os.listdir('.')) == ['program.py']; open('left', 'w').close()", PATIENT
    ).passed

    assert list(tmp_path.iterdir()) == []


def test_it_sees_nothing_of_our_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")

    assert run("import os; assert 'secret' not in str(dict(os.environ))", PATIENT).passed


@needs_no_network
def test_it_reaches_no_server_not_even_on_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        outcome = run(f"import socket; socket.create_connection(('127.0.0.1', {port}), 30)", PATIENT)

    assert "Error" in outcome.error


@needs_no_processes
@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_it_starts_no_process_and_no_thread(program):
    assert not run(program, PATIENT).passed


@pytest.fixture
def everybodys():
    """A directory in which everybody may do everything, and which everybody can reach."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        yield Path(directory)


@pytest.mark.skipif(LANDLOCK < 1, reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    "change", ["open(ours, 'w')", "os.remove(ours)", "os.rename(ours, ours + '2')", "os.mkdir(ours + '2')"]
)
def test_it_changes_no_file_elsewhere_not_even_where_everybody_may(everybodys, change):
    ours = everybodys / "ours"
    ours.write_text("precious")
    ours.chmod(0o666)

    outcome = run(f"import os\nours = {str(ours)!r}\n{change}", PATIENT)

    assert "PermissionError" in outcome.error
    assert [path.read_text() for path in everybodys.iterdir()] == ["precious"]


@pytest.mark.skipif(not KEEPS_SIGNALS_IN, reason="this kernel lets a program signal its user's processes")
def test_it_signals_nobody():
    assert "PermissionError" in run(f"import os; os.kill({os.getpid()}, 0)", PATIENT).error


@pytest.mark.skipif(
    USERS_PYTHON is None or LANDLOCK < 6,
    reason="only root can become another user, and that one needs a Python",
)
def test_a_users_programs_are_kept_in_without_root_too(everybodys):
    ours = everybodys / "ours"
    ours.write_text("precious")
    os.chown(ours, USER["user"], USER["group"])
    script = (
        "import sys, tempfile, types\n"
        "sandbox = sys.modules['sandbox'] = types.ModuleType('sandbox')\n"
        "exec(sys.stdin.read(), vars(sandbox))\n"
        f"tempfile.tempdir = {str(everybodys)!r}\n"
        "print(sandbox.isolation())\n"
        f"print(sandbox.run({f'import os; os.remove({str(ours)!r})'!r}).error)\n"
    )

    done = subprocess.run(
        [USERS_PYTHON, "-c", script],
        input=Path(sandbox.__file__).read_text(),
        capture_output=True,
        text=True,
        **USER,
    )

    assert "no signals, no changes to files" in done.stdout, done.stderr
    assert ours.read_text() == "precious"


@pytest.mark.skipif(os.getuid() != 0, reason="only root's programs can have children at all")
def test_a_child_that_it_leaves_behind_is_killed_with_its_group(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    with open('unfinished', 'w') as file: file.write(str(os.getpid()))\n"
        "    os.rename('unfinished', 'pid')\n"
        "time.sleep(1000)\n"
    )

    with ThreadPoolExecutor() as pool:
        # Without what keeps it from forking, where a machine has that.
        outcome = pool.submit(sandbox._run, program, Limits(wall_s=20.0), ())
        while not (said := list(tmp_path.glob("sandbox-*/pid"))):
            assert not outcome.done(), outcome.result().error
            time.sleep(0.01)
        child = int(said[0].read_text())

    assert not outcome.result().passed
    try:
        process = psutil.Process(child)
        gone, _ = psutil.wait_procs([process], timeout=60)
        assert gone or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        pass


def test_what_keeps_a_program_in_is_said_as_it_is():
    network, processes, signals, files = sandbox.isolation().split(", ")

    assert network == ("no network" if CUTS_OFF_NETWORKS else "network not cut off")
    assert processes == ("no processes" if LIMITS_PROCESSES else "processes not limited")
    assert signals == ("no signals" if KEEPS_SIGNALS_IN else "may signal this user's processes")
    assert files == ("no changes to files" if KEEPS_WRITES_IN else "may change this user's files")
