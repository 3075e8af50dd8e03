"""One thread: the same numbers on every machine, and no more than its share of a shared one."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
