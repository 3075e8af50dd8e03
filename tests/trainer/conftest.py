"""One thread: the same numbers on every machine, and no more than its share of a shared one.

For a test that asks: a machine on which nobody has set or kept anything.
"""

import pytest
import torch

# What decides how a training is called, and what it reads and asks.
UNSET = (
    *("WANDB_NAME", "RUN_ID", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_MODE", "EVENTLOG_ROOT", "TIDELOG_DATA"),
    *("JUDGE_BASE_URL", "JUDGE_MODEL", "JUDGE_API_KEY", "OPENAI_API_KEY"),
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def own_machine(tmp_path, monkeypatch):
    """An empty working directory and home, and none of those variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
