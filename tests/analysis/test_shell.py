"""What a person at a terminal sees of `analysis sql` without a query: a real process on a real pty."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.logs import handmade_run

CTRL_C, CTRL_D, TAB, UP = "\x03", "\x04", "\t", "\x1b[A"
PATIENCE_S = 20.0
REPOSITORY = Path(__file__).parents[2]
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>()][0-9A-Z]?)")


def _without_blanks(text: str) -> str:
    return "".join(text.split())


class Terminal:
    """`analysis sql` in a terminal of 80 columns."""

    def __init__(self, root: Path, *arguments: str, **env: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # The terminal of a test answers no questions about where its cursor is.
            ours = {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)}
            command = [sys.executable, "-m", "analysis", "sql", "--root", str(root), *arguments]
            os.execve(sys.executable, command, {**os.environ, **ours, **env})
        self.shown = ""
        self.read_to = 0

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, again: str = "") -> str:
        """Return what is new, up to and with the text, without its blanks: a terminal may move over them instead.

        `again` is typed each second until then: what is asked for may not be ready at once.
        """
        wanted = _without_blanks(text)
        deadline_s = time.monotonic() + PATIENCE_S
        again_s = time.monotonic() + 1
        while (at := self.shown.find(wanted, self.read_to)) < 0:
            assert time.monotonic() < deadline_s, f"no {wanted!r} in {self.shown[self.read_to :]!r}"
            if self._has_more(0.1):
                self.shown += self._read()
            elif again and time.monotonic() > again_s:
                self.type(again)
                again_s = time.monotonic() + 1
        new = self.shown[self.read_to : at + len(wanted)]
        self.read_to = at + len(wanted)
        return new

    def _has_more(self, wait_s: float) -> bool:
        poll = (
            select.poll()
        )  # Unlike select(), it knows descriptors past 1023, of which a long test run may have some.
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(wait_s * 1000))

    def _read(self) -> str:
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            data = b""
        assert data, f"the shell has ended: {self.shown!r}"
        return _without_blanks(_ESCAPES.sub("", data.decode(errors="replace")))

    def ended(self) -> int:
        """Wait for the end of the process; return its exit code."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline_s, f"it goes on: {self.shown!r}"
            if self._has_more(0.05):
                try:
                    self.shown += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    time.sleep(0.01)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run = handmade_run(tmp_path / "runs", "baseline", config={"lr": 0.1})
    run.log(step=0, **{"train/loss": 0.5})
    run.log("exit", exitcode=0)
    return tmp_path / "runs"


@pytest.fixture
def terminal(root: Path) -> Iterator[Terminal]:
    shell = Terminal(root)
    shell.wait_for("tidelog> ")
    yield shell
    shell.close()


def test_a_statement_may_take_several_lines_and_ends_with_a_semicolon(terminal: Terminal) -> None:
    terminal.type("SELECT 'one;' AS a,\r")
    terminal.wait_for("...> ")
    terminal.type("40 + 2 AS answer;\r")

    terminal.wait_for("a answer one; 42")


def test_an_error_is_said_as_by_the_command_and_the_shell_goes_on(terminal: Terminal) -> None:
    terminal.type("SELECT stp FROM metrics;\r")
    wrong_column = terminal.wait_for("^^^")
    terminal.type("SELECT * FROM metrcs;\r")
    wrong_view = terminal.wait_for("^^^")
    terminal.type("SELECT 6 * 7 AS n;\r")

    terminal.wait_for("42")
    assert "LINE1:SELECTstpFROMmetrics" in wrong_column
    assert "Thereisnoview'metrcs'.Thenearest:metrics" in wrong_view


def test_an_error_that_cannot_be_explained_is_said_in_duckdbs_words(terminal: Terminal) -> None:
    terminal.type("CREATE MACRO duckdb_views() AS TABLE SELECT 1 AS x;\r")
    terminal.wait_for("tidelog> ")
    terminal.type("FROM metrcs;\r")
    terminal.wait_for("Catalog Error: Table with name metrcs does not exist!")
    terminal.type("SELECT 6 * 7 AS n;\r")

    terminal.wait_for("42")
    assert "Traceback" not in terminal.shown


def test_the_way_out_of_a_transaction_that_failed_is_said(terminal: Terminal) -> None:
    terminal.type("BEGIN; SELECT error('first');\r")
    terminal.wait_for("Input Error: first")
    terminal.type("SELECT 1;\r")
    terminal.wait_for("`ROLLBACK;` ends it.")
    terminal.type(".views\r")
    terminal.wait_for("`ROLLBACK;` ends it.")
    terminal.type("ROLLBACK; SELECT 6 * 7 AS n;\r")

    terminal.wait_for("42")


def test_ctrl_c_ends_what_is_typed_and_the_query_that_runs_and_not_the_shell(terminal: Terminal) -> None:
    terminal.type("SELECT 'never")
    terminal.wait_for("'never")
    terminal.type(CTRL_C)
    terminal.wait_for("tidelog> ")
    terminal.type("SELECT count(*) FROM range(100000000000000) t(a) WHERE a % 7 = 3;\r")
    terminal.wait_for("= 3;")
    terminal.wait_for("Interrupted.", again=CTRL_C)

    terminal.wait_for("tidelog> ")
    terminal.type("SELECT 6 * 7 AS n;\r")
    terminal.wait_for("42")


def test_dot_commands_help_show_the_views_look_again_and_leave(terminal: Terminal, root: Path) -> None:
    terminal.type(".help\r")
    terminal.wait_for("Ctrl-C    ends")
    terminal.type(".views\r")
    terminal.wait_for("metrics(project, run_id,")
    terminal.wait_for("curve(run, metric)")
    handmade_run(root, "second").log(step=0, x=1)
    terminal.type(".refresh\r")
    terminal.wait_for("2 runs.")
    terminal.type(".refrsh\r")
    terminal.wait_for("The nearest: .refresh.")
    terminal.type(".quit\r")

    assert terminal.ended() == 0, terminal.shown


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.type(CTRL_D)

    assert terminal.ended() == 0, terminal.shown


def test_tab_completes_views_and_in_quotes_runs_and_keys(terminal: Terminal) -> None:
    terminal.type("SELECT value FROM curv" + TAB)
    terminal.wait_for("curve")
    terminal.type("('basel")
    terminal.wait_for("'baseline'", again=TAB)
    terminal.type(", 'train/l")
    terminal.wait_for("'train/loss'", again=TAB)
    terminal.type(");\r")

    terminal.wait_for("value 0.5")


def test_what_was_typed_is_there_the_next_time_and_only_for_its_user(terminal: Terminal, root: Path) -> None:
    terminal.type("SELECT 6 * 7 AS n;\r")
    terminal.wait_for("42")
    terminal.wait_for("tidelog> ")
    terminal.type(CTRL_D)
    terminal.ended()
    again = Terminal(root)
    again.wait_for("tidelog> ")

    again.wait_for("SELECT 6 * 7", again=UP)
    again.type("\r")

    again.wait_for("42")
    again.close()
    history = Path(os.environ["TIDELOG_STATE_DIR"]) / "analysis-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_parameters_and_formats_hold_in_the_shell(root: Path) -> None:
    terminal = Terminal(root, "-p", "run=baseline", "--format", "json")
    terminal.wait_for("tidelog> ")
    terminal.type("SELECT value FROM metrics WHERE run_id = $run;\r")
    terminal.wait_for('{"value":0.5}')
    terminal.type("SELECT $other;\r")

    terminal.wait_for("the query has $other, which has no value.")
    terminal.close()


def test_without_its_library_the_shell_says_what_to_install(root: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt_toolkit.py").write_text("raise ModuleNotFoundError(name='prompt_toolkit')")

    terminal = Terminal(root, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")

    terminal.wait_for("'prompt_toolkit' is not installed, which the shell needs. Install `tidelog[analysis]`")
    assert terminal.ended() == 1
    terminal.close()
