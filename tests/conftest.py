"""What holds for all tests: no deadline where the machine is shared, and no state of the user's own,
and no record that nobody asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two busy cores make generation slow at times; that is no fault of a test.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# What a run records without being asked; a test that wants it takes these out of its environment.
NOTHING_UNASKED = {
    "WANDB_CONSOLE": "off",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
}
_OURS = ("WANDB_", "EVENTLOG_", "TIDELOG_", "RUN_ID", "RANK", "WORLD_SIZE", "SLURM_")


@pytest.fixture(autouse=True)
def _nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with an empty home: no roots list, no daemon, no API key but what the test sets."""
    import os

    for name in list(os.environ):
        if name.startswith(_OURS):
            monkeypatch.delenv(name)
    home: Path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TIDELOG_STATE_DIR", str(home / "state"))
    # One for all tests: what is in it depends on nothing that a test does but on its root, which is its own.
    monkeypatch.setenv("TIDELOG_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    for name, value in NOTHING_UNASKED.items():
        monkeypatch.setenv(name, value)
