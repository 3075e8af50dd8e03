r"""A record and its line: the bytes of FORMAT.md, in both directions.

    record ──encode──▶ {"crc":"62ab9416","seq":7,"time":…,"kind":"metrics",…}\n ──decode──▶ record

Invariants
----------
* A line proves itself: its checksum is at a fixed place and covers all the rest.
* `decode` undoes `encode`: what a caller logged comes back equal, or is named in `lossy`. What JSON has another word for
  comes back as that: a tuple, set, deque or array as a list, a NumPy or torch scalar as its number, a date or UUID as
  its text, an enum as its value, a key as its `str()`.
* No value makes `encode` fail: one bad value never costs the row it stands in, whatever its own code does.

There is no file, clock or lock here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson

# A longer record is refused by the writer; a longer line is skipped by the reader before it is parsed.
LINE_MAX_BYTES = 64 * 1024 * 1024
# `{"crc":"62ab9416",` is 18 bytes: a rest of the line starts here.
_REST_AT = 18
_BRACE_CRC = zlib.crc32(b"{")
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
# orjson gives up at 254 levels; values below this depth become text.
DEPTH_MAX = 200
# What W&B keeps as a list; a longer array would become a histogram there.
_ARRAY_MAX = 1_000_000
# Text in place of a value is for people: 100 MB of bytes must not push their row over the limit of a line.
_TEXT_MAX_CHARS = 10_000
# Python refuses more than 4,300 decimal digits, or as few as 640 where a process asked for that. Hex has no limit.
_DECIMAL_MAX_BITS = 2000

Path = tuple[Any, ...]
TextMark = list[Any]  # [what, key, …], as in FORMAT.md
ALL_PLAIN: list[TextMark] = []
"""The marks of data in which every value is one that JSON has a word for.  Always empty; known by `is`."""
# Another one for each value that was converted: whoever finds the same as before has met none, whatever other threads do.
_latest_stranger = object()


# Not frozen, although nobody changes one: that costs 1 µs of the 4 that it takes to read one.
@dataclass(slots=True)
class Record:
    """One thing that happened, as it came back from the disk."""

    seq: int
    time_us: int
    kind: str
    data: dict[str, Any]
    step: int | None = None
    commit: bool = False
    lossy: tuple[Path, ...] = field(default=())
    """Where `data` holds text in place of a value that could not be stored."""


class BadLine(ValueError):
    """A complete line that is not what its writer wrote."""


def frame(rest: bytes) -> bytes:
    r"""Return the line whose content, without the opening brace, is `rest`.

    >>> frame(b'"seq":0}')
    b'{"crc":"bc928d2c","seq":0}\n'
    """
    return b'{"crc":"%08x",%b\n' % (zlib.crc32(rest, _BRACE_CRC), rest)


def unframe(line: bytes) -> dict[str, Any]:
    """Return the object in `line` (without its newline), less its checksum, or raise `BadLine`."""
    if len(line) > LINE_MAX_BYTES:
        raise BadLine(f"the line has {len(line):,} bytes, more than a record may have")
    # One comparison, since each record is read by way of this.
    if b'{"crc":"%08x",' % zlib.crc32(line[_REST_AT:], _BRACE_CRC) != line[:_REST_AT]:
        has_checksum = line[:8] == b'{"crc":"' and line[16:_REST_AT] == b'",'
        raise BadLine(
            "the checksum does not match" if has_checksum else "the line does not begin with a checksum"
        )
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadLine(f"the checksum matches, but the line is not JSON: {error}") from None
    del content["crc"]
    return content  # type: ignore[no-any-return]


def frame_object(content: Mapping[str, Any]) -> bytes:
    """Return `content` as one line in the framing of a record, any value in it kept as in a record's data."""
    encoded, as_text = encode_data(content)
    if as_text:
        return frame(b'"as_text":%b,%b' % (orjson.dumps(as_text), encoded[1:]))
    return frame(encoded[1:])


def unframe_object(line: bytes) -> dict[str, Any]:
    """Return what `frame_object` was given, from its line without the newline, or raise `BadLine`."""
    content = unframe(line)
    try:
        _restore(content, content.pop("as_text", []))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadLine(f"the checksum matches, but its text marks do not fit: {error!r}") from None
    return content


def encode(
    seq: int,
    time_us: int,
    kind: str,
    data: Mapping[Any, Any],
    step: int | None = None,
    commit: bool = False,
) -> bytes:
    """Return the record's line, newline included."""
    return frame_record(seq, time_us, kind, *encode_data(data), step=step, commit=commit)


def frame_record(
    seq: int,
    time_us: int,
    kind: str,
    data: bytes,
    as_text: list[TextMark],
    *,
    step: int | None = None,
    commit: bool = False,
) -> bytes:
    """Return the line of a record whose data is encoded already."""
    head = f'"seq":{seq},"time":{time_us},"kind":"{kind}"'
    if step is not None:
        head += f',"step":{step}'
    if commit:
        head += ',"commit":true'
    if as_text:
        head += f',"as_text":{orjson.dumps(as_text).decode()}'
    return frame(b'%b,"data":%b}' % (head.encode(), data))


def decode(line: bytes) -> Record:
    """Return the record in `line` (without its newline), or raise `BadLine`."""
    return record_of(unframe(line))


def record_of(content: dict[str, Any]) -> Record:
    """Return the record that an unframed line holds, or raise `BadLine`."""
    try:
        seq, time_us, data = content["seq"], content["time"], content["data"]
        if type(seq) is not int or type(time_us) is not int or type(data) is not dict:
            raise TypeError("its seq, time or data is of another type")
        lossy = _restore(data, content["as_text"]) if "as_text" in content else ()
        return Record(
            seq, time_us, content["kind"], data, content.get("step"), content.get("commit", False), lossy
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadLine(f"the checksum matches, but this is not a record: {error!r}") from None


def encode_data(data: Mapping[Any, Any], nones: int = 0) -> tuple[bytes, list[TextMark]]:
    """Return `data` as JSON, and the marks of what had to be stored as text.

    Nearly every row is what JSON can say, and is done by orjson alone: only a `null` in its output (a None, or
    a NaN that orjson could not write) or its refusal costs a walk through the values. `nones` are known to be there,
    at least; a text that says null costs the walk for nothing.
    """
    before = _latest_stranger
    try:
        encoded = orjson.dumps(data, default=_known_to_science)
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass
    else:
        if encoded.count(b"null") == nones:
            return encoded, ALL_PLAIN if _latest_stranger is before else []
    marks: list[TextMark] = []
    return orjson.dumps(_plain_mapping(data, (), marks, {id(data)})), marks


def decode_data(encoded: bytes, as_text: list[TextMark]) -> dict[str, Any]:
    """Return what `encode_data` was given, as it comes back from the log.

    >>> decode_data(*encode_data({"loss": float("inf"), "shape": (1, 2)}))
    {'loss': inf, 'shape': [1, 2]}
    """
    data: dict[str, Any] = orjson.loads(encoded)
    if as_text:
        _restore(data, as_text)
    return data


def as_logged(data: Mapping[Any, Any]) -> dict[str, Any]:
    """Return `data` as it will come back from the log.

    >>> as_logged({1: {2}, "set": (3,)})
    {'1': [2], 'set': [3]}
    """
    return decode_data(*encode_data(data))


def json_of(value: Any) -> str:
    """Return `value` as JSON text in which NaN and the infinities are bare tokens, as W&B sends them.

    The same value gives the same text, whatever process computes it.

    >>> json_of({"loss": float("nan"), "step": 1, "none": None})
    '{"loss":NaN,"step":1,"none":null}'
    """
    try:
        encoded = orjson.dumps(value)
    except TypeError:
        # An integer beyond 64 bits.
        encoded, value = b"null", _without_endless_ints(value)
    if b"null" in encoded:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return encoded.decode()


def _known_to_science(value: Any) -> Any:
    """Turn a NumPy or torch value into Python's own; raise `TypeError` for anything else.

    Neither library is imported: whoever made the value has imported it.
    """
    global _latest_stranger
    _latest_stranger = object()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.generic):
            return _unwrapped(value)
        if isinstance(value, numpy.ndarray):
            return _listed(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        # Of the floats below 32 bits NumPy has only one; float32 holds all values of each.
        detached = value.detach().cpu()
        is_small = detached.is_floating_point() and detached.element_size() < 4
        return _listed(detached.float().numpy() if is_small else detached.numpy())
    raise TypeError(f"no JSON for {type(value).__name__}")


def _unwrapped(value: Any) -> Any:
    """Return what a NumPy scalar holds."""
    item = value.item()
    if item is None:
        raise TypeError("NaT is neither a time nor nothing")
    if type(item) is not type(value):
        return item
    # A longdouble's item() is itself: handing it back would ask again for ever.
    number = float(value)
    if math.isinf(number) and value != number:
        raise TypeError("a float of 64 bits ends before this number")
    return number


def _listed(array: Any) -> Any:
    if array.size > _ARRAY_MAX:
        raise TypeError(f"an array of {array.size:,} values is not logged")
    listed = array.tolist()
    for _ in range(array.ndim if array.size == 1 else 0):
        listed = listed[0]
    return listed


def _plain(value: Any, path: Path, marks: list[TextMark], above: set[int]) -> Any:
    """Return `value` in words that JSON has; note in `marks` what became text."""
    marked = len(marks)
    try:
        return _in_words(value, path, marks, above)
    except RecursionError:
        text = _too_deep(value)
    except Exception:  # noqa: BLE001 - a stranger's own code runs here; whatever it does, the row is kept
        text = _short_text_of(value)
    del marks[marked:]
    return _lossy(text, path, marks)


def _in_words(value: Any, path: Path, marks: list[TextMark], above: set[int]) -> Any:
    if value is None or type(value) is bool:
        return value
    # By Python's own methods: a subclass may have put others in their place.
    if isinstance(value, str):
        return _plain_text(str.__str__(value), path, marks)
    if isinstance(value, int):
        number = int.__int__(value)
        if _INT64_MIN <= number <= _UINT64_MAX:
            return number
        marks.append(["int", *path])
        return _digits(number)
    if isinstance(value, float):
        number_f = float.__float__(value)
        if math.isfinite(number_f):
            return number_f
        marks.append(["float", *path])
        return "NaN" if number_f != number_f else ("Infinity" if number_f > 0 else "-Infinity")
    if id(value) in above or len(above) >= DEPTH_MAX:
        return _lossy(_too_deep(value), path, marks)
    above.add(id(value))
    try:
        if isinstance(value, Mapping):
            return _plain_mapping(value, path, marks, above)
        if isinstance(value, (list, tuple)):
            return [_plain(item, (*path, i), marks, above) for i, item in enumerate(value)]
        return _plain_stranger(value, path, marks, above)
    finally:
        above.discard(id(value))


def _plain_mapping(
    value: Mapping[Any, Any], path: Path, marks: list[TextMark], above: set[int]
) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    # Listed in one go, because another thread may change it meanwhile.
    for key, item in list(value.items()):
        name = key if type(key) is str else _text_of(key)
        clean = _as_utf8(name)
        clashes = clean in plain
        if clashes or clean != name:
            # Two keys became one (1 and "1"): the last wins, and says that it is not all there was.
            marks[:] = [mark for mark in marks if tuple(mark[1 : len(path) + 2]) != (*path, clean)]
            marks.append(["lossy", *path, clean])
            plain[clean] = _as_utf8(_short_text_of(item))
        else:
            plain[clean] = _plain(item, (*path, clean), marks, above)
    return plain


def _plain_text(value: str, path: Path, marks: list[TextMark]) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return _lossy(value, path, marks)
    return value


def _plain_stranger(value: Any, path: Path, marks: list[TextMark], above: set[int]) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return _lossy(_text_of_bytes(value), path, marks)
    converters: tuple[Callable[[Any], Any], ...] = (_known_to_science, _in_a_row, _taken_apart, _by_orjson)
    for convert in converters:
        try:
            known = convert(value)
        except Exception:  # noqa: BLE001 - a stranger's own code runs here; whatever it does, the row is kept
            continue
        if type(known) is not type(value):
            return _plain(known, path, marks, above)
    return _lossy(_short_text_of(value), path, marks)


def _in_a_row(value: Any) -> list[Any]:
    if not isinstance(value, (Set, deque, range)) or len(value) > _ARRAY_MAX:
        raise TypeError("no list")
    return list(value)


def _taken_apart(value: Any) -> Any:
    """Dataclasses and enums, as orjson takes them apart; it would write a NaN in them as null."""
    if isinstance(value, Enum):
        return value.value
    return {
        part.name: getattr(value, part.name)
        for part in dataclasses.fields(value)
        if not part.name.startswith("_")
    }


def _by_orjson(value: Any) -> Any:
    """Dates and UUIDs, as orjson writes them."""
    return orjson.loads(orjson.dumps(value))


def _lossy(text: str, path: Path, marks: list[TextMark]) -> str:
    marks.append(["lossy", *path])
    return _as_utf8(text)


def _as_utf8(text: str) -> str:
    return str.encode(text, "utf-8", "replace").decode()


def _too_deep(value: Any) -> str:
    return f"<{type(value).__name__} nested in itself or too deep>"


def _short_text_of(value: Any) -> str:
    text = _text_of(value)
    return text if len(text) <= _TEXT_MAX_CHARS else f"{text[:_TEXT_MAX_CHARS]}… ({len(text):,} characters)"


def _text_of_bytes(value: bytes | bytearray) -> str:
    try:
        return _short_text_of(value.decode())
    except UnicodeDecodeError:
        return _short_text_of(value)


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may do anything
        return f"<{type(value).__name__}>"


def _digits(number: int) -> str:
    return str(number) if number.bit_length() <= _DECIMAL_MAX_BITS else hex(number)


def _without_endless_ints(value: Any) -> Any:
    """Return `value` with text in place of the integers that a Python may refuse to write in full."""
    if isinstance(value, dict):
        return {key: _without_endless_ints(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_endless_ints(item) for item in value]
    return _digits(value) if type(value) is int and value.bit_length() > _DECIMAL_MAX_BITS else value


def _restore(data: Any, as_text: list[TextMark]) -> tuple[Path, ...]:
    """Put floats and integers back where text stands for them; return the paths of what stays text."""
    lossy: list[Path] = []
    for what, *path in as_text:
        if what == "lossy":
            lossy.append(tuple(path))
            continue
        *parents, last = path
        holder = data
        for key in parents:
            holder = holder[key]
        text = holder[last]
        holder[last] = float(text) if what == "float" else int(text, 0)
    return tuple(lossy)
