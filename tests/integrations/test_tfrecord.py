"""TensorFlow's framing: what is whole comes out, once, whatever lies around it and however it is cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.importers import tfrecord
from eventlog.importers.tfrecord import Damage, Deframer, Payload, frame

pytest.importorskip("tensorboard", reason="the tensorboard package cannot be installed here")
payloads = st.lists(st.binary(max_size=40), max_size=5)


def fed(data: bytes, *cuts: int) -> list[Payload | Damage]:
    deframer, found, begin = Deframer(), [], 0
    for end in [*sorted(cuts), len(data)]:
        found += deframer.feed(data[begin:end])
        begin = end
    return found


@pytest.mark.parametrize("size", [0, 1, 8, 60, 4095, 4096, 4097, 8192, 65_536, 100_001])
def test_the_checksum_is_that_of_tensorboard(size: int):
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    data = random.Random(size).randbytes(size)

    assert tfrecord.masked_crc(data) == masked_crc32c(data)


@given(contents=payloads, data=st.data())
def test_payloads_come_once_however_the_bytes_are_cut(contents: list[bytes], data: st.DataObject):
    file = b"".join(map(frame, contents))
    cuts = data.draw(st.lists(st.integers(0, len(file)), max_size=4), label="portions")

    assert [item.data for item in fed(file, *cuts) if isinstance(item, Payload)] == contents


@given(contents=payloads, data=st.data())
def test_a_cut_costs_only_the_record_under_way_and_it_is_found_later(
    contents: list[bytes], data: st.DataObject
):
    file = b"".join(map(frame, contents))
    cut = data.draw(st.integers(0, len(file)), label="bytes on disk")

    deframer = Deframer()
    first = deframer.feed(file[:cut])
    rest = Deframer(deframer.consumed).feed(file[deframer.consumed :])

    assert [item.data for item in first + rest if isinstance(item, Payload)] == contents
    assert not [item for item in first + rest if isinstance(item, Damage)]
    assert deframer.consumed <= cut


@given(
    contents=st.lists(st.binary(min_size=1, max_size=40), min_size=3, max_size=5),
    data=st.data(),
)
def test_a_wrong_byte_costs_one_record_and_is_said(contents: list[bytes], data: st.DataObject):
    records = list(map(frame, contents))
    which = data.draw(st.integers(0, len(records) - 2), label="record")
    at = data.draw(st.integers(0, len(records[which]) - 1), label="byte of it")
    bit = data.draw(st.integers(0, 7), label="bit")
    wrong = bytearray(records[which])
    wrong[at] ^= 1 << bit
    records[which] = bytes(wrong)

    found = fed(b"".join(records))

    assert [item.data for item in found if isinstance(item, Payload)] == contents[:which] + contents[
        which + 1 :
    ]
    (damage,) = [item for item in found if isinstance(item, Damage)]
    assert damage.offset == sum(map(len, records[:which]))
    assert damage.size == len(wrong)


def test_the_next_good_length_is_found_behind_any_amount_of_noise():
    noise = random.Random(1).randbytes(200_000)

    found = fed(frame(b"a") + noise + frame(b"b"), 50_000, 50_007, 199_990, 200_020, 200_030)

    assert [item.data for item in found if isinstance(item, Payload)] == [b"a", b"b"]
    assert [item.size for item in found if isinstance(item, Damage)] == [200_000]


def test_eight_bytes_and_their_checksum_are_taken_for_a_length_only_with_a_record_behind_them():
    # To a search, a payload of eight bytes looks like the length of a record, of none or of a very long one.
    for payload in (bytes(8), b"\xff\xff\xff\x01" + bytes(4)):
        wrong = bytearray(frame(payload))
        wrong[0] ^= 1

        found = fed(bytes(wrong) + frame(b"a") + frame(b"b"))

        assert [item.data for item in found if isinstance(item, Payload)] == [b"a", b"b"]


def test_a_record_that_is_too_long_is_passed_over_and_not_held(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tfrecord, "RECORD_MAX_BYTES", 1000)
    file = frame(b"a") + frame(bytes(100_000)) + frame(b"b")
    deframer, found = Deframer(), []

    for begin in range(0, len(file), 500):
        found += deframer.feed(file[begin : begin + 500])
        assert len(deframer._rest) <= 1000

    assert [item.data for item in found if isinstance(item, Payload)] == [b"a", b"b"]
    assert [item.cause for item in found if isinstance(item, Damage)] == ["the record is too long"]
    assert deframer.consumed == len(file)


@given(noise=st.binary(max_size=200))
def test_no_bytes_make_it_raise(noise: bytes):
    fed(noise, len(noise) // 2)
