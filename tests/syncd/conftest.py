"""What the tests of `syncd` share: a W&B server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wandb_server import WandbServer


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        yield running
