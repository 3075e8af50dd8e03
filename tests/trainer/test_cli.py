"""The command `trainer`: what people type, and what they are told."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from trainer import recipes
from trainer.cli import main

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def environment(home):
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RUN_ID", "EVENTLOG", "TIDELOG"))
    }
    return kept | ONE_THREAD | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def trainer(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_recipes_are_listed():
    result = CliRunner().invoke(main, ["recipes"])

    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.splitlines() if not line.startswith(" ")]
    assert listed == list(recipes.SUMMARIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calculatr"], "Did you mean 'calculator'?"),
        (["calculator", "--set", "stepz=3"], "Did you mean 'steps'"),
        (["calculator", "--set", "steps"], "Write it as key=value"),
        (["calculator", "--set", "steps=few"], "a whole number"),
        (["calculator", "--data", "absent.jsonl"], "absent.jsonl"),
        (["calculator", "--seed", "-1"], "setting 'seed' is -1"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main, ["train", *arguments])

    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_mails_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "mails.jsonl").write_text('{"body": "At noon?"}\n')
    (tmp_path / "file").write_text("")

    result = CliRunner().invoke(
        main, ["data", "emails", str(tmp_path / "mails.jsonl"), "-o", str(tmp_path / "file" / "made.db")]
    )

    assert result.exit_code == 1
    assert "file/made.db" in result.output
    assert "-o names another place" in result.output


def test_help_and_the_list_of_recipes_do_not_import_torch():
    code = "import sys, trainer.cli, trainer.recipes; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def wait_for(condition, process, deadline_s):
    until = time.monotonic() + deadline_s
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_training_killed_in_the_middle_is_resumed_to_the_same_end(tmp_path):
    small = ["--set", "steps=2", "--set", "rollouts_per_step=8", "--set", "eval_size=32"]
    command = ["train", "calculator", "--quick", *small, "--run-name"]
    whole = trainer(*command, "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr

    killed = subprocess.Popen(
        [sys.executable, "-m", "trainer", *command, "parts"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "checkpoints/parts/step-00000001.pt").exists, killed, deadline_s=200)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    parts = trainer(*command, "parts", "--resume", cwd=tmp_path)

    def before_and_after(result):
        return re.search(r"held-out reward (\S+) → (\S+)", result.stdout).groups()

    assert parts.returncode == 0, parts.stderr
    assert before_and_after(parts) == before_and_after(whole)
    assert float(before_and_after(whole)[0]) > 0.2
