"""FAULTS A, B, C and E, from the bytes on the disk to the rows on the server; with hints of inotify and without any.

H and K, where the network, the server or the clock fails, are in `test_end_to_end_network`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from eventlog import read
from eventlog.cursor import cursors, new_suffix
from eventlog.record import frame_object, unframe_object
from eventlog.segment import FORMAT
from syncd import run_sync, shipper
from syncd.fold import HISTORY, LINE_MAX_BYTES, LINE_TOO_LONG
from tests.exactly_once.test_exactly_once import process
from tests.faults.worlds import World, another_run, unprivileged
from tests.logs import handmade_run
from tests.wandb_server import WandbServer, wait_for

# A process that logs rows of 300 B, 100 kB and 2 MB in turn until it is killed.
LOGGER = """
import sys, eventlog
run = eventlog.init(project="demo", id="big", root=sys.argv[1])
for i in range(10_000):
    run.log({"x": i, "text": "t" * (300, 100_000, 2_000_000)[i % 3]}, step=i)
    print(i, flush=True)
"""


# -- A: lines that are not whole yet, or never will be ---------------------------------------------------------


# faults: 1
def test_a_row_in_two_halves_arrives_once_and_whole(world: World):
    world.log(0)
    world.log_half(1)
    world.arrived(lost=[1])

    world.log_rest()

    world.settled()


# faults: 2
def test_a_half_row_over_a_restart_is_completed_once(world: World):
    world.log(0)
    world.log_half(1)
    world.arrived(lost=[1])

    world.restart()
    world.log_rest()

    world.settled()


# faults: 3
def test_a_last_row_without_its_newline_is_not_sent_and_not_after_the_kill_either(world: World):
    world.log(0, 1)
    world.cut(1, into=-1 + world.size_of(1))

    world.settled(lost=[1], counted=0)
    world.die()

    world.settled(lost=[1], counted=0)


# faults: 4
def test_half_a_row_holds_the_cursor_and_no_other_run(world: World):
    world.log(0)
    world.log_half(1)
    another_run(world.root)

    world.arrived(lost=[1])
    wait_for(lambda: [len(run.history) for run in world.server.runs()] == [1, 1], "the other run's row")
    assert world.cursor().next == {"writer": "main-0001", "seq": 2}
    world.log_rest()

    world.settled()


# faults: 5
def test_after_a_torn_segment_the_next_is_read(world: World):
    world.log(0, 1)
    world.cut(1, into=20)
    world.resume()
    world.log(2)

    world.settled(lost=[1], counted=0)


# faults: 6
def test_cut_anywhere_in_its_last_three_rows_a_run_arrives_up_to_the_cut(world: World):
    world.log(0, 1, 2, 3)
    whole = world.run.segment.read_bytes()
    begin = world.run.offset_of(2)
    # The reader's own tests cut at every byte; these are enough to fall on and beside each newline.
    cuts = [cut for cut in range(begin, len(whole)) if cut % 7 == 0 or b"\n" in whole[cut - 1 : cut + 1]]
    for cut in cuts:
        piece = handmade_run(world.root, f"cut{cut}")
        piece.log(x=0, step=0, commit=True)
        header = piece.segment.read_bytes().index(b"\n") + 1
        piece.segment.write_bytes(piece.segment.read_bytes()[:header] + whole[world.run.offset_of(0) : cut])
        piece.die()

    world.settled()

    for cut in cuts:
        held = world.server.run("ent", "demo", f"cut{cut}").history
        assert [row["x"] for row in held] == list(range(whole[begin:cut].count(b"\n") + 1))


# faults: 7
def test_a_row_under_way_is_waited_for_and_a_wrong_one_is_not(world: World):
    world.log(0, 1, 2)
    world.flip(1)
    world.log_half(3)

    world.arrived(lost=[1, 3])
    world.log_rest()

    world.settled(lost=[1])


# faults: 8
def test_of_large_rows_all_that_log_returned_from_arrive_after_a_kill(world: World):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with process("-c", LOGGER, str(world.root), env=env) as training:
        assert training.stdout is not None
        returned = [int(training.stdout.readline()) for _ in range(8)]
        training.kill()
        returned += [int(line) for line in training.stdout]

    world.log(0)
    world.settled()

    held = [row["x"] for row in world.server.run("ent", "demo", "big").history]
    logged = [record.data["x"] for record in read(world.root / "demo" / "big") if record.kind == "metrics"]
    assert held == logged
    assert returned == held[: len(returned)]


# faults: 9
def test_a_row_that_ends_where_a_read_ends_is_one_row(world: World, monkeypatch: pytest.MonkeyPatch):
    world.log(0)
    size = world.size_of(0)
    for shift in range(-5, 6):
        world.arrived()
        monkeypatch.setattr(run_sync, "READ_BYTES", 2 * size + shift)
        x = len(world.rows)
        world.log(*range(x, x + 4))

    world.settled()


# faults: 10
def test_rows_larger_than_a_read_and_than_a_batch_arrive_whole(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_sync, "READ_BYTES", 1000)
    world.log(0)
    world.log(1, text="t" * 50_000)
    world.log(2, text="t" * (shipper.BATCH_MAX_BYTES + 1))
    world.log(3)

    world.settled()


# faults: 11
def test_a_row_over_the_limit_is_a_counted_stub_and_those_around_it_arrive(world: World):
    world.log(0)
    world.log(1, text="t" * LINE_MAX_BYTES)
    world.log(2)
    world.rows[1] = {"_step": 1, "_tidelog_stub": f"{LINE_TOO_LONG}; the record is in the local log"}

    world.settled()

    assert world.cursor().not_shown == {LINE_TOO_LONG: 1}


# faults: 12
def test_a_write_that_fell_short_glues_no_two_rows_together(world: World):
    world.log(0)
    world.run.append(b'{"crc":"0123')
    world.arrived()

    # The writer goes on elsewhere, as the disk refused the rest.
    world.rotate()
    world.run.log("gap", dropped=1, reason="No space left on device")
    world.log(1)

    world.settled()


# -- B: bytes that are not what was written --------------------------------------------------------------------


# faults: 13
def test_a_flipped_digit_costs_its_row_and_is_counted(world: World):
    world.log(0, 1, 2)
    world.flip(1)

    world.settled(lost=[1])


# faults: 14
def test_a_restart_meets_the_damage_again_and_counts_it_once(world: World):
    world.log(0, 1, 2)
    world.flip(1)
    world.arrived(lost=[1])

    world.restart()
    world.log(3)

    world.settled(lost=[1])


# faults: 15
def test_several_damaged_rows_in_a_row_are_all_counted(world: World):
    world.log(*range(8))
    world.flip(1, 2, 3, 6)

    world.settled(lost=[1, 2, 3, 6])


# faults: 16
@pytest.mark.parametrize(
    ("flipped", "is_torn"), [([], True), ([3], False), ([0], False), ([0, 2], True)], ids=str
)
def test_whatever_is_damaged_all_that_is_not_arrives(world: World, flipped: list[int], is_torn: bool):
    world.log(0, 1, 2, 3)
    world.flip(*flipped)
    if is_torn:
        world.run.append(b'{"crc":"0123')
    world.die()

    world.settled(lost=flipped)


# faults: 17
def test_zeros_at_the_end_after_a_power_cut_are_no_rows_and_hold_nothing_up(world: World):
    world.log(0, 1, 2)
    world.zero(2)
    world.run.append(bytes(4096))
    world.resume()
    world.log(3)

    # Without a newline nothing was committed, so nothing is counted.
    world.settled(lost=[2], counted=0)


# faults: 18
def test_a_segment_of_a_later_format_is_refused_and_counted_and_the_others_go_on(world: World):
    world.log(0)
    world.rotate()
    world.log(1, 2)
    newer = world.rotate()
    world.log(3)
    _, *lines = newer.read_bytes().splitlines(keepends=True)
    newer.write_bytes(frame_object({"format": FORMAT + 1, "first_seq": 2}) + b"".join(lines))

    world.settled(lost=[1, 2])


# faults: 19
def test_blank_lines_foreign_bytes_and_a_byte_order_mark_cost_no_row(world: World):
    world.log(0)
    world.run.append(b"\n \n\xef\xbb\xbf\n\r\n\xff\xfe\n")
    world.log(1)

    world.settled()


# faults: 20
def test_a_run_of_garbage_found_at_the_start_is_left_as_it_is_and_stops_no_other(world: World):
    garbage = {}
    for name in ("run.json", "main-0001/events-000000000000.jsonl"):
        piece = another_run(world.root, "garbage-in-" + name.partition("/")[0])
        garbage[piece.piece.dir.parent / name] = b"\x00garbage\n"
    for path, content in garbage.items():
        path.write_bytes(content)
    world.log(0)

    world.settled()

    assert {path: path.read_bytes() for path in garbage} == garbage


# faults: 21
@pytest.mark.parametrize("content", [b"", b"PAR1 without a footer"], ids=["empty", "no footer"])
def test_beside_a_broken_parquet_file_the_segment_is_read(world: World, content: bytes):
    world.log(0, 1)
    world.run.segment.with_suffix(".parquet").write_bytes(content)

    world.settled()


# -- C: segments and directories that come, go, shrink and move ------------------------------------------------


# faults: 22
def test_a_rotation_at_every_row_loses_and_doubles_nothing(world: World):
    others = [another_run(world.root, f"run{number}") for number in range(3)]
    world.start()

    for x in range(20):
        world.log(x)
        world.rotate()
        for other in others:
            other.new_segment()
            other.log(x=x + 1, step=x + 1, commit=True)

    world.settled()
    assert sorted(len(run.history) for run in world.server.runs()) == [20, 21, 21, 21]


# faults: 23
def test_rows_put_into_a_segment_that_has_a_successor_are_counted_and_not_sent(world: World):
    world.log(0)
    before = world.run.segment
    world.log(1)
    late = world.bytes_of(1)
    world.cut(1)
    world.rotate()
    world.log(2)
    world.arrived(lost=[1])

    with open(before, "ab") as file:
        file.write(late)
    world.log(3)

    world.settled(lost=[1])


# faults: 24
def test_rotations_while_the_daemon_is_down_are_caught_up_with(world: World):
    world.log(0)
    world.arrived()
    world.stop()

    for x in range(1, 6):
        world.rotate()
        world.log(x)

    world.settled()


# faults: 25
def test_a_segment_cut_behind_the_cursor_sends_nothing_again(world: World):
    world.log(0, 1, 2, 3)
    world.arrived()

    world.cut(2)
    world.rotate()
    world.log(4)

    world.settled()


# faults: 25
def test_a_row_written_after_the_cut_arrives_without_a_restart(world: World):
    world.log(0, 1, 2, 3)
    world.arrived()

    world.cut(2)
    world.log(4)

    world.arrived()


# faults: 26
def test_a_segment_cut_while_the_server_hangs_gives_what_was_read(world: World):
    world.server.faults.add("hang", kind="file_stream", times=1)
    world.log(0, 1)
    world.start()
    wait_for(lambda: world.server.faults.happened, "the request that hangs")

    world.log(2, 3)
    world.cut(2)
    world.rotate()
    world.log(4)
    world.server.faults.clear()

    world.settled(lost=[2, 3])


# faults: 27
def test_a_hole_under_a_stale_writer_costs_its_rows_and_the_one_glued_to_it(world: World):
    world.log(0, 1, 2)
    world.hole(1)
    world.log(3, 4)

    world.settled(lost=[1, 2, 3])


# faults: 28
def test_a_run_begun_anew_under_the_same_path_and_inodes_is_not_mixed_with_the_old(
    world: World, tmp_path: Path
):
    world.log(0, 1, 2)
    world.finish()
    world.arrived()
    os.link(world.run.segment, tmp_path / "inode")
    world.delete_run()

    world.run = handmade_run(world.root)
    (tmp_path / "inode").write_bytes(world.run.segment.read_bytes())
    os.replace(tmp_path / "inode", world.run.segment)
    world.run.log(x=10, step=10, commit=True)
    another_run(world.root)

    wait_for(lambda: len(world.server.runs()) == 2, "the other run")
    wait_for(lambda: any(cursor.state == "parked" for cursor in cursors(world.run_dir)), "the parking")
    world.arrived_as_it_was()


# faults: 29
@pytest.mark.usefixtures("scanning")
def test_a_run_that_is_moved_while_it_is_read_goes_on_where_it_was(world: World):
    world.log(0, 1)
    world.arrived()

    world.move_run(world.root / "elsewhere" / "renamed")
    world.log(2)

    world.settled()


# faults: 30
def test_of_a_run_and_its_copy_one_is_uploaded_and_the_other_says_so(world: World):
    world.log(0, 1)
    world.arrived()

    copy = world.root / "demo" / "twin"
    world.copy_run(copy)
    wait_for(lambda: any(cursor.state == "parked" for cursor in cursors(copy)), "the parking of the copy")
    world.log(2)

    world.settled()


# faults: 31
def test_a_segment_deleted_before_its_upload_is_counted_and_the_rest_arrives(world: World):
    world.log(0)
    world.rotate()
    world.log(1, 2)
    world.rotate().unlink()
    world.log(3)

    world.settled(lost=[1, 2])


# faults: 32
def test_a_segment_deleted_while_it_is_read_gives_what_was_read_and_a_count(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.log(0, 1, 2, 3)
    monkeypatch.setattr(run_sync, "READ_BYTES", world.run.offset_of(3))
    world.server.faults.add("hang", kind="file_stream", times=1)
    world.start()
    wait_for(lambda: world.server.faults.happened, "the request that hangs")

    world.rotate().unlink()
    world.log(4)
    world.server.faults.clear()

    world.settled(lost=[2, 3])


# faults: 33
def test_rows_that_a_power_cut_took_from_the_disk_stay_on_the_server(world: World):
    world.log(0, 1, 2, 3)
    world.arrived()
    world.stop()

    world.cut(2)
    world.resume()
    world.log(4)

    world.settled()


# faults: 34
@pytest.mark.parametrize("has_successor", [False, True], ids=["the last one", "an earlier one"])
def test_a_segment_that_may_be_read_again_is_uploaded(
    server: WandbServer, is_watching: bool, has_successor: bool
):
    # The directories of pytest are root's alone.
    with tempfile.TemporaryDirectory() as root, World(Path(root), server, is_watching) as world:
        world.log(0)
        world.arrived()
        world.stop()
        world.log(1)
        forbidden = world.run.segment
        if has_successor:
            world.rotate()
            world.log(2)
        another_run(world.root)
        forbidden.chmod(0)
        with unprivileged(world.root):
            world.start()
            wait_for(lambda: len(server.runs()) == 2 and server.runs()[1].history, "the other run's row")
            forbidden.chmod(0o600)
            world.log(3)

            world.settled()


# faults: 35
def test_linked_segments_and_directories_are_not_followed(world: World, tmp_path: Path):
    elsewhere = another_run(tmp_path / "elsewhere", "linked")
    (world.root / "demo" / "linked").symlink_to(elsewhere.piece.dir.parent)
    world.log(0)
    world.rotate()
    world.log(1)
    linked = world.rotate()
    linked.rename(tmp_path / "segment")
    linked.symlink_to(tmp_path / "segment")
    world.log(2)

    world.settled(lost=[1])

    assert len(world.server.runs()) == 1


# -- E: the cursor ---------------------------------------------------------------------------------------------


# faults: 44
def test_killed_before_the_cursor_was_saved_a_batch_goes_again_to_the_same_place(world: World):
    world.log(0, 1)
    world.arrived()

    with world.power_cut():
        world.log(2, 3)
        world.arrived()

    world.settled(replayed=2)


# faults: 45
@pytest.mark.parametrize("moment", ["before", "during", "between the two renames"])
def test_killed_while_the_cursor_is_saved_nothing_is_sent_again(world: World, moment: str):
    world.log(0)
    world.arrived()
    world.stop()
    (path,) = world.sync_dir.glob("*.json")
    older = path.read_bytes()
    world.log(1)
    world.arrived()
    world.stop()
    newest = path.read_bytes()
    unborn, previous = path.with_suffix(new_suffix()), path.with_suffix(".json.previous")
    if moment == "during":
        unborn.write_bytes(newest[: len(newest) // 2])
    if moment == "between the two renames":
        # One file may stand under both names.
        path.unlink()
        previous.unlink()
        path.write_bytes(older)
        previous.write_bytes(newest)

    world.log(2)

    world.settled()


# faults: 46
def test_with_a_cursor_of_garbage_the_place_is_found_again(world: World):
    world.log(0, 1)
    world.arrived()
    world.stop()
    for path in world.sync_dir.glob("*.json*"):
        path.write_bytes(b'{"crc":"00000000","format":1}\n\xff\x00')

    world.log(2)

    world.settled()


# faults: 47
def test_without_its_cursor_the_place_is_found_again(world: World):
    world.log(0, 1)
    world.arrived()
    world.stop()
    shutil.rmtree(world.sync_dir)

    world.log(2)

    world.settled()


# faults: 48
def test_a_cursor_of_a_later_version_is_not_guessed_at_and_the_place_is_found_again(world: World):
    world.log(0, 1)
    world.arrived()
    world.stop()
    for path in world.sync_dir.glob("*.json*"):
        content = unframe_object(path.read_bytes().rstrip(b"\n"))
        path.write_bytes(frame_object({**content, "format": FORMAT + 1, "acked": {HISTORY: 99}}))

    world.log(2)

    world.settled()


# faults: 49
def test_of_a_batch_taken_in_parts_only_the_part_without_an_answer_goes_again(world: World):
    world.server.faults.add("status", kind="file_stream", status=413, over_bytes=10_000)
    world.server.faults.add("drop", kind="file_stream", applied=True, containing='\\"x\\":40', times=1)
    world.log(*range(64), text="t" * 500)

    world.settled(replayed=20)

    assert world.there.replayed_lines > 0


# faults: 50
def test_the_cursor_is_at_no_time_ahead_of_what_the_server_took(world: World):
    world.server.random_misbehaviour(seed=3, rate=0.5)
    world.start()

    def is_asked_more_than(before: int) -> bool:
        acked = [cursor.acked.get(HISTORY, 0) for cursor in cursors(world.run_dir)]
        # Read first: what is there can only have become more.
        assert max(acked, default=0) <= len(world.held())
        return len(world.server.requests) > before

    for x in range(15):
        before = len(world.server.requests)
        world.log(x)
        wait_for(lambda before=before: is_asked_more_than(before), "the next request")
    world.server.faults.clear()

    world.settled(replayed=world.server.faults.happened * 15)


# faults: 51
@pytest.mark.usefixtures("scanning")
def test_a_run_that_vanished_and_came_back_is_not_sent_again(world: World, tmp_path: Path):
    world.log(0, 1)
    world.arrived()

    home = world.run_dir
    world.move_run(tmp_path / "away")
    wait_for(lambda: (home, 0) not in world.daemon.entries, "the daemon to let it go", 10.0)
    world.move_run(home)
    world.log(2)

    world.settled()


# faults: 52
def test_a_segment_deleted_once_all_of_it_was_acknowledged_costs_nothing(world: World):
    world.log(0, 1)
    world.arrived()
    world.stop()

    # The cursor still points into it.
    world.rotate().unlink()
    world.log(2)

    world.settled()
