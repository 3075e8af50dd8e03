"""README is true: its example runs, its links lead somewhere, and it names each command that there is, and no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def commands_in(block: str) -> dict[str, set[str]]:
    """Return program → subcommands of lines like `syncd  start [--foreground] | stop`."""
    found = {}
    for line in block.splitlines():
        program, _, rest = line.partition(" ")
        alternatives = re.sub(r"\[[^\]]*\]", "", rest).split(" | ")
        found[program] = {words.split()[0] for words in alternatives}
    return found


def test_the_python_example_runs_and_the_query_finds_its_rows(tmp_path: Path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (query,) = re.findall(r'analysis sql "(.*?)"\n', README)
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=env, check=True, capture_output=True)
    answer = subprocess.run(
        [sys.executable, "-m", "analysis", "sql", "--json", query],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )

    assert [json.loads(line)["step"] for line in answer.stdout.splitlines()] == [99, 98, 97]


@pytest.mark.parametrize("program", ["eventlog", "syncd", "analysis", "trainer"])
def test_each_command_is_named_and_each_named_command_exists(program: str):
    (block,) = re.findall(r"## Commands\n\n```\n(.*?)```", README, re.DOTALL)
    module = __import__(f"{program}.cli", fromlist=["main"])
    assert isinstance(module.main, click.Group)

    assert commands_in(block)[program] == set(module.main.commands)


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_every_make_target_that_is_named_exists():
    makefile = (REPOSITORY / "Makefile").read_text()

    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
