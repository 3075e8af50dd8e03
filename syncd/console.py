r"""Turns what a program printed into the lines of W&B's `output.log`.  PROTOCOL § 9; W&B SDK 0.31, its terminal.

    console records ──feed──▶ [terminal of stdout] ─┐
                              [terminal of stderr] ─┴─ the last 32 lines ──▶ Line(output.log, 0), Line(output.log, 1), …
                                              state() ⇄ Console.resume(state)

Invariants
----------
* Lines are a pure function of the records and the base, however the text was cut into records; a line's time is that
  of the record that began it.
* Going on from any saved state gives what feeding from record 0 would have given, byte for byte.
* Line numbers have no gaps, and the streams share them, in the order in which lines began.
* A line that `feed` or `end_piece` returned never changes again.  Only the last 32 can.
* Whatever the text, nothing is raised, no line holds a line feed, and memory and state stay small.

A terminal is what the SDK's is, so that a run looks the same there: `\r`, `\n`, cursor up and cursor down (`ESC [ A`,
`ESC [ B`, no numbers) move; anything else, colours and tabs too, is text and stands in the line as it was printed.

There is no clock, file or socket here.  Left out: W&B's JSON lines (STRUCTURED_CONSOLE_LOGS), which it sends to some
of its own servers.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from eventlog.record import Record
from syncd.fold import CONSOLE, Line

# The SDK's numbers: how far back a terminal can change lines, and where it cuts them.
SCREEN_LINES = 32
LINE_MAX_CHARS = 4096

_PREFIXES = {"stdout": "", "stderr": "ERROR "}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# An escape sequence that the SDK does not know is text, and so is the character that shows that it is unknown.
# Here a line feed is not: W&B's lines must not hold one.
_TOKEN = re.compile(
    r"""(?P<feed>\n+) | (?P<return>\r+) | (?P<up>\x1b\[A) | (?P<down>\x1b\[B) | (?P<unfinished>\x1b\[?\Z)
        | (?P<text>[^\r\n\x1b]+ | \x1b (?: \[ [^AB\n]? | [^\[\n] )? [^\r\n\x1b]*)""",
    re.VERBOSE,
)
_HEAD = re.compile(r"(?:ERROR )?\S+ ")


@dataclass(slots=True)
class _ScreenLine:
    number: int
    head: str
    text: str = ""
    """What W&B shows."""
    spaces: int = 0
    """How many spaces stand after it.  The SDK does not show those until something else in the line changes."""

    def write(self, text: str, column: int) -> None:
        """Put `text` over what is there from `column` on."""
        text = text[: max(0, LINE_MAX_CHARS - column)]
        end = len(self.text) + self.spaces
        if column < end:
            before = self.text + " " * self.spaces
            over, text = text[: end - column], text[end - column :]
            after = before[:column] + over + before[column + len(over) :]
            if after != before:
                self.text, self.spaces = after, 0
            column = end
        if text:
            added = " " * (column - len(self.text)) + text
            shown = added.rstrip(" ")
            self.text += shown
            self.spaces = len(added) - len(shown)

    def shown(self) -> Line:
        return Line(CONSOLE, self.number, self.head + self.text)


@dataclass(slots=True)
class _Terminal:
    """One stream's view of at most 32 lines, and where its cursor is in them."""

    escape: str = ""
    """The beginning of an escape sequence whose end is not here yet."""
    row: int = 0
    column: int = 0
    view: list[_ScreenLine] = field(default_factory=list)
    """The lines from the top down to the lowest that holds text; the cursor may be below."""

    def down(self, rows: int) -> None:
        self.row += rows
        scrolled = self.row - (SCREEN_LINES - 1)
        if scrolled > 0:
            self.row -= scrolled
            del self.view[:scrolled]

    @property
    def cursor_line(self) -> _ScreenLine | None:
        """The line on which the cursor stands, if that has begun."""
        return self.view[self.row] if self.row < len(self.view) else None


class Console:
    """The console of one run's primary pieces, and the lines of it that may still change."""

    def __init__(self, base: int = 0) -> None:
        self.next_line = base
        self._open: deque[_ScreenLine] = deque()
        self._terminals = {source: _Terminal() for source in _PREFIXES}

    def feed(self, record: Record) -> list[Line]:
        """Take the next record of the console; return the lines that can no longer change."""
        source = str(record.data.get("source"))
        terminal = self._terminals.get(source)
        if record.kind != "console" or terminal is None:
            # Of a later version: nothing that W&B's page could show.
            return []
        head = f"{_PREFIXES[source]}{_iso(record.time_us)} "
        text = terminal.escape + record.data["text"]
        terminal.escape = ""
        final: list[Line] = []
        for match in _TOKEN.finditer(text):
            what, token = match.lastgroup, match.group()
            if what == "text":
                self._write(terminal, token, head, final)
            elif what == "feed":
                terminal.down(len(token))
                terminal.column = 0
            elif what == "return":
                terminal.column = 0
            elif what == "up":
                terminal.row = max(0, terminal.row - 1)
            elif what == "down":
                terminal.down(1)
            else:
                terminal.escape = token
        return final

    def open_lines(self) -> tuple[list[Line], Line | None]:
        """Return the lines that may still change, as they read now: all that are done, then the one being written.

        Only the last line counts as being written: one further up may be as well, beside another stream's lines or
        as the upper one of two progress bars.
        """
        lines = [line.shown() for line in self._open]
        written = [terminal.cursor_line for terminal in self._terminals.values()]
        if self._open and any(line is self._open[-1] for line in written):
            return lines[:-1], lines[-1]
        return lines, None

    def end_piece(self) -> list[Line]:
        """Return all lines that were open: no further record of this piece will come, and a new one begins anew."""
        final = [line.shown() for line in self._open]
        self._open.clear()
        self._terminals = {source: _Terminal() for source in _PREFIXES}
        return final

    def state(self) -> dict[str, Any]:
        """Return all of this as JSON values, for `resume`.  It stays as it is when the console goes on."""
        return {
            "next_line": self.next_line,
            "open": [[line.head, line.text, line.spaces] for line in self._open],
            "terminals": {
                source: [t.escape, t.row, t.column, [line.number for line in t.view]]
                for source, t in self._terminals.items()
            },
        }

    @classmethod
    def resume(cls, state: dict[str, Any]) -> Console:
        """Return the console that had this state."""
        console = cls(state["next_line"])
        first = state["next_line"] - len(state["open"])
        console._open.extend(_ScreenLine(first + i, *values) for i, values in enumerate(state["open"]))
        for source, (escape, row, column, numbers) in state["terminals"].items():
            # A line that is final keeps its place in the view, and nothing else.
            view = [console._open[n - first] if n >= first else _ScreenLine(n, "") for n in numbers]
            console._terminals[source] = _Terminal(escape, row, column, view)
        return console

    def _write(self, terminal: _Terminal, text: str, head: str, final: list[Line]) -> None:
        while terminal.row >= len(terminal.view):
            if len(self._open) == SCREEN_LINES:
                final.append(self._open.popleft().shown())
            line = _ScreenLine(self.next_line, head)
            self.next_line += 1
            self._open.append(line)
            terminal.view.append(line)
        # A line that is final is out of reach: nobody looks at what is written there.
        terminal.view[terminal.row].write(text, terminal.column)
        terminal.column += len(text)


def output_text(records: Iterable[Record]) -> Iterator[str]:
    """Yield, part by part, the run file `output.log` for the console records of one piece.

    It holds the same lines, without their times and without `ERROR`; nothing if nothing was printed.
    """
    console = Console()
    for record in records:
        yield _content(console.feed(record))
    yield _content(console.end_piece())


def _content(lines: list[Line]) -> str:
    return "".join(_HEAD.sub("", line.text, count=1) + "\n" for line in lines)


def _iso(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds")[: -len("+00:00")]
