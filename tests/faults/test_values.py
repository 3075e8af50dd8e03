"""Section L: whatever a value is or does, its row lands, and what could not be stored as what it was says so.

Through the public door, a real file and the reader; the lines themselves are `tests/eventlog/test_record`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

import eventlog
from eventlog.cli import main
from eventlog.reader import StreamReader, read
from eventlog.record import Record, decode, encode, json_of
from eventlog.writer import StreamWriter


def logged(root: Path, *rows: Mapping[Any, Any]) -> list[Record]:
    """Return what the log holds of the rows, each after one that is in order."""
    with eventlog.init(project="demo", root=root, quiet=True) as run:
        for row in rows:
            run.log({"loss": 0.5})
            run.log(row)
    assert run.dropped == 0
    verified = CliRunner().invoke(main, ["verify", str(run.dir)])
    assert verified.exit_code == 0, verified.output
    records = [record for record in read(run.dir) if record.kind == "metrics"]
    assert [record.data for record in records[::2]] == [{"loss": 0.5}] * len(rows)
    return records[1::2]


class Temperature(enum.Enum):
    UNKNOWN = math.nan


@dataclasses.dataclass
class Sample:
    loss: float
    note: Any = None


def is_same(value: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return list(value) == list(expected) and all(is_same(value[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(is_same, value, expected))
    if isinstance(expected, float):
        # NaN is a NaN, and -0.0 is not 0.0.
        return type(value) is float and repr(value) == repr(expected)
    return type(value) is type(expected) and bool(value == expected)


HELD: dict[str, tuple[Any, Any]] = {
    "NaN": (math.nan, math.nan),
    "infinity": (math.inf, math.inf),
    "minus infinity": (-math.inf, -math.inf),
    "minus zero": (-0.0, -0.0),
    "1e400": (1e400, math.inf),
    "the smallest float": (5e-324, 5e-324),
    "2**63": (2**63, 2**63),
    "2**64": (2**64, 2**64),
    "-2**63 - 1": (-(2**63) - 1, -(2**63) - 1),
    "10**5000": (10**5000, 10**5000),
    "float16": (np.float16(65504), 65504.0),
    "float16 NaN": (np.float16("nan"), math.nan),
    "float32": (np.float32(0.5), 0.5),
    "longdouble": (np.longdouble(0.5), 0.5),
    "uint64": (np.uint64(2**64 - 1), 2**64 - 1),
    "NumPy bool": (np.bool_(False), False),
    "NumPy text": (np.str_("text"), "text"),
    "every second": (np.arange(6)[::2], [0, 2, 4]),
    "transposed": (np.arange(4).reshape(2, 2).T, [[0, 2], [1, 3]]),
    "big-endian": (np.array([1.5], dtype=">f8"), 1.5),
    "empty array": (np.array([], dtype=float), []),
    "array of objects": (np.array([1, None, "a", 2**70], dtype=object), [1, None, "a", 2**70]),
    "array of one object": (np.array([7], dtype=object), 7),
    "array of one dict": (np.array([{"a": 1}], dtype=object), {"a": 1}),
    "array of one row": (np.array([[-0.0, math.nan]]), [[-0.0, math.nan]]),
    "array of structs": (np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]), [[0, 0.0], [0, 0.0]]),
    "masked array": (np.ma.array([1, 2], mask=[True, False]), [None, 2]),
    "tensor of one": (torch.tensor(0.5), 0.5),
    "strided tensor": (torch.tensor([1, 2, 3])[::2], [1, 3]),
    "tensor with NaN": (torch.tensor([math.nan, -0.0]), [math.nan, -0.0]),
    "bfloat16": (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
    "float8": (torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn), [1.5, -2.0]),
    "tensor of bool": (torch.tensor(True), True),
    "parameter": (torch.nn.Parameter(torch.ones(2)), [1.0, 1.0]),
    "enum of NaN": (Temperature.UNKNOWN, math.nan),
    "dataclass with NaN": (Sample(math.nan, [2**64]), {"loss": math.nan, "note": [2**64]}),
    "keys that are no text": (
        {1: "one", 2.5: "more", None: "none"},
        {"1": "one", "2.5": "more", "None": "none"},
    ),
    # One key, in Python.
    "1 and True": ({1: "int"} | {True: "bool"}, {"1": "bool"}),
    "tuples": ((1, (2,)), [1, [2]]),
    "set": ({3}, [3]),
}


@pytest.mark.parametrize("name", HELD)
def test_a_value_is_stored_as_what_it_holds(tmp_path: Path, name: str):
    # faults: 91
    value, stored = HELD[name]

    (record,) = logged(tmp_path, {"value": value, "loss": 0.25})

    assert record.lossy == ()
    assert list(record.data) == ["value", "loss"]
    assert is_same(record.data["value"], stored)
    assert record.data["loss"] == 0.25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_scalar_on_a_gpu_is_its_number(tmp_path: Path):
    # faults: 91
    (record,) = logged(tmp_path, {"value": torch.tensor(0.5, device="cuda")})

    assert record.data == {"value": 0.5}


# ── what only a text can stand for ───────────────────────────────────────────────────────────────────────────


class Hostile(Exception):
    pass


class HostileText:
    def __str__(self) -> str:
        raise Hostile

    __repr__ = __str__


class HostileClass:
    """As a proxy is that stands for nothing yet."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise Hostile

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise Hostile


class HostileMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise Hostile

    def __iter__(self) -> Iterator[str]:
        raise Hostile

    def __len__(self) -> int:
        return 1


class HostileList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise Hostile


def cycle_of_lists() -> Any:
    cycle: list[Any] = [1]
    cycle += [cycle, {"again": cycle}]
    return cycle


def cycle_of_arrays() -> Any:
    """Each level holds itself twice: followed to the depth where we give up, it would never end."""
    array = np.empty(2, dtype=object)
    array[:] = [array, [array]]
    return array


def deep(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = {"down": [value]}
    return value


TEXTS: dict[str, tuple[Callable[[], Any], str]] = {
    "bytes": (lambda: b"\xff\x00", "b'"),
    "lone surrogate": (lambda: "lone \ud800 surrogate", "lone ? surrogate"),
    "complex": (lambda: 1 + 2j, "(1+2j)"),
    "type": (lambda: object, "<class 'object'>"),
    "no time": (lambda: np.datetime64("NaT"), "NaT"),
    "over the floats": (lambda: np.longdouble("1e4000"), "1e+4000"),
    "tensor without content": (lambda: torch.empty(3, device="meta"), "tensor("),
    "sparse tensor": (lambda: torch.eye(2).to_sparse(), "tensor("),
    "no text": (HostileText, "<HostileText>"),
    "large array": (lambda: np.zeros(1_000_001), "[0. 0."),
    "larger than a record": (lambda: b"x" * 100_000_000, "xxx"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_value_that_cannot_be_stored_is_a_text_and_costs_nothing_else(tmp_path: Path, name: str):
    # faults: 91
    value, text = TEXTS[name]

    (record,) = logged(tmp_path, {"before": math.nan, "value": value(), "loss": 0.25})

    assert record.lossy == (("value",),)
    assert record.data["value"].startswith(text)
    assert len(record.data["value"]) < 20_000
    assert math.isnan(record.data["before"])
    assert record.data["loss"] == 0.25


def hostile_list() -> Any:
    # orjson alone would take a list as it is; beside a NaN it is asked for its items.
    return HostileList([math.nan])


@pytest.mark.parametrize("make", [HostileClass, HostileMapping, hostile_list])
def test_a_value_whose_own_code_fails_is_a_text_and_costs_nothing_else(make: Callable[[], Any]):
    # faults: 91
    row = {"before": math.nan, "value": make(), "loss": 0.25}

    record = decode(encode(0, 1, "metrics", row)[:-1])

    assert record.lossy == (("value",),)
    assert isinstance(record.data["value"], str)
    assert record.data["loss"] == 0.25


@pytest.mark.parametrize("make", [cycle_of_lists, cycle_of_arrays, lambda: deep(255), lambda: deep(5000)])
def test_of_a_value_without_an_end_the_beginning_is_stored(tmp_path: Path, make: Callable[[], Any]):
    # faults: 91
    (record,) = logged(tmp_path, {"value": make(), "loss": 0.25})

    assert record.lossy
    assert {path[0] for path in record.lossy} == {"value"}
    assert all(len(path) > 1 for path in record.lossy)
    assert record.data["loss"] == 0.25


def test_two_keys_that_become_one_are_the_last_and_say_so(tmp_path: Path):
    # faults: 91
    (record,) = logged(tmp_path, {1: "int", "1": "text", "loss": 0.25})

    assert record.data == {"1": "text", "loss": 0.25}
    assert record.lossy == (("1",),)


def test_a_row_logged_from_deep_inside_is_stored(tmp_path: Path):
    # faults: 91
    def call(levels: int) -> tuple[bytes, int]:
        if levels:
            return call(levels - 1)
        return encode(0, 1, "metrics", {"value": deep(60), "nan": math.nan, "loss": 0.25}), levels

    # As deep as Python lets us be, but for a few calls.
    for room in (25, 60, 120):
        line, _ = call(sys.getrecursionlimit() - depth_here() - room)

        record = decode(line[:-1])
        assert record.data["loss"] == 0.25
        assert math.isnan(record.data["nan"])


def depth_here() -> int:
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


def test_an_integer_is_read_by_a_process_that_reads_fewer_digits():
    # faults: 91
    numbers = [10**600, -(10**700), 10**5000]
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        line = encode(0, 1, "metrics", {"numbers": numbers})
        sys.set_int_max_str_digits(640)

        record = decode(line[:-1])
        text = json_of(record.data)
    finally:
        sys.set_int_max_str_digits(before)

    assert record.data == {"numbers": numbers}
    assert text.startswith('{"numbers":[1000')


def test_a_row_that_another_thread_changes_meanwhile_is_stored(tmp_path: Path):
    # faults: 91
    changing: dict[str, Any] = {"nan": math.nan, "loss": 0.25}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for i in range(50):
                changing[f"key{i}"] = i
            for i in range(50):
                del changing[f"key{i}"]

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for i in range(300):
            record = decode(encode(i, 1, "metrics", {"row": changing})[:-1])
            assert record.lossy == ()
            assert record.data["row"]["loss"] == 0.25
    finally:
        stop.set()
        changer.join()


# ── anything, and anything that happens to it ────────────────────────────────────────────────────────────────


def array_of_objects(items: list[Any]) -> Any:
    array = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        array[i : i + 1].fill(item)
    return array


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers()
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.decimals()
    | st.fractions()
    | st.builds(np.float16, st.floats(width=16))
    | st.builds(np.int64, st.integers(-(2**63), 2**63 - 1))
    | st.lists(st.floats(), max_size=3).map(np.array)
    | st.lists(st.floats(), max_size=3).map(torch.tensor)
    | st.builds(HostileText)
    | st.builds(HostileClass)
    | st.builds(HostileMapping)
    | st.sampled_from([object(), int, len, ..., NotImplemented, Temperature.UNKNOWN, cycle_of_arrays()])
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.builds(HostileList, st.lists(inner, max_size=2))
        | st.builds(Sample, st.floats(), inner)
        | st.lists(inner, max_size=2).map(array_of_objects)
        | st.dictionaries(st.text(st.characters()) | st.integers(0, 2) | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)
rows = st.dictionaries(st.text(), values, max_size=4)


@given(row=rows)
def test_any_python_value_lands(row: dict[str, Any]):
    # faults: 91
    record = decode(encode(0, 1, "metrics", {**row, "loss": 0.25})[:-1])

    assert list(record.data) == list({**row, "loss": 0})
    assert record.data["loss"] == 0.25
    for path in record.lossy:
        at: Any = record.data
        for key in path:
            at = at[key]
        assert isinstance(at, str)


def written(directory: Path, log: list[dict[str, Any]]) -> Path:
    """Write the rows by the real writer; return its segment."""
    writer = StreamWriter(directory, "a" * 32, "main-0001", "0" * 8, "events", "none")
    for row in log:
        assert writer.append("metrics", row)
    writer.close()
    (segment,) = directory.iterdir()
    return segment


def seqs_in(directory: Path) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the seqs that a reader finds, and the ranges that it reports as lost."""
    reader = StreamReader(directory)
    chunk = reader.read()
    damage = chunk.damage + reader.end()
    return [record.seq for record in chunk.records], [(each.first_seq, each.last_seq) for each in damage]


logs = st.lists(rows, min_size=1, max_size=5)


@given(log=logs, data=st.data())
def test_a_log_cut_anywhere_gives_its_whole_records_and_no_word_of_damage(
    log: list[dict[str, Any]], data: st.DataObject
):
    # faults: 5, 6
    with tempfile.TemporaryDirectory() as directory:
        segment = written(Path(directory), log)
        whole = segment.read_bytes()
        cut = data.draw(st.integers(0, len(whole)), label="bytes left")
        segment.write_bytes(whole[:cut])

        survivors, damage = seqs_in(Path(directory))

    assert survivors == list(range(max(0, whole[:cut].count(b"\n") - 1)))
    assert damage == []


@given(log=logs, data=st.data())
@example(log=[{}, {}], data=None)
def test_a_byte_flipped_anywhere_costs_the_records_it_stands_in_and_is_reported(
    log: list[dict[str, Any]], data: Any
):
    # faults: 13, 14, 19
    with tempfile.TemporaryDirectory() as directory:
        segment = written(Path(directory), log)
        whole = segment.read_bytes()
        # The first newline, if nothing is drawn: the header is glued to record 0.
        at = whole.index(b"\n") if data is None else data.draw(st.integers(0, len(whole) - 1), label="byte")
        flip = 1 if data is None else data.draw(st.integers(1, 255), label="flip")
        segment.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])

        survivors, damage = seqs_in(Path(directory))

    # Line 0 is the header. A newline that is none any more glues two lines; the last one makes a torn tail.
    line = whole[:at].count(b"\n")
    hit = {line, line + 1} if whole[at : at + 1] == b"\n" else {line}
    expected = [seq for seq in range(len(log)) if seq + 1 not in hit]
    assert survivors == expected
    lost = {seq for first, last in damage for seq in range(first, last + 1)}
    is_torn = at == len(whole) - 1
    # Two lines that became one are one damaged line, and at the end no later seq tells that they were two.
    is_glued_at_end = len(hit) == 2 and 0 < line == len(log) - 1
    assert set(survivors) | lost == set(range(len(log))) - (
        {len(log) - 1} if is_torn or is_glued_at_end else set()
    )
    assert not set(survivors) & lost
