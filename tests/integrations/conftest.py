"""One thread, so that libraries take no more than their share; no library that asks the network or reports home; and no
run that is left to the next test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import eventlog
from eventlog.run import active

_QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    # A Trainer would use a GPU that is there.
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.fixture(autouse=True)
def _quiet_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, value in _QUIET.items():
        monkeypatch.setenv(name, value)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_run_is_left() -> Iterator[None]:
    yield
    left = active()
    while active() is not None:
        eventlog.finish(1)
    assert left is None


@pytest.fixture
def script_environment() -> dict[str, str]:
    """What a script that a user would write is run with."""
    return {**os.environ, **_QUIET}
