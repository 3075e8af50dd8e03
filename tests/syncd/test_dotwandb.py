"""`.wandb` files: what is whole is found, whatever is wrong around it; and nothing else is."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from syncd.dotwandb import BLOCK_BYTES, Damage, Deframer, Payload, Torn

GOLDEN = Path(__file__).parents[1] / "golden" / "wandb"
HEADER = b":W&B\xe1\xbe\x00"
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4

sizes = st.one_of(st.integers(0, 300), st.sampled_from([4_000, BLOCK_BYTES - 14, BLOCK_BYTES, 100_000]))
portions = st.sampled_from([1_000_000, BLOCK_BYTES, 4_097, 97])


def framed(payloads: list[bytes]) -> bytes:
    """Write records as the SDK does; in other words than the reader."""
    out = bytearray(HEADER)
    for payload in payloads:
        begun = False
        while True:
            left = BLOCK_BYTES - len(out) % BLOCK_BYTES
            if left < 7:
                out += bytes(left)
                left = BLOCK_BYTES
            part, payload = payload[: left - 7], payload[left - 7 :]
            kind = (MIDDLE if payload else LAST) if begun else (FIRST if payload else FULL)
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            begun = True
            if not payload:
                break
    return bytes(out)


def numbered(sizes_: list[int]) -> list[bytes]:
    return [struct.pack("<I", i) + bytes([i % 251]) * size for i, size in enumerate(sizes_)]


def read(file: bytes, portion: int = 1_000_000) -> tuple[list[bytes], list[Damage]]:
    deframer = Deframer()
    found: list[Payload | Damage] = []
    for begin in range(0, len(file), portion):
        found += deframer.feed(file[begin : begin + portion])
    found += deframer.end()
    payloads = [item.data for item in found if isinstance(item, Payload)]
    return payloads, [item for item in found if isinstance(item, Damage)]


def blocks_of(file: bytes, payloads: list[bytes]) -> list[range]:
    """Return the blocks in which each record lies."""
    spans, at = [], len(HEADER)
    for number, _ in enumerate(payloads):
        end = len(framed(payloads[: number + 1]))
        spans.append(range(at // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1))
        at = end
    return spans


@given(st.lists(sizes, max_size=12), portions)
def test_what_was_written_is_read_however_it_comes(sizes_: list[int], portion: int):
    payloads = numbered(sizes_)

    assert read(framed(payloads), portion) == (payloads, [])


@given(st.lists(sizes, min_size=1, max_size=12), portions, st.data())
def test_a_changed_byte_costs_nothing_outside_its_block(sizes_: list[int], portion: int, data: st.DataObject):
    payloads = numbered(sizes_)
    file = bytearray(framed(payloads))
    at = data.draw(st.integers(0, len(file) - 1), label="byte")
    file[at] ^= data.draw(st.integers(1, 255), label="bits")

    found, damage = read(bytes(file), portion)

    untouched = [
        payload
        for payload, blocks in zip(payloads, blocks_of(file, payloads), strict=True)
        if at // BLOCK_BYTES not in blocks
    ]
    assert set(untouched) <= set(found) <= set(payloads)
    assert found == sorted(found, key=payloads.index)
    assert (found, damage) == read(bytes(file)), "it depends on how the bytes come"
    # A changed byte of padding is none of a record's.
    assert found == payloads or damage


@given(st.lists(sizes, min_size=1, max_size=12), portions, st.data())
def test_of_a_file_that_was_cut_all_that_was_whole_is_read(
    sizes_: list[int], portion: int, data: st.DataObject
):
    payloads = numbered(sizes_)
    file = framed(payloads)
    cut = data.draw(st.integers(0, len(file)), label="bytes")

    found, wrong = read(file[:cut], portion)

    assert found == [p for i, p in enumerate(payloads) if len(framed(payloads[: i + 1])) <= cut]
    # And what was not is torn: nothing of it is wrong.
    assert all(isinstance(one, Torn) and one.offset + one.size == cut for one in wrong)


@given(st.lists(sizes, min_size=1, max_size=12), st.data())
def test_a_changed_byte_is_no_torn_end_wherever_it_is(sizes_: list[int], data: st.DataObject):
    payloads = numbered(sizes_)
    file = bytearray(framed(payloads))
    back = data.draw(st.integers(1, min(len(file), 400)), label="bytes before the end")
    file[-back] ^= data.draw(st.integers(1, 255), label="bits")

    found, wrong = read(bytes(file))

    assert found == payloads or any(not isinstance(one, Torn) for one in wrong)


@pytest.mark.parametrize("end", [bytes(5_000), bytes([0xA5]) * 5_000], ids=["zeros", "garbage"])
def test_an_end_that_was_overwritten_is_damage_up_to_the_last_byte(end: bytes):
    file = framed(numbered([50] * 200))
    kept = file[: len(file) - len(end)]

    _, wrong = read(kept + end)

    assert [type(one) for one in wrong] == [Damage]
    assert wrong[0].offset + wrong[0].size == len(file)


def test_behind_damage_a_record_that_was_begun_is_torn():
    payloads = numbered([50, 50, 50, 2 * BLOCK_BYTES])
    file = bytearray(framed(payloads))
    wrong_at, begun_at = (len(framed(payloads[:n])) for n in (2, 3))
    file[wrong_at + 20] ^= 1

    _, wrong = read(bytes(file[: BLOCK_BYTES + 100]))

    assert wrong == [
        Damage(wrong_at, begun_at - wrong_at, "the checksum is wrong"),
        Torn(begun_at, BLOCK_BYTES + 100 - begun_at, "the file ends in the middle of a record"),
    ]


@pytest.mark.parametrize("size", range(8))
def test_of_a_header_that_was_cut_nothing_is_wrong(size: int):
    assert read(HEADER[:size]) == (
        [],
        [Torn(0, size, "the file ends in the middle of a record")][: 0 < size < 7],
    )


@given(st.lists(sizes, min_size=1, max_size=8), st.data())
def test_a_file_that_grows_gives_each_record_as_soon_as_it_is_whole(sizes_: list[int], data: st.DataObject):
    payloads = numbered(sizes_)
    file = framed(payloads)
    cut = data.draw(st.integers(0, len(file)), label="bytes at the first look")
    deframer = Deframer()

    before = deframer.feed(file[:cut])
    after = deframer.feed(file[cut:])

    whole = sum(len(framed(payloads[: i + 1])) <= cut for i in range(len(payloads)))
    assert [item.data for item in before if isinstance(item, Payload)] == payloads[:whole]
    assert [item.data for item in after if isinstance(item, Payload)] == payloads[whole:]
    assert deframer.end() == []


@given(st.lists(st.one_of(st.binary(max_size=200), st.just(bytes(BLOCK_BYTES))), max_size=6), portions)
def test_garbage_is_damage_and_nothing_else(parts: list[bytes], portion: int):
    garbage = b"".join(parts)

    found, damage = read(HEADER + garbage, portion)

    assert found == []
    assert all(item.size > 0 and item.offset + item.size <= len(HEADER) + len(garbage) for item in damage)


def test_a_wrong_record_costs_itself_alone_where_its_length_is_right():
    payloads = numbered([50] * 100)
    file = bytearray(framed(payloads))
    at = len(framed(payloads[:40]))
    file[at + 10] ^= 0xFF

    found, damage = read(bytes(file))

    assert found == payloads[:40] + payloads[41:]
    assert damage == [Damage(at, 7 + len(payloads[40]), "the checksum is wrong")]


def test_where_no_chunk_begins_the_block_is_given_up_also_when_it_comes_in_parts():
    payloads = numbered([50] * 3)
    file = bytearray(framed(payloads))
    kind_at = len(HEADER) + 6
    file[kind_at] = 9

    for second in (len(framed(payloads[:1])), len(framed(payloads[:2]))):
        deframer = Deframer()
        found = [*deframer.feed(bytes(file[:second])), *deframer.feed(bytes(file[second:])), *deframer.end()]

        assert found == [Damage(len(HEADER), len(file) - len(HEADER), "no chunk begins here")]


def test_64_kib_of_zeros_cost_the_blocks_they_touch():
    payloads = numbered([1_000] * 300)
    file = bytearray(framed(payloads))
    begin = 2 * BLOCK_BYTES + 5_000
    file[begin : begin + 64 * 1024] = bytes(64 * 1024)

    found, [damage] = read(bytes(file))

    spared = [
        payload
        for payload, blocks in zip(payloads, blocks_of(file, payloads), strict=True)
        if not set(blocks) & {2, 3, 4}
    ]
    assert set(spared) <= set(found)
    assert damage.offset >= 2 * BLOCK_BYTES
    assert damage.offset + damage.size <= 6 * BLOCK_BYTES


@pytest.mark.parametrize("header", [b":W&B\xe1\xbe\x01", b"\0" * 7, b"SQLite "])
def test_a_wrong_header_is_said_and_the_records_are_read_all_the_same(header: bytes):
    payloads = numbered([10, 20])

    found, damage = read(header + framed(payloads)[7:])

    assert found == payloads
    assert damage == [Damage(0, 7, "the file's header is wrong, or of a later version")]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.wandb")), ids=lambda path: path.stem)
def test_a_file_of_each_of_the_sdks_ages_is_read_whole(path: Path):
    from wandb.proto.wandb_internal_pb2 import Record

    payloads, damage = read(path.read_bytes())

    records = [Record.FromString(payload) for payload in payloads]
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert damage == []
    assert [record.num for record in records] == list(range(1, len(records) + 1))
    assert [(row["_step"], row["loss"], row["text"]) for row in rows] == [
        (step, 1.0 / (step + 1), "é") for step in range(5)
    ]
    assert MessageToDict(records[1])["run"]["runId"] == "golden"
