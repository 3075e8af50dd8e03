"""Of a damaged file everything arrives but what is damaged, and what that was is said."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.dotwandb import BLOCK_BYTES
from tests.contract.clients import World, world
from tests.wandb_sync.framing import placed
from tests.wandb_sync.logged import ROWS, dotwandb, log_offline, numbers, syncd, synced, wandb_sync

WRITTEN = 3000


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_offline(tmp_path_factory.mktemp("damaged"), [ROWS % WRITTEN])


@pytest.fixture
def there(logged: Path, tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "there", logged) as one:
        yield one


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def rows_outside(path: Path, damaged: range) -> set[int]:
    """Return the numbers of the rows whose bytes lie in no block that was damaged."""
    kept = set()
    for record, begin, end in placed(path.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            row = {item.nested_key[0]: item.value_json for item in record.history.item}
            if not set(range(begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)) & set(damaged):
                kept.add(int(row["i"]))
    return kept


@pytest.mark.slow
def test_a_flipped_byte_costs_what_it_is_in_and_nothing_behind_it(there: World):
    path = dotwandb(there)
    # In the middle of a record's bytes: where a length is flipped, nobody knows where the next one begins in that block.
    begin, end = next(
        (begin, end)
        for _, begin, end in placed(path.read_bytes())
        if begin > path.stat().st_size // 2 and begin // BLOCK_BYTES == (end - 1) // BLOCK_BYTES
    )
    offset = (begin + end) // 2
    kept = rows_outside(path, range(begin // BLOCK_BYTES, begin // BLOCK_BYTES + 1))
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 0x40]))

    done = syncd(there, "sync", "wandb", "--json")

    arrived = numbers(there)
    assert kept <= set(arrived)
    assert len(arrived) >= WRITTEN - 2
    assert arrived == sorted(set(arrived))
    # What is damaged is not there, so it is not all well; and W&B's file is not marked as done with.
    assert done.returncode == 1
    (taken,) = json.loads(done.stdout)["taken"]
    (damage,) = taken["damage"]
    assert damage["offset"] <= offset < damage["offset"] + damage["size"]
    assert list(there.directory.glob("wandb/*/*.synced")) == []


@pytest.mark.slow
def test_zeros_over_two_blocks_cost_those_two(there: World):
    path = dotwandb(there)
    # A record goes on in the first of them, as nearly always: W&B's own reader ends there.
    first = next(
        (end - 1) // BLOCK_BYTES
        for _, begin, end in placed(path.read_bytes())
        if begin > path.stat().st_size // 2 and begin // BLOCK_BYTES < (end - 1) // BLOCK_BYTES
    )
    kept = rows_outside(path, range(first, first + 2))
    overwrite(path, first * BLOCK_BYTES, bytes(2 * BLOCK_BYTES))

    done = syncd(there, "sync", "wandb")

    arrived = numbers(there)
    assert kept <= set(arrived)
    assert len(kept) > WRITTEN / 2
    said = " ".join(done.stdout.split())
    assert f"{2 * BLOCK_BYTES:,} B" in said or "are damaged" in said
    # The way to see what it is worth.
    wandb_sync(there, "wandb", "--id", "theirs")
    assert len(there.server.run("ent", "p", "theirs").history) < len(arrived)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_damaged_what_arrives_is_right_and_in_order(there: World, seed: int):
    path = dotwandb(there)
    chance = random.Random(seed)
    for _ in range(4):
        offset = chance.randrange(40_000, path.stat().st_size)
        overwrite(path, offset, chance.randbytes(chance.choice([1, 7, 4000])))

    syncd(there, "sync", "wandb")

    arrived = numbers(there)
    assert arrived == sorted(set(arrived))
    assert all(row["loss"] == 1 / (row["i"] + 1) for row in there.run.history)
    assert there.server.violations == []


@pytest.mark.slow
def test_the_end_that_a_killed_writer_left_unfinished_is_no_damage(there: World):
    path = dotwandb(there)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2 + 5)

    said = synced(there, "wandb")

    arrived = numbers(there)
    assert arrived == list(range(len(arrived)))
    assert len(arrived) > WRITTEN / 3
    assert said["taken"][0]["torn"] is not None
    assert not there.run.complete


@pytest.mark.slow
@pytest.mark.parametrize("end", ["zeros", "garbage", "one bit"])
def test_an_end_that_was_overwritten_is_damage_and_nothing_of_the_run_is_removed(there: World, end: str):
    path = dotwandb(there)
    content = path.read_bytes()
    lost = 5 if end == "one bit" else len(content) // 3
    flipped = bytes([content[-lost] ^ 0x20, *content[-lost + 1 :]])
    ends = {"zeros": bytes(lost), "garbage": random.Random(1).randbytes(lost), "one bit": flipped}
    overwrite(path, len(content) - lost, ends[end])

    done = syncd(there, "sync", "wandb", "--json")

    assert done.returncode == 1
    (taken,) = json.loads(done.stdout)["taken"]
    assert taken["torn"] is None
    assert sum(damage["size"] for damage in taken["damage"]) >= lost
    assert list(there.directory.glob("wandb/*/*.synced")) == []
    assert "damaged or missing" in syncd(there, "clean", "--yes").stdout
    assert path.exists()


@pytest.mark.slow
def test_a_run_whose_beginning_is_damaged_is_known_by_its_name(there: World):
    path = dotwandb(there)
    overwrite(path, 7, bytes(900))

    done = syncd(there, "sync", "wandb", "--project", "p", "--json")

    assert done.returncode == 1
    (taken,) = json.loads(done.stdout)["taken"]
    assert taken["rows"] > WRITTEN / 2
    assert [row["i"] for row in there.run.history] == sorted(numbers(there))
    assert len(there.run.history) == taken["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "code", "why"),
    [
        (b"", 0, "there is nothing in it"),
        (b":W&", 0, "there is nothing in it"),
        (b":W&B\xe1\xbe\x00", 0, "there is nothing in it"),
        (b"not a file of W&B's", 1, "the file's header is wrong"),
        (bytes(100_000), 1, "the file's header is wrong"),
    ],
    ids=["empty", "killed at birth", "killed a moment later", "text", "zeros"],
)
def test_a_file_that_holds_nothing_is_said_and_stops_nobody(
    there: World, content: bytes, code: int, why: str
):
    other = there.directory / "wandb" / "offline-run-20260101_000000-none"
    other.mkdir()
    (other / "run-none.wandb").write_bytes(content)

    # The second time it is as it was, as in a cron job.
    for _ in range(2):
        done = syncd(there, "sync", "wandb")

    assert numbers(there) == list(range(WRITTEN))
    assert done.returncode == code, done.stdout + done.stderr
    assert f"{other.name}: " in done.stdout
    assert why in " ".join(done.stdout.split())
