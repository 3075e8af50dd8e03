"""A W&B-compatible server on the loopback, for tests, the demo and the benchmarks.

    with WandbServer(entity="ent") as server:
        …a client is pointed at server.base_url, or started with server.env(tmp_path)…
        assert server.run("ent", "proj", "id").history == rows
        assert server.violations == []

`store` (runs), `artifacts`, `graphql`, `faults`, `limits` and `check` decide; `app` and `server` act.
Whatever the real service does and nobody could confirm is chosen once, in `store`, and said there.
"""

from tests.wandb_server.certificates import Certificates, make_certificates
from tests.wandb_server.check import differences
from tests.wandb_server.faults import RETRYABLE, Fault
from tests.wandb_server.limits import ProjectLimit
from tests.wandb_server.server import API_KEY, Request, WandbServer
from tests.wandb_server.store import DeletedAnswers, ResumeAnswers, StoredRun
from tests.wandb_server.waiting import wait_for

__all__ = [
    "API_KEY",
    "RETRYABLE",
    "Certificates",
    "DeletedAnswers",
    "Fault",
    "ProjectLimit",
    "Request",
    "ResumeAnswers",
    "StoredRun",
    "WandbServer",
    "differences",
    "make_certificates",
    "wait_for",
]
