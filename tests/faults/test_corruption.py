"""Section B: records that are not what was written, on their way to a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eventlog.cursor import cursors
from syncd.run_sync import DAMAGED
from tests.logs import HandmadePiece, handmade_run
from tests.syncd.syncing import sync, xs
from tests.wandb_server import WandbServer


def run_of_six(root: Path) -> HandmadePiece:
    piece = handmade_run(root)
    for i in range(6):
        piece.log(x=i, step=i, commit=True)
    return piece


def damage(piece: HandmadePiece, *xs_lost: int) -> None:
    for x in xs_lost:
        piece.overwrite(piece.offset_of(x + 1) + 30, b"\xff")


DAMAGE: dict[str, tuple[Callable[[HandmadePiece], None], list[int]]] = {
    "a torn tail": (lambda piece: piece.append(b'{"crc":"0'), [0, 1, 2, 3, 4, 5]),
    "one in the middle": (lambda piece: damage(piece, 2), [0, 1, 3, 4, 5]),
    "several": (lambda piece: damage(piece, 1, 2, 4), [0, 3, 5]),
    "the first": (lambda piece: damage(piece, 0), [1, 2, 3, 4, 5]),
    "zeros after a power cut": (lambda piece: piece.append(b"\0" * 4096), [0, 1, 2, 3, 4, 5]),
    "blank lines and a byte order mark": (
        lambda piece: piece.append(b"\n \n\xef\xbb\xbf\r\n"),
        [0, 1, 2, 3, 4, 5],
    ),
}


# faults: 14 15 16 17 19 20
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_costs_the_records_it_hit_and_no_file(server: WandbServer, tmp_path: Path, name: str):
    piece = run_of_six(tmp_path)
    hit, kept = DAMAGE[name]
    hit(piece)
    piece.die()
    on_disk = piece.segment.read_bytes()

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == kept
    assert piece.segment.read_bytes() == on_disk
    assert server.violations == []


# faults: 14
def test_a_record_that_rots_after_it_was_acknowledged_changes_nothing(server: WandbServer, tmp_path: Path):
    piece = run_of_six(tmp_path)
    sync(server, tmp_path)
    damage(piece, 3)
    piece.log(x=6, step=6, commit=True)
    piece.die()

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == [0, 1, 2, 3, 4, 5, 6]
    assert server.violations == []


# faults: 13
def test_a_damaged_last_record_is_counted_also_after_a_restart(server: WandbServer, tmp_path: Path):
    piece = run_of_six(tmp_path)
    damage(piece, 5)
    sync(server, tmp_path)
    piece.die()

    sync(server, tmp_path)

    (cursor,) = cursors(piece.piece.dir.parent)
    assert cursor.not_shown == {DAMAGED: 1}


# faults: 14
def test_a_damaged_start_makes_no_run_of_fifty_years(server: WandbServer, tmp_path: Path):
    piece = run_of_six(tmp_path)
    piece.overwrite(piece.offset_of(0) + 30, b"\xff")
    piece.die()

    sync(server, tmp_path)

    assert max(row["_runtime"] for row in server.runs()[0].history) < 3600
