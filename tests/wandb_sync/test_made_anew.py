"""Files that grow, are repaired, damaged, or go back: what is on the server is gone on from, or left alone and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventlog.cursor import cursors
from tests.contract.clients import World, world
from tests.wandb_sync.logged import ROWS, dotwandb, log_offline, numbers, syncd, synced, wandb_sync

WRITTEN = 2000
PART = """
run = wandb.init(project="p", id="r", resume="allow")
for i in range(%d, %d):
    run.log({"i": i, "text": "x" * 300})
run.finish()
"""
WITH_ALERTS = """
run = wandb.init(project="p", id="r")
for i in range(400):
    run.log({"i": i, "text": "x" * 300})
    if i in (20, 350):
        run.alert(f"alert {i}", "text")
run.finish()
"""
GOES_BACK = [
    "run = wandb.init(project='p', id='r')\nfor i in range(5): run.log({'i': i})\nrun.finish()\n",
    "run = wandb.init(project='p', resume_from='r?_step=2')\nfor i in range(2): run.log({'i': 100 + i})\nrun.finish()\n",
]


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_offline(tmp_path_factory.mktemp("one"), [ROWS % WRITTEN])


def stopped(there: World, *arguments: str) -> str:
    """Run a `syncd sync` that does not get on; return what it says."""
    done = syncd(there, "sync", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_file_that_was_damaged_and_is_whole_now_doubles_no_row_and_loses_none_without_a_word(
    one_file: Path, tmp_path: Path
):
    with world(tmp_path, "there", one_file) as there:
        path = dotwandb(there)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[100_000:133_000] = b"\xff" * 33_000
        path.write_bytes(damaged[: len(whole) * 2 // 3])
        stopped(there, "wandb")
        begun = numbers(there)
        assert len(set(begun)) == len(begun) < begun[-1]

        path.write_bytes(whole)
        said = stopped(there, "wandb")

        assert "they are not the beginning of this run" in said
        assert numbers(there) == begun
        assert list(there.directory.glob("wandb/*/*.synced")) == []

        synced(there, "wandb", "--force", "new-id")
        (other,) = [run for run in there.server.runs() if run.run_id != "r"]
        assert [row["i"] for row in other.history] == list(range(WRITTEN))


@pytest.mark.slow
def test_the_first_of_two_files_that_grows_doubles_no_row_and_loses_none_without_a_word(tmp_path: Path):
    here = log_offline(tmp_path, [PART % (0, 300), PART % (300, 400)])
    with world(tmp_path, "there", here) as there:
        first = sorted(there.directory.glob("wandb/offline-run-*/*.wandb"))[0]
        whole = first.read_bytes()
        first.write_bytes(whole[: len(whole) // 2])
        synced(there, "wandb")
        begun = numbers(there)

        first.write_bytes(whole)
        said = stopped(there, "wandb", "--include-synced")

        assert "--force append" in said
        assert numbers(there) == begun

        synced(there, "wandb", "--include-synced", "--force", "append")
        assert numbers(there) == [*begun, *range(400)]
        assert there.server.violations == []


@pytest.mark.slow
def test_alerts_of_the_rest_of_a_file_are_sent(tmp_path: Path):
    here = log_offline(tmp_path, [WITH_ALERTS])
    with world(tmp_path, "there", here) as there:
        path = dotwandb(there)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        synced(there, "wandb")
        assert [alert["title"] for alert in there.server.alerts] == ["alert 20"]

        path.write_bytes(whole)
        synced(there, "wandb", "--include-synced")

        assert [alert["title"] for alert in there.server.alerts] == ["alert 20", "alert 350"]
        assert numbers(there) == list(range(400))


@pytest.mark.slow
def test_a_damaged_beginning_of_a_run_that_wandb_has_sends_no_row_again(one_file: Path, tmp_path: Path):
    with world(tmp_path, "there", one_file) as there:
        wandb_sync(there, "wandb")
        with open(dotwandb(there), "r+b") as file:
            file.seek(7)
            file.write(bytes(900))

        stopped(there, "wandb", "--include-synced", "-p", "p")

        assert numbers(there) == list(range(WRITTEN))
        assert there.server.violations == []


@pytest.mark.slow
def test_a_run_that_was_deleted_there_is_not_called_synced(one_file: Path, tmp_path: Path):
    with world(tmp_path, "there", one_file) as there:
        synced(there, "wandb")
        there.server.delete_run("ent", "p", "r")

        said = stopped(there, "wandb", "--include-synced")

        assert "W&B does not have this run any more" in said
        assert "--force new-id" in said
        assert there.server.runs() == []

        synced(there, "wandb", "--include-synced", "--force", "new-id")
        (other,) = there.server.runs()
        assert [row["i"] for row in other.history] == list(range(WRITTEN))


@pytest.mark.slow
def test_what_is_advised_can_be_typed_as_it_stands(one_file: Path, tmp_path: Path):
    with world(tmp_path, "there", one_file) as there:
        there.server.faults.add("status", kind="file_stream", status=403, run="r")
        syncd(there, "sync", "wandb")
        there.server.faults.clear()
        (run_dir,) = there.directory.glob("wandb/.tidelog/*/*")
        (cursor,) = cursors(run_dir)
        assert f"`syncd sync {run_dir}` tries again" in (cursor.error or "")

        synced(there, str(run_dir))

        assert numbers(there) == list(range(WRITTEN))


@pytest.mark.slow
def test_a_run_that_goes_back_to_an_earlier_step_has_nothing_appended(tmp_path: Path):
    here = log_offline(tmp_path, GOES_BACK)
    with world(tmp_path, "there", here) as there:
        said = stopped(there, "wandb")

        assert "it goes back to step 2" in said
        assert numbers(there) == [0, 1, 2, 3, 4]
        assert list(there.directory.glob("wandb/*/*.synced")) == []
