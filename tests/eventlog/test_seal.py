"""`eventlog.seal`: what is sealed, what is merged, what goes, and that a reader never notices."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import eventlog
from eventlog import cursor as cursors
from eventlog import seal as sealing
from eventlog.cursor import Cursor, Sink
from eventlog.errors import PyarrowMissing
from eventlog.overview import overview_of, proofs_of
from eventlog.parquet import TEMPORARY
from eventlog.piece import claim_secondary
from eventlog.reader import StreamReader, end_of, newest_first, read
from eventlog.record import Record
from eventlog.seal import clean, seal, to_seal
from eventlog.segment import Sealed, segments_in
from tests.logs import HandmadePiece, handmade_run, resumed

SINK = Sink("https://api.wandb.ai", None, "demo", "run")


def in_segments(root: Path, *counts: int) -> HandmadePiece:
    """A run whose segments have so many records each, the `start` included."""
    piece = handmade_run(root)
    for at, count in enumerate(counts):
        if at:
            piece.new_segment()
        for _ in range(count - (at == 0)):
            piece.log(step=piece.seq, commit=True, x=piece.seq)
    return piece


def run_dir_of(piece: HandmadePiece) -> Path:
    return piece.piece.dir.parent


def names(piece: HandmadePiece) -> list[str]:
    """The names of the piece's segments, sealed or not, in short."""
    return sorted(
        name.replace("events-", "").replace("000000000", "")
        for name in os.listdir(piece.piece.dir)
        if name.endswith((".jsonl", ".parquet"))
    )


def kept(piece: HandmadePiece) -> list[str | None]:
    return [verdict.kept_because for verdict in clean(run_dir_of(piece))]


# ── what is sealed ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_piece_becomes_one_sealed_segment_and_its_log_stays(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4, 3)
    piece.die()

    outcome = seal(run_dir_of(piece))

    assert names(piece) == ["000-012.parquet", "000.jsonl", "005.jsonl", "009.jsonl"]
    assert (outcome.records, outcome.damage, outcome.is_busy) == (12, [], False)
    assert outcome.size_before == sum(path.stat().st_size for path in piece.piece.dir.glob("*.jsonl"))


def test_of_a_live_piece_the_last_segment_is_left_alone(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4, 3)

    seal(run_dir_of(piece))

    assert names(piece) == ["000-009.parquet", "000.jsonl", "005.jsonl", "009.jsonl"]


def test_a_piece_that_said_exit_is_closed_although_its_process_lives(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.log("exit", exitcode=0)

    seal(run_dir_of(piece))

    assert names(piece) == ["000-006.parquet", "000.jsonl"]


def test_sealing_twice_does_nothing_more(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4)
    piece.die()
    seal(run_dir_of(piece))
    before = {path: path.stat().st_ino for path in piece.piece.dir.iterdir()}

    outcome = seal(run_dir_of(piece))

    assert (outcome.sealed, outcome.records, to_seal(run_dir_of(piece))) == ([], 0, 0)
    assert {path: path.stat().st_ino for path in piece.piece.dir.iterdir()} == before


def test_all_streams_and_all_writers_are_sealed(tmp_path: Path):
    with eventlog.init(project="demo", id="run", root=tmp_path, quiet=True) as run:
        run.log({"x": 1})
        run.log_trajectory(eventlog.Trajectory([], reward=1.0))
        run.save(__file__, policy="now")
    secondary = HandmadePiece(run._identity, claim_secondary(run.dir, "rank3"))
    secondary.log("start", config={})
    secondary.die()

    seal(run.dir)

    sealed = sorted(path.relative_to(run.dir).as_posix() for path in run.dir.glob("*/*.parquet"))
    assert [path.partition("/")[2].partition("-")[0] for path in sealed] == [
        "events",
        "files",
        "trajectories",
        "events",
    ]


@pytest.mark.parametrize("stream", ["trajectories", "console"])
def test_a_stream_of_its_own_reads_back(tmp_path: Path, stream: str):
    piece = in_segments(tmp_path, 3)
    beside = HandmadePiece(piece.identity, piece.piece, stream)
    for i in range(5):
        beside.log("console" if stream == "console" else "trajectory", source="stdout", text=f"line {i}\n")
    piece.die()
    before = list(read(run_dir_of(piece), stream))

    seal(run_dir_of(piece))
    assert set(kept(piece)) == {None}

    assert list(read(run_dir_of(piece), stream)) == before
    assert end_of(piece.piece.dir, stream) == (5, before[-1].time_us)


def test_a_torn_tail_is_no_record_and_no_damage(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.append(b'{"crc":"01234567","seq":5,"ti')
    piece.die()

    outcome = seal(run_dir_of(piece))

    assert (names(piece), outcome.damage) == (["000-005.parquet", "000.jsonl"], [])


# faults: 64
def test_records_that_were_written_twice_are_sealed_once(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.new_segment(3)
    for line in piece.lines[3:]:
        piece.append(line)
    piece.log(step=5, x=5)
    piece.die()

    seal(run_dir_of(piece))

    assert set(kept(piece)) == {None}
    assert [record.seq for record in read(run_dir_of(piece))] == [0, 1, 2, 3, 4, 5]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_segment_is_not_sealed_and_stays_and_the_others_are(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4)
    piece.overwrite(piece.offset_of(6) + 30, b"\xff")
    piece.new_segment()
    piece.log(step=9, x=9)
    piece.die()
    before = list(read(run_dir_of(piece)))

    outcome = seal(run_dir_of(piece))
    left = kept(piece)

    assert [(found.path.name, found.first_seq, found.last_seq) for found in outcome.damage] == [
        ("events-000000000005.jsonl", 6, 6)
    ]
    assert names(piece) == ["000-005.parquet", "005.jsonl", "009-010.parquet"]
    assert (left[0], left[2]) == (None, None)
    assert "not sealed" in str(left[1])
    assert list(read(run_dir_of(piece))) == before


def all_records_damaged(segment: Path) -> None:
    segment.write_bytes(segment.read_bytes().replace(b'"x"', b'"y"'))


def looped(segment: Path) -> None:
    segment.rename(segment.with_suffix(".aside"))
    segment.symlink_to(segment.with_suffix(".aside"))


# faults: 13 35
@pytest.mark.parametrize("spoil", [all_records_damaged, looped])
def test_a_segment_of_which_no_record_can_be_read_is_damaged_and_stays(
    tmp_path: Path, spoil: Callable[[Path], None]
):
    piece = in_segments(tmp_path, 5, 4)
    seal(run_dir_of(piece))
    spoil(piece.segment)
    piece.die()

    outcome = seal(run_dir_of(piece))
    left = kept(piece)

    assert [found.path for found in outcome.damage] == [piece.segment]
    assert left[0] is None
    assert "no record of it can be read" in str(left[1])
    assert piece.segment.exists()
    (proof,) = proofs_of(run_dir_of(piece))
    assert [found["path"] for found in proof.damage] == [str(piece.segment)]


# faults: 34
def test_a_segment_that_cannot_be_read_just_now_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    piece = in_segments(tmp_path, 5, 4)
    piece.die()
    seal(run_dir_of(piece))
    piece.new_segment()
    piece.log(step=9, x=9)
    real = os.open
    with monkeypatch.context() as patch:
        refused = PermissionError(errno.EACCES, "Permission denied")

        def open_unless_refused(path: object, *rest: int, **options: object) -> int:
            if str(path) == str(piece.segment):
                raise refused
            return real(path, *rest, **options)  # type: ignore[call-overload, no-any-return]

        patch.setattr(os, "open", open_unless_refused)
        outcome = seal(run_dir_of(piece))
        left = kept(piece)

    assert [found.cause for found in outcome.damage] == [
        "events-000000000009.jsonl cannot be opened: Permission denied"
    ]
    assert left == [None, None, "no record of it can be read: `eventlog verify` says why"]
    assert [record.seq for record in read(run_dir_of(piece))] == list(range(10))


@pytest.mark.parametrize("tail", [b"", b'{"crc":"01234567","seq":9,"ti'])
def test_a_segment_without_a_record_goes_with_the_one_before(tmp_path: Path, tail: bytes):
    piece = in_segments(tmp_path, 5, 4)
    piece.new_segment()
    piece.append(tail)
    piece.die()

    outcome = seal(run_dir_of(piece))

    assert outcome.damage == []
    assert kept(piece) == [None, None, None]


# faults: 31
def test_a_gap_between_two_segments_is_not_hidden_by_sealing(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4, 3)
    os.unlink(piece.piece.dir / "events-000000000005.jsonl")
    piece.die()

    outcome = seal(run_dir_of(piece))
    assert set(kept(piece)) == {None}

    assert outcome.damage == []
    assert names(piece) == ["000-005.parquet", "009-012.parquet"]
    (proof,) = proofs_of(run_dir_of(piece))
    assert [(found["first_seq"], found["last_seq"]) for found in proof.damage] == [(5, 8)]


# faults: 5
def test_a_segment_cut_short_in_the_middle_of_the_log_is_not_sealed(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.cut(piece.segment.stat().st_size - 10)
    piece.new_segment()
    piece.log(step=5, x=5)
    piece.die()

    outcome = seal(run_dir_of(piece))

    # All that it holds is whole; what was cut off is missing between the two.
    assert names(piece) == ["000-004.parquet", "000.jsonl", "005-006.parquet", "005.jsonl"]
    assert outcome.damage == []
    assert [record.seq for record in read(run_dir_of(piece))] == [0, 1, 2, 3, 5]


def test_a_segment_without_its_header_is_damaged_and_the_others_are_sealed(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4)
    content = piece.segment.read_bytes()
    piece.segment.write_bytes(content[content.index(b"\n") + 1 :])
    piece.die()
    alone = handmade_run(tmp_path, "alone")
    content = alone.segment.read_bytes()
    alone.segment.write_bytes(content[content.index(b"\n") + 1 :])
    alone.die()

    outcomes = [seal(run_dir_of(piece)), seal(run_dir_of(alone))]

    assert names(piece) == ["000-005.parquet", "000.jsonl", "005.jsonl"]
    assert [found.path for outcome in outcomes for found in outcome.damage] == [piece.segment, alone.segment]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no bytes at all": lambda path: path.write_bytes(b""),
    "no footer": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "another file": lambda path: path.write_bytes(b"PAR1 not really PAR1"),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:400] + b"\xff" + path.read_bytes()[401:]),
}


# faults: 21
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_sealed_segment_costs_nothing_while_the_log_is_there(tmp_path: Path, damage: str):
    piece = in_segments(tmp_path, 400)
    piece.die()
    before = list(read(run_dir_of(piece)))
    seal(run_dir_of(piece))
    (path,) = piece.piece.dir.glob("*.parquet")
    DAMAGE[damage](path)

    assert list(read(run_dir_of(piece))) == before
    (why,) = kept(piece)
    assert f"{path.name} is damaged" in str(why)
    (proof,) = proofs_of(run_dir_of(piece))
    assert [found["path"] for found in proof.damage] == [str(path)]
    assert proof.lost == 0

    path.unlink()
    seal(run_dir_of(piece))
    assert kept(piece) == [None]
    assert list(read(run_dir_of(piece))) == before


# faults: 21
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_sealed_segment_is_reported_with_its_seqs_once_the_log_is_gone(tmp_path: Path, damage: str):
    piece = in_segments(tmp_path, 400)
    piece.die()
    seal(run_dir_of(piece))
    assert kept(piece) == [None]
    (path,) = piece.piece.dir.glob("*.parquet")
    DAMAGE[damage](path)

    (proof,) = proofs_of(run_dir_of(piece))

    assert [(found["path"], found["first_seq"], found["last_seq"]) for found in proof.damage] == [
        (str(path), 0, 399)
    ]
    assert list(read(run_dir_of(piece))) == []


def sealed_with_its_log(root: Path) -> HandmadePiece:
    piece = in_segments(root, 5, 4, 2)
    piece.log("exit", exitcode=0)
    piece.die()
    seal(run_dir_of(piece))
    assert names(piece) == ["000-012.parquet", "000.jsonl", "005.jsonl", "009.jsonl"]
    return piece


def segment_with(piece: HandmadePiece, seq: int) -> Path:
    first_seq = max(first for first in (0, 5, 9) if first <= seq)
    return piece.piece.dir / f"events-{first_seq:012d}.jsonl"


# faults: 33
@pytest.mark.parametrize("limit", [1, 1_000_000])
@pytest.mark.parametrize("seq", range(12))
def test_a_segment_that_was_rolled_back_after_it_was_sealed_costs_nothing(
    tmp_path: Path, seq: int, limit: int
):
    piece = sealed_with_its_log(tmp_path)
    before = list(read(run_dir_of(piece)))
    overview = overview_of(run_dir_of(piece))
    piece.segment = segment_with(piece, seq)
    piece.cut(piece.offset_of(seq))

    reader = StreamReader(piece.piece.dir)
    found: list[Record] = []
    while True:
        chunk = reader.read(limit)
        found += chunk.records
        assert chunk.damage == []
        if not chunk.more:
            break
    after = overview_of(run_dir_of(piece))

    assert found == before
    assert reader.end() == []
    assert not reader.has_grown()
    assert (after.state, after.records, after.last_step) == ("finished", 12, overview.last_step)
    assert StreamReader(piece.piece.dir, seq=seq).read().records == before[seq:]
    assert set(kept(piece)) == {None}
    assert list(read(run_dir_of(piece))) == before


# faults: 13
@pytest.mark.parametrize("seq", range(12))
def test_damage_in_a_segment_after_it_was_sealed_is_reported_and_costs_no_record(tmp_path: Path, seq: int):
    piece = sealed_with_its_log(tmp_path)
    before = list(read(run_dir_of(piece)))
    piece.segment = segment_with(piece, seq)
    piece.overwrite(piece.offset_of(seq) + 30, b"#")

    (proof,) = proofs_of(run_dir_of(piece))

    assert list(read(run_dir_of(piece))) == before
    assert [found["path"] for found in proof.damage] == [str(piece.segment)]
    assert (proof.records, proof.lost) == (12, 0)
    assert overview_of(run_dir_of(piece)).state == "finished"


def test_where_both_are_damaged_the_one_that_its_writer_wrote_counts(tmp_path: Path):
    piece = sealed_with_its_log(tmp_path)
    piece.segment = segment_with(piece, 6)
    piece.overwrite(piece.offset_of(6) + 30, b"#")
    (path,) = piece.piece.dir.glob("*.parquet")
    DAMAGE["one byte"](path)

    (proof,) = proofs_of(run_dir_of(piece))

    assert [record.seq for record in read(run_dir_of(piece))] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert {found["path"] for found in proof.damage} == {str(piece.segment), str(path)}
    assert proof.lost == 1


# ── merging ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_sealed_segments_are_merged_when_their_piece_is_closed(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4)
    for _ in range(3):
        seal(run_dir_of(piece))
        clean(run_dir_of(piece))
        piece.new_segment()
        piece.log(step=piece.seq, commit=True, x=piece.seq)
    assert names(piece) == ["000-005.parquet", "005-009.parquet", "009-010.parquet", "010.jsonl", "011.jsonl"]
    before = list(read(run_dir_of(piece)))
    piece.die()

    outcome = seal(run_dir_of(piece))

    assert names(piece) == ["000-012.parquet", "010.jsonl", "011.jsonl"]
    assert [path.name for path in outcome.sealed] == ["events-000000000000-000000000012.parquet"]
    assert list(read(run_dir_of(piece))) == before


def test_those_of_a_live_piece_are_merged_when_there_are_many(tmp_path: Path):
    piece = in_segments(tmp_path, 2, 2)
    for _ in range(sealing.MERGED_AT_ONCE - 1):
        seal(run_dir_of(piece))
        piece.new_segment()
        piece.log(step=piece.seq, x=piece.seq)
    assert len(list(piece.piece.dir.glob("*.parquet"))) == sealing.MERGED_AT_ONCE - 1

    seal(run_dir_of(piece))

    assert len(list(piece.piece.dir.glob("*.parquet"))) == 1


def test_what_is_large_enough_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sealing, "MERGED_MAX_BYTES", 1)
    piece = in_segments(tmp_path, 5, 4)
    seal(run_dir_of(piece))
    piece.die()

    seal(run_dir_of(piece))

    assert names(piece) == ["000-005.parquet", "000.jsonl", "005-009.parquet", "005.jsonl"]


def test_what_would_have_too_long_a_brief_together_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    piece = in_segments(tmp_path, 5, 4)
    seal(run_dir_of(piece))
    (brief,) = piece.piece.dir.glob("events-*-*.json")
    monkeypatch.setattr(sealing, "BRIEF_MAX_BYTES", brief.stat().st_size * 3 // 2)
    piece.die()

    seal(run_dir_of(piece))

    assert names(piece) == ["000-005.parquet", "000.jsonl", "005-009.parquet", "005.jsonl"]


# faults: 54
def test_what_a_killed_sealing_left_is_removed_and_replaced(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.die()
    directory = piece.piece.dir
    (directory / f"{TEMPORARY}0badcafe").write_bytes(b"PAR1 half of it")
    (directory / Sealed("events", 0, 3).brief_name).write_bytes(b"a brief without its segment")
    (directory / "notes-000000000000-000000000003.json").write_bytes(b"not ours")

    seal(run_dir_of(piece))

    assert sorted(os.listdir(directory)) == [
        "events-000000000000-000000000005.json",
        "events-000000000000-000000000005.parquet",
        "events-000000000000.jsonl",
        "lock",
        "notes-000000000000-000000000003.json",
        "seal.lock",
    ]


# faults: 54
def test_what_a_merge_replaced_goes_when_it_was_killed_before(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4)
    seal(run_dir_of(piece))
    part = piece.piece.dir / Sealed("events", 0, 5).name
    saved = {path.name: path.read_bytes() for path in piece.piece.dir.glob("events-*-*")}
    piece.die()
    seal(run_dir_of(piece))
    for name, content in saved.items():
        (piece.piece.dir / name).write_bytes(content)
    assert part.exists()
    assert [record.seq for record in read(run_dir_of(piece))] == list(range(9))

    seal(run_dir_of(piece))

    assert names(piece) == ["000-009.parquet", "000.jsonl", "005.jsonl"]


def test_two_do_not_seal_one_piece_at_once(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.die()
    with open(piece.piece.dir / "seal.lock", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        outcome = seal(run_dir_of(piece))
        left = kept(piece)

    assert (outcome.is_busy, outcome.sealed) == (True, [])
    assert left == ["another process is sealing it"]


# ── what goes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_says_what_would_go_and_touches_nothing(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.die()
    seal(run_dir_of(piece))

    (verdict,) = clean(run_dir_of(piece), dry_run=True)

    assert (verdict.path.name, verdict.kept_because) == ("events-000000000000.jsonl", None)
    assert verdict.path.stat().st_size == verdict.size


def test_a_dry_run_writes_no_lock(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.die()
    before = sorted(os.listdir(piece.piece.dir))

    clean(run_dir_of(piece), dry_run=True)

    assert sorted(os.listdir(piece.piece.dir)) == before


def test_a_segment_that_is_being_written_stays(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4)
    seal(run_dir_of(piece))

    assert kept(piece) == [None, "it is being written"]


# faults: 67
@pytest.mark.parametrize(
    ("acked", "left"),
    [(0, ["wait", "wait"]), (4, ["wait", "wait"]), (5, ["goes", "wait"]), (9, ["goes", "goes"])],
)
def test_what_a_sink_has_not_acknowledged_stays(tmp_path: Path, acked: int, left: list[str]):
    piece = in_segments(tmp_path, 5, 4)
    piece.die()
    seal(run_dir_of(piece))
    cursors.save(run_dir_of(piece), Cursor(SINK, next={"writer": "main-0001", "seq": acked}), now_us=1)

    verdicts = clean(run_dir_of(piece), dry_run=True)

    assert ["wait" if "has not acknowledged" in str(v.kept_because) else "goes" for v in verdicts] == left


def test_a_sink_that_has_begun_nothing_waits_for_all(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.die()
    seal(run_dir_of(piece))
    cursors.save(run_dir_of(piece), Cursor(SINK), now_us=1)

    assert kept(piece) == ["https://api.wandb.ai has not acknowledged all of it"]


# faults: 46
def test_a_sink_whose_cursor_cannot_be_read_waits_for_all(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    beside = HandmadePiece(piece.identity, piece.piece, "trajectories")
    beside.log("trajectory", reward=1.0)
    piece.die()
    seal(run_dir_of(piece))
    cursors.save(
        run_dir_of(piece), Cursor(SINK, next={"writer": "main-0001", "seq": 5}), now_us=1, durable=True
    )
    for generation in (run_dir_of(piece) / "sync").iterdir():
        generation.write_bytes(b"garbage\n")

    assert kept(piece) == [
        f"{SINK.name}.json cannot be read: nobody knows what its sink has acknowledged",
        # They are not uploaded.
        None,
    ]


@pytest.mark.parametrize(("upload_ranks", "stays"), [("all", True), ("primary", False)])
def test_a_rank_that_will_be_a_run_of_its_own_stays_until_it_is(
    tmp_path: Path, upload_ranks: str, stays: bool
):
    piece = handmade_run(tmp_path, upload_ranks=upload_ranks)
    other = HandmadePiece(piece.identity, claim_secondary(run_dir_of(piece), "rank3"))
    other.log("start", config={})
    piece.die()
    other.die()
    seal(run_dir_of(piece))
    cursors.save(run_dir_of(piece), Cursor(SINK, next={"writer": "main-0001", "seq": 1}), now_us=1)

    not_begun = [verdict.kept_because for verdict in clean(run_dir_of(piece), dry_run=True)]
    as_rank = Cursor(
        Sink(SINK.base_url, None, "demo", "run-rank3"), 3, next={"writer": other.piece.writer, "seq": 1}
    )
    cursors.save(run_dir_of(piece), as_rank, now_us=1)

    assert not_begun == [None, "https://api.wandb.ai has not acknowledged all of it" if stays else None]
    assert kept(piece) == [None, None]


def test_a_later_piece_that_is_begun_to_be_sent_says_that_the_earlier_is_acknowledged(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.die()
    later = resumed(piece.identity, tmp_path)
    later.die()
    seal(run_dir_of(piece))
    cursors.save(run_dir_of(piece), Cursor(SINK, next={"writer": "main-0002", "seq": 0}), now_us=1)

    assert kept(piece) == [None, "https://api.wandb.ai has not acknowledged all of it"]


def test_what_no_sink_shows_needs_no_acknowledgement(tmp_path: Path):
    piece = in_segments(tmp_path, 3)
    secondary = HandmadePiece(piece.identity, claim_secondary(run_dir_of(piece), "rank3"))
    secondary.log("start", config={})
    beside = HandmadePiece(piece.identity, piece.piece, "trajectories")
    beside.log("trajectory", reward=1.0)
    piece.die()
    secondary.die()
    seal(run_dir_of(piece))
    cursors.save(run_dir_of(piece), Cursor(SINK), now_us=1)

    verdicts = clean(run_dir_of(piece))

    goes = {f"{v.path.parent.name[:5]} {v.path.name[:6]}" for v in verdicts if v.kept_because is None}
    assert goes == {"main- trajec", "rank3 events"}


def test_the_log_of_a_writer_on_another_machine_that_never_ended_stays(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    lock = piece.piece.dir / "lock"
    piece.die()
    resumed(piece.identity, tmp_path).die()
    lock.write_text('{"host":"elsewhere","boot_id":"other","pid":1,"heartbeat":1}\n')
    seal(run_dir_of(piece))

    assert kept(piece) == ["its writer on another machine never said that it ended", None]


def test_what_grew_after_it_was_sealed_stays_until_it_is_sealed_again(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    piece.die()
    seal(run_dir_of(piece))
    piece.log(step=5, x=5)

    (why,) = kept(piece)
    assert "not sealed" in str(why)

    seal(run_dir_of(piece))
    assert kept(piece) == [None]
    assert [record.seq for record in read(run_dir_of(piece))] == list(range(6))


# ── readers do not notice ────────────────────────────────────────────────────────────────────────────────────


def sealed_and_gone(piece: HandmadePiece) -> None:
    seal(run_dir_of(piece))
    assert set(kept(piece)) == {None}


# faults: 32
@pytest.mark.parametrize("at", range(13))
def test_a_reader_goes_on_in_what_was_sealed_meanwhile(tmp_path: Path, at: int):
    piece = in_segments(tmp_path, 5, 4, 3)
    whole = list(read(run_dir_of(piece)))
    reader = StreamReader(piece.piece.dir)
    found: list[Record] = []
    while len(found) < at:
        found += reader.read(1).records
    hint = reader.place
    piece.die()

    sealed_and_gone(piece)

    remembered = StreamReader(piece.piece.dir, seq=at, hint=hint).read()
    chunk = reader.read()
    assert found + chunk.records == whole
    assert (chunk.damage, remembered.damage, reader.end()) == ([], [], [])
    assert remembered.records == whole[at:]
    assert not reader.has_grown()


# faults: 32
def test_a_reader_at_the_end_of_what_was_sealed_meanwhile_waits_for_what_comes(tmp_path: Path):
    piece = in_segments(tmp_path, 5)
    reader = StreamReader(piece.piece.dir)
    reader.read()
    piece.new_segment()
    seal(run_dir_of(piece))
    assert kept(piece) == [None, "it is being written"]

    nothing = reader.read()
    piece.log(step=5, x=5)
    something = reader.read()

    assert (nothing.records, nothing.damage, something.damage) == ([], [], [])
    assert [record.seq for record in something.records] == [5]


def test_a_reader_in_a_sealed_segment_goes_on_when_it_is_merged(tmp_path: Path):
    piece = in_segments(tmp_path, 5, 4, 3)
    whole = list(read(run_dir_of(piece)))
    seal(run_dir_of(piece))
    clean(run_dir_of(piece))
    reader = StreamReader(piece.piece.dir)
    found = reader.read(400 * 3).records
    assert 0 < len(found) < 9
    piece.die()

    sealed_and_gone(piece)

    chunk = reader.read()
    assert (found + chunk.records, chunk.damage) == (whole, [])


def test_a_resumed_run_goes_on_after_a_sealed_piece(tmp_path: Path):
    with eventlog.init(project="demo", id="run", root=tmp_path, quiet=True, config={"lr": 1}) as run:
        for i in range(20):
            run.log({"loss": i})
    seal(run.dir)
    assert all(verdict.kept_because is None for verdict in clean(run.dir))

    with eventlog.init(project="demo", id="run", root=tmp_path, quiet=True, resume="must") as again:
        assert again.step == 20
        assert again.config["lr"] == 1
        again.log({"loss": 20})

    assert [r.step for r in read(run.dir) if r.kind == "metrics"] == list(range(21))


def test_a_long_config_is_there_for_whoever_asks_for_the_first_record(tmp_path: Path):
    piece = handmade_run(tmp_path, config={"prompt": "x" * 2_000_000})
    first = StreamReader(piece.piece.dir).first()
    piece.die()

    sealed_and_gone(piece)

    assert StreamReader(piece.piece.dir).first() == first


def test_a_sealed_run_is_not_resumed_as_if_it_were_empty_where_pyarrow_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    piece = in_segments(tmp_path, 5)
    piece.die()
    sealed_and_gone(piece)
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(PyarrowMissing, match="pip install"):
        eventlog.init(project="demo", id="run", root=tmp_path, quiet=True, resume="must")

    assert sorted(path.name for path in run_dir_of(piece).glob("main-*")) == ["main-0001"]


def test_an_overview_is_the_same_and_reads_no_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    piece = in_segments(tmp_path, 5, 4)
    piece.log("exit", exitcode=3)
    before = overview_of(run_dir_of(piece))
    sealed_and_gone(piece)
    monkeypatch.setattr(
        "eventlog.reader.records_in", lambda *args, **options: pytest.fail("it reads Parquet")
    )

    after = overview_of(run_dir_of(piece))

    assert (after.state, after.last_step, after.records) == ("failed", 8, 10)
    assert (after.started_us, after.pieces) == (before.started_us, 1)
    assert end_of(piece.piece.dir)[0] == 10
    assert next(newest_first(piece.piece.dir)).kind == "exit"


# faults: 52
def test_segments_are_removed_from_the_oldest_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    piece = in_segments(tmp_path, 5, 4, 3)
    whole = list(read(run_dir_of(piece)))
    piece.die()
    seal(run_dir_of(piece))
    real, seen = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        real(path, missing_ok)
        seen.append((len(segments_in(os.listdir(piece.piece.dir), "events")), list(read(run_dir_of(piece)))))

    monkeypatch.setattr(Path, "unlink", unlink)
    clean(run_dir_of(piece))

    assert [count for count, _ in seen] == [2, 1, 0]
    assert all(records == whole for _, records in seen)
