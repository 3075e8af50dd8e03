"""The interactive shell: statements are typed, ended by `;`, and answered.

Invariants
----------
* Ctrl-C ends what is being typed or asked, and never the shell; Ctrl-D and `.quit` end it.
* An error is shown in the same words as that of a single command, and the shell goes on.
* What was typed is kept for the next time, readable by its user only; where it cannot be kept, it is not.
* Completion never waits: names are looked up beside, and are there when they are there.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from analysis import asking, naming, printing
from analysis.sqltext import is_complete, open_quote
from eventlog.roots import state_dir

if TYPE_CHECKING:
    import duckdb

HISTORY_FILE = "analysis-history"
_PROMPT, _MORE = "tidelog> ", "     ...> "
_WAIT_S = 0.1
# The other cores are for training.
_LOOKED_INTO_MAX = 100
_WORD = re.compile(r"\w+")
_COMMANDS = {
    ".help": "what can be typed",
    ".views": "the views, their columns and the macros",
    ".refresh": "look for new runs, and for what became of those that were there",
    ".quit": "leave; Ctrl-D does the same",
}
_KEYWORDS = re.findall(
    r"\w+",
    """SELECT FROM WHERE GROUP BY ORDER LIMIT JOIN LEFT USING ON AS AND OR NOT IN IS NULL LIKE ILIKE BETWEEN CASE WHEN THEN
    ELSE END DISTINCT HAVING WITH UNION ALL EXCEPT DESC ASC NULLS LAST FILTER OVER PARTITION QUALIFY PIVOT UNPIVOT COPY TO
    DESCRIBE SUMMARIZE EXPLAIN count sum avg min max median stddev_samp arg_max arg_min quantile_cont round coalesce""",
)


@dataclass(slots=True)
class Names:
    """What can be completed. `literals` stand in quotes: run ids, projects and keys."""

    words: list[str] = field(default_factory=list)
    literals: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, con: duckdb.DuckDBPyConnection) -> Names:
        views = naming.views(con)
        columns = [name for view in views for name, _ in naming.columns(con, view)]
        macros = [name for name, _ in naming.macros(con)]
        return cls(list(dict.fromkeys([*views, *macros, *columns, *_KEYWORDS])))

    def look(self, con: duckdb.DuckDBPyConnection) -> None:
        """Look up the run ids, and then the keys of the newest runs, which costs a look into their logs."""
        runs = naming.runs_of(con)
        projects = sorted({run.project for run in runs})
        self.literals = list(dict.fromkeys([*(run.run_id for run in runs), *projects]))
        newest = sorted(runs, key=_changed_ns)[-_LOOKED_INTO_MAX:]
        self.literals = list(dict.fromkeys([*naming.keys_of(con, newest), *self.literals]))


def _changed_ns(run: naming.Run) -> int:
    try:
        return os.stat(run.path).st_mtime_ns
    except OSError:
        return 0


def completions(names: Names, before: str) -> Iterator[tuple[str, int]]:
    """Yield what may stand behind the text, and how many characters of the text it takes the place of.

    >>> names = Names(words=["metrics", "messages", "SELECT"], literals=["train/loss", "baseline"])
    >>> list(completions(names, "sel")), list(completions(names, "FROM curve('bas")), list(completions(names, ".r"))
    ([('SELECT', 3)], [("baseline'", 3)], [('.refresh', 2)])
    """
    if before.startswith("."):
        yield from ((name, len(before)) for name in _COMMANDS if name.startswith(before))
        return
    quoted = open_quote(before)
    if quoted is not None:
        # What begins so comes first: of `train/reward`, `reward` is the end.
        found = sorted(
            (not name.startswith(quoted), at) for at, name in enumerate(names.literals) if quoted in name
        )
        yield from ((names.literals[at].replace("'", "''") + "'", len(quoted)) for _, at in found)
        return
    words = list(_WORD.finditer(before))
    if words and words[-1].end() == len(before):
        word = words[-1][0]
        yield from ((name, len(word)) for name in names.words if name.lower().startswith(word.lower()))
    elif before.endswith("."):
        # Behind a view or its alias: any column.
        yield from ((name, 0) for name in names.words if name not in _KEYWORDS)


class Shell:
    """One session over one connection."""

    def __init__(self, con: duckdb.DuckDBPyConnection, values: asking.Values, shape: str) -> None:
        self.con = con
        self.values = values
        self.shape = shape
        self.names = Names.of(con)
        self._looking: tuple[duckdb.DuckDBPyConnection, threading.Event] | None = None

    def run(self) -> None:
        session: PromptSession[str] = PromptSession(
            history=_history(state_dir() / HISTORY_FILE),
            completer=_Completer(self.names),
            complete_while_typing=False,
            lexer=PygmentsLexer(SqlLexer),
            multiline=True,
            prompt_continuation=_MORE,
            key_bindings=_keys(),
        )
        click.echo("SQL over the runs; end a statement with `;`. `.help` says more, Ctrl-D leaves.")
        self._look()
        try:
            while True:
                try:
                    text = session.prompt(_PROMPT).strip()
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    return
                if text.rstrip(";").strip().lower() in (".quit", "quit", "exit"):
                    return
                # Ctrl-C may come before the query has begun.
                with suppress(KeyboardInterrupt):
                    if text:
                        self._answer(text)
        finally:
            self._stop_looking()

    def _answer(self, text: str) -> None:
        if not text.startswith("."):
            self._interruptible(lambda: self._ask(text))
        elif text == ".help":
            for name, what in _COMMANDS.items():
                click.echo(f"{name:<10} {what}")
            click.echo(
                "Tab       completes views, columns, macros; and in quotes run ids and keys\n"
                "Ctrl-C    ends what is being typed, or the query that runs"
            )
        elif text == ".views":
            self._interruptible(lambda: print_views(self.con))
        elif text == ".refresh":
            self._interruptible(self._refresh)
            self._look()
        else:
            asking.say(f"There is no {text.split()[0]!r}. {naming.nearest(text, _COMMANDS)}")

    def _ask(self, text: str) -> None:
        for statement in asking.statements(self.con, text, self.values):
            asking.execute(self.con, statement, self.values)
            result = printing.result_of(self.con)
            if result is not None and asking.has_rows(statement):
                printing.show(result, self.shape)
                if not result.count:
                    for reason in asking.why_nothing(self.con, text):
                        asking.say(reason)
            asking.say_what_was_passed_over(self.con)

    def _refresh(self) -> None:
        with asking.said_notices():
            if not asking.looked_again(self.con):
                click.echo("A pack is as it was made; this is the one that was there at the start.")
        click.echo(f"{len(naming.runs_of(self.con))} runs.")

    def _interruptible(self, work: Callable[[], None]) -> None:
        """Do it in a thread of its own, so that Ctrl-C reaches this one, which then interrupts the query."""
        import duckdb

        def do() -> None:
            try:
                work()
            except duckdb.InterruptException:
                asking.say("Interrupted.")
            except duckdb.Error as error:
                asking.say(asking.explained(self.con, error))
            except click.ClickException as error:
                asking.say(error.format_message())
            except BaseException as error:  # noqa: BLE001 (the top of a thread: the shell goes on)
                asking.say(f"{type(error).__name__}: {error}")
            finally:
                sys.stdout.flush()
                is_done.set()

        # Not joined: a thread whose join was interrupted counts as over.
        is_done = threading.Event()
        threading.Thread(target=do, daemon=True).start()
        while True:
            try:
                while not is_done.is_set():
                    is_done.wait(_WAIT_S)
                return
            except KeyboardInterrupt:
                self.con.interrupt()

    def _look(self) -> None:
        """Look up names on a connection of its own, so that no query waits for it."""
        import duckdb

        self._stop_looking()
        looking, is_done = self.con.cursor(), threading.Event()

        def look() -> None:
            try:
                self.names.look(looking)
            except duckdb.Error:
                # Interrupted, or a file went away: there is less to complete.
                pass
            finally:
                looking.close()
                is_done.set()

        self._looking = (looking, is_done)
        threading.Thread(target=look, daemon=True).start()

    def _stop_looking(self) -> None:
        """Wait until nobody looks any more: a connection in use cannot be closed."""
        import duckdb

        if self._looking is None:
            return
        looking, is_done = self._looking
        while not is_done.is_set():
            with suppress(duckdb.Error):
                looking.interrupt()
            is_done.wait(_WAIT_S)


def print_views(con: duckdb.DuckDBPyConnection) -> None:
    for view in naming.views(con):
        click.echo(f"  {naming.signature(view, (name for name, _ in naming.columns(con, view)))}")
    for macro in naming.macros(con):
        click.echo(f"  {naming.signature(*macro)}   (a macro)")
    click.echo(naming.OF_SOME)


class _Completer(Completer):
    def __init__(self, names: Names) -> None:
        self._names = names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        for text, length in completions(self._names, document.text_before_cursor):
            yield Completion(text, start_position=-length)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.text.strip()
        if text.startswith(".") or text.lower() in ("quit", "exit") or is_complete(text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return keys


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        # A full disk costs a line of history, and not the shell.
        with suppress(OSError):
            super().store_string(string)


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError:
        return InMemoryHistory()
    return _History(str(path))
