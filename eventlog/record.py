r"""A record and its line: the bytes of FORMAT.md, in both directions.

    record ──encode──▶ {"crc":"62ab9416","seq":7,"time":…,"kind":"metrics",…}\n ──decode──▶ record

Invariants
----------
* A line proves itself: its checksum is at a fixed place and covers all the rest.
* `decode` undoes `encode`: whatever a caller logged comes back equal, or is named in `lossy`.
* No value makes `encode` fail: one bad value never costs the row it stands in.

There is no file, clock or lock here.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

# A longer record is refused by the writer; a longer line is skipped by the reader before it is parsed.
LINE_MAX_BYTES = 64 * 1024 * 1024
# `{"crc":"62ab9416",` is 18 bytes: a rest of the line starts here.
_REST_AT = 18
_BRACE_CRC = zlib.crc32(b"{")
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
# orjson gives up at 254 levels; values below this depth become text.
_DEPTH_MAX = 200
# What W&B keeps as a list; a longer array would become a histogram there.
_ARRAY_MAX = 1_000_000

Path = tuple[Any, ...]
TextMark = list[Any]  # [what, key, …], as in FORMAT.md


@dataclass(frozen=True, slots=True)
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
    if line[:8] != b'{"crc":"' or line[16:_REST_AT] != b'",':
        raise BadLine("the line does not begin with a checksum")
    if b"%08x" % zlib.crc32(memoryview(line)[_REST_AT:], _BRACE_CRC) != line[8:16]:
        raise BadLine("the checksum does not match")
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
        data = content["data"]
        lossy: tuple[Path, ...] = ()
        if "as_text" in content:
            lossy = _restore(data, content["as_text"])
        return Record(
            content["seq"],
            content["time"],
            content["kind"],
            data,
            content.get("step"),
            content.get("commit", False),
            lossy,
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadLine(f"the checksum matches, but this is not a record: {error!r}") from None


def encode_data(data: Mapping[Any, Any]) -> tuple[bytes, list[TextMark]]:
    """Return `data` as JSON, and the marks of what had to be stored as text.

    Nearly every row is what JSON can say, and is done by orjson alone: only a `null` in its output (a None, or
    a NaN that orjson could not write) or its refusal costs a walk through the values.
    """
    try:
        encoded = orjson.dumps(data, default=_known_to_science)
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass
    else:
        if b"null" not in encoded:
            return encoded, []
    marks: list[TextMark] = []
    return orjson.dumps(_plain(data, (), marks, set())), marks


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
        encoded = b"null"
    if b"null" in encoded:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return encoded.decode()


def _known_to_science(value: Any) -> Any:
    """Turn a NumPy or torch value into Python's own; raise `TypeError` for anything else.

    Neither library is imported: whoever made the value has imported it.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.generic):
            return _unwrapped(value.item(), value)
        if isinstance(value, numpy.ndarray):
            return _listed(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        # bfloat16 has no NumPy type; float32 holds all of its values.
        detached = value.detach().cpu()
        return _listed(detached.float().numpy() if detached.dtype == torch.bfloat16 else detached.numpy())
    raise TypeError(f"no JSON for {type(value).__name__}")


def _unwrapped(item: Any, value: Any) -> Any:
    # A NumPy longdouble's item() is itself: handing it back would ask again for ever.
    if type(item) is type(value):
        return float(value)
    return item


def _listed(array: Any) -> Any:
    if array.size > _ARRAY_MAX:
        raise TypeError(f"an array of {array.size:,} values is not logged")
    return array.reshape(-1)[0].item() if array.size == 1 else array.tolist()


def _plain(value: Any, path: Path, marks: list[TextMark], above: set[int]) -> Any:
    """Return `value` in words that JSON has; note in `marks` what became text."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if isinstance(value, str):
        return _plain_text(str.__str__(value), path, marks)
    if isinstance(value, int):
        number = int(value)
        if _INT64_MIN <= number <= _UINT64_MAX:
            return number
        marks.append(["int", *path])
        return _digits(number)
    if isinstance(value, float):
        number_f = float(value)
        if math.isfinite(number_f):
            return number_f
        marks.append(["float", *path])
        return "NaN" if number_f != number_f else ("Infinity" if number_f > 0 else "-Infinity")
    if isinstance(value, (Mapping, list, tuple)):
        if id(value) in above or len(above) >= _DEPTH_MAX:
            return _lossy(f"<{kind.__name__} nested in itself or too deep>", path, marks)
        above.add(id(value))
        try:
            if isinstance(value, Mapping):
                return _plain_mapping(value, path, marks, above)
            return [_plain(item, (*path, i), marks, above) for i, item in enumerate(value)]
        finally:
            above.discard(id(value))
    return _plain_stranger(value, path, marks, above)


def _plain_mapping(
    value: Mapping[Any, Any], path: Path, marks: list[TextMark], above: set[int]
) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = key if type(key) is str else _text_of(key)
        clean = name.encode("utf-8", "replace").decode()
        clashes = clean in plain
        if clashes or clean != name:
            # Two keys became one (1 and "1"): the last wins, and says that it is not all there was.
            marks[:] = [mark for mark in marks if tuple(mark[1 : len(path) + 2]) != (*path, clean)]
            marks.append(["lossy", *path, clean])
            plain[clean] = _text_of(item).encode("utf-8", "replace").decode()
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
    converters: tuple[Callable[[Any], Any], ...] = (_known_to_science, _by_orjson)
    for convert in converters:
        try:
            known = convert(value)
        except Exception:  # noqa: BLE001 - a stranger's own code runs here; whatever it does, the row is kept
            continue
        if type(known) is not type(value):
            return _plain(known, path, marks, above)
    return _lossy(_text_of(value), path, marks)


def _by_orjson(value: Any) -> Any:
    """Dataclasses, enums, dates and UUIDs, as orjson writes them."""
    return orjson.loads(orjson.dumps(value))


def _lossy(text: str, path: Path, marks: list[TextMark]) -> str:
    marks.append(["lossy", *path])
    return text.encode("utf-8", "replace").decode()


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may do anything
        return f"<{type(value).__name__}>"


def _digits(number: int) -> str:
    # str() of a huge int is refused by Python's own limit on digits; hex has none.
    try:
        return str(number)
    except ValueError:
        return hex(number)


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
