"""The runs that several tests look at."""

from __future__ import annotations

import pytest

from tests.contract.clients import Both, by_both
from tests.contract.scripts import EVERYTHING, RESUMED

# It asserts for the tests: so its failures are explained like theirs.
pytest.register_assert_rewrite("tests.contract.comparable")

ALL_ON = {
    "WANDB_CONSOLE": "wrap",
    "WANDB_X_DISABLE_STATS": "false",
    "WANDB_X_STATS_SAMPLING_INTERVAL": "0.5",
    "WANDB_X_SAVE_REQUIREMENTS": "true",
}


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """One run with everything that a run can have, by the SDK and by us."""
    return by_both([EVERYTHING], tmp_path_factory.mktemp("everything"), **ALL_ON)


@pytest.fixture(scope="session")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """One run of two processes."""
    return by_both(RESUMED, tmp_path_factory.mktemp("resumed"))
