"""The server holds the same run: rows, summary, config, metric definitions, names, tags and how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.clients import Both, by_both
from tests.contract.comparable import assert_same
from tests.contract.scripts import SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_server_holds_the_same_run(name: str, tmp_path: Path):
    both = by_both([SCRIPTS[name]], tmp_path)

    assert_same(both.ours.run, both.theirs.run)


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_the_sdk_would(resumed: Both):
    assert_same(resumed.ours.run, resumed.theirs.run)


@pytest.mark.slow
def test_an_offline_run_is_what_wandb_sync_would_make_of_it(tmp_path: Path):
    both = by_both([SCRIPTS["definitions"]], tmp_path, mode="offline")

    assert_same(both.ours.run, both.theirs.run)
