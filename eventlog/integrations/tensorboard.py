"""Mirrors a run into TensorBoard's event files, beside its log.

    log(row), config(values) ──▶ Event ──one write──▶ <directory>/events.out.tfevents.<seconds>.<host>.<pid>.<n>

Invariants
----------
* A call that returned has handed its event to the kernel, or `dropped` grew: nothing waits in this process.
* A file has one writer and is only appended to, whole events at a time: a write that fails is taken back, and a process
  that dies in one leaves its torn event at the end of its own file, which nobody goes on with.
* The world failing (a full disk, a directory that cannot be made) is counted in `dropped`, said once, and tried again with the
  next event; it never raises.
* A forked child writes to a directory of its own below, `fork-<pid>`, as TensorBoard reads one writer for each.

The log is what counts: what TensorBoard has no form for is counted in `not_mirrored`, and is in the log all the same.
Needs the `tensorboard` package, and imports it with the first event; torch and TensorFlow are not needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import numbers
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from eventlog.importers.tfrecord import frame
from eventlog.media import Audio, Histogram, Image, Media
from eventlog.not_yet import say
from eventlog.record import DEPTH_MAX, encode_data
from eventlog.redact import redacted
from eventlog.store import Content, Stored

_FILE_VERSION = "brain.Event:2"
_FILE_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
_CONFIG_TAG = "config"


class TensorboardMirror:
    """Writes what is logged to `directory`, for TensorBoard.  Safe to use from threads."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        # A missing package is a mistake in the set-up, and is said before the training begins.
        require_tensorboard()
        self.dropped = 0
        """How many events are not in the files."""
        self.not_mirrored: Counter[str] = Counter()
        """How many values have no form in TensorBoard, by their type."""
        self._given_directory = Path(os.path.abspath(directory))
        self._given_pid = os.getpid()
        self._has_said = False
        self._begin_anew()

    def log(self, data: Mapping[str, Any], step: int, time_s: float | None = None) -> None:
        """Write one row: numbers, texts, histograms, images and sounds; nested mappings under `outer/inner`."""
        values = [made for name, value in _flat(data, "") for made in self._made(name, value, step)]
        if values:
            self._write(time_s, step, values)

    def config(self, values: Mapping[str, Any], time_s: float | None = None) -> None:
        """Write hyperparameters, as a text that TensorBoard shows under `config`; secrets are left out."""
        encoded, _ = encode_data(redacted(dict(values)))
        pretty = orjson.dumps(orjson.loads(encoded), option=orjson.OPT_INDENT_2).decode()
        # Indented by four, it is a block of code to TensorBoard.
        self._write(time_s, 0, [_text(_CONFIG_TAG, "".join(f"    {line}\n" for line in pretty.splitlines()))])

    def flush(self) -> None:
        """Make what was written survive a power cut, where the disk can."""
        self._in_this_process()
        with self._lock:
            if self._fd >= 0:
                with suppress(OSError):
                    os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; a later event begins another one."""
        self._in_this_process()
        with self._lock:
            self._let_go()

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_anew(self) -> None:
        pid = os.getpid()
        given = self._given_directory
        self._directory = given if pid == self._given_pid else given / f"fork-{pid}"
        self._lock = threading.Lock()
        self._fd = -1
        self._size = 0
        # Last: a second thread of a child that sees it finds the rest in its place.
        self._pid = pid

    def _in_this_process(self) -> None:
        """In a forked child, leave the parent its file, and the lock that another thread may have held."""
        if self._pid == os.getpid():
            return
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
        self.dropped = 0
        self._begin_anew()

    def _write(self, time_s: float | None, step: int, values: Sequence[Any]) -> None:
        summary = _proto("summary").Summary(value=values)
        event = _proto("event").Event(
            wall_time=time.time() if time_s is None else time_s, step=step, summary=summary
        )
        record = frame(event.SerializeToString())
        self._in_this_process()
        with self._lock:
            try:
                if self._fd < 0:
                    self._create()
                self._append(record)
            except OSError as error:
                self.dropped += 1
                self._say_once(error)

    def _create(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        now_s = time.time()
        # TensorBoard reads a directory's files in the order of their names: this one comes after those that are there.
        begun_s = max([int(now_s), *(begun_s + 1 for begun_s in _begun_s(os.listdir(self._directory)))])
        name = f"events.out.tfevents.{begun_s:010d}.{socket.gethostname()}.{self._pid}"
        number = 0
        while True:
            path = self._directory / f"{name}.{number}"
            with suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(path, flags, 0o600)
                break
            number += 1
        self._size = 0
        first = _proto("event").Event(wall_time=now_s, file_version=_FILE_VERSION)
        try:
            self._append(frame(first.SerializeToString()))
        except OSError:
            # Without its first event it is none; and each row that finds the disk full would leave another.
            self._let_go()
            with suppress(OSError):
                os.unlink(path)
            raise

    def _append(self, record: bytes) -> None:
        """Write the whole record, or raise `OSError` and leave the file as it was."""
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                # Nothing may follow half an event: TensorBoard reads no further.
                self._let_go()
            raise
        self._size += len(record)

    def _let_go(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _say_once(self, error: OSError) -> None:
        if not self._has_said:
            self._has_said = True
            say(
                f"TensorBoard's copy in {str(self._directory)!r} could not be written "
                f"({error.strerror or error}). Training and the log go on; it is tried again with each row. "
                "This is said once."
            )

    # ── values ───────────────────────────────────────────────────────────────────────────────────────────────

    def _made(self, name: str, value: Any, step: int) -> Iterator[Any]:
        """Yield TensorBoard's values for one of ours; count it if there is none."""
        made = _value_of(name, value, step)
        if made is not None:
            yield made
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Media):
            for at, item in enumerate(value):
                yield from self._made(f"{name}/{at}", item, step)
        else:
            self.not_mirrored[type(value).__name__] += 1


def _begun_s(names: Sequence[str]) -> Iterator[int]:
    """Yield the seconds that the names of event files say."""
    for name in names:
        match = _FILE_NAME.match(name)
        if match is not None:
            yield int(match[1])


def _flat(data: Mapping[str, Any], above: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and depth < DEPTH_MAX:
            yield from _flat(value, f"{name}/", depth + 1)
        else:
            yield name, value


def _value_of(name: str, value: Any, step: int) -> Any:
    number = _number_of(value)
    if number is not None:
        return _proto("summary").Summary.Value(tag=name, simple_value=number)
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, Histogram):
        return _histogram(name, value)
    if isinstance(value, Image):
        return _image(name, value, step)
    if isinstance(value, Audio):
        return _audio(name, value, step)
    return None


def _number_of(value: Any) -> float | None:
    """Return the number that the value is, also as NumPy and torch have it."""
    if isinstance(value, numbers.Real):
        with suppress(OverflowError):
            return float(value)
        return math.inf if value == abs(value) else -math.inf
    size = getattr(value, "numel", None) or getattr(value, "size", None)
    if callable(getattr(value, "item", None)) and (size() if callable(size) else size) == 1:
        item = value.item()
        return float(item) if isinstance(item, numbers.Real) else None
    return None


def _text(name: str, text: str) -> Any:
    clean = text.encode("utf-8", "replace")
    shape = _proto("tensor_shape").TensorShapeProto
    tensor = _proto("tensor").TensorProto(
        dtype="DT_STRING", string_val=[clean], tensor_shape=shape(dim=[shape.Dim(size=1)])
    )
    metadata = _proto("summary").SummaryMetadata
    said = metadata(plugin_data=metadata.PluginData(plugin_name="text"))
    return _proto("summary").Summary.Value(tag=f"{name}/text_summary", metadata=said, tensor=tensor)


def _histogram(name: str, value: Histogram) -> Any:
    counts, edges = value.histogram, value.bins
    total = math.fsum(counts)
    middles = [(left + right) / 2 for left, right in pairwise(edges)]
    histogram = _proto("summary").HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=total,
        # What the values were is not known any more: their bins' middles stand for them.
        sum=math.fsum(n * middle for n, middle in zip(counts, middles, strict=True)),
        sum_squares=math.fsum(n * middle * middle for n, middle in zip(counts, middles, strict=True)),
        bucket_limit=edges[1:],
        bucket=counts,
    )
    return _proto("summary").Summary.Value(tag=name, histo=histogram)


def _image(name: str, value: Image, step: int) -> Any:
    content, shown = _content_of(name, value, step)
    if content is None:
        return None
    image = _proto("summary").Summary.Image(
        height=shown.get("height", 0), width=shown.get("width", 0), colorspace=3, encoded_image_string=content
    )
    return _proto("summary").Summary.Value(tag=name, image=image)


def _audio(name: str, value: Audio, step: int) -> Any:
    content, _ = _content_of(name, value, step)
    if content is None or content[:4] != b"RIFF":
        return None
    audio = _proto("summary").Summary.Audio(encoded_audio_string=content, content_type="audio/wav")
    return _proto("summary").Summary.Value(tag=name, audio=audio)


class _Catcher:
    """Gets hold of a value's content, where a run would store it."""

    run_id = ""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def keep(self, content: Content, name: Callable[[Stored], str]) -> tuple[str, Stored]:
        with suppress(OSError):
            self.content = content if isinstance(content, bytes) else content.read_bytes()
        stored = Stored("", "", len(self.content or b""))
        return name(stored), stored

    def keep_artifact(self, artifact: Any, aliases: Sequence[str], tags: Sequence[str], step: int) -> None:
        raise AssertionError("images and sounds are no artifacts")


def _content_of(name: str, value: Media, step: int) -> tuple[bytes | None, dict[str, Any]]:
    catcher = _Catcher()
    shown = value.in_history(name, step, catcher)
    return catcher.content, shown


@cache
def _proto(name: str) -> Any:
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


def require_tensorboard() -> None:
    """Raise `ModuleNotFoundError`, with the way out, where nothing can be mirrored."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "mirroring to TensorBoard needs the tensorboard package: `pip install tensorboard`, or leave it out."
        )
