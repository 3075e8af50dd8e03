from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from eventlog.console import TEXT_MAX_CHARS, Console

PROJECT = Path(__file__).parents[2]


class Terminal:
    """Two streams in the place of this process's, and a console that captures them."""

    def __init__(self, write: Callable[[str, str], None] | None = None) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.passed_on: list[tuple[str, str]] = []
        self.console = Console(write or (lambda source, text: self.passed_on.append((source, text))))

    def __enter__(self) -> Terminal:
        self.put_back = contextlib.ExitStack()
        self.put_back.enter_context(contextlib.redirect_stdout(self.out))
        self.put_back.enter_context(contextlib.redirect_stderr(self.err))
        self.missing = self.console.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.console.stop()
        self.put_back.close()

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.passed_on)


# What is passed on


def test_a_print_is_one_record():
    with Terminal() as terminal:
        print("loss", 0.5)
        print("reward", 1)

    assert terminal.passed_on == [("stdout", "loss 0.5\n"), ("stdout", "reward 1\n")]
    assert terminal.out.getvalue() == "loss 0.5\nreward 1\n"


def test_what_logging_and_warnings_say_is_stderr():
    with Terminal() as terminal:
        logger = logging.getLogger("test_console")
        logger.addHandler(logging.StreamHandler())

        logger.warning("slow")

    assert terminal.passed_on == [("stderr", "slow\n")]


def test_lines_written_at_once_are_all_passed_on():
    with Terminal() as terminal:
        sys.stdout.writelines(["a\n", "b\n", "c"])
        terminal.console.flush()

    assert terminal.text == "a\nb\nc"


def test_a_line_without_its_end_waits_for_flush():
    with Terminal() as terminal:
        print("loading…", end="")
        before = list(terminal.passed_on)
        terminal.console.flush()
        terminal.console.flush()

    assert before == []
    assert terminal.passed_on == [("stdout", "loading…")]


def test_a_progress_bar_is_kept_whole_in_few_records():
    with Terminal() as terminal:
        for _ in tqdm(range(200), mininterval=0):
            pass
        terminal.console.flush()

    assert terminal.text == terminal.err.getvalue()
    assert terminal.text.count("\r") > 100
    assert len(terminal.passed_on) < 10


def test_stdout_and_stderr_do_not_break_each_others_lines():
    with Terminal() as terminal:
        print("half", end="")
        print("error", file=sys.stderr)
        print(" and half")

    assert terminal.passed_on == [("stderr", "error\n"), ("stdout", "half and half\n")]


def test_a_huge_text_is_split_into_records_of_bounded_size():
    with Terminal() as terminal:
        sys.stdout.write("x" * (2 * TEXT_MAX_CHARS) + "end\n")

    assert terminal.text == "x" * (2 * TEXT_MAX_CHARS) + "end\n"
    assert [len(text) for _, text in terminal.passed_on] == [TEXT_MAX_CHARS, TEXT_MAX_CHARS, 4]


def test_dots_without_end_do_not_pile_up_even_if_nobody_flushes():
    with Terminal() as terminal:
        for _ in range(3 * TEXT_MAX_CHARS):
            print(".", end="")
        passed_on = len(terminal.text)

    assert passed_on >= 2 * TEXT_MAX_CHARS


def test_the_rest_of_a_line_is_passed_on_at_the_end():
    with Terminal() as terminal:
        print("no newline", end="")

        terminal.console.stop()

    assert terminal.passed_on == [("stdout", "no newline")]


def test_one_object_for_both_streams_is_captured_once():
    terminal = Terminal()
    terminal.err = terminal.out

    with terminal:
        print("once")

    assert terminal.text == "once\n"


def test_the_lines_of_all_threads_are_passed_on_once_and_whole():
    with Terminal() as terminal:

        def chatter(who: int) -> None:
            for i in range(500):
                print(f"{who} {i}\n", end="")

        threads = [threading.Thread(target=chatter, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        lines = terminal.text.splitlines()
        for who in range(8):
            assert [line for line in lines if line.startswith(f"{who} ")] == [
                f"{who} {i}" for i in range(500)
            ]


# What stays as it was


def test_after_the_end_the_streams_are_what_they_were():
    terminal = Terminal()
    attributes = dict(vars(terminal.out))

    with terminal:
        print("captured")
    terminal.out.write("not captured\n")

    assert vars(terminal.out) == attributes
    assert terminal.text == "captured\n"


def test_whoever_had_wrapped_the_stream_before_finds_it_so_again():
    terminal = Terminal()
    theirs: Any = terminal.out.write
    terminal.out.write = theirs  # type: ignore[method-assign]

    with terminal:
        print("captured")

    assert vars(terminal.out)["write"] is theirs


def test_whoever_wraps_the_stream_after_us_stays_in_place_and_we_become_transparent():
    terminal = Terminal()
    seen: list[str] = []

    with terminal:
        ours = terminal.out.write
        theirs: Any = lambda text: seen.append(text) or ours(text)  # noqa: E731
        terminal.out.write = theirs  # type: ignore[method-assign]
        terminal.out.write("during\n")
    terminal.out.write("after\n")

    assert terminal.out.write is theirs
    assert seen == ["during\n", "after\n"]
    assert terminal.out.getvalue() == "during\nafter\n"
    assert terminal.text == "during\n"


def test_it_captures_again_after_the_end():
    with Terminal() as terminal:
        terminal.console.stop()
        print("between")
        terminal.console.start()
        print("again")

    assert terminal.text == "again\n"


def test_two_runs_capture_at_once_and_end_in_any_order():
    first, second = Terminal(), Terminal()

    with first:
        second.console.start()
        print("both")
        first.console.stop()
        print("second")
        second.console.stop()
        print("none")

    assert (first.text, second.text) == ("both\n", "both\nsecond\n")
    assert first.out.getvalue() == "both\nsecond\nnone\n"


def test_what_is_no_text_is_refused_by_the_stream_as_before():
    with Terminal() as terminal, pytest.raises(TypeError, match="bytes"):
        sys.stdout.write(b"bytes")  # type: ignore[arg-type]

    assert terminal.passed_on == []


def test_a_closed_stream_says_so_to_the_program_as_before():
    with Terminal() as terminal:
        terminal.out.close()

        with pytest.raises(ValueError, match="closed"):
            print("lost")

        terminal.console.stop()

    assert terminal.passed_on == []


def test_a_process_without_a_stdout_is_told_so_and_loses_nothing_else(monkeypatch):
    with Terminal() as terminal:
        terminal.console.stop()
        monkeypatch.setattr(sys, "stdout", None)

        missing = terminal.console.start()
        print("nowhere")
        print("here", file=sys.stderr)

    assert missing == ["stdout"]
    assert terminal.passed_on == [("stderr", "here\n")]


def test_the_streams_of_pytest_are_captured_and_still_work(capsys):
    lines: list[str] = []
    console = Console(lambda source, text: lines.append(text))

    assert console.start() == []
    print("hello")
    console.stop()

    assert lines == ["hello\n"]
    assert capsys.readouterr().out == "hello\n"


# When passing on prints, waits, or fails


def test_a_write_that_prints_does_not_go_round_in_circles():
    terminal = Terminal(lambda source, text: written(text))

    def written(text: str) -> None:
        terminal.passed_on.append(("", text))
        print("warning", file=sys.stderr)

    with terminal:
        print("one")
        print("two")

    assert terminal.err.getvalue() == "warning\n" * len(terminal.passed_on)
    assert terminal.text.startswith("one\n")
    assert terminal.text.count("warning\n") >= 2


def test_a_write_that_waits_for_a_thread_that_prints_gets_its_turn():
    terminal = Terminal(lambda source, text: written(text))

    def written(text: str) -> None:
        terminal.passed_on.append(("", text))
        if text == "one\n":
            other = threading.Thread(target=print, args=("from another thread",), daemon=True)
            other.start()
            other.join(timeout=60)
            assert not other.is_alive()

    with terminal:
        print("one")

    assert terminal.console.error is None
    assert terminal.text == "one\nfrom another thread\n"


def test_a_write_that_fails_never_reaches_the_program():
    def failing(source: str, text: str) -> None:
        raise RuntimeError("a bug of ours")

    terminal = Terminal(failing)

    with terminal:
        print("one")
        print("two")

    assert terminal.out.getvalue() == "one\ntwo\n"
    assert str(terminal.console.error) == "a bug of ours"


def test_a_signal_handler_may_print_in_the_middle_of_a_print():
    with Terminal() as terminal:
        stream = terminal.out
        old = signal.signal(signal.SIGALRM, lambda *_: stream.write("alarm\n") and None)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            for i in range(30_000):
                stream.write(f"{i}\n")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        terminal.console.flush()

        lines = terminal.text.splitlines()

    assert [line for line in lines if line != "alarm"] == [str(i) for i in range(30_000)]
    assert sorted(lines) == sorted(stream.getvalue().splitlines())
    assert "alarm" in lines


# Processes


def test_a_forked_child_is_transparent_until_it_begins_itself(tmp_path: Path):
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    terminal = Terminal(lambda source, text: os.write(log, f"{source}: {text}".encode()) and None)

    with terminal:
        print("a line\nhalf a line", end="")
        child = os.fork()
        if child == 0:
            try:
                print("not kept")
                terminal.console.start()
                print("the child's")
                terminal.console.stop()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        print(" and the parent's")
    os.close(log)

    assert (
        tmp_path / "log"
    ).read_text() == "stdout: a line\nstdout: the child's\nstdout: half a line and the parent's\n"


# Prints as a training does, with or without a console; the records go to a file, one write each.
PROGRAM = """
import logging, os, sys
if sys.argv[1] != "none":
    from eventlog.console import Console
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Console(lambda source, text: os.write(log, f"{text}".encode())).start()
from tqdm import tqdm
logging.basicConfig()
print("is a terminal:", sys.stdout.isatty(), sys.stderr.isatty())
for i in tqdm(range(3), mininterval=1e9, bar_format="{n_fmt}/{total_fmt}"):
    print("step", i)
    logging.warning("step %d", i)
print("no newline at the end", end="")
"""


def on_a_terminal(log: str) -> bytes:
    """Run PROGRAM on a real terminal; return what that shows."""
    ours, its = pty.openpty()
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, log], cwd=PROJECT, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    # Linux says EIO once the program's side of a terminal is closed.
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert program.wait() == 0
    return shown


def test_a_terminal_shows_the_very_same_with_and_without_us(tmp_path: Path):
    without = on_a_terminal("none")

    shown = on_a_terminal(str(tmp_path / "log"))

    assert b"is a terminal: True True" in shown
    assert shown == without
    assert "step 2\n" in (tmp_path / "log").read_text()


def test_a_program_whose_reader_has_gone_ends_as_it_would_without_us(tmp_path: Path):
    ends = []
    for log in ("none", str(tmp_path / "log")):
        reading, writing = os.pipe()
        os.close(reading)
        program = [sys.executable, "-u", "-c", PROGRAM, log]
        done = subprocess.run(program, cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        ends.append((done.returncode, done.stderr.splitlines()[-1]))

    assert ends[1] == ends[0]
    assert "BrokenPipeError" in ends[0][1]


# Says on the pipe which lines it has printed.
ENDLESS = """
import os, sys
from eventlog.console import Console
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
Console(lambda source, text: os.write(log, text.encode())).start()
out = os.dup(1)
sys.stdout = sys.stderr
i = 0
while True:
    print("line", i)
    os.write(out, f"line {i}\\n".encode())
    print("half of", end=" ")
    i += 1
"""


@pytest.mark.parametrize("lines", [1, 100, 3000])
def test_every_line_printed_before_a_kill_was_passed_on(tmp_path: Path, lines: int):
    log = tmp_path / "log"
    program = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(log)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdout is not None
    printed = [program.stdout.readline() for _ in range(lines)]
    program.kill()
    printed += [line for line in program.stdout if line.endswith("\n")]
    program.wait()

    kept = log.read_text().replace("half of ", "").splitlines(keepends=True)

    assert kept[: len(printed)] == printed
    assert len(kept) <= len(printed) + 1
