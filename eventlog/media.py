"""W&B's media: what a trainer logs beside numbers, and the object that stands for it in the history.

    Image(pixels) ──in_history──▶ keep the content as media/images/<key>_<step>_<sha>.png
                                  {"_type": "image-file", "path": …, "sha256": …, …}

Invariants
----------
* A mistake (a shape that is no image, a file that is not there) raises where the value is made, not where it is logged.
* Made from data, the value holds the encoded bytes; made from a path, it holds the path, and the file is read at `log`.
* The same value gives the same object, and mostly the same bytes, as W&B's own client.

No NumPy, torch or Pillow is imported with this module.  Pillow is used where it is installed; without it, arrays become
PNG all the same.  Where content goes is the caller's business (`Keeper`).
"""

from __future__ import annotations

import importlib
import io
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from eventlog.not_yet import say_once
from eventlog.store import Content, Stored, digests

_HISTOGRAM_BINS_MAX = 512
_IMAGES_MAX = 108
_REFERENCE = re.compile(r"(?:gs|s3|https?)://")
# W&B puts this before every HTML text that is logged, so that links open beside its page.
_HTML_HEAD = '<base target="_blank"><link rel="stylesheet" type="text/css" href="https://app.wandb.ai/normalize.css" />'
# Of an image's boxes, masks and classes, which are not stored here.
_NO_LAYERS: dict[str, Any] = {
    **{
        name: {"wb_type": "const", "params": {"val": {}, "is_set": False}}
        for name in ("box_layers", "mask_layers", "box_class_maps", "mask_class_maps", "class_map")
    },
    "box_score_keys": {"wb_type": "const", "params": {"val": [], "is_set": True}},
}
_PNG_COLOURS = {"L": (1, 0), "RGB": (3, 2), "RGBA": (4, 6)}
_PILLOW_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP"}


class Keeper(Protocol):
    """Where the content of logged values goes."""

    run_id: str

    def keep(self, content: Content, name: Callable[[Stored], str]) -> tuple[str, Stored]:
        """Make `content` a file of the run; return its name."""

    def keep_artifact(self, artifact: Any, aliases: Sequence[str], tags: Sequence[str], step: int) -> None:
        """Make `artifact` an output of the run."""


class AddsFiles(Protocol):
    """What a value needs of an artifact that it is added to."""

    def put(self, path: str, content: Content) -> str:
        """Make `content` a file of the artifact; return its path there."""


class Value:
    """What W&B shows as more than a number or a text."""

    column_type: ClassVar[dict[str, Any]]
    """What W&B calls a column of a table with such cells."""

    def in_history(self, key: str, step: int, keeper: Keeper) -> dict[str, Any]:
        """Return what stands in the history, with its content kept."""
        raise NotImplementedError

    def in_artifact(self, artifact: AddsFiles) -> dict[str, Any]:
        """Return what stands in an artifact, with its content added."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"<{type(self).__name__}: not stored>"


class Media(Value):
    """A value that is one file."""

    type: ClassVar[str]
    directory: ClassVar[str]
    many_max: ClassVar[int | None] = None

    def __init__(self, content: Content, extension: str, caption: str | None = None) -> None:
        self.caption = caption
        self._content = content
        self._extension = extension

    def in_history(self, key: str, step: int, keeper: Keeper) -> dict[str, Any]:
        path, stored = keeper.keep(
            self._content, lambda found: media_path(self.directory, key, step, found, self._extension)
        )
        shown = {"_type": self.type, "sha256": stored.sha256, "size": stored.size, "path": path}
        return {**shown, **self._described()}

    def in_artifact(self, artifact: AddsFiles) -> dict[str, Any]:
        stored = digests(self._content)
        if isinstance(self._content, bytes):
            path = f"media/{self.directory}/{stored.md5[:20]}{self._extension}"
        else:
            path = f"media/{self.directory}/{stored.sha256[:20]}/{self._content.name}"
        artifact.put(path, self._content)
        return {"_type": self.type, "sha256": stored.sha256, "path": path, **self._described()}

    def _described(self) -> dict[str, Any]:
        return {} if self.caption is None else {"caption": self.caption}

    @classmethod
    def many_in_history(cls, shown: list[dict[str, Any]], values: list[Any]) -> dict[str, Any]:
        """Return what stands in the history for a list of these, of which each alone is `shown`."""
        raise NotImplementedError


class Image(Media):
    """An image: an array (height, width, channels), a tensor (channels, height, width), a Pillow image or a path."""

    type = "image-file"
    directory = "images"
    many_max = _IMAGES_MAX
    column_type: ClassVar[dict[str, Any]] = {"wb_type": "image-file", "params": _NO_LAYERS}

    def __init__(
        self,
        data_or_path: Any,
        mode: str | None = None,
        caption: str | None = None,
        grouping: int | None = None,
        classes: Any = None,
        boxes: Any = None,
        masks: Any = None,
        file_type: str | None = None,
    ) -> None:
        for name, value in (("classes", classes), ("boxes", boxes), ("masks", masks)):
            if value:
                say_once(f"Image({name}=…)", "is not stored: the image is, without it.")
        self.grouping = grouping
        self._size: tuple[int, int] | None
        if isinstance(data_or_path, Image):
            super().__init__(data_or_path._content, data_or_path._extension, data_or_path.caption)
            self._size = data_or_path._size
            self.grouping = grouping if grouping is not None else data_or_path.grouping
            if caption is not None:
                self.caption = caption
        elif isinstance(data_or_path, (str, Path)):
            path = _existing(data_or_path)
            super().__init__(path, path.suffix, caption)
            self._size = _size_of_file(path)
        else:
            file_type = file_type or "png"
            if file_type not in _PILLOW_FORMATS:
                raise ValueError(f"file_type is one of {', '.join(_PILLOW_FORMATS)}, not {file_type!r}.")
            content, self._size = _encoded(data_or_path, mode, file_type)
            super().__init__(content, f".{file_type}", caption)

    def _described(self) -> dict[str, Any]:
        described = {**super()._described(), "format": self._extension[1:]}
        if self._size is not None:
            described["width"], described["height"] = self._size
        if self.grouping:
            described["grouping"] = self.grouping
        return described

    @classmethod
    def many_in_history(cls, shown: list[dict[str, Any]], values: list[Any]) -> dict[str, Any]:
        # W&B lays them all out as the first one.
        layout: dict[str, Any] = {
            key: shown[0][key] for key in ("width", "height", "format") if key in shown[0]
        }
        together: dict[str, Any] = {
            "_type": "images/separated",
            **layout,
            "count": len(shown),
            "filenames": [one["path"] for one in shown],
        }
        if values[0].caption is not None:
            together["captions"] = [value.caption for value in values]
        return together


class Html(Media):
    """A page: HTML text, something to read it from, or the path of a file that ends in `.html`."""

    type = "html-file"
    directory = "html"
    column_type: ClassVar[dict[str, Any]] = {"wb_type": "html-file"}

    def __init__(self, data: Any, inject: bool = True, data_is_not_path: bool = False) -> None:
        content: Content
        if (
            isinstance(data, (str, Path))
            and not data_is_not_path
            and str(data).endswith(".html")
            and os.path.isfile(data)
        ):
            content = Path(os.path.abspath(data))
            text = content.read_text("utf-8") if inject else ""
        elif isinstance(data, str):
            content, text = b"", data
        elif hasattr(data, "read"):
            if hasattr(data, "seek"):
                data.seek(0)
            content, text = b"", data.read()
        else:
            raise ValueError(
                f"Html takes HTML text, a file object or the path of an .html file, not {data!r}."
            )
        if inject:
            text = _with_head(text)
        if inject or isinstance(content, bytes):
            content = text.encode()
        super().__init__(content, ".html")

    @classmethod
    def many_in_history(cls, shown: list[dict[str, Any]], values: list[Any]) -> dict[str, Any]:
        return {"_type": "html", "count": len(shown), "html": shown}


class Audio(Media):
    """A sound: a path, or samples (or samples × channels) at a `sample_rate`; floats are −1 … 1."""

    type = "audio-file"
    directory = "audio"
    column_type: ClassVar[dict[str, Any]] = {"wb_type": "audio-file"}

    def __init__(self, data_or_path: Any, sample_rate: int | None = None, caption: str | None = None) -> None:
        self._sample_rate = sample_rate
        self._duration_s: float | None = None
        if isinstance(data_or_path, (str, Path)):
            path = _existing(data_or_path)
            super().__init__(path, path.suffix, caption)
            return
        if sample_rate is None:
            raise ValueError("samples need a sample_rate: Audio(samples, sample_rate=16000).")
        super().__init__(_wav(data_or_path, sample_rate), ".wav", caption)
        self._duration_s = len(data_or_path) / float(sample_rate)

    @classmethod
    def many_in_history(cls, shown: list[dict[str, Any]], values: list[Any]) -> dict[str, Any]:
        together = {
            "_type": "audio",
            "count": len(shown),
            "audio": shown,
            "sampleRates": [value._sample_rate for value in values],
            "durations": [value._duration_s for value in values],
        }
        if any(value.caption is not None for value in values):
            together["captions"] = ["" if value.caption is None else value.caption for value in values]
        return together


class Video(Media):
    """A video: a path, or a `BytesIO` of an encoded one and its format.  Arrays of frames are not encoded here."""

    type = "video-file"
    directory = "videos"
    formats = ("gif", "mp4", "webm", "ogg")
    column_type: ClassVar[dict[str, Any]] = {"wb_type": "video-file"}

    def __init__(
        self, data_or_path: Any, caption: str | None = None, fps: int | None = None, format: str | None = None
    ) -> None:
        if isinstance(data_or_path, (str, Path)):
            path = _existing(data_or_path)
            self._require(path.suffix[1:].lower())
            super().__init__(path, path.suffix, caption)
        elif isinstance(data_or_path, io.BytesIO):
            self._require(format)
            super().__init__(data_or_path.read(), f".{format}", caption)
        else:
            raise TypeError(
                f"Video takes a path or a BytesIO, not {type(data_or_path).__name__}: frames are not encoded here. "
                "Encode them first, as in moviepy's ImageSequenceClip(frames, fps=4).write_videofile(path)."
            )

    def _require(self, format: str | None) -> None:
        if format not in self.formats:
            raise ValueError(f"the format of a video is one of {', '.join(self.formats)}, not {format!r}.")

    @classmethod
    def many_in_history(cls, shown: list[dict[str, Any]], values: list[Any]) -> dict[str, Any]:
        captions = values[0].caption is not None and [value.caption for value in values]
        return {"_type": "videos", "count": len(shown), "videos": shown, "captions": captions}


class Histogram(Value):
    """Counts of values in bins, from a sequence (which needs NumPy) or made already."""

    column_type: ClassVar[dict[str, Any]] = {
        "wb_type": "pythonObject",
        "params": {"class_name": "Histogram"},
    }

    def __init__(self, sequence: Any = None, np_histogram: Any = None, num_bins: int = 64) -> None:
        if np_histogram is None:
            if sequence is None:
                raise ValueError("Histogram takes a sequence, or np_histogram=(counts, edges).")
            np_histogram = importlib.import_module("numpy").histogram(_on_the_host(sequence), bins=num_bins)
        if len(np_histogram) != 2:
            raise ValueError(f"np_histogram is (counts, edges), not {len(np_histogram)} things.")
        self.histogram, self.bins = (
            part.tolist() if hasattr(part, "tolist") else list(part) for part in np_histogram
        )
        if len(self.histogram) > _HISTOGRAM_BINS_MAX:
            raise ValueError(
                f"W&B shows {_HISTOGRAM_BINS_MAX} bins at most, not {len(self.histogram)}. Give fewer num_bins."
            )
        if len(self.histogram) + 1 != len(self.bins):
            raise ValueError(
                f"{len(self.histogram)} bins have {len(self.histogram) + 1} edges, not {len(self.bins)}."
            )

    def in_history(self, key: str, step: int, keeper: Keeper) -> dict[str, Any]:
        return {"_type": "histogram", "values": self.histogram, "bins": self.bins}

    def in_artifact(self, artifact: AddsFiles) -> dict[str, Any]:
        return {"_type": "histogram", "values": self.histogram, "bins": self.bins}


def media_path(directory: str, key: str, step: int, stored: Stored, extension: str) -> str:
    """Return the name of a media file, as W&B has it.

    >>> media_path("images", "/val/../a", 7, Stored("d6325bd24a66141e9be5ffff", "", 0), ".png")
    'media/images/val/__/a_7_d6325bd24a66141e9be5.png'
    """
    parts = key.lstrip("/").split("/")
    safe = "/".join(part.replace(".", "_") if part in (".", "..") else part for part in parts)
    return f"media/{directory}/{safe}_{step}_{stored.sha256[:20]}{extension}"


def many_in_history(values: list[Media], key: str, step: int, keeper: Keeper) -> dict[str, Any]:
    """Return what stands in the history for a list of media of one type."""
    kind = type(values[0])
    if kind.many_max is not None and len(values) > kind.many_max:
        say_once(
            f"a list of {kind.__name__}",
            f"is cut to {kind.many_max}, as W&B does: {key!r} had {len(values)}.",
        )
        values = values[: kind.many_max]
    return kind.many_in_history([value.in_history(key, step, keeper) for value in values], values)


def _existing(path: str | Path) -> Path:
    if _REFERENCE.match(str(path)):
        raise ValueError(
            f"{str(path)!r} is not a local file, and nothing is fetched here. Give a local path."
        )
    # Absolute: the file is read when it is logged, and the script may have gone elsewhere by then.
    absolute = Path(os.path.abspath(path))
    if not absolute.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    return absolute


def _with_head(text: str) -> str:
    if "<head>" in text:
        before, _, after = text.partition("<head>")
        before += "<head>"
    elif "<html>" in text:
        before, _, after = text.partition("<html>")
        before, after = before + "<html><head>", "</head>" + after
    else:
        before, after = "", text
    return (before + _HTML_HEAD + after).strip()


def _on_the_host(data: Any) -> Any:
    """Return a torch tensor as an array of this process's memory; anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        # bfloat16 has no NumPy type.
        data = data.float().numpy() if data.dtype == torch.bfloat16 else data.numpy()
    return data


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        return None


def _size_of_file(path: Path) -> tuple[int, int] | None:
    pillow = _pillow()
    try:
        if pillow is not None:
            with pillow.open(path) as image:
                return (image.width, image.height)
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError:
        return None
    return struct.unpack(">II", head[16:]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24 else None


def _encoded(data: Any, mode: str | None, file_type: str) -> tuple[bytes, tuple[int, int]]:
    """Return the image's file and its width and height."""
    pillow = _pillow()
    if hasattr(data, "savefig") or hasattr(getattr(data, "figure", None), "savefig"):
        return _encoded_figure(data, file_type)
    if pillow is not None and isinstance(data, pillow.Image):
        image = data
    else:
        pixels, guessed = _pixels(data, file_type)
        mode = mode or guessed
        if pillow is None:
            if file_type != "png" or mode != guessed:
                raise ValueError(
                    f"without Pillow, this array becomes a PNG of mode {guessed}, not {file_type} of mode {mode}: "
                    "`pip install pillow`, or leave out mode and file_type."
                )
            return _png(pixels, mode), (pixels.shape[1], pixels.shape[0])
        image = pillow.fromarray(pixels).convert(mode)
    encoded = io.BytesIO()
    image.save(encoded, format=_PILLOW_FORMATS[file_type], transparency=None)
    return encoded.getvalue(), (image.width, image.height)


def _encoded_figure(figure: Any, file_type: str) -> tuple[bytes, tuple[int, int]]:
    """A matplotlib figure, or what is drawn in one."""
    figure = figure if hasattr(figure, "savefig") else figure.figure
    # `matplotlib.pyplot` itself stands for its current figure.
    figure = figure.gcf() if hasattr(figure, "gcf") else figure
    encoded = io.BytesIO()
    figure.savefig(encoded, format=file_type)
    width, height = figure.canvas.get_width_height()
    return encoded.getvalue(), (width, height)


def _pixels(data: Any, file_type: str) -> tuple[Any, str]:
    """Return height × width (× channels) of bytes, and the mode that they look like."""
    array = _on_the_host(data)
    if not hasattr(array, "astype") or array.ndim not in (2, 3):
        shape = list(array.shape) if hasattr(array, "shape") else type(data).__name__
        raise ValueError(
            f"an image is an array of height × width × channels, a Pillow image or a path, not {shape}."
        )
    if array.ndim > 2:
        if array is not data:
            # A tensor has its channels first.
            array = array.transpose(1, 2, 0)
        if array.shape[-1] == 1:
            array = array[..., 0]
        elif array.shape[-1] not in (3, 4):
            # One channel, put first.
            array = array.squeeze()
    channels = 1 if array.ndim == 2 else array.shape[-1]
    guessed = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels) if array.ndim in (2, 3) else None
    if guessed is None:
        raise ValueError(f"an image has 1, 3 or 4 channels; this one is {list(data.shape)}.")
    if guessed == "RGBA" and file_type in ("jpg", "jpeg"):
        guessed = "RGB"
    return array.astype("uint8"), guessed


def _png(pixels: Any, mode: str) -> bytes:
    channels, colour = _PNG_COLOURS[mode]
    height, width = pixels.shape[:2]
    content, row_bytes = pixels.tobytes(), width * channels
    # Before each row stands the filter that it went through: none.
    rows = b"".join(b"\0" + content[at : at + row_bytes] for at in range(0, len(content), row_bytes))
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


# ── sound ────────────────────────────────────────────────────────────────────────────────────────────────────


def _wav(samples: Any, sample_rate: int) -> bytes:
    import wave

    numpy = importlib.import_module("numpy")
    array = numpy.asarray(_on_the_host(samples))
    if array.ndim not in (1, 2):
        raise ValueError(f"a sound is samples, or samples × channels, not {list(array.shape)}.")
    if array.dtype.kind == "f":
        array = numpy.rint(numpy.clip(array, -1, 1) * 32767)
    elif array.dtype not in (numpy.int16, numpy.int32):
        array = numpy.clip(array, -32768, 32767)
    array = array.astype("<i4" if array.dtype == numpy.int32 else "<i2")
    encoded = io.BytesIO()
    with wave.open(encoded, "wb") as file:
        file.setnchannels(1 if array.ndim == 1 else array.shape[1])
        file.setsampwidth(array.itemsize)
        file.setframerate(sample_rate)
        file.writeframes(array.tobytes())
    return encoded.getvalue()
