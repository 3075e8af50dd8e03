"""`syncd sync --watch`, asked by wandb-osh's own hook."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.clients import World, start_by_the_sdk, world
from tests.wandb_server.waiting import wait_for
from tests.wandb_sync.logged import numbers, syncd

# A hook as a user has it; rows are padded, so that they are in the file when it triggers.
TRAINER = """
import sys
from wandb_osh.hooks import TriggerWandbSyncHook
run = wandb.init(project="p", id="r")
trigger = TriggerWandbSyncHook(communication_dir=%r)
for part in range(3):
    for i in range(100 * part, 100 * part + 100):
        run.log({"i": i, "padding": "x" * 4000})
    trigger()
    sys.stdin.readline()
directory = run.dir
run.finish()
trigger(directory.removesuffix("/files"))
"""


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "there", WANDB_MODE="offline") as one:
        yield one


@pytest.fixture
def triggers(there: World) -> Path:
    return there.home / "triggers"


@pytest.fixture
def watching(there: World, triggers: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "syncd", "sync", "--watch", str(triggers), "--patience", "1"],
        env=there.env,
        cwd=there.home,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def arrived(there: World) -> int:
    return len(numbers(there)) if there.server.runs() else 0


@pytest.mark.slow
def test_a_run_arrives_as_its_hook_asks_for_it(there: World, triggers: Path, watching: subprocess.Popen[str]):
    trainer = start_by_the_sdk(there, TRAINER % str(triggers))
    assert trainer.stdin is not None
    for part in range(3):
        # What W&B's other process has not written yet comes with the next trigger.
        wait_for(lambda: arrived(there) > 100 * part + 50, "the rows that were asked for")  # noqa: B023
        wait_for(lambda: not list(triggers.glob("*.command")), "the trigger to be removed")
        assert not there.run.complete
        trainer.stdin.write("\n")
        trainer.stdin.flush()
    said, complained = trainer.communicate()
    assert trainer.returncode == 0, said + complained

    wait_for(lambda: there.run.complete, "the end")
    wait_for(lambda: not list(triggers.glob("*.command")), "the trigger to be removed")
    assert numbers(there) == list(range(300))
    assert there.server.violations == []
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(20) == 0


@pytest.mark.slow
def test_while_the_server_is_away_the_trigger_stays(
    there: World, triggers: Path, watching: subprocess.Popen[str]
):
    assert watching.stdout is not None
    there.server.down()
    trainer = start_by_the_sdk(there, TRAINER % str(triggers))
    trainer.communicate("\n\n\n")

    while ".command: " not in watching.stdout.readline():
        pass
    assert list(triggers.glob("*.command"))

    there.server.up()
    wait_for(lambda: not list(triggers.glob("*.command")), "the trigger to be removed")
    assert numbers(there) == list(range(300))
    assert there.run.complete


@pytest.mark.slow
def test_a_signal_ends_it_well_while_the_server_is_waited_for(
    there: World, triggers: Path, watching: subprocess.Popen[str]
):
    there.server.silence()
    start_by_the_sdk(there, TRAINER % str(triggers)).communicate("\n\n\n")
    wait_for(lambda: list(there.directory.glob("wandb/.tidelog/p/r/main-0001")), "the sync to begin")

    watching.send_signal(signal.SIGTERM)

    assert watching.wait(20) == 0
    assert list(triggers.glob("*.command"))


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["wandb", "--dry-run", "--json", "--clean"])
def test_what_does_not_go_with_triggers_is_wrong_usage(there: World, triggers: Path, argument: str):
    done = syncd(there, "sync", "--watch", str(triggers), argument)

    assert done.returncode == 2
    assert "give no PATH" in done.stderr
