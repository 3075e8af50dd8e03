"""What is missing may be on its way, as while a directory is being copied in place: it is waited for, and not for ever."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.cursor import Sink, cursors
from syncd.daemon import Daemon
from syncd.run_sync import READ_BYTES, RunSync
from syncd.track import STANDSTILL_S, Track
from syncd.uploads import BATCH_FILES
from syncd.wandb_api import WandbApi
from tests.faults.turns import Clock, turn
from tests.logs import HandmadePiece, handmade_run
from tests.syncd.syncing import sync_while, xs
from tests.wandb_server import WandbServer, wait_for
from tests.wandb_server.server import API_KEY


@dataclass
class Uploading:
    """A run directory and its uploader, on a clock of their own."""

    server: WandbServer
    run_dir: Path
    clock: Clock = field(default_factory=Clock)
    story: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    def then(self, after_s: float, do: Callable[[], object]) -> None:
        """Let so much time pass, and do something."""
        self.story.append((after_s, do))

    def look(self) -> None:
        """Note the rows that are there, and what is said of the run."""
        (cursor,) = cursors(self.run_dir)
        self.seen.append((xs(self.server.runs()[0]), cursor.error, cursor.not_shown))

    def play(self) -> None:
        async def play() -> None:
            api = WandbApi(self.server.base_url, lambda: API_KEY)
            sink = Sink(api.base_url, None, "demo", "run")
            sync = RunSync(self.run_dir, sink, api, flush_s=0.0, clock=lambda: self.clock.now_s)
            for after_s, do in self.story:
                until_s = self.clock.now_s + after_s
                while self.clock.now_s < until_s:
                    await turn(sync, self.clock, until_s)
                do()
            sync.close()
            await api.close()

        asyncio.run(play())


def of_another_host(piece: HandmadePiece) -> None:
    """Let the piece's lock say nothing here, as that of a copy."""
    lock = piece.piece.dir / "lock"
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"host": "node7", "boot_id": "x"}))


def logged(root: Path) -> tuple[HandmadePiece, list[Path]]:
    """Return a run of 30 closed rows in three segments, and these."""
    piece = handmade_run(root)
    segments = []
    for x in range(30):
        if x in (10, 20):
            segments.append(piece.segment)
            piece.new_segment()
        piece.log(x=x, step=x, commit=True)
    of_another_host(piece)
    return piece, [*segments, piece.segment]


def half(segment: Path) -> bytes:
    data = segment.read_bytes()
    return data[: len(data) // 2]


def with_a_hole(segment: Path) -> bytes:
    """What a client of a network file system sees when a later part of a file came before an earlier one."""
    data = segment.read_bytes()
    begin, end = len(data) // 3, len(data) // 2
    return data[:begin] + b"\0" * (end - begin) + data[end:]


def said(run_dir: Path) -> str:
    return next((cursor.error or "" for cursor in cursors(run_dir)), "")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("as_it_comes", [half, with_a_hole, lambda _: b"", lambda _: None])
def test_a_segment_that_comes_after_a_later_one_costs_no_row(
    server: WandbServer, tmp_path: Path, which: int, as_it_comes: Callable[[Path], bytes | None]
):
    _, segments = logged(tmp_path / "scratch")
    shutil.copytree(tmp_path / "scratch", tmp_path / "shared")
    copy = tmp_path / "shared" / "demo" / "run" / "main-0001" / segments[which].name
    early = as_it_comes(segments[which])
    copy.unlink() if early is None else copy.write_bytes(early)

    uploading = Uploading(server, tmp_path / "shared" / "demo" / "run")
    uploading.then(STANDSTILL_S - 5, uploading.look)
    uploading.then(0, lambda: shutil.copy(segments[which], copy))
    uploading.then(30, uploading.look)
    uploading.play()

    (before, why, _), (after, nothing, lost) = uploading.seen
    assert before == list(range(len(before)))
    assert len(before) < 10 * which + 10
    assert "main-0001 are missing, and may be on their way" in why
    assert after == list(range(30))
    assert (nothing, lost) == (None, {})


def test_a_copy_that_grows_slowly_is_waited_for_as_long_as_it_grows(server: WandbServer, tmp_path: Path):
    _, (first, *_) = logged(tmp_path / "scratch")
    shutil.copytree(tmp_path / "scratch", tmp_path / "shared")
    copy = tmp_path / "shared" / "demo" / "run" / "main-0001" / first.name
    data = first.read_bytes()
    copy.write_bytes(b"")

    uploading = Uploading(server, tmp_path / "shared" / "demo" / "run")
    for part in range(1, 11):
        uploading.then(STANDSTILL_S - 5, lambda part=part: copy.write_bytes(data[: len(data) * part // 10]))
    uploading.then(30, uploading.look)
    uploading.play()

    assert uploading.seen == [(list(range(30)), None, {})]


@pytest.mark.parametrize("places", [1, 4])
def test_real_damage_in_a_run_that_goes_on_is_passed_over_after_a_minute_wherever_it_is(
    server: WandbServer, tmp_path: Path, places: int
):
    piece = handmade_run(tmp_path)
    for x in range(20):
        line = piece.log(x=x, step=x, commit=True)
        if x % 3 == 1 and x // 3 < places:
            piece.overwrite(piece.segment.stat().st_size - len(line) + 30, b"#")
    damaged = [3 * place + 1 for place in range(places)]

    uploading = Uploading(server, tmp_path / "demo" / "run")
    # It is logged all the while.
    for x in range(20, 28):
        uploading.then(STANDSTILL_S / 8 - 0.5, lambda x=x: piece.log(x=x, step=x, commit=True))
    uploading.then(0, uploading.look)
    uploading.then(15, uploading.look)
    uploading.play()

    (before, why, _), (after, _, lost) = uploading.seen
    assert before == [0]
    assert "events 2 to 2 of main-0001 are missing" in why
    assert after == [x for x in range(28) if x not in damaged]
    assert lost == {"damaged or missing in the log": places}


def test_what_is_missing_after_the_wait_for_something_else_is_waited_for_anew(tmp_path: Path):
    piece, (first, *_) = logged(tmp_path)
    first.write_bytes(half(first))
    track = Track(piece.piece.dir.parent, "events", piece.identity.log_id, STANDSTILL_S)
    track.follow("main-0001")
    for now_s in (0.0, STANDSTILL_S, STANDSTILL_S):
        track.read(READ_BYTES, False, now_s)
    lost = track.lost

    piece.new_segment(piece.seq + 5)
    piece.seq += 5
    piece.log(x=1)
    read = track.read(READ_BYTES, False, STANDSTILL_S + 1)

    assert (lost > 0, read, track.is_waiting, track.lost) == (True, [], True, lost)


def test_damage_in_a_run_that_has_stood_still_here_for_a_while_is_not_waited_for(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    for x in range(5):
        line = piece.log(x=x, step=x)
        if x == 2:
            piece.overwrite(piece.segment.stat().st_size - len(line) + 30, b"#")
    piece.log("exit", exitcode=0)
    piece.die()
    piece.stand_still()

    uploading = Uploading(server, tmp_path / "demo" / "run")
    uploading.then(5, uploading.look)
    uploading.play()

    assert uploading.seen == [([0, 1, 3, 4], None, {"damaged or missing in the log": 1})]


def test_what_is_printed_waits_for_its_own_gap_and_the_run_is_not_over_before(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path / "scratch")
    printed = HandmadePiece(piece.identity, piece.piece, "console")
    for number in range(4):
        printed.new_segment()
        printed.log("console", text=f"line {number}\n", source="stdout")
    piece.log("exit", exitcode=0)
    of_another_host(piece)
    shutil.copytree(tmp_path / "scratch", tmp_path / "shared")
    name = "console-000000000002.jsonl"
    copy = tmp_path / "shared" / "demo" / "run" / "main-0001" / name
    copy.unlink()

    def play(_: Daemon) -> None:
        wait_for(lambda: "console 2 to 2" in said(copy.parent.parent), "the wait for it")
        assert not server.runs()[0].complete
        shutil.copy(piece.piece.dir / name, copy)
        wait_for(lambda: server.runs()[0].complete, "the end")

    sync_while(server, tmp_path / "shared", play, standstill_s=STANDSTILL_S)

    assert [line[-6:] for line in server.runs()[0].console_lines] == [f"line {number}" for number in range(4)]


# -- files ---------------------------------------------------------------------------------------------------------


def logged_with_files(root: Path) -> tuple[Path, list[Path]]:
    """Return a run of two rows and two files that is over, as a copy from another host; and its files."""
    piece = handmade_run(root)
    piece.log(x=0, step=0)
    files = HandmadePiece(piece.identity, piece.piece, "files")
    run_dir = piece.piece.dir.parent
    (run_dir / "files").mkdir()
    stored = []
    for name in ("early.txt", "late.txt"):
        content = name.encode() * 1000
        stored.append(run_dir / "files" / hashlib.sha256(content).hexdigest())
        stored[-1].write_bytes(content)
        files.log("file", path=name, sha256=stored[-1].name, size=len(content))
    piece.log("exit", exitcode=0)
    of_another_host(piece)
    return run_dir, stored


@pytest.mark.parametrize("early", [half, lambda _: b"", lambda _: None])
def test_a_file_that_comes_after_its_record_is_asked_for_again_and_the_run_is_not_over_before(
    server: WandbServer, tmp_path: Path, early: Callable[[Path], bytes | None]
):
    run_dir, (_, late) = logged_with_files(tmp_path)
    whole, so_far = late.read_bytes(), early(late)
    late.unlink() if so_far is None else late.write_bytes(so_far)

    def play(_: Daemon) -> None:
        wait_for(lambda: f"{late.name[:12]}… is not all here" in said(run_dir), "the wait for it")
        assert not server.runs()[0].complete
        late.write_bytes(whole)
        wait_for(lambda: server.runs()[0].complete, "the end")

    sync_while(server, tmp_path, play, standstill_s=STANDSTILL_S)

    assert server.runs()[0].files["late.txt"] == whole
    assert [cursor.not_shown for cursor in cursors(run_dir)] == [{}]


def test_a_file_that_does_not_come_is_given_up_after_a_minute(server: WandbServer, tmp_path: Path):
    run_dir, (_, late) = logged_with_files(tmp_path)
    late.unlink()
    later_s = 0.0

    def play(_: Daemon) -> None:
        nonlocal later_s
        wait_for(lambda: "is not all here" in said(run_dir), "the wait for it")
        later_s = STANDSTILL_S - 5
        looked_at = time.monotonic() + 0.5
        wait_for(lambda: time.monotonic() > looked_at, "some more looks")
        assert not server.runs()[0].complete
        later_s = 3 * STANDSTILL_S
        wait_for(lambda: server.runs()[0].complete, "the end")

    sync_while(server, tmp_path, play, standstill_s=STANDSTILL_S, clock=lambda: time.monotonic() + later_s)

    assert "early.txt" in server.runs()[0].files
    assert [cursor.not_shown for cursor in cursors(run_dir)] == [{"file missing here": 1}]


def test_files_that_do_not_come_cost_one_wait_however_many_they_are(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    files = HandmadePiece(piece.identity, piece.piece, "files")
    for number in range(3 * BATCH_FILES):
        files.log("file", path=f"{number}.txt", sha256=f"{number:064x}", size=1)
    piece.log("exit", exitcode=0)
    of_another_host(piece)
    run_dir = piece.piece.dir.parent
    later_s = 0.0

    def play(_: Daemon) -> None:
        nonlocal later_s
        wait_for(lambda: "is not all here" in said(run_dir), "the wait for one")
        later_s = STANDSTILL_S
        wait_for(lambda: server.runs()[0].complete, "the end")

    sync_while(server, tmp_path, play, standstill_s=STANDSTILL_S, clock=lambda: time.monotonic() + later_s)

    assert [cursor.not_shown for cursor in cursors(run_dir)] == [{"file missing here": 3 * BATCH_FILES}]


@pytest.mark.parametrize("kind", ["file", "artifact"])
def test_what_is_being_copied_on_this_host_is_waited_for_as_well(
    server: WandbServer, tmp_path: Path, kind: str
):
    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    (tmp_path / "f.txt").write_text("hello")
    with eventlog.init(project="demo", id="run", root=scratch, quiet=True) as run:
        if kind == "file":
            run.save(str(tmp_path / "f.txt"), base_path=str(tmp_path))
        else:
            artifact = eventlog.Artifact("weights", "model")
            artifact.add_file(str(tmp_path / "f.txt"))
            run.log_artifact(artifact)
    run_dir = shared / "demo" / "run"
    shutil.copytree(scratch / "demo" / "run", run_dir, ignore=shutil.ignore_patterns("files"))

    def play(_: Daemon) -> None:
        wait_for(lambda: "is not all here" in said(run_dir), "the wait for it")
        shutil.copytree(scratch / "demo" / "run" / "files", run_dir / "files")
        wait_for(lambda: server.runs()[0].complete, "the end")

    sync_while(server, shared, play, standstill_s=STANDSTILL_S)

    assert [cursor.not_shown for cursor in cursors(run_dir)] == [{}]
