"""Each test begins with no run, and with nothing said: what is said once is said once for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import eventlog
from eventlog import not_yet


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(not_yet, "_said", set())
    yield
    while eventlog.run is not None:
        eventlog.finish()
