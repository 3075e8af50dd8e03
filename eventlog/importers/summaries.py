"""Turns TensorBoard's events into rows of ours.

    payloads (tfrecord) ──Translator.feed──▶ Row(time, step, data), Settings(time, config), …
                                    end()──▶ the row under way

Invariants
----------
* What comes out is a pure function of the payloads and of `plugins`, however they were cut into portions.
* A row is what came together: consecutive events of one step, each tag once, within a second.
* What cannot be a value of ours is counted by its reason, and nothing is raised for it.

There is no file here.  The messages are TensorFlow's, as the `tensorboard` package knows them; plugins' formats are
those that it, TensorFlow 2 and torch's `SummaryWriter` write.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from eventlog.media import Audio, Histogram, Image, Media

# A writer gives its scalars one by one: those of one call come well within this.
TOGETHER_US = 1_000_000
_BINS_MAX = 512
# torch's writer puts this behind the name of a text.
_TEXT_SUFFIX = "/text_summary"
_IMAGE_HEADS = ((b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"))
_HPARAMS_START = "_hparams_/session_start_info"
_HPARAMS = "hparams"
_DOUBLE_MAX = 1.7976931348623157e308


class Row(NamedTuple):
    """What was logged together; its media are values of `eventlog.media`."""

    time_us: int
    step: int
    data: dict[str, Any]


class Settings(NamedTuple):
    """Hyperparameters."""

    time_us: int
    config: dict[str, Any]


class EncodedImage(Image):
    """An image whose file is in memory."""

    def __init__(self, content: bytes, size: tuple[int, int]) -> None:
        extension = next((name for head, name in _IMAGE_HEADS if content.startswith(head)), None)
        if extension is None:
            raise _NotOurs("an image that is no PNG, JPEG or GIF")
        Media.__init__(self, content, extension)
        self.grouping = None
        self._size = size


class EncodedAudio(Audio):
    """A sound whose file is in memory."""

    def __init__(self, content: bytes) -> None:
        if content[:4] != b"RIFF":
            raise _NotOurs("a sound that is no WAV")
        Media.__init__(self, content, ".wav")
        self._sample_rate = self._duration_s = None


class _NotOurs(Exception):
    """Why a value cannot be one of ours."""


@dataclass(slots=True)
class Translator:
    """The events of one file, on their way into a log."""

    plugins: dict[str, str] = field(default_factory=dict)
    """Which plugin a tag is of: a writer may say it with the first value only."""
    not_taken: Counter[str] = field(default_factory=Counter)
    _row: Row | None = None
    _time_us: int = 0

    def feed(self, payload: bytes) -> Iterator[Row | Settings]:
        """Take the next event of the file."""
        event = event_of(payload)
        if event is None:
            self.not_taken["an event that cannot be read"] += 1
            return
        self._time_us = time_us_of(event) or self._time_us
        if not event.HasField("summary"):
            self._count_other(event.WhichOneof("what"))
            return
        for value in event.summary.value:
            config = self._config_of(value)
            if config is not None:
                yield from self.end()
                if config:
                    yield Settings(self._time_us, config)
                continue
            for tag, taken in self._taken(value):
                yield from self._add(event.step, tag, taken)

    def end(self) -> Iterator[Row]:
        """Give the row under way: what comes after is another one."""
        if self._row is not None:
            yield self._row
            self._row = None

    def _add(self, step: int, tag: str, value: Any) -> Iterator[Row]:
        row = self._row
        if (
            row is None
            or row.step != step
            or tag in row.data
            or not 0 <= self._time_us - row.time_us <= TOGETHER_US
        ):
            yield from self.end()
            row = self._row = Row(self._time_us, step, {})
        row.data[tag] = value

    def _taken(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield the tag and the value of ours, if it can be one."""
        try:
            yield _name_of(value.tag), self._value_of(value)
        except _NotOurs as reason:
            self.not_taken[str(reason)] += 1
        except (ValueError, TypeError, IndexError) as error:
            self.not_taken[f"a value that does not fit its type ({type(error).__name__})"] += 1

    def _value_of(self, value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            return value.simple_value
        if kind == "histo":
            return _histogram_of_buckets(value.histo)
        if kind == "image":
            return EncodedImage(value.image.encoded_image_string, (value.image.width, value.image.height))
        if kind == "audio":
            return EncodedAudio(value.audio.encoded_audio_string)
        if kind != "tensor":
            raise _NotOurs("a summary without a value")
        plugin = value.metadata.plugin_data.plugin_name
        if plugin:
            self.plugins[value.tag] = plugin
        return _value_of_tensor(value.tensor, plugin or self.plugins.get(value.tag, ""))

    def _config_of(self, value: Any) -> dict[str, Any] | None:
        """Return the hyperparameters that the value holds, nothing if it says something else of them, or None."""
        if value.metadata.plugin_data.plugin_name != _HPARAMS:
            return None
        if value.tag != _HPARAMS_START:
            return {}
        found = _hparams_of(value.metadata.plugin_data.content)
        if not found:
            self.not_taken["hyperparameters that cannot be read"] += 1
        return found

    def _count_other(self, kind: str | None) -> None:
        if kind in ("graph_def", "meta_graph_def"):
            self.not_taken["a graph"] += 1
        elif kind == "tagged_run_metadata":
            self.not_taken["a profile"] += 1
        elif kind == "log_message":
            self.not_taken["a message of TensorFlow's own log"] += 1


def event_of(payload: bytes) -> Any:
    """Return the event that the payload holds, or None."""
    try:
        return _messages().event.FromString(payload)
    except Exception:  # noqa: BLE001 - protobuf's implementations raise different things
        return None


def time_us_of(event: Any) -> int:
    """Return when the event was written, in microseconds since the epoch; 0 if it does not say."""
    wall_time_s = event.wall_time
    return round(wall_time_s * 1e6) if math.isfinite(wall_time_s) and 0 < wall_time_s < 1e11 else 0


@dataclass(frozen=True, slots=True)
class _Messages:
    event: Any
    hparams: Any
    array_of: Callable[[Any], Any]


@cache
def _messages() -> _Messages:
    return _Messages(
        importlib.import_module("tensorboard.compat.proto.event_pb2").Event,
        importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData,
        importlib.import_module("tensorboard.util.tensor_util").make_ndarray,
    )


def _name_of(tag: str) -> str:
    return tag.removesuffix(_TEXT_SUFFIX)


def _value_of_tensor(tensor: Any, plugin: str) -> Any:
    if plugin not in ("", "scalars", "histograms", "images", "audio", "text"):
        raise _NotOurs(f"a value of TensorBoard's plugin {plugin!r}")
    array = _messages().array_of(tensor)
    if plugin == "text":
        return _text_of(array)
    if plugin == "histograms":
        return _histogram_of_rows(array)
    if plugin == "images":
        # Width and height, then any number of images.
        size = (int(array[0]), int(array[1]))
        return _one_or_all([EncodedImage(bytes(content), size) for content in array[2:].tolist()])
    if plugin == "audio":
        sounds = array[:, 0] if array.ndim == 2 else array
        return _one_or_all([EncodedAudio(bytes(content)) for content in sounds.tolist()])
    if array.size == 1 and array.dtype.kind in "fiub":
        return array.reshape(-1)[0].item()
    raise _NotOurs("a tensor that is no scalar")


def _one_or_all(values: list[Any]) -> Any:
    if not values:
        raise _NotOurs("a list of media with nothing in it")
    return values[0] if len(values) == 1 else values


def _text_of(array: Any) -> Any:
    def decoded(item: Any) -> Any:
        if isinstance(item, list):
            return [decoded(inner) for inner in item]
        return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)

    return decoded(array.reshape(-1)[0] if array.size == 1 else array.tolist())


def _histogram_of_buckets(histogram: Any) -> Histogram:
    """Return the histogram that counts up to limits, of which the outermost may be as far out as a double goes."""
    counts, limits = list(histogram.bucket), list(histogram.bucket_limit)
    full = [at for at, count in enumerate(counts) if count > 0]
    if not full or len(counts) != len(limits):
        raise _NotOurs("a histogram with nothing in it")
    first, last = full[0], full[-1]
    low = limits[first - 1] if first > 0 and limits[first - 1] > -_DOUBLE_MAX else histogram.min
    high = limits[last] if limits[last] < _DOUBLE_MAX else histogram.max
    return _of_bins(counts[first : last + 1], [low, *limits[first:last], high])


def _histogram_of_rows(array: Any) -> Histogram:
    """Return the histogram that has a row (left, right, count) for each bin."""
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
        raise _NotOurs("a histogram with nothing in it")
    lefts, rights, counts = (array[:, column].tolist() for column in range(3))
    return _of_bins(counts, [lefts[0], *rights])


def _of_bins(counts: list[float], edges: list[float]) -> Histogram:
    """Return a histogram of as many bins as W&B shows: neighbours are joined where there are more."""
    joined = -(-len(counts) // _BINS_MAX)
    if joined > 1:
        edges = [*edges[:-1:joined], edges[-1]]
        counts = [math.fsum(counts[at : at + joined]) for at in range(0, len(counts), joined)]
    return Histogram(np_histogram=(counts, edges))


def _hparams_of(content: bytes) -> dict[str, Any]:
    try:
        hparams = _messages().hparams.FromString(content).session_start_info.hparams
    except Exception:  # noqa: BLE001 - protobuf's implementations raise different things
        return {}
    found: dict[str, Any] = {}
    for name in sorted(hparams):
        kind = hparams[name].WhichOneof("kind")
        found[name] = (
            getattr(hparams[name], kind) if kind in ("number_value", "string_value", "bool_value") else None
        )
    return found
