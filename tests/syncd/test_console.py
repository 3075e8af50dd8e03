"""The console: what a terminal makes of the text, which lines are final, and that the real SDK shows the same lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import Record, frame_object, unframe_object
from syncd.console import LINE_MAX_CHARS, SCREEN_LINES, Console, output_text
from syncd.fold import CONSOLE, Line
from tests.wandb_server import WandbServer

START_US = 1_763_712_000_123_456
START = "2025-11-21T08:00:00.123456"
UP, DOWN = "\x1b[A", "\x1b[B"

Write = tuple[str, str]


def printed(*writes: str | Write) -> list[Record]:
    """Number the writes and date them a second apart; a lone text goes to stdout."""
    records = []
    for seq, write in enumerate(writes):
        source, text = ("stdout", write) if isinstance(write, str) else write
        records.append(Record(seq, START_US + seq * 1_000_000, "console", {"source": source, "text": text}))
    return records


def final_lines(records: list[Record], console: Console | None = None) -> list[Line]:
    console = console or Console()
    return [line for record in records for line in console.feed(record)] + console.end_piece()


def content(line: Line | str) -> str:
    """Return the line without its time."""
    text = line if isinstance(line, str) else line.text
    return re.sub(r"^(ERROR )?\S{26} ", r"\1", text)


def contents(*writes: str | Write) -> list[str]:
    return [content(line) for line in final_lines(printed(*writes))]


# One line


def test_a_line_is_its_time_and_its_text():
    assert final_lines(printed("hello\n")) == [Line(CONSOLE, 0, f"{START} hello")]


def test_a_line_of_stderr_is_marked():
    assert final_lines(printed(("stderr", "oops\n"))) == [Line(CONSOLE, 0, f"ERROR {START} oops")]


def test_a_time_always_has_six_decimals():
    record = Record(0, 0, "console", {"source": "stdout", "text": "x"})

    assert final_lines([record])[0].text == "1970-01-01T00:00:00.000000 x"


def test_a_line_has_the_time_at_which_it_began():
    (line,) = final_lines(printed("one ", "two ", "three\n"))

    assert line.text == f"{START} one two three"


def test_a_carriage_return_writes_over_the_line():
    assert contents("abc\rX\n", "10%\r20%\r100%\n") == ["Xbc", "100%"]


def test_colours_and_unknown_sequences_stay_as_they_were_printed():
    assert contents("\x1b[31mred\x1b[0m\n", "\x1b[2A\x1b]0;t\x07\n") == [
        "\x1b[31mred\x1b[0m",
        "\x1b[2A\x1b]0;t\x07",
    ]


def test_tabs_backspaces_and_nul_are_text():
    assert contents("a\tb\bc\0\n") == ["a\tb\bc\0"]


def test_a_sequence_cut_by_the_end_of_a_record_goes_on_in_the_next():
    assert contents("a\nb\x1b", "[", "Ac\n") == ["ac", "b"]


def test_a_line_feed_after_a_broken_sequence_still_ends_the_line():
    assert contents("a\x1b\nb\x1b[\nc") == ["a\x1b", "b\x1b[", "c"]


def test_a_long_line_is_cut():
    assert contents("x" * 5000 + "\n") == ["x" * LINE_MAX_CHARS]


def test_spaces_at_the_end_show_when_something_else_changes():
    assert contents("a  \n", "b  \rc\n", "  \n") == ["a", "c  ", ""]


# The screen


def test_the_cursor_goes_up_to_change_an_earlier_line():
    assert contents("outer 0\ninner 0", f"{UP}\router 1{DOWN}\rinner 1\n") == ["outer 1", "inner 1"]


def test_the_cursor_keeps_its_column_when_it_goes_down():
    assert contents(f"ab{DOWN}c\n") == ["ab", "  c"]


def test_the_cursor_stops_at_the_top():
    assert contents(f"a{UP}{UP}b\n") == ["ab"]


def test_streams_share_the_numbers_in_the_order_in_which_lines_begin():
    lines = final_lines(printed("out ", ("stderr", "err "), "put\n", ("stderr", "or\n"), "end\n"))

    assert [(line.number, content(line)) for line in lines] == [
        (0, "out put"),
        (1, "ERROR err or"),
        (2, "end"),
    ]


def test_an_empty_line_counts_once_something_stands_below_it():
    assert contents("a\n\n\n") == ["a"]
    assert contents("a\n\n\nb") == ["a", "", "", "b"]


def test_the_cursor_reaches_no_line_that_is_final():
    lines = contents("".join(f"{n}\n" for n in range(40)) + UP * 50 + "\rX")

    assert lines == [str(n) for n in range(9)] + ["X"] + [str(n) for n in range(10, 40)]


# What is final


def test_a_line_is_final_once_32_others_began_after_it():
    console = Console()
    before = console.feed(printed("".join(f"{n}\n" for n in range(SCREEN_LINES)))[0])

    after = console.feed(printed(("stderr", "one more"))[0])

    assert (before, after) == ([], [Line(CONSOLE, 0, f"{START} 0")])


def test_a_final_line_is_not_changed_by_a_stream_that_was_still_writing_it():
    console = Console()
    console.feed(printed("left open")[0])
    (left,) = console.feed(printed(("stderr", "e\n" * SCREEN_LINES))[0])

    changed = console.feed(printed(" too long\n")[0]) + console.end_piece()

    assert content(left) == "left open"
    assert [content(line) for line in changed] == ["ERROR e"] * SCREEN_LINES


def test_a_line_with_its_newline_is_apart_from_the_one_being_written():
    console = Console(base=7)
    console.feed(printed("done\n50%")[0])

    finished, unfinished = console.open_lines()

    assert finished == [Line(CONSOLE, 7, f"{START} done")]
    assert unfinished == Line(CONSOLE, 8, f"{START} 50%")


def test_no_line_is_being_written_after_a_newline():
    console = Console()
    console.feed(printed("a\nb\n")[0])

    finished, unfinished = console.open_lines()

    assert ([content(line) for line in finished], unfinished) == (["a", "b"], None)


def test_the_end_of_a_piece_makes_all_lines_final_and_the_next_begins_on_a_line_of_its_own():
    console = Console(base=3)
    first = final_lines(printed("killed here\x1b"), console)

    second = final_lines(printed(f"[A{UP}resumed"), console)

    assert first == [Line(CONSOLE, 3, f"{START} killed here")]
    assert second == [Line(CONSOLE, 4, f"{START} [Aresumed")]
    assert console.end_piece() == []


def test_a_record_that_is_no_console_text_makes_no_line():
    assert Console().feed(Record(0, START_US, "gap", {"dropped": 3, "reason": "disk full"})) == []


# Any text

FEW = ["a", "b", " ", "\r", "\n", UP, DOWN]
TEXT = ["cd", "\t", "\b", "\0", "é", "日", "🎉", "\u2028", "\ud800", "x" * 4095]
MOVES = ["\r\n", "\n" * 31, "\n" * 70, UP * 9, DOWN * 33, "line\n" * 40]
SEQUENCES = ["\x1b", "[", "A", "\x1b[", "\x1b[31m", "\x1b[999999999999B"]

sources = st.sampled_from(["stdout", "stderr"])
tokens = st.sampled_from(FEW) | st.sampled_from([*TEXT, *MOVES, *SEQUENCES])
texts = st.lists(tokens, max_size=12).map("".join) | st.text()
writes = st.lists(st.tuples(sources, texts), max_size=8)


class CharByChar:
    """The SDK's terminals as its rules read, one character at a time and with nothing ever forgotten."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.shown: list[str] = []
        self.cursors = {source: [0, 0] for source in ("stdout", "stderr")}
        self.views: dict[str, list[int]] = {"stdout": [], "stderr": []}
        self.escapes = {"stdout": "", "stderr": ""}

    def write(self, source: str, text: str) -> None:
        for char in text:
            escape, self.escapes[source] = self.escapes[source], ""
            sequence = escape + char
            if sequence in ("\x1b", "\x1b["):
                self.escapes[source] = sequence
            elif sequence in (UP, DOWN):
                self.move(source, 1 if sequence == DOWN else -1)
            else:
                self.put(source, escape)
                if char == "\n":
                    self.cursors[source][1] = 0
                    self.move(source, 1)
                elif char == "\r" and not escape:
                    self.cursors[source][1] = 0
                else:
                    self.put(source, char)

    def move(self, source: str, rows: int) -> None:
        cursor = self.cursors[source]
        cursor[0] = max(0, cursor[0] + rows)
        if cursor[0] == SCREEN_LINES:
            cursor[0] -= 1
            self.views[source] = self.views[source][1:]

    def put(self, source: str, text: str) -> None:
        cursor, view = self.cursors[source], self.views[source]
        for char in text:
            while cursor[0] >= len(view):
                view.append(len(self.lines))
                self.lines.append([])
                self.shown.append("ERROR " if source == "stderr" else "")
            number, column = view[cursor[0]], cursor[1]
            cursor[1] += 1
            if column >= LINE_MAX_CHARS or number < len(self.lines) - SCREEN_LINES:
                continue
            line = self.lines[number]
            line += " " * (column + 1 - len(line))
            if line[column] != char:
                line[column] = char
                self.shown[number] = ("ERROR " if source == "stderr" else "") + "".join(line)


@given(writes)
def test_any_text_gives_the_lines_of_the_sdks_terminal(writes):
    slow = CharByChar()
    for source, text in writes:
        slow.write(source, text)

    lines = final_lines(printed(*writes))

    assert [content(line) for line in lines] == slow.shown


@given(writes, st.integers(0, 1000))
def test_line_numbers_have_no_gaps_and_no_line_holds_a_line_feed(writes, base):
    lines = final_lines(printed(*writes), Console(base))

    assert [line.number for line in lines] == list(range(base, base + len(lines)))
    assert not any("\n" in line.text for line in lines)


@given(writes, st.data())
def test_it_does_not_matter_how_the_text_was_cut_into_records(writes, data):
    pieces = []
    for source, text in writes:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5), label="cuts"))
        pieces += [(source, text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert contents(*pieces) == contents(*writes)


@given(st.lists(st.tuples(sources, tokens), max_size=30))
def test_going_on_from_any_state_gives_the_bytes_of_feeding_all(writes):
    # A log holds no lone surrogates, and a cursor cannot.
    writes = [(source, text.replace("\ud800", "?")) for source, text in writes]
    console = Console(5)
    lines, states = [], []
    for record in printed(*writes):
        # As the cursor keeps it.
        states.append((unframe_object(frame_object(console.state()).rstrip()), len(lines)))
        lines += console.feed(record)
    lines += console.end_piece()

    for (state, emitted), n in zip(states, range(len(writes)), strict=True):
        resumed = Console.resume(state)
        assert resumed.state() == state
        assert final_lines(printed(*writes)[n:], resumed) == lines[emitted:]


def test_spaces_that_do_not_show_yet_are_kept_in_the_state():
    console = Console()
    console.feed(printed("ab  ")[0])

    resumed = Console.resume(console.state())

    assert [content(line) for line in final_lines(printed("\rX"), resumed)] == ["Xb  "]


@given(writes)
def test_open_lines_are_what_the_end_of_the_piece_would_make_final(writes):
    console = Console()
    for record in printed(*writes):
        console.feed(record)

    finished, unfinished = console.open_lines()

    assert [*finished, *([unfinished] if unfinished else [])] == console.end_piece()


def test_the_state_of_an_endless_line_is_small():
    console = Console()

    for record in printed(*["x" * 1_000_000 + "\r"] * 10, *["x" * 1_000_000] * 10):
        console.feed(record)

    assert len(json.dumps(console.state())) < 2 * LINE_MAX_CHARS


# The file


def test_the_run_file_holds_the_lines_without_times_and_marks():
    records = printed("a\r", "b \n\nERROR c\n", ("stderr", "d e"))

    assert "".join(output_text(records)) == "b\n\nERROR c\nd e\n"


def test_the_run_file_of_a_silent_piece_is_empty():
    assert "".join(output_text([])) == ""


# The real SDK

PRINT_ALL = """
import json, sys, wandb
run = wandb.init(project="p", id="printing", settings=wandb.Settings(console="wrap"))
for source, text in json.load(open("writes.json")):
    getattr(sys, source).write(text)
run.finish()
"""


def bars() -> list[Write]:
    """Two nested progress bars as tqdm draws them, on stderr."""
    drawn = []
    for outer in range(3):
        drawn.append(f"\router {outer}: {'█' * outer:3}|")
        drawn += [f"\n\rinner {inner}: {'█' * inner:5}|{UP}" for inner in range(6)]
    return [("stderr", text) for text in [*drawn, "\n\n"]]


TRICKY: list[Write] = [
    *[("stdout", text) for text in ("plain\n", "part", "ial ")],
    ("stderr", "between "),
    *[
        ("stdout", text)
        for text in ("line\n", "trailing   \n", "   \n", "\n", "abc  \rabc\n", "abc  \rabd\n")
    ],
    ("stderr", "lines\n"),
    *bars(),
    *[("stdout", f"\r{n:3d}%|{'#' * n:10}| {n}/10") for n in range(11)],
    (
        "stdout",
        "\n\ta\tb\bc\0d\x07\n\x1b[31mred\x1b[0m \x1b[1;32mgreen\x1b[m\n日本語 ██ 🎉 e\u0301\r\nwindows\r\n",
    ),
    ("stdout", "erased\x1b[2K\rnew\ncol\x1b[5Gx\x1b[2Aq\n\x1b]0;title\x07\n"),
    *[("stdout", text) for text in ("\x1b", "[", f"Aup\n\x1b{UP}q\n\x1b[{UP}p\n\x1b\rcr\n")],
    ("stdout", "x" * 5000 + "\n" + "y" * 4095 + "ab\rz\n"),
    ("stdout", f"down{DOWN}down\nmany" + "\n" * 40 + "after\n"),
    ("stderr", "begun "),
    ("stdout", "".join(f"line {n}\n" for n in range(100))),
    ("stderr", f"too late{UP * 40}top{DOWN * 3}\rlow"),
    ("stdout", f"{UP * 40}top\r{DOWN * 50}no newline "),
]


def test_the_sdk_shows_and_uploads_the_same_lines(tmp_path: Path):
    (tmp_path / "writes.json").write_text(json.dumps(TRICKY))

    with WandbServer() as server:
        subprocess.run(
            [sys.executable, "-c", PRINT_ALL],
            env={**os.environ, **server.env(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
            check=True,
        )
        sdk = server.run("ent", "p", "printing")

    assert contents(*TRICKY) == [content(line) for line in sdk.console_lines]
    assert "".join(output_text(printed(*TRICKY))) == sdk.files[CONSOLE].decode()
