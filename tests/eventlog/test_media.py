"""`eventlog.media`: what becomes of an image, a sound, a page or a histogram."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eventlog import Audio, Histogram, Html, Image, Video, not_yet
from eventlog.media import many_in_history
from eventlog.store import Content, Stored, digests

HAS_PILLOW = importlib.util.find_spec("PIL") is not None
needs_pillow = pytest.mark.skipif(not HAS_PILLOW, reason="Pillow is not installed")
without_pillow = pytest.mark.skipif(HAS_PILLOW, reason="Pillow is installed")


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(not_yet, "_said", set())


class Shelf:
    """A keeper that keeps in memory."""

    run_id = "r1"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def keep(self, content: Content, name: Callable[[Stored], str]) -> tuple[str, Stored]:
        stored = digests(content)
        path = name(stored)
        self.files[path] = content if isinstance(content, bytes) else content.read_bytes()
        return path, stored

    def keep_artifact(self, artifact: Any, aliases: Any, tags: Any, step: int) -> None:
        raise AssertionError("no media value alone is an artifact")


def kept(value: Any, key: str = "k", step: int = 7) -> tuple[dict[str, Any], bytes]:
    shelf = Shelf()
    shown = value.in_history(key, step, shelf)
    return shown, shelf.files[shown["path"]]


def pixels_of(png: bytes) -> list[list[int]]:
    """Return the rows of a PNG whose rows went through no filter, or whatever Pillow makes of it."""
    if HAS_PILLOW:
        from PIL import Image as pillow

        return (
            np.asarray(pillow.open(io.BytesIO(png))).reshape(pillow.open(io.BytesIO(png)).height, -1).tolist()
        )
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        name, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert zlib.crc32(name + body) == int.from_bytes(png[at + 8 + length : at + 12 + length], "big")
        chunks[name] = body
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    row_bytes = 1 + width * {0: 1, 2: 3, 6: 4}[colour]
    data = zlib.decompress(chunks[b"IDAT"])
    assert len(data) == row_bytes * height
    return [list(data[at + 1 : at + row_bytes]) for at in range(0, len(data), row_bytes)]


PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        PIXELS.astype(float),
        torch.tensor(PIXELS).permute(2, 0, 1),
        torch.tensor(PIXELS).permute(2, 0, 1).bfloat16(),
    ],
    ids=["bytes", "floats", "tensor", "bfloat16"],
)
def test_an_array_becomes_a_png_of_its_pixels(data: Any):
    shown, content = kept(Image(data, caption="c"))

    assert pixels_of(content) == PIXELS.reshape(2, -1).tolist()
    assert (shown["width"], shown["height"], shown["format"], shown["caption"]) == (4, 2, "png", "c")
    assert shown["path"] == f"media/images/k_7_{shown['sha256'][:20]}.png"
    assert (shown["_type"], shown["size"]) == ("image-file", len(content))


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 1), (2, 4, 3), (2, 4, 4)])
def test_one_three_and_four_channels_are_images(shape: tuple[int, ...]):
    data = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)

    shown, content = kept(Image(data))

    assert pixels_of(content) == data.reshape(2, -1).tolist()
    assert (shown["width"], shown["height"]) == (4, 2)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1, 3), (1, 1)),
        ((1, 5, 3), (5, 1)),
        ((5, 1, 4), (1, 5)),
        ((1, 5, 1), (5, 1)),
        ((1, 28, 28), (28, 28)),
    ],
)
def test_an_image_may_be_one_pixel_high_or_wide(shape: tuple[int, ...], size: tuple[int, int]):
    shown, _ = kept(Image(np.zeros(shape, dtype=np.uint8)))

    assert (shown["width"], shown["height"]) == size


@pytest.mark.parametrize("data", [np.zeros((2, 4, 2)), np.zeros(4), np.zeros((2, 2, 2, 2)), 7, None, [1]])
def test_what_is_no_image_is_refused_where_it_is_made(data: Any):
    with pytest.raises(ValueError, match="an image"):
        Image(data)


def test_an_image_file_keeps_its_bytes_and_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, png = kept(Image(PIXELS))
    (tmp_path / "in.png").write_bytes(png)
    monkeypatch.chdir(tmp_path)
    image = Image("in.png")
    monkeypatch.chdir("/")

    shown, content = kept(image)

    assert content == png
    assert (shown["width"], shown["height"], shown["format"]) == (4, 2, "png")


@without_pillow
def test_without_pillow_a_jpeg_keeps_its_bytes_and_an_array_cannot_become_one(tmp_path: Path):
    (tmp_path / "in.jpg").write_bytes(b"\xff\xd8 a jpeg")

    shown, content = kept(Image(tmp_path / "in.jpg"))

    assert content == b"\xff\xd8 a jpeg"
    assert "width" not in shown
    with pytest.raises(ValueError, match="pip install pillow"):
        Image(PIXELS, file_type="jpg")
    with pytest.raises(ValueError, match="pip install pillow"):
        Image(PIXELS, mode="L")


@needs_pillow
def test_with_pillow_an_array_becomes_a_jpeg_and_a_pillow_image_is_one():
    from PIL import Image as pillow

    jpeg, jpeg_content = kept(Image(PIXELS, file_type="jpg"))
    _, png = kept(Image(pillow.fromarray(PIXELS)))

    assert (jpeg["format"], jpeg_content[:2]) == ("jpg", b"\xff\xd8")
    assert pixels_of(png) == PIXELS.reshape(2, -1).tolist()


def test_a_figure_is_logged_as_it_is_drawn():
    class Figure:
        class canvas:
            get_width_height = staticmethod(lambda: (640, 480))

        def savefig(self, file: Any, format: str) -> None:
            file.write(f"drawn as {format}".encode())

    shown, content = kept(Image(Figure()))

    assert content == b"drawn as png"
    assert (shown["width"], shown["height"]) == (640, 480)


def test_an_image_of_an_image_is_the_same_image_under_another_caption():
    image = Image(PIXELS, caption="old")

    (old, content), (new, content_again) = kept(image), kept(Image(image, caption="new"))

    assert content == content_again
    assert {**old, "caption": "new"} == new


def test_images_are_listed_with_the_first_ones_size_and_all_captions():
    shelf = Shelf()

    shown = many_in_history([Image(PIXELS, caption="a"), Image(PIXELS[:1])], "k", 7, shelf)

    assert shown == {
        "_type": "images/separated",
        "width": 4,
        "height": 2,
        "format": "png",
        "count": 2,
        "filenames": list(shelf.files),
        "captions": ["a", None],
    }


def test_a_long_list_of_images_is_cut_as_wandb_cuts_it(capsys: pytest.CaptureFixture[str]):
    shown = many_in_history([Image(PIXELS)] * 109, "k", 7, Shelf())

    assert shown["count"] == len(shown["filenames"]) == 108
    assert "is cut to 108" in capsys.readouterr().err


def test_masks_are_left_out_and_that_is_said(capsys: pytest.CaptureFixture[str]):
    Image(PIXELS, masks={"m": {"mask_data": PIXELS}})

    assert "Image(masks=…) is not stored" in capsys.readouterr().err


# ── the others ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [Image, Audio, Video])
def test_a_file_that_is_not_there_is_refused_where_the_value_is_made(kind: Any):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        kind("nowhere.mp4")


@pytest.mark.parametrize("kind", [Image, Audio, Video])
def test_nothing_is_fetched(kind: Any):
    with pytest.raises(ValueError, match="nothing is fetched"):
        kind("https://host/x.mp4")


@pytest.mark.parametrize(
    ("samples", "frames"),
    [
        ([0.0, 1.0, -1.0, 2.0], [0, 32767, -32767, 32767]),
        (np.array([1, -2], np.int16), [1, -2]),
        (torch.tensor([0.5]), [16384]),
    ],
    ids=["floats", "int16", "tensor"],
)
def test_samples_become_a_wav(samples: Any, frames: list[int]):
    shown, content = kept(Audio(samples, sample_rate=8000, caption="c"))

    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 8000)
        assert np.frombuffer(file.readframes(99), "<i2").tolist() == frames
    assert shown["path"].startswith("media/audio/k_7_")
    assert (shown["_type"], shown["caption"]) == ("audio-file", "c")


def test_samples_by_channels_become_a_wav_of_as_many_channels():
    _, content = kept(Audio(np.zeros((10, 2)), sample_rate=8000))

    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getnframes()) == (2, 10)


def test_samples_without_a_rate_are_refused():
    with pytest.raises(ValueError, match="sample_rate"):
        Audio([0.0])


def test_sounds_are_listed_with_their_rates_and_durations():
    shown = many_in_history(
        [Audio([0.0] * 4000, sample_rate=8000, caption="a"), Audio([0.0] * 8, sample_rate=8)], "k", 7, Shelf()
    )

    assert (shown["_type"], shown["count"]) == ("audio", 2)
    assert (shown["sampleRates"], shown["durations"]) == ([8000, 8], [0.5, 1.0])
    assert shown["captions"] == ["a", ""]


def test_a_video_is_a_file_or_its_bytes(tmp_path: Path):
    (tmp_path / "v.mp4").write_bytes(b"mp4")

    file, content = kept(Video(tmp_path / "v.mp4", caption="c"))
    raw, raw_content = kept(Video(io.BytesIO(b"gif"), format="gif"))

    assert (file["_type"], file["caption"], content) == ("video-file", "c", b"mp4")
    assert raw["path"].endswith(".gif")
    assert raw_content == b"gif"


def test_frames_are_not_encoded_and_the_way_out_is_said():
    with pytest.raises(TypeError, match="moviepy"):
        Video(np.zeros((2, 3, 4, 4)), format="mp4")
    with pytest.raises(ValueError, match="format of a video"):
        Video(io.BytesIO(b"?"))


def test_html_is_text_a_file_object_or_the_path_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("page.html").write_text("<p>ü</p>")

    contents = [
        kept(Html(data, inject=False))[1] for data in ("<p>ü</p>", io.StringIO("<p>ü</p>"), "page.html")
    ]

    assert contents == ["<p>ü</p>".encode()] * 3
    assert kept(Html("page.html", data_is_not_path=True, inject=False))[1] == b"page.html"
    with pytest.raises(ValueError, match="Html takes"):
        Html(7)


def test_a_histogram_is_counts_and_edges():
    def shown(histogram: Histogram) -> dict[str, Any]:
        return histogram.in_history("k", 7, Shelf())

    assert shown(Histogram([1, 2, 2], num_bins=2)) == {
        "_type": "histogram",
        "values": [1, 2],
        "bins": [1.0, 1.5, 2.0],
    }
    assert shown(Histogram(np_histogram=([1], (0, 1)))) == {
        "_type": "histogram",
        "values": [1],
        "bins": [0, 1],
    }
    assert shown(Histogram(torch.ones(3), num_bins=1))["values"] == [3]


def test_a_histogram_that_wandb_could_not_show_is_refused():
    for arguments in ({"sequence": [1], "num_bins": 513}, {"np_histogram": ([1], [1])}, {}):
        with pytest.raises(ValueError, match=r"bins|histogram"):
            Histogram(**arguments)


def test_a_key_cannot_lead_out_of_the_media():
    shown, _ = kept(Html("x"), key="/../../etc/./passwd")

    assert shown["path"].startswith("media/html/__/__/etc/_/passwd_7_")
    assert os.path.normpath(shown["path"]) == shown["path"]
