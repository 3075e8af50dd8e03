"""Section A: lines that are not whole yet, or never will be, on their way to a server."""

from __future__ import annotations

from pathlib import Path

from eventlog.record import encode
from tests.faults.conftest import Play
from tests.logs import TIME_US, HandmadePiece, handmade_run, resumed
from tests.syncd.syncing import sync, xs
from tests.wandb_server import WandbServer, wait_for


def half_of_a_row(piece: HandmadePiece, x: int) -> bytes:
    """Write one half of a record, and return the other."""
    line = encode(piece.seq, TIME_US, "metrics", {"x": x}, x, True)
    piece.seq += 1
    piece.append(line[:40])
    return line[40:]


# faults: 1 4 40
def test_a_row_written_in_two_halves_arrives_once_and_whole(
    server: WandbServer, tmp_path: Path, sync_while: Play
):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    rest = half_of_a_row(piece, 1)
    seen: list[list[int]] = []

    def play() -> None:
        wait_for(lambda: server.runs() and xs(server.runs()[0]), "the first row")
        seen.append(xs(server.runs()[0]))
        piece.append(rest)
        wait_for(lambda: len(xs(server.runs()[0])) == 2, "the second row")

    sync_while(server, tmp_path, play)

    assert seen == [[0]]
    assert xs(server.runs()[0]) == [0, 1]
    assert server.violations == []


# faults: 2
def test_a_half_line_over_a_restart_is_completed_once(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    rest = half_of_a_row(piece, 1)
    sync(server, tmp_path)

    piece.append(rest)
    sync(server, tmp_path)

    assert xs(server.runs()[0]) == [0, 1]
    assert server.runs()[0].replayed_lines == 0


# faults: 3 5
def test_what_a_dead_writer_left_without_a_newline_is_left_out_and_the_next_piece_is_read(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    half_of_a_row(piece, 1)
    piece.die()
    later = resumed(piece.identity, tmp_path)
    later.log(x=2, step=1, commit=True)
    later.die()

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == [0, 2]
