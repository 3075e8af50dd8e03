"""What two runs of one script have in common: values without what is different each time.  Pure."""

from __future__ import annotations

import re
from typing import Any

from syncd.metadata import MARK
from tests.contract.clients import World
from tests.wandb_server import Request, StoredRun

TIMES = {"_timestamp", "_runtime", "runtime", "startedAt"}
# Chosen at random by each client, or different from one moment to the next.
OF_ONE_RUN = {"writerId", "used"}
# Which interpreter runs is the test's choice: `make contract-oldest` has two.
OF_THE_TEST = {"executable"}
# Telemetry that only its own client has: the libraries imported at the start and later, and which of its calls
# are deprecated.
OF_THE_SDK = {"1", "2", "10"}
# What a connection needs, and each HTTP library words in its own way.
_OF_THE_CONNECTION = {"host", "user-agent", "content-length", "accept", "accept-encoding", "connection"}
# What an artifact is called by its client is random.
_CLIENT_ID = re.compile(r"(?<=wandb-client-artifact://)\w+")


def comparable(value: Any) -> Any:
    """JSON as W&B means it: one number is another however it is written, NaN is itself, times are types."""
    if isinstance(value, dict):
        by_type = TIMES | OF_ONE_RUN | OF_THE_TEST
        return {key: kind_of(item) if key in by_type else comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, str):
        return _CLIENT_ID.sub("ID", value)
    if isinstance(value, float) and value != value:
        return "NaN"
    return value


def kind_of(value: Any) -> str:
    """The type as JSON has it: a number may be written as an integer or not.

    >>> kind_of(1), kind_of(1.5), kind_of(True), kind_of(None)
    ('number', 'number', 'bool', 'NoneType')
    """
    return "number" if type(value) in (int, float) else type(value).__name__


def without_home(world: World, text: str) -> str:
    return text.replace(str(world.home), "~")


def own_headers(request: Request) -> dict[str, str]:
    """The headers that are for the server, and not for the connection to it."""
    return {name: value for name, value in request.headers.items() if name not in _OF_THE_CONNECTION}


def comparable_config(run: StoredRun) -> dict[str, Any]:
    config = comparable(run.config)
    assert isinstance(config, dict)
    internal = config.pop("_wandb")
    # The marks by which each client knows its own runs.
    config.pop(MARK, None)
    definitions = {entry.get("1") or entry.get("2"): dict(entry) for entry in internal.pop("m")}
    names = [entry.get("1") or entry.get("2") for entry in run.config["_wandb"]["m"]]
    for entry in definitions.values():
        # Positions in the list are free, as long as they point at the right entry.
        if "5" in entry:
            entry["5"] = names[entry["5"] - 1]
        entry["6"], entry["7"] = sorted(entry["6"]), sorted(entry["7"])
    config["definitions"] = definitions
    # What ran it, and on what (`test_files` compares that), the SDK finds out beside: not in a run of milliseconds.
    config["internal"] = sorted(internal.keys() - {"e"})
    telemetry = internal["t"].items()
    config["telemetry"] = {key: kind_of(value) for key, value in telemetry if key not in OF_THE_SDK}
    return config


def assert_same(ours: StoredRun, theirs: StoredRun) -> None:
    assert [comparable(row) for row in ours.history] == [comparable(row) for row in theirs.history]
    assert comparable(ours.summary) == comparable(theirs.summary)
    assert comparable_config(ours) == comparable_config(theirs)
    for name in ("display_name", "notes", "tags", "group", "job_type", "complete", "exitcode"):
        assert getattr(ours, name) == getattr(theirs, name), name
