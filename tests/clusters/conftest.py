"""What the recipes share: a W&B server that only hosts with a network reach, and a shared file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clusters.hosts import Host, why_no_namespaces
from tests.wandb_server import WandbServer

NewHost = Callable[..., Host]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        yield running


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A root on the file system that all hosts see."""
    return tmp_path / "shared" / "runs"


@pytest.fixture
def host(server: WandbServer, tmp_path: Path, shared: Path) -> NewHost:
    """Make a machine, by its name: `host("node7", has_network=False)`."""
    reason = why_no_namespaces()
    if reason is not None:
        pytest.skip(f"no namespaces for two hosts: {reason}")

    def new_host(name: str, **how: bool) -> Host:
        environment = {
            **server.env(tmp_path / "settings"),
            "EVENTLOG_ROOT": str(shared),
            "WANDB_PROJECT": "demo",
            "WANDB_RUN_ID": "run",
            "WANDB_RESUME": "allow",
        }
        return Host(name, tmp_path / "hosts", environment, **how)

    return new_host
