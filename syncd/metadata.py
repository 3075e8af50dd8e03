"""Decides what W&B is told about a run besides its lines: config, name, notes, tags, and who we are.

Invariants
----------
* The config always carries `_wandb.t`: without it neither W&B nor its SDK believes that a run has started.
* Our mark in the config is the top-level key `_tidelog`: the SDK keeps such a key when it resumes a run, but
  throws away what it does not know inside `_wandb`.
* Whatever another client put in the config stays, unless the log sets the same key.
* A name, a note or a tag is sent when the log has a newer one than the server was told, never again: what
  people edit on W&B's pages is theirs.

Pure: facts come from `start` records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eventlog.nested import as_config
from eventlog.surroundings import environment_of
from syncd.fold import Definition

MARK = "_tidelog"
# The release of W&B's SDK whose requests we reproduce; sent where the SDK sends its own version.
SPOKEN_VERSION = "0.31.0"
# `UpsertBucket` variables, and the `start` facts that they come from.
_PARAMS = {
    "displayName": "name",
    "notes": "notes",
    "tags": "tags",
    "groupName": "group",
    "jobType": "job_type",
    "host": "host",
    "program": "program",
    "sweep": "sweep_id",
}
_OPTION_NUMBERS = {"step_sync": 1, "hidden": 2, "explicit": 3}
# `copy` does nothing, and the SDK does not send it.
_SUMMARY_NUMBERS = {"min": 1, "max": 2, "mean": 3, "best": 4, "last": 5, "none": 6, "first": 8}
_GOAL_NUMBERS = {"minimize": 1, "maximize": 2}


@dataclass(frozen=True, slots=True)
class Edits:
    """What a person wants told otherwise than it was logged."""

    job_type: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """Old names and new ones."""


NO_EDITS = Edits()


def params(start: dict[str, Any], run_id: str = "", rank: int = 0, edits: Edits = NO_EDITS) -> dict[str, Any]:
    """Return the `UpsertBucket` variables that the run's `start` facts give.

    Where every rank is a run of its own, they are one group, as W&B's own guides have it.
    """
    found = {variable: start.get(fact) for variable, fact in _PARAMS.items()}
    if start.get("upload_ranks") == "all" or rank:
        found["groupName"] = found["groupName"] or run_id
    if rank:
        found["displayName"] = f"{found['displayName'] or run_id}-rank{rank}"
    if edits.job_type is not None:
        found["jobType"] = edits.job_type
    if edits.tags and found["tags"]:
        found["tags"] = [edits.tags.get(tag, tag) for tag in found["tags"]]
    git = start.get("git") or {}
    found |= {"commit": git.get("commit"), "repo": git.get("remote")}
    return {variable: value for variable, value in found.items() if value is not None}


def newer(wanted: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """Return those of `wanted` that the server was not told yet."""
    return {variable: value for variable, value in wanted.items() if told.get(variable) != value}


def config_json(
    config: dict[str, Any],
    definitions: dict[str, Definition],
    start: dict[str, Any],
    mark: dict[str, Any],
    others: dict[str, Any],
) -> str:
    """Return the run's whole config as W&B wants it.

    `others` is the config that the server had before us, in the same wrapped form.
    """
    version = str(start.get("python") or "")
    environment = {
        **environment_of(start),
        "python": f"{start.get('implementation') or 'CPython'} {version}",
        **as_protobuf(start.get("machine") or {}),
        "writerId": mark["log_id"],
    }
    internal = {
        "cli_version": SPOKEN_VERSION,
        "python_version": version,
        "t": {"3": [], "4": version, "5": SPOKEN_VERSION, "12": SPOKEN_VERSION, "13": "linux-x86_64"},
        "m": definitions_list(definitions),
        "e": {mark["log_id"]: {key: value for key, value in environment.items() if value}},
        # What W&B's own client had said, where the run is one of its.
        **(start.get("wandb") or {}),
    }
    wrapped = {key: value for key, value in others.items() if key not in ("_wandb", MARK)}
    wrapped |= {key: {"value": value} for key, value in as_config(config).items()}
    wrapped |= {MARK: {"value": mark}, "_wandb": {"value": internal}}
    # Sorted, so that the same config has the same digest in every process.
    return json.dumps(wrapped, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def marked(config: dict[str, Any], mark: dict[str, Any]) -> str:
    """Return a config of the server's, in its own wrapped form, with this mark in it and else as it is."""
    wrapped = {**config, MARK: {"value": mark}}
    return json.dumps(wrapped, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def as_protobuf(machine: dict[str, Any]) -> dict[str, Any]:
    """Return the machine's facts as the SDK's JSON has them: 64-bit sizes are texts there.

    >>> as_protobuf({"cpu_count": 2, "memory": {"total": 25769803776}})
    {'cpu_count': 2, 'memory': {'total': '25769803776'}}
    """
    sizes = ("total", "used", "memoryTotal")

    def said(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: str(v) if k in sizes and isinstance(v, int) else said(v) for k, v in value.items()}
        return [said(item) for item in value] if isinstance(value, list) else value

    return {name: said(fact) for name, fact in machine.items()}


def digest(config: str) -> str:
    """Return what the cursor remembers of a config that the server acknowledged."""
    return hashlib.sha256(config.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def definitions_list(definitions: dict[str, Definition]) -> list[dict[str, Any]]:
    """Return the metric definitions as `_wandb.m`: protobuf field numbers as keys, step metrics by 1-based index.

    >>> definitions_list({"eval/*": Definition("eval/*", "epoch", step_sync=True)})
    [{'2': 'eval/*', '5': 2, '6': [1], '7': []}, {'1': 'epoch', '6': [], '7': []}]
    """
    listed = {name: definition for name, definition in definitions.items() if not definition.from_glob}
    for definition in list(listed.values()):
        if definition.step_metric and definition.step_metric not in listed:
            # Only there to be pointed at.
            listed[definition.step_metric] = Definition(definition.step_metric, from_glob=True)
    index = {name: i for i, name in enumerate(listed, start=1)}
    return [_definition(definition, index) for definition in listed.values()]


def _definition(definition: Definition, index: dict[str, int]) -> dict[str, Any]:
    entry: dict[str, Any] = {"2" if definition.is_glob else "1": definition.name}
    if definition.step_metric:
        entry["5"] = index[definition.step_metric]
    explicit = not definition.is_glob and not definition.from_glob
    options = {"step_sync": definition.step_sync, "hidden": definition.hidden, "explicit": explicit}
    entry["6"] = [_OPTION_NUMBERS[name] for name, on in options.items() if on]
    entry["7"] = sorted(_SUMMARY_NUMBERS[name] for name in definition.summary if name in _SUMMARY_NUMBERS)
    if definition.goal in _GOAL_NUMBERS:
        entry["8"] = _GOAL_NUMBERS[definition.goal]
    return entry
