"""Records as columns, and back: what a sealed segment holds.  FORMAT.md, "Sealed segments".

    records ──table_of──▶ one Arrow table, a row group of the Parquet file ──records_of──▶ the same records
                                 └──rollups_of──▶ n, min, max, last, … of each metric

Invariants
----------
* `records_of(table_of(records))` are the same records: whatever a caller logged, in the same order of its keys.
* One schema for each kind of stream, whatever was logged.
* A metric's values lie together, in the order of their seqs: that is what makes them small, and a curve fast.

There is no file here.  pyarrow is imported by what needs it, since a training script never does.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import orjson

from eventlog.record import Record, TextMark, encode_data, record_of

if TYPE_CHECKING:
    import pyarrow as pa

# Their data are numbers by name: a row for each. Any other record is a row by itself, its data as JSON.
LONG_KINDS = ("metrics", "system")
# So many values of a key are worth columns of their own.
_MANY = 32
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
# What the values of a trajectory's fields may be to have columns; None: anything, as JSON.
_Types = tuple[type, ...] | None
_STR: _Types = (str, type(None))
_FLOAT: _Types = (float, type(None))
_INT: _Types = (int, type(None))
_LIST: _Types = (list,)
_CALL: dict[str, _Types] = {
    "id": _STR,
    "name": _STR,
    "arguments": None,
    "result": _STR,
    "error": _STR,
    "duration_s": _FLOAT,
}
_TURN: dict[str, _Types] = {
    "role": _STR,
    "content": _STR,
    "tool_calls": _LIST,
    "tool_call_id": _STR,
    "duration_s": _FLOAT,
    "prompt_tokens": _INT,
    "completion_tokens": _INT,
}
_TRAJECTORY: dict[str, _Types] = {
    "id": _STR,
    "group": _STR,
    "reward": _FLOAT,
    "advantage": _FLOAT,
    "rewards": None,
    "turns": _LIST,
    "metrics": None,
    "prompt_tokens": _INT,
    "completion_tokens": _INT,
    "policy_version": _INT,
    "stop_reason": _STR,
    "started_us": _INT,
    "duration_s": _FLOAT,
    "exception": _STR,
    "info": None,
    "token_ids": _LIST,
    "mask": _LIST,
    "logprobs": _LIST,
    "ref_logprobs": _LIST,
}
_NUMBERS = {"token_ids": int, "mask": int, "logprobs": float, "ref_logprobs": float}
_ANYTHING = [name for name, types in _TRAJECTORY.items() if types is None]


@cache
def schema(stream: str) -> pa.Schema:
    """Return the columns of a stream's sealed segments."""
    import pyarrow as pa

    record = [
        pa.field("seq", pa.int64(), nullable=False),
        # Null but at the first cell of a record.
        pa.field("time", pa.int64()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("step", pa.int64()),
        pa.field("commit", pa.bool_(), nullable=False),
    ]
    if stream != "trajectories":
        cell = [
            pa.field("nth", pa.int32(), nullable=False),
            pa.field("key", pa.string()),
            pa.field("value", pa.float64()),
            pa.field("int", pa.int64()),
            pa.field("text", pa.string()),
        ]
        return pa.schema([*record, *cell, pa.field("json", pa.string()), pa.field("as_text", pa.string())])
    arrow = {_STR: pa.string(), _FLOAT: pa.float64(), _INT: pa.int64(), None: pa.string()}
    call = pa.struct([(name, arrow[types]) for name, types in _CALL.items()])
    turn = pa.struct([(name, arrow.get(types, pa.list_(call))) for name, types in _TURN.items()])
    lists = {"turns": turn, "token_ids": pa.int64(), "mask": pa.int8()}
    lists |= dict.fromkeys(("logprobs", "ref_logprobs"), pa.float64())
    fields = [
        pa.field(name, pa.list_(lists[name]) if name in lists else arrow[types])
        for name, types in _TRAJECTORY.items()
    ]
    return pa.schema([*record, *fields, pa.field("json", pa.string()), pa.field("as_text", pa.string())])


def table_of(records: Sequence[Record], stream: str) -> pa.Table:
    """Return the records of a stream as a table, sorted by (kind and key, seq)."""
    return _trajectory_table(records) if stream == "trajectories" else _cell_table(records, stream)


def records_of(table: pa.Table, stream: str) -> list[Record]:
    """Return the records in a table that `table_of` made, in the order of their seqs."""
    return _trajectories_in(table) if stream == "trajectories" else _records_in(table)


# ── numbers by name ──────────────────────────────────────────────────────────────────────────────────────────


def _cell_table(records: Sequence[Record], stream: str) -> pa.Table:
    import pyarrow as pa

    # Records of one kind with the same keys in the same order: nearly all that a training logs.
    shapes: dict[tuple[str, tuple[str, ...]], list[Record]] = {}
    others: list[Record] = []
    for record in records:
        if record.kind in LONG_KINDS and record.data:
            shape = record.kind, tuple(record.data)
            if shape in shapes:
                shapes[shape].append(record)
            else:
                shapes[shape] = [record]
        else:
            others.append(record)
    # Where a key stands in which shapes; keys that stand at the same places in the same records go together.
    places: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for n, (kind, keys) in enumerate(shapes):
        for place, key in enumerate(keys):
            places.setdefault((kind, key), []).append((n, place))
    together: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for name, standing in places.items():
        together.setdefault(tuple(n for n, _ in standing), []).append(name)
    alike = list(shapes.values())
    tables: dict[tuple[str, str], pa.Table] = {}
    few: list[tuple[str, str, int, int, Record]] = []
    for of_shapes, names in together.items():
        if sum(len(alike[n]) for n in of_shapes) < _MANY:
            for kind, key in names:
                for n, place in places[kind, key]:
                    few.extend((kind, key, record.seq, place, record) for record in alike[n])
            continue
        holders = alike[of_shapes[0]] if len(of_shapes) == 1 else _in_order(alike[n] for n in of_shapes)
        said = _said(holders)
        for kind, key in names:
            nth = _nth(places[kind, key], alike)
            tables[kind, key] = _table(said, kind, nth, key, _cells(key, holders), stream)
    found = [_rows_of_their_own(others, stream)] if others else []
    found += [tables[name] for name in sorted(tables)]
    if few:
        found.append(_table_of_few(few, stream))
    return pa.concat_tables(found) if found else schema(stream).empty_table()


def _in_order(parts: Iterable[Sequence[Record]]) -> list[Record]:
    return sorted(chain.from_iterable(parts), key=attrgetter("seq"))


def _nth(standing: list[tuple[int, int]], alike: list[list[Record]]) -> int | list[int]:
    """Return where a key stands in its records: a number if it is one for all."""
    if len({place for _, place in standing}) == 1:
        return standing[0][1]
    return [place for _, place in sorted((record.seq, place) for n, place in standing for record in alike[n])]


def _said(records: Sequence[Record]) -> dict[str, Any]:
    """Return what the records say of themselves, as columns."""
    import pyarrow as pa

    return {
        "seq": _array([record.seq for record in records], pa.int64()),
        "time": _array([record.time_us for record in records], pa.int64()),
        "step": _array([record.step for record in records], pa.int64()),
        "commit": _array([record.commit for record in records], pa.bool_()),
    }


def _cells(key: str, records: Sequence[Record]) -> dict[str, Any]:
    """Return the columns that hold the records' values of one key, each value in the one that fits it."""
    import pyarrow as pa

    values = [record.data[key] for record in records]
    kinds = set(map(type, values))
    if kinds == {float}:
        return {"value": _numbers(values, pa.float64())}
    if kinds == {int}:
        with suppress(OverflowError):
            return {"int": _numbers(values, pa.int64())}
    return _columns(_cell(key, record) for record in records)


def _cell(key: str, record: Record) -> tuple[str, Any, str | None]:
    """Return the column that fits a value, the value there, and its marks."""
    value = record.data[key]
    kind = type(value)
    marks: list[TextMark] = [["lossy", *path] for path in record.lossy if path[0] == key]
    if kind is float:
        column = "value"
    elif kind is int and _INT64_MIN <= value <= _INT64_MAX:
        column = "int"
    elif kind is str:
        column = "text"
    else:
        encoded, more = encode_data({"": value})
        # The braces and the key are no part of the cell.
        column, value = "json", encoded[4:-1].decode()
        marks = [[what, key, *path] for what, _, *path in more] + marks
    return column, value, _marks_as_json(marks)


def _columns(cells: Iterable[tuple[str, Any, str | None]]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {name: [] for name in ("value", "int", "text", "json", "as_text")}
    for filled, value, marks in cells:
        for name, column in columns.items():
            column.append(value if name == filled else marks if name == "as_text" else None)
    return {name: _array(column, schema("events").field(name).type) for name, column in columns.items()}


def _table(
    said: dict[str, Any], kind: str, nth: int | list[int], key: str, cells: dict[str, Any], stream: str
) -> pa.Table:
    import pyarrow as pa

    n = len(said["seq"])
    given = said | cells
    constant = {"kind": kind, "key": key, "nth": nth}
    # The time once for each record: repeated, it costs 2 bytes a value, and all the other columns together 0.1.
    if isinstance(nth, list):
        del constant["nth"]
        times = zip(nth, given["time"].to_pylist(), strict=True)
        given["nth"] = _numbers(nth, pa.int32())
        given["time"] = _array([None if place else time_us for place, time_us in times], pa.int64())
    elif nth > 0:
        given["time"] = pa.nulls(n, pa.int64())
    return pa.table(
        [
            pa.repeat(_array([constant[column.name]], column.type)[0], n)
            if column.name in constant
            else given.get(column.name, pa.nulls(n, column.type))
            for column in schema(stream)
        ],
        schema=schema(stream),
    )


def _table_of_few(few: list[tuple[str, str, int, int, Record]], stream: str) -> pa.Table:
    """Return the rows of keys that are rare: a table for each would cost more than what is in it."""
    import pyarrow as pa

    few.sort(key=lambda found: found[:3])
    given = _said([record for *_, record in few]) | _columns(
        _cell(key, record) for _, key, _, _, record in few
    )
    given |= {
        "time": _array([None if place else record.time_us for *_, place, record in few], pa.int64()),
        "kind": _array([kind for kind, *_ in few], pa.string()),
        "nth": _array([place for *_, place, _ in few], pa.int32()),
        "key": _array([key for _, key, *_ in few], pa.string()),
    }
    return pa.table([given[column.name] for column in schema(stream)], schema=schema(stream))


def _rows_of_their_own(records: list[Record], stream: str) -> pa.Table:
    import pyarrow as pa

    encoded = [_encoded(record) for record in records]
    n = len(records)
    given = {
        **_said(records),
        "kind": _array([record.kind for record in records], pa.string()),
        "nth": _array([0] * n, pa.int32()),
        "json": _array([data.decode() for data, _ in encoded], pa.string()),
        "as_text": _array([_marks_as_json(marks) for _, marks in encoded], pa.string()),
    }
    return pa.table(
        [given.get(column.name, pa.nulls(n, column.type)) for column in schema(stream)],
        schema=schema(stream),
    )


def _encoded(record: Record) -> tuple[bytes, list[TextMark]]:
    data, marks = encode_data(record.data)
    return data, marks + [["lossy", *path] for path in record.lossy]


def _marks_as_json(marks: list[TextMark]) -> str | None:
    return orjson.dumps(marks).decode() if marks else None


def _records_in(table: pa.Table) -> list[Record]:
    heads: dict[int, tuple[int, str, int | None, bool]] = {}
    data: dict[int, dict[str, Any]] = {}
    as_text: dict[int, list[TextMark]] = {}
    # In the order of their places, so that each record gets its keys in their order.
    for place, key, rows in sorted(_alike(table), key=lambda found: found[0]):
        seqs = _list(rows, "seq")
        cells = _cells_in(rows)
        if place == 0:
            said = (_list(rows, name) for name in ("time", "kind", "step", "commit"))
            heads.update(zip(seqs, zip(*said, strict=True), strict=True))
        if key is None:
            data.update(zip(seqs, cells, strict=True))
        elif place == 0:
            data.update((seq, {key: cell}) for seq, cell in zip(seqs, cells, strict=True))
        else:
            for seq, cell in zip(seqs, cells, strict=True):
                data[seq][key] = cell
        if rows.column("as_text").null_count < len(rows):
            for seq, marks in zip(seqs, _list(rows, "as_text"), strict=True):
                if marks is not None:
                    as_text.setdefault(seq, []).extend(orjson.loads(marks))
    records = []
    for seq in sorted(heads):
        time_us, kind, step, commit = heads[seq]
        if seq in as_text:
            records.append(_marked(seq, heads[seq], data[seq], as_text[seq]))
        else:
            records.append(Record(seq, time_us, kind, data[seq], step, commit))
    return records


def _alike(table: pa.Table) -> Iterator[tuple[int, str | None, pa.Table]]:
    """Yield the rows of each key at each place, in the order of their seqs."""
    import pyarrow.compute as pc

    begin = 0
    for end in _run_ends(table):
        rows = table.slice(begin, end - begin)
        begin = end
        key = rows.column("key")[0].as_py()
        places = pc.unique(rows.column("nth"))
        for place in places:
            is_there = pc.equal(rows.column("nth"), place) if len(places) > 1 else None
            yield place.as_py(), key, rows if is_there is None else rows.filter(is_there)


def _run_ends(table: pa.Table) -> list[int]:
    """Return where the rows without a key end, and where those of each key of each kind do."""
    import pyarrow.compute as pc

    without_key = table.column("key").null_count
    ends = {without_key, len(table)}
    for column in ("key", "kind"):
        encoded = pc.run_end_encode(table.column(column).combine_chunks())
        ends.update(end for end in encoded.run_ends.to_pylist() if end > without_key)
    return sorted(ends - {0})


def _list(rows: pa.Table, column: str) -> list[Any]:
    found: list[Any] = rows.column(column).to_pylist()
    return found


def _cells_in(rows: pa.Table) -> list[Any]:
    filled = [name for name in ("value", "int", "text", "json") if rows.column(name).null_count < len(rows)]
    columns = {name: _list(rows, name) for name in filled}
    if "json" in columns:
        columns["json"] = [None if cell is None else orjson.loads(cell) for cell in columns["json"]]
    if len(filled) == 1:
        return columns[filled[0]]
    # A null is in no other column, and a JSON null is None as well.
    cells: list[Any] = [None] * len(rows)
    for column in columns.values():
        cells = [cell if cell is not None else other for cell, other in zip(column, cells, strict=True)]
    return cells


def _marked(
    seq: int, head: tuple[int, str, int | None, bool], data: dict[str, Any], as_text: list[TextMark]
) -> Record:
    time_us, kind, step, commit = head
    content = {"seq": seq, "time": time_us, "kind": kind, "step": step, "commit": commit}
    return record_of(content | {"data": data, "as_text": as_text})


# ── arrays ───────────────────────────────────────────────────────────────────────────────────────────────────
#
# `pa.array` imports pandas where it is installed, to see whether it was given something of pandas': 47 MB.


def _array(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    """Return values, of which some may be None, as an array of 64 or 32 bit numbers, of bools or of strings."""
    import pyarrow as pa

    if None not in values:
        return _whole(values, type)
    is_there = [value is not None for value in values]
    nothing = "" if type == pa.string() else 0
    whole = _whole([nothing if value is None else value for value in values], type)
    buffers = [_bits(is_there).buffers()[1], *whole.buffers()[1:]]
    return pa.Array.from_buffers(type, len(values), buffers)


def _whole(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if type == pa.bool_():
        return _bits(values)
    if type != pa.string():
        return _numbers(values, type)
    encoded = [value.encode() for value in values]
    ends = array("i", accumulate(map(len, encoded), initial=0))
    return pa.Array.from_buffers(
        type, len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    )


def _numbers(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    import pyarrow as pa

    code = {pa.float64(): "d", pa.int64(): "q", pa.int32(): "i"}[type]
    return pa.Array.from_buffers(type, len(values), [None, pa.py_buffer(array(code, values))])


def _bits(flags: Sequence[bool]) -> pa.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int8(), len(flags), [None, pa.py_buffer(bytes(flags))]).cast(pa.bool_())


# ── trajectories ─────────────────────────────────────────────────────────────────────────────────────────────


def _trajectory_table(records: Sequence[Record]) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in (*_TRAJECTORY, "json", "as_text")}
    for record in records:
        data, marks = _encoded(record)
        if not marks and _fits(record):
            fields = _in_columns(record.data)
        else:
            fields = {"json": data.decode(), "as_text": _marks_as_json(marks)}
        for name, column in columns.items():
            column.append(fields.get(name))
    said = _said(records) | {"kind": pa.array([record.kind for record in records], pa.string())}
    return pa.table(
        [
            said[column.name] if column.name in said else pa.array(columns[column.name], column.type)
            for column in schema("trajectories")
        ],
        schema=schema("trajectories"),
    )


def _fits(record: Record) -> bool:
    """Whether a record is a trajectory as `log_trajectory` writes it, so that the columns can hold all of it."""
    data = record.data
    if record.kind != "trajectory" or not _is_of(data, _TRAJECTORY):
        return False
    if not all(set(map(type, data[name])) <= {kind} for name, kind in _NUMBERS.items()):
        return False
    if data["mask"] and not (min(data["mask"]) >= 0 and max(data["mask"]) <= 1):
        return False
    return all(
        _is_of(turn, _TURN) and all(_is_of(call, _CALL) for call in turn["tool_calls"])
        for turn in data["turns"]
    )


def _is_of(part: Any, types: dict[str, _Types]) -> bool:
    return (
        type(part) is dict
        and tuple(part) == tuple(types)
        and all(allowed is None or type(part[name]) in allowed for name, allowed in types.items())
    )


def _in_columns(data: dict[str, Any]) -> dict[str, Any]:
    """Return a trajectory's data with what may be anything as JSON."""
    turns = [
        turn
        | {"tool_calls": [call | {"arguments": _dumps(call["arguments"])} for call in turn["tool_calls"]]}
        for turn in data["turns"]
    ]
    return data | {"turns": turns} | {name: _dumps(data[name]) for name in _ANYTHING}


def _from_columns(fields: dict[str, Any]) -> dict[str, Any]:
    """Undo `_in_columns`, in place."""
    for name in _ANYTHING:
        fields[name] = orjson.loads(fields[name])
    for turn in fields["turns"]:
        for call in turn["tool_calls"]:
            call["arguments"] = orjson.loads(call["arguments"])
    return fields


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def _trajectories_in(table: pa.Table) -> list[Record]:
    records = []
    for row in table.to_pylist():
        seq = row.pop("seq")
        head = row.pop("time"), row.pop("kind"), row.pop("step"), row.pop("commit")
        json, as_text = row.pop("json"), row.pop("as_text")
        data = _from_columns(row) if json is None else orjson.loads(json)
        marks = orjson.loads(as_text) if as_text is not None else []
        records.append(_marked(seq, head, data, marks))
    return records


# ── what the metrics came to ─────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Rollup:
    """What one metric came to in some records: of its finite numbers, but for the last, which is any number."""

    n: int = 0
    sum: float = 0.0
    min: float | None = None
    min_step: int | None = None
    max: float | None = None
    max_step: int | None = None
    last: float | None = None
    last_step: int | None = None
    last_seq: int = -1

    def add(self, other: Rollup) -> None:
        """Take in what it came to in later records of the same writer."""
        if other.min is not None and (self.min is None or other.min < self.min):
            self.min, self.min_step = other.min, other.min_step
        if other.max is not None and (self.max is None or other.max > self.max):
            self.max, self.max_step = other.max, other.max_step
        self.n += other.n
        self.sum += other.sum
        if other.last_seq > self.last_seq:
            self.last, self.last_step, self.last_seq = other.last, other.last_step, other.last_seq


def rollups_of(table: pa.Table) -> dict[str, Rollup]:
    """Return the rollup of each metric in a table that `table_of` made of events."""
    found: dict[str, Rollup] = {}
    for _, key, rows in _alike(table):
        if key is not None and rows.column("kind")[0].as_py() == "metrics":
            for name in ("value", "int"):
                if rows.column(name).null_count < len(rows):
                    found.setdefault(key, Rollup()).add(_rollup_of(rows, name))
    return found


def _rollup_of(rows: pa.Table, column: str) -> Rollup:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = rows.select(["seq", "step", column])
    if rows.column(column).null_count:
        rows = rows.filter(rows.column(column).is_valid())
    seqs, steps, numbers = rows.columns
    numbers = numbers.cast(pa.float64(), safe=False)
    rollup = Rollup(last=numbers[-1].as_py(), last_step=steps[-1].as_py(), last_seq=seqs[-1].as_py())
    is_finite = pc.is_finite(numbers)
    if not pc.all(is_finite).as_py():
        numbers, steps = numbers.filter(is_finite), steps.filter(is_finite)
    if len(numbers) == 0:
        return rollup
    extremes = pc.min_max(numbers)
    return replace(
        rollup,
        n=len(numbers),
        sum=pc.sum(numbers).as_py(),
        min=extremes["min"].as_py(),
        min_step=steps[pc.index(numbers, extremes["min"]).as_py()].as_py(),
        max=extremes["max"].as_py(),
        max_step=steps[pc.index(numbers, extremes["max"]).as_py()].as_py(),
    )
