"""Which log a file of W&B's is written into, when that is gone on with, and when it becomes another one."""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import orjson
import psutil
import pytest

from eventlog import cursor as cursors
from eventlog.cursor import Sink
from eventlog.imported import header_of, segments_of
from eventlog.piece import RUN_FILE, RunIdentity, primaries, this_host
from eventlog.reader import read
from syncd import wandb_files, wandb_runs, wandb_sources
from syncd.sync import Outcome, Watcher, Wishes, _mark, _take_all, plan
from syncd.wandb_files import STALE_S, WandbFile, Writers, being_written, head
from syncd.wandb_records import messages
from syncd.wandb_runs import Taken
from syncd.wandb_sources import SOURCE_FILE, Source, is_being_uploaded
from tests.locks import no_locks
from tests.wandb_sync.framing import framed, logged

SINK = Sink("https://api.wandb.ai", None, "p", "r")


@pytest.fixture
def wandb_dir(tmp_path: Path) -> Path:
    (tmp_path / "wandb").mkdir()
    return tmp_path / "wandb"


def laid(wandb_dir: Path, content: bytes, name: str = "offline-run-20260102_030405-r") -> WandbFile:
    (wandb_dir / name).mkdir(exist_ok=True)
    path = wandb_dir / name / f"run-{name.rsplit('-', 1)[1]}.wandb"
    path.write_bytes(content)
    return WandbFile(path)


def take(file: WandbFile, writers: Writers = Writers(), run_id: str | None = None) -> Taken:  # noqa: B008
    taken = wandb_runs.take(file, head(file), writers, run_id)
    taken.close()
    return taken


def take_all(files: list[WandbFile], **wished: object) -> tuple[list[Taken], Outcome]:
    outcome = Outcome()
    found = list(_take_all(files, Wishes(**wished), Watcher(), outcome))  # type: ignore[arg-type]
    for taken in found:
        taken.close()
    return found, outcome


def alive(file: WandbFile) -> Writers:
    return Writers(frozenset({file.path}))


def numbers(run_dir: Path | None) -> list[object]:
    assert run_dir is not None
    return [record.data["i"] for record in read(run_dir) if record.kind == "metrics"]


def tokens(run_dir: Path | None) -> list[str]:
    """Return the token of each piece; all its segments have the same."""
    assert run_dir is not None
    found = []
    for name in primaries(run_dir):
        headers = [header_of(path) for path in segments_of(run_dir / name)]
        (token,) = {header.token for header in headers if header is not None}
        found.append(token)
    return found


# -- the log goes on, or another begins ------------------------------------------------------------------------


def test_a_file_that_grows_under_its_writers_hands_is_one_log(wandb_dir: Path):
    file = laid(wandb_dir, logged(3, is_over=False))
    before = tokens(take(file, alive(file)).run_dir)
    laid(wandb_dir, logged(5, is_over=False))
    take(file, alive(file))
    laid(wandb_dir, logged(8))

    taken = take(file)

    assert numbers(taken.run_dir) == list(range(8))
    assert tokens(taken.run_dir) == before


def test_a_file_that_is_taken_again_is_one_log(wandb_dir: Path):
    file = laid(wandb_dir, logged(3))
    first = take(file)
    before = tokens(first.run_dir)

    again = take(file)

    assert tokens(again.run_dir) == before
    assert again.as_json() == first.as_json()


def grown(file: WandbFile) -> None:
    file.path.write_bytes(logged(9))


def repaired(file: WandbFile) -> None:
    changed = bytearray(file.path.read_bytes())
    changed[-20] ^= 1
    file.path.write_bytes(changed)


def of_another_version(file: WandbFile) -> None:
    (source,) = file.shadow.rglob(SOURCE_FILE)
    content = orjson.loads(source.read_bytes())
    source.write_bytes(orjson.dumps({**content, "translation": -1}))


def test_a_log_that_another_version_began_of_a_living_run_is_not_gone_on_with(wandb_dir: Path):
    file = laid(wandb_dir, logged(5, is_over=False))
    before = tokens(take(file, alive(file)).run_dir)
    of_another_version(file)

    taken = take(file, alive(file))

    assert tokens(taken.run_dir) != before
    assert numbers(taken.run_dir) == list(range(5))


@pytest.mark.parametrize("became", [grown, repaired, of_another_version])
def test_what_is_not_true_any_more_is_another_log_and_what_was_agreed_about_it_stays(
    wandb_dir: Path, became: Callable[[WandbFile], None]
):
    file = laid(wandb_dir, logged(5, is_over=False))
    run_dir = take(file).run_dir
    assert run_dir is not None
    before = tokens(run_dir)
    cursors.upload_as(run_dir, "r-new")
    cursors.save(run_dir, cursors.Cursor(SINK), 1)
    became(file)

    taken = take(file)

    assert tokens(run_dir) != before
    assert numbers(run_dir) == list(range(taken.rows))
    assert cursors.run_id_there(run_dir) == "r-new"
    assert cursors.load(run_dir, SINK) is not None


def test_a_repaired_file_of_the_same_size_is_looked_at_again(wandb_dir: Path):
    whole = logged(5)
    file = laid(wandb_dir, whole[:-20] + bytes(10) + whole[-10:])
    assert take(file).damage

    file.path.write_bytes(whole)

    assert not take(file).damage
    assert numbers(take(file).run_dir) == list(range(5))


@pytest.mark.parametrize("is_as_before", [True, False])
def test_a_file_that_was_only_touched_is_known_by_its_content(wandb_dir: Path, is_as_before: bool):
    file = laid(wandb_dir, logged(5, is_over=False))
    before = tokens(take(file).run_dir)
    if not is_as_before:
        repaired(file)
    os.utime(file.path, (1, 1))

    taken = take(file)

    assert (tokens(taken.run_dir) == before) is is_as_before
    # And by its times from then on.
    assert any(source.is_of(file.path.stat()) for source in sources(file))


def sources(file: WandbFile) -> list[Source]:
    return [source for _, source in wandb_sources.remembered(file.shadow)[file.source]]


def test_what_a_killed_translation_wrote_of_an_end_that_was_none_is_not_gone_on_with(wandb_dir: Path):
    file = laid(wandb_dir, logged(5, is_over=False))
    run_dir = take(file).run_dir
    assert run_dir is not None
    # As it is when the process is killed after the end of the log and before the word about it.
    (source,) = sources(file)
    replace(source, found=None, sha256=None).save(run_dir / "main-0001")
    before = tokens(run_dir)
    # Killed and started again it goes on...
    take(file)
    assert tokens(run_dir) == before

    # ...unless more came meanwhile: where the end was, other records are now.
    replace(source, found=None, sha256=None).save(run_dir / "main-0001")
    grown(file)
    take(file)

    assert tokens(run_dir) != before
    assert numbers(run_dir) == list(range(9))
    assert [record.kind for record in read(run_dir)][-1] == "exit"


def test_what_a_killed_translation_passed_over_may_be_repaired(wandb_dir: Path):
    whole = logged(20_000)
    file = laid(wandb_dir, whole[:100_000] + bytes(100) + whole[100_100:])
    portions = []

    def killed(size_bytes: int) -> None:
        portions.append(size_bytes)
        if len(portions) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wandb_runs.take(file, head(file), Writers(), progress=killed)
    # Behind the hole much was written already.
    (segment,) = file.shadow.rglob("events-*")
    assert segment.stat().st_size > 500_000

    file.path.write_bytes(whole)
    taken = take(file)

    assert taken.is_whole
    assert numbers(taken.run_dir) == list(range(20_000))


def test_a_log_does_not_become_another_while_somebody_uploads_it(wandb_dir: Path):
    file = laid(wandb_dir, logged(5))
    run_dir = take(file).run_dir
    assert run_dir is not None
    before = tokens(run_dir)
    held = cursors.Lease.take(run_dir, SINK, now_us=1)
    assert held is not None
    grown(file)

    assert list(take(file).not_taken) == ["another syncd is uploading it as it was"]
    assert tokens(run_dir) == before
    assert numbers(run_dir) == list(range(5))

    held.release()
    assert take(file).is_whole
    assert numbers(run_dir) == list(range(9))


def test_without_locks_a_log_is_left_alone_by_the_word_of_who_uploads_it(
    wandb_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    file = laid(wandb_dir, logged(5))
    run_dir = take(file).run_dir
    assert run_dir is not None
    monkeypatch.setattr(fcntl, "flock", no_locks())

    held = cursors.Lease.take(run_dir, SINK, time.time_ns() // 1000)
    assert held is not None
    assert is_being_uploaded(run_dir)
    held.release()
    assert not is_being_uploaded(run_dir)


# -- whose piece it is -----------------------------------------------------------------------------------------


def test_a_renamed_directory_is_the_piece_that_it_was(wandb_dir: Path):
    file = laid(wandb_dir, logged(5))
    run_dir = take(file).run_dir
    renamed = file.directory.rename(wandb_dir / "offline-run-20260102_030405-r-baseline")

    taken = take(WandbFile(renamed / file.path.name))

    assert taken.run_dir == run_dir
    assert numbers(run_dir) == list(range(5))


@pytest.mark.parametrize("copied_bytes", [10_000, 200])
def test_of_a_run_and_its_copy_the_longer_is_taken_and_the_other_named(wandb_dir: Path, copied_bytes: int):
    file = laid(wandb_dir, logged(5))
    copy = wandb_dir / f"{file.directory.name}.bak"
    shutil.copytree(file.directory, copy)
    os.truncate(copy / file.path.name, min(copied_bytes, file.path.stat().st_size))

    found, outcome = take_all(wandb_files.files_at(wandb_dir)[0])

    assert [taken.file for taken in found] == [file]
    assert numbers(found[0].run_dir) == list(range(5))
    assert outcome.remarks == [f"{copy.name}: a copy of {file.name}; only the latter is taken."]
    assert outcome.errors == []
    # It is as good as uploaded, and is not asked for again.
    _mark(file, outcome)
    assert plan([str(wandb_dir)], [], Wishes()).files == []


def test_a_copy_with_other_bytes_in_it_is_not_marked(wandb_dir: Path):
    file = laid(wandb_dir, logged(5))
    copy = WandbFile(
        shutil.copytree(file.directory, wandb_dir / f"{file.directory.name}.bak") / file.path.name
    )
    repaired(copy)
    _, outcome = take_all([file, copy])

    _mark(file, outcome)

    assert file.marker.exists()
    assert not copy.marker.exists()


def test_a_copy_that_is_taken_alone_is_the_same_piece(wandb_dir: Path):
    file = laid(wandb_dir, logged(5))
    before = tokens(take(file).run_dir)
    copy = shutil.copytree(file.directory, wandb_dir / f"{file.directory.name}.bak")

    taken = take(WandbFile(copy / file.path.name))

    assert tokens(taken.run_dir) == before
    assert numbers(taken.run_dir) == list(range(5))


def test_two_pieces_of_a_run_are_two_whatever_is_lost_of_what_we_remembered(wandb_dir: Path):
    pieces = [
        laid(wandb_dir, logged(3), "offline-run-20260102_030405-r"),
        laid(wandb_dir, logged(4, began_s=1_700_000_900), "offline-run-20260102_040506-r"),
    ]
    run_dir, _ = (take(file).run_dir for file in pieces)
    assert run_dir is not None
    (run_dir / "main-0001" / SOURCE_FILE).write_bytes(b"")

    for file in reversed(pieces):
        take(file)

    assert primaries(run_dir) == ["main-0001", "main-0002"]
    assert numbers(run_dir) == [0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("name", ["as it was", "renamed"])
def test_what_an_earlier_version_remembered_is_understood(wandb_dir: Path, name: str):
    file = laid(wandb_dir, logged(3))
    run_dir = take(file).run_dir
    assert run_dir is not None
    before = tokens(run_dir)
    path = run_dir / "main-0001" / SOURCE_FILE
    new = orjson.loads(path.read_bytes())
    size, _ = new["ended_at"]
    old = {"source": new["source"], "translation": new["translation"], "ended_at": size, **new["found"]}
    path.write_bytes(orjson.dumps(old))
    if name == "renamed":
        file = WandbFile(file.directory.rename(wandb_dir / "offline-run-1-r") / file.path.name)

    taken = take(file)

    assert primaries(run_dir) == ["main-0001"]
    assert tokens(run_dir) == before
    assert (taken.records, taken.rows) == (6, 3)
    # Written anew it is as ours.
    grown(file)
    take(file)
    assert numbers(run_dir) == list(range(9))


def test_another_run_of_the_same_names_is_another_piece(wandb_dir: Path):
    file = laid(wandb_dir, logged(3))
    run_dir = take(file).run_dir
    laid(wandb_dir, logged(4, began_s=1_700_000_900))

    take(file)

    assert numbers(run_dir) == [0, 1, 2, 0, 1, 2, 3]


def test_a_beginning_that_was_damaged_and_then_repaired_is_the_same_piece(wandb_dir: Path):
    whole = logged(3)
    file = laid(wandb_dir, whole)
    run_dir = take(file).run_dir
    for content in (whole[:30] + bytes(10) + whole[40:], whole):
        file.path.write_bytes(content)
        found, outcome = take_all([file])
        assert [taken.run_dir for taken in found] == [run_dir]
        assert outcome.errors == []

    assert run_dir is not None
    assert primaries(run_dir) == ["main-0001"]
    assert numbers(run_dir) == [0, 1, 2]


def test_runs_of_one_id_and_of_two_entities_have_a_log_each(wandb_dir: Path):
    ours = laid(wandb_dir, logged(3, entity="ent"), "offline-run-1-r")
    theirs = laid(wandb_dir, logged(4, entity="team"), "offline-run-2-r")

    for _ in range(2):
        run_dirs = [take(file).run_dir for file in (ours, theirs)]

    assert [RunIdentity.load(run_dir).entity for run_dir in run_dirs if run_dir] == ["ent", "team"]
    assert [len(numbers(run_dir)) for run_dir in run_dirs] == [3, 4]


def test_a_damaged_run_file_is_made_anew(wandb_dir: Path):
    file = laid(wandb_dir, logged(3))
    run_dir = take(file).run_dir
    assert run_dir is not None
    identity = RunIdentity.load(run_dir)
    (run_dir / RUN_FILE).write_bytes(b"{")

    take(file)

    assert replace(RunIdentity.load(run_dir), created_us=identity.created_us) == identity
    assert numbers(run_dir) == [0, 1, 2]


def test_a_damaged_run_file_of_another_entity_gives_its_directory_to_nobody_else(wandb_dir: Path):
    ours = laid(wandb_dir, logged(3, entity="ent"), "offline-run-1-r")
    run_dir = take(ours).run_dir
    assert run_dir is not None
    (run_dir / RUN_FILE).write_bytes(b"{")

    theirs = take(laid(wandb_dir, logged(4, entity="team"), "offline-run-2-r"))

    assert theirs.run_dir != run_dir
    assert take(ours).run_dir == run_dir
    assert [len(numbers(d)) for d in (run_dir, theirs.run_dir)] == [3, 4]


# -- whose run it is -------------------------------------------------------------------------------------------


def test_a_run_is_known_however_large_its_config_is(wandb_dir: Path):
    file = laid(wandb_dir, logged(1, project="mine", config=f'"{"x" * 3_000_000}"'))

    assert head(file).facts.project == "mine"


def test_behind_damage_the_run_is_not_looked_for_for_ever(wandb_dir: Path):
    file = laid(wandb_dir, logged(1)[:7])
    # A terabyte of zeros, none of which is on the disk: to read them all takes hours.
    os.truncate(file.path, 1 << 40)

    assert head(file).digest is None


def test_where_the_project_is_not_known_nothing_is_taken_and_that_is_said(wandb_dir: Path):
    whole = logged(2_000)
    file = laid(wandb_dir, whole[:30] + bytes(10) + whole[40:])

    (taken,), outcome = take_all([file])

    assert taken.damage
    assert taken.run_dir is None
    assert len(outcome.errors) == 1
    assert "--project" in outcome.errors[0]
    assert not file.shadow.exists()

    (taken,), outcome = take_all([file], project="p")
    assert outcome.errors == []
    assert taken.rows > 1_000


@pytest.mark.parametrize("size", [0, 3, 7, 12, 25])
def test_a_file_that_holds_no_run_yet_is_nothing_to_complain_about(wandb_dir: Path, size: int):
    file = laid(wandb_dir, logged(3)[:size])

    (taken,), outcome = take_all([file])

    assert taken.is_empty
    assert taken.is_whole
    assert outcome.errors == []


# -- whether it still grows ------------------------------------------------------------------------------------


def test_a_run_whose_writer_may_be_out_of_sight_lives_until_nothing_came_for_long(wandb_dir: Path):
    file = laid(wandb_dir, logged(3, is_over=False, host=this_host()))
    hidden = Writers(hidden=frozenset({file.path.stat().st_uid}))
    assert not take(file).is_live
    assert take(file, hidden).is_live

    then_s = time.time() - STALE_S - 60
    os.utime(file.path, (then_s, then_s))

    assert not take(file, hidden).is_live


def test_a_run_that_says_that_it_is_over_is_over_wherever_its_writer_is(wandb_dir: Path):
    file = laid(wandb_dir, logged(3, host="compute7"))

    assert not take(file).is_live


def test_another_users_file_is_asked_about_by_root_alone(wandb_dir: Path):
    file = laid(wandb_dir, logged(3, is_over=False))
    is_sure = not Writers().may_have(file, "")
    assert is_sure
    if os.geteuid() == 0:
        os.chown(file.path, 12_345, -1)
        assert not Writers().may_have(file, "")
        assert Writers(hidden=frozenset({12_345})).may_have(file, "")


class Shy:
    """A process of user 7 that does not let us look."""

    def __init__(self, *command: str) -> None:
        self.command = list(command)

    def open_files(self) -> list[object]:
        raise psutil.AccessDenied

    def name(self) -> str:
        return self.command[0]

    def cmdline(self) -> list[str]:
        return self.command

    def uids(self) -> SimpleNamespace:
        return SimpleNamespace(real=7, effective=7, saved=7)


def test_a_process_that_may_be_wandbs_and_does_not_let_us_look_is_noticed():
    def hidden(*command: str) -> frozenset[int]:
        return being_written([Shy(*command)]).hidden  # type: ignore[list-item]

    assert hidden("wandb-core", "--port-filename=x") == {7}
    assert hidden("torchrun", "/usr/bin/python3", "/usr/bin/torchrun") == {7}
    # As there is one in each session.
    assert hidden("ssh-agent") == set()


def test_an_online_run_is_left_to_a_writer_that_may_be_out_of_sight(wandb_dir: Path):
    content = logged(3, is_over=False, host="compute7")
    file = laid(wandb_dir, content, "run-20260102_030405-r")

    found, outcome = take_all([file])

    assert found == []
    assert "cannot be seen from here" in outcome.errors[0]

    then_s = time.time() - STALE_S - 60
    os.utime(file.path, (then_s, then_s))
    found, outcome = take_all([file])
    assert (len(found), outcome.errors) == (1, [])


# -- what is marked --------------------------------------------------------------------------------------------


def test_a_marker_counts_only_for_what_was_there_when_it_was_written(wandb_dir: Path):
    file = laid(wandb_dir, logged(3, is_over=False))
    take(file)
    _mark(file, Outcome())
    assert plan([str(wandb_dir)], [], Wishes()).files == []

    grown(file)
    # Its clock may be behind the one that wrote the marker.
    os.utime(file.path, (1, 1))

    assert plan([str(wandb_dir)], [], Wishes()).files == [file]


def test_a_marker_of_wandbs_counts_for_a_file_that_is_older_than_it(wandb_dir: Path):
    file = laid(wandb_dir, logged(3))
    file.marker.touch()
    written_s = file.path.stat().st_mtime

    os.utime(file.marker, (written_s + 5, written_s + 5))
    assert plan([str(wandb_dir)], [], Wishes()).files == []

    os.utime(file.marker, (written_s - 5, written_s - 5))
    assert plan([str(wandb_dir)], [], Wishes()).files == [file]


def test_where_no_marker_can_be_written_that_is_said_and_no_more(wandb_dir: Path):
    file = laid(wandb_dir, logged(3))
    file.marker.symlink_to(wandb_dir / "nowhere" / "else")
    outcome = Outcome()

    _mark(file, outcome)

    assert "could not be marked" in outcome.remarks[0]
    assert outcome.is_good


# -- what stops nobody -----------------------------------------------------------------------------------------


def test_a_file_of_the_run_that_cannot_be_read_is_named_and_the_rest_is_taken(wandb_dir: Path):
    record = messages().Record(num=9, files={"files": [{"path": "media/a.png"}, {"path": "media/b.png"}]})
    content = logged(3, is_over=False)
    file = laid(wandb_dir, content + framed([record.SerializeToString()])[7:])
    media = file.directory / "files" / "media"
    media.mkdir(parents=True)
    (media / "a.png").symlink_to("a.png")
    (media / "b.png").write_bytes(b"b")

    taken = take(file)

    assert list(taken.not_taken) == [
        "file media/a.png, which cannot be read (Too many levels of symbolic links)"
    ]
    assert taken.run_dir is not None
    assert [record.data["path"] for record in read(taken.run_dir, "files")] == ["media/b.png"]
    assert numbers(taken.run_dir) == [0, 1, 2]


@pytest.mark.parametrize("how", ["cut", "no gzip", "other lines", "gone"])
def test_a_list_of_files_that_cannot_be_read_costs_its_artifact_alone(wandb_dir: Path, how: str):
    listed = wandb_dir / "list.gz"
    packed = gzip.compress(b'{"path": "a", "digest": "x"}\n' * 1000)
    content = {"cut": packed[:-20], "no gzip": b"?" * 50, "other lines": gzip.compress(b'{"a": 1}\n')}
    if how in content:
        listed.write_bytes(content[how])
    record = messages().Record(num=9, artifact={"name": "a", "client_id": "c", "manifest": {}})
    record.artifact.manifest.manifest_file_path = str(listed)
    file = laid(wandb_dir, logged(3, is_over=False) + framed([record.SerializeToString()])[7:])

    taken = take(file)

    assert len(taken.not_taken) == 1
    assert next(iter(taken.not_taken)).startswith("artifact a, whose list of files")
    assert numbers(taken.run_dir) == [0, 1, 2]


@pytest.mark.parametrize("name", [b"offline-run-\xff-r", b"offline-run-1\n[red]-r"])
def test_a_name_that_is_no_text_is_spelt_out(wandb_dir: Path, name: bytes):
    laid(wandb_dir, logged(3), os.fsdecode(name))

    for _ in range(2):
        (taken,), outcome = take_all(wandb_files.files_at(wandb_dir)[0])
        assert outcome.errors == []
        taken.file.name.encode()

    assert primaries(taken.run_dir or Path()) == ["main-0001"]
    assert numbers(taken.run_dir) == [0, 1, 2]


@pytest.mark.parametrize("what", ["a file in place of its log", "logs of others in place of its own"])
def test_what_is_wrong_with_one_run_stops_no_other(wandb_dir: Path, what: str):
    broken = laid(wandb_dir, logged(3, run_id="broken"), "offline-run-1-broken")
    good = laid(wandb_dir, logged(3, run_id="good"), "offline-run-2-good")
    run_dir, identity = wandb_sources.log_of(broken, head(broken).facts)
    if what.startswith("a file"):
        shutil.rmtree(run_dir)
        run_dir.touch()
    else:
        (run_dir / RUN_FILE).unlink()
        other = replace(identity, log_id="0" * 32)
        for place in (run_dir, run_dir.with_name(f"{run_dir.name}-{identity.log_id[:8]}")):
            other.publish(place)

    found, outcome = take_all([broken, good])

    assert [taken.file for taken in found] == [good]
    assert len(outcome.errors) == 1
    assert str(broken.directory) in outcome.errors[0]


def test_where_nothing_may_be_written_beside_it_the_log_is_kept_with_our_own_state(
    wandb_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TIDELOG_STATE_DIR", str(tmp_path / "state"))
    # Root may write everywhere; but no directory is made below a file.
    (wandb_dir / ".tidelog").touch(0o600)
    file = laid(wandb_dir, logged(3))

    run_dir = take(file).run_dir

    assert run_dir is not None
    assert run_dir.is_relative_to(tmp_path / "state")
    assert take(file).run_dir == run_dir
    assert numbers(run_dir) == [0, 1, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_run_that_may_not_be_looked_into_is_named_and_the_others_are_meant(wandb_dir: Path):
    closed = laid(wandb_dir, logged(3), "offline-run-1-closed")
    good = laid(wandb_dir, logged(3), "offline-run-2-r")
    (wandb_dir / "lost+found").mkdir(mode=0)
    closed.directory.chmod(0)
    try:
        found = plan([str(wandb_dir)], [], Wishes())
    finally:
        closed.directory.chmod(0o700)

    assert found.files == [good]
    assert found.errors == [f"{closed.directory}: it may not be looked into."]
