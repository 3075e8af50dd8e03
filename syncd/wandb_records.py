"""Turns the records of W&B's `.wandb` files into ours, so that what is sent is what `wandb sync` would have sent.

    payloads (dotwandb) ──feed──▶ Event, File, Artifact, …
                          end()──▶ what waited for the end

Invariants
----------
* What comes out is a pure function of the payloads, however they were cut into portions: read from the beginning
  again, a file that has grown gives the same things, and more.
* A row comes out as W&B's client had closed it, with its step and its times: the fold adds nothing to it.
* The summary is what the file's own summary records make of it.
* The first event is a `start`, whatever is damaged: it says that the rows are whole.
* What is not understood is counted by its name, and nothing is raised for it.

There is no file here.  The messages are W&B's own (`wandb_internal.proto`, 0.13 to 0.31).
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple

import orjson

from syncd.fold import COMPLETE_ROWS, LINE_TOO_LONG, STUB

# Rises when the same payloads give something else: what an earlier version began is then translated anew.
TRANSLATION = 3
# How often the summary is written down, by the clock of the file: at each row it would double the log.
SUMMARY_EVERY_US = 1_000_000
_SUMMARIES = ("min", "max", "mean", "best", "last", "none", "copy", "first")
_GOALS = {1: "minimize", 2: "maximize"}
_POLICIES = {0: "now", 1: "end", 2: "live"}
# Of no use to anybody but W&B's own client; `preempting` is about a run while it runs.
_SILENT = frozenset({"header", "footer", "final", "request", "noop_link_artifact", "preempting"})
# What comes before all else, and is part of the `start`.
_BEFORE_ALL = frozenset({"run", "header", "environment", "telemetry"})
# In the config's `_wandb`, what is told otherwise: by the telemetry, the definitions and the machine's facts.
_MADE_ANEW = frozenset({"t", "m", "e", "cli_version", "python_version"})
# The values of one row or summary may have so much JSON: a record of ours holds twice that, and W&B shows no longer row.
VALUES_MAX_BYTES = 32 * 1024 * 1024
_IN_THEIR_FILE = "too many for a record; they are in W&B's own file"


class Event(NamedTuple):
    """A record of ours; its stream is `console` or `events`, as its kind says."""

    kind: str
    data: dict[str, Any]
    time_us: int
    step: int | None = None

    @property
    def stream(self) -> str:
        return "console" if self.kind == "console" else "events"


class File(NamedTuple):
    """A file of the run's directory, below `files/`."""

    path: str
    policy: str
    time_us: int


class Artifact(NamedTuple):
    """An artifact whose files lie where the entries' `local_path` says."""

    data: dict[str, Any]
    """What an `artifact` record holds, without `manifest` and `size`."""
    entries: list[dict[str, Any]]
    """`path digest`, and `ref`, `size` and `local_path` where they are known."""
    manifest_path: str
    """A file that holds the entries instead, where there are very many; empty if none does."""
    time_us: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Whose file it is, as its `run` record says."""

    run_id: str
    project: str
    entity: str
    host: str


@dataclass(slots=True)
class Translator:
    """One `.wandb` file on its way into a log."""

    is_offline: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)
    """What is known of the machine from elsewhere: files of SDKs before 0.18 have no record of it."""
    run: RunFacts | None = None
    began_us: int = 0
    rows: int = 0
    records: int = 0
    has_ended: bool = False
    """An exit record was seen: its writer had nothing more to say, but for what stands behind it in the file."""
    not_understood: Counter[str] = field(default_factory=Counter)
    _num: int = 0
    _damage: str | None = None
    _lost: int = 0
    _began_ns: int = 0
    _time_us: int = 0
    _start: dict[str, Any] = field(default_factory=dict)
    """The facts of the `start` record, until it is said: more of them may come."""
    _machine: dict[str, Any] = field(default_factory=dict)
    _has_started: bool = False
    _config: dict[str, Any] = field(default_factory=dict)
    _internal: dict[str, Any] = field(default_factory=dict)
    _held: Any = None
    """A summary record, until the next record shows whether it repeats a row."""
    _latest: dict[str, Any] = field(default_factory=dict)
    """What of the summary is to be written down: the latest values of rows, and what was set otherwise, as JSON."""
    _summary: dict[tuple[str, ...], str] = field(default_factory=dict)
    _subtrees: set[str] = field(default_factory=set)
    _summary_us: int = 0
    _summary_bytes: int = 0
    _held_bytes: int = 0
    _size_bytes: int = 0
    """Of the record that is being taken."""
    _exit: dict[str, Any] | None = None

    def feed(self, payload: bytes) -> Iterator[Event | File | Artifact]:
        """Take the next record of the file."""
        try:
            message = messages().Record.FromString(payload)
        except Exception as error:  # noqa: BLE001 - protobuf's two implementations raise different things
            self.not_understood[f"unreadable ({type(error).__name__})"] += 1
            return
        self.records += 1
        num, self._num = self._num, message.num or self._num + 1
        kind = message.WhichOneof("record_type") or "unknown"
        if kind not in _BEFORE_ALL and not self._has_started:
            if self.run is None:
                self._begin(_ns_of(message, kind))
            yield self._started()
        if self._damage is not None:
            self._lost += max(0, self._num - num - 1)
            if self._has_started:
                yield self._gap()
        self._size_bytes = len(payload)
        if self._held is not None and kind != "history":
            self._note_summary()
            if self._summary_bytes > VALUES_MAX_BYTES:
                yield from self._write_summary()
        take = getattr(self, f"_take_{kind}", None)
        if take is not None:
            yield from take(getattr(message, kind))
        elif kind not in _SILENT:
            self.not_understood[kind] += 1

    def note_damage(self, where: str) -> None:
        """Note that something is missing here; how much, the number of the next record says."""
        self._damage = self._damage or where

    def _gap(self) -> Event:
        gap = {"dropped": self._lost, "reason": self._damage}
        self._damage, self._lost = None, 0
        return Event("gap", gap, self._time_us)

    def end(self) -> Iterator[Event | File | Artifact]:
        """Return what waited for the end: nothing will be added to the file."""
        if self._start and not self._has_started:
            yield self._started()
        if self._held is not None:
            self._note_summary()
        yield from self._write_summary()
        if self._damage is not None and self._has_started:
            yield self._gap()
        if self._exit is not None:
            yield Event("exit", self._exit, self._time_us)

    # -- who, and how ------------------------------------------------------------------------------------------

    def _take_run(self, run: Any) -> Iterator[Event]:
        facts = {
            "name": run.display_name or None,
            "notes": run.notes or None,
            "tags": list(run.tags) or None,
            "group": run.run_group or None,
            "job_type": run.job_type or None,
            "sweep_id": run.sweep_id or None,
        }
        if run.git.commit or run.git.remote_url:
            facts["git"] = {"commit": run.git.commit or None, "remote": run.git.remote_url or None}
        if self.run is None:
            self.run = RunFacts(run.run_id, run.project, run.entity, run.host)
            self._begin(run.start_time.ToNanoseconds() or self._began_ns)
            facts |= {
                "host": run.host or None,
                "started_at": run.start_time.ToJsonString() if run.HasField("start_time") else None,
            }
            if self.is_offline and run.branch_point.run == run.run_id:
                # Online, W&B's client has seen to it.
                facts["rewound_to"] = run.branch_point.value
                self.not_understood[f"going back to step {run.branch_point.value:g}"] += 1
            self._take_versions(run.telemetry)
        self._update_config(run.config.update)
        # Said again since something changed: a new name, more tags.
        changed = {fact: value for fact, value in facts.items() if value is not None}
        if not self._has_started:
            self._start = {**facts, **self._start, **changed}
            return
        yield Event("facts", changed, self._time_us)
        yield Event("config", dict(self._config), self._time_us)

    def _begin(self, began_ns: int) -> None:
        """Note when the run began, or the first that is known of it."""
        self._began_ns, self.began_us = began_ns, began_ns // 1000
        if not self._has_started:
            self._time_us = self._summary_us = self.began_us

    def _started(self) -> Event:
        self._has_started = True
        machine = self._machine or {k: v for k, v in self.metadata.items() if k != "writerId"}
        start = {
            "config": dict(self._config),
            **self._start,
            "mode": "offline" if self.is_offline else "online",
            "rows": COMPLETE_ROWS,
            "translation": TRANSLATION,
            "machine": machine,
            "program": machine.get("program"),
            "wandb": dict(self._internal),
        }
        return Event("start", start, self._time_us)

    def _take_environment(self, environment: Any) -> Iterator[Event]:
        from google.protobuf.json_format import MessageToDict

        facts = {
            name: fact
            for name, fact in MessageToDict(environment).items()
            if name not in ("writerId", "Info")
        }
        facts.pop("_info", None)
        if not self._has_started:
            self._machine |= facts
            return
        if facts:
            yield Event("machine", facts, self._time_us)
        if "program" in facts:
            yield Event("facts", {"program": facts["program"]}, self._time_us)

    def _take_telemetry(self, telemetry: Any) -> Iterator[Event]:
        self._take_versions(telemetry)
        if self._has_started:
            yield Event("facts", {"wandb": dict(self._internal)}, self._time_us)

    def _take_versions(self, telemetry: Any) -> None:
        said = _as_numbers(telemetry)
        if said:
            self._internal["t"] = said
        if telemetry.cli_version:
            self._internal["cli_version"] = telemetry.cli_version
        if telemetry.python_version:
            self._internal["python_version"] = telemetry.python_version

    def _take_config(self, config: Any) -> Iterator[Event]:
        before = dict(self._internal)
        changed = self._update_config(config.update)
        if config.remove:
            self.not_understood["config key removed"] += len(config.remove)
        if changed:
            yield Event("config", {key: self._config[key] for key in changed}, self._time_us)
        if self._internal != before and self._has_started:
            yield Event("facts", {"wandb": dict(self._internal)}, self._time_us)

    def _update_config(self, items: Iterable[Any]) -> list[str]:
        """Take new values; return the top-level keys that changed."""
        changed: dict[str, None] = {}
        for item in items:
            path = _path(item)
            value = _value(item.value_json)
            if path[0] == "_wandb":
                # W&B's own block: how charts and boxes are to be shown, where the code is, and more.
                below = _nested(path[1:], value)
                said = (
                    {k: v for k, v in below.items() if k not in _MADE_ANEW} if isinstance(below, dict) else {}
                )
                self._internal = _merged(self._internal, said)
                continue
            self._config[path[0]] = _merged(self._config.get(path[0]), _nested(path[1:], value))
            changed[path[0]] = None
        return list(changed)

    def _take_metric(self, metric: Any) -> Iterator[Event]:
        name = metric.name or metric.glob_name
        is_implied = not metric.glob_name and not metric.options.defined and not metric.summary.ListFields()
        if not name or metric.expanded_from_glob or (is_implied and not metric.step_metric):
            # What a glob matched, or what is only there to be another's step: our definitions imply both.
            return
        data: dict[str, Any] = {"name": name}
        if metric.step_metric:
            data["step_metric"] = metric.step_metric
        data["step_sync"], data["hidden"] = metric.options.step_sync, metric.options.hidden
        summary = [word for word in _SUMMARIES if getattr(metric.summary, word)]
        if summary:
            data["summary"] = summary
        if metric.goal in _GOALS:
            data["goal"] = _GOALS[metric.goal]
        if metric._control.overwrite:
            data["overwrite"] = True
        yield Event("define_metric", data, self._time_us)

    # -- what was logged ---------------------------------------------------------------------------------------

    def _take_history(self, history: Any) -> Iterator[Event]:
        is_too_large = self._size_bytes > VALUES_MAX_BYTES
        row = _row_by_values(_shortened(history.item)) if is_too_large else _row(history.item)
        if self._held is not None:
            # The core says a row's values for the summary as well, just before the row and in the same words.
            step_bytes = history.step.ByteSize() + 2 if history.HasField("step") else 0
            is_repeated = self._held.ByteSize() == history.ByteSize() - step_bytes
            if is_repeated and self._held.update[0].nested_key and dict not in map(type, row.values()):
                self._held = None
                self._note_row(row)
            else:
                self._note_summary()
        step = row.setdefault("_step", history.step.num)
        if type(step) is not int:
            step = row["_step"] = int(history.step.num)
        timestamp = row.get("_timestamp")
        if isinstance(timestamp, (int, float)) and 0 < timestamp < 2**33:
            self._time_us = int(timestamp * 1e6)
        self.rows += 1
        if is_too_large:
            row = {**row, STUB: f"{LINE_TOO_LONG}; the record is in W&B's own file"}
        yield Event("metrics", row, self._time_us, step)
        if self._is_time_for_summary:
            yield from self._write_summary()

    def _take_summary(self, summary: Any) -> Iterator[Event]:
        self._held, self._held_bytes = summary, self._size_bytes
        if not summary.remove:
            return
        self._note_summary()
        yield from self._write_summary()
        yield Event("summary", {"delete": [list(_path(item)) for item in summary.remove]}, self._time_us)

    def _note_row(self, row: dict[str, Any]) -> None:
        """Take a row's values for the summary's."""
        for path in [path for path in self._summary if path[0] in row]:
            del self._summary[path]
        self._latest.update(row)
        self._summary_bytes += self._size_bytes

    def _note_summary(self) -> None:
        """Take what is held for the summary's, whatever comes next."""
        summary, self._held = self._held, None
        said, subtrees = self._summary, self._subtrees
        is_too_large = self._held_bytes > VALUES_MAX_BYTES
        self._summary_bytes += self._held_bytes
        for path, text in _shortened(summary.update) if is_too_large else _texts(summary.update):
            if len(path) > 1:
                subtrees.add(path[0])
            if path[0] in subtrees:
                # A value and what it lies in are told apart by their order.
                said.pop(path, None)
            self._latest.pop(path[0], None)
            said[path] = text

    @property
    def _is_time_for_summary(self) -> bool:
        is_long = self._summary_bytes > VALUES_MAX_BYTES
        return is_long or self._time_us - self._summary_us >= SUMMARY_EVERY_US

    def _write_summary(self) -> Iterator[Event]:
        self._summary_us, self._summary_bytes = self._time_us, 0
        if (self._latest or self._summary) and self._has_started:
            values = [[[key], value] for key, value in self._latest.items()]
            values += [[list(path), _value(text)] for path, text in self._summary.items()]
            self._latest, self._summary = {}, {}
            yield Event("summary", {"set": values}, self._time_us)

    def _take_stats(self, stats: Any) -> Iterator[Event]:
        self._time_us = _us(stats.timestamp) or self._time_us
        # In W&B's own numbers: a time of ours is rounded to microseconds.
        taken = stats.timestamp
        self._began_ns = self._began_ns or taken.ToNanoseconds()
        since_s, since_ns = divmod(taken.ToNanoseconds() - self._began_ns, 10**9)
        sample: dict[str, Any] = {
            "_timestamp": taken.seconds + taken.nanos / 1e9,
            "_runtime": since_s + since_ns / 1e9,
        }
        sample |= {item.key: _value(item.value_json) for item in stats.item}
        yield Event("system", sample, self._time_us)
        if self._is_time_for_summary:
            yield from self._write_summary()

    def _take_output_raw(self, output: Any) -> Iterator[Event]:
        self._time_us = _us(output.timestamp) or self._time_us
        source = "stdout" if output.output_type == 1 else "stderr"
        yield Event("console", {"source": source, "text": output.line}, self._time_us)

    def _take_output(self, output: Any) -> Iterator[Event]:
        yield from self._take_output_raw(output)

    def _take_alert(self, alert: Any) -> Iterator[Event]:
        level = alert.level if alert.level in ("INFO", "WARN", "ERROR") else "INFO"
        said = {
            "title": alert.title,
            "text": alert.text,
            "level": level,
            "wait_s": alert.wait_duration / 1000,
        }
        yield Event("alert", said, self._time_us)

    def _take_exit(self, exit_: Any) -> Iterator[Event]:
        self.has_ended = True
        self._exit = {"exitcode": exit_.exit_code}
        yield from ()

    # -- files -------------------------------------------------------------------------------------------------

    def _take_files(self, files: Any) -> Iterator[File]:
        for item in files.files:
            yield File(item.path, _POLICIES.get(item.policy, "now"), self._time_us)

    def _take_artifact(self, artifact: Any) -> Iterator[Artifact]:
        entries = [
            {name: getattr(entry, name) for name in ("path", "digest", "ref", "size", "local_path")}
            for entry in artifact.manifest.contents
        ]
        metadata = _value(artifact.metadata) if artifact.metadata else {}
        data = {
            "name": artifact.name,
            "type": artifact.type,
            "description": artifact.description or None,
            "metadata": metadata if isinstance(metadata, dict) else {},
            "aliases": list(artifact.aliases),
            "tags": list(artifact.tags),
            # Which step it was is not in the file, and `wandb sync` sends none.
            "step": None,
            "client_id": artifact.client_id,
            "sequence_client_id": artifact.sequence_client_id,
            "digest": artifact.digest,
        }
        yield Artifact(data, entries, artifact.manifest.manifest_file_path, self._time_us)


@cache
def messages() -> Any:
    """Return W&B's message classes, without the 0.7 s that the rest of its package takes."""
    name = "wandb.proto.wandb_internal_pb2"
    if name in sys.modules or "wandb" in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("W&B's package is needed to read its files: pip install 'tidelog[sync]'.")
    # A package of that name with nothing in it but its parts, for as long as the import takes.
    hull = types.ModuleType("wandb")
    hull.__path__ = list(spec.submodule_search_locations)
    sys.modules["wandb"] = hull
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["wandb"]


def _as_numbers(telemetry: Any) -> dict[str, Any]:
    """Return telemetry as W&B keeps it: field numbers as keys, and flags as the list of those that are set.

    The core's version, 12, is told as the client's: they are released together.
    """
    said: dict[str, Any] = {}
    for part, value in telemetry.ListFields():
        if part.message_type is None:
            said[str(part.number)] = value
        elif not part.name.startswith("_"):
            said[str(part.number)] = [flag.number for flag, is_set in value.ListFields() if is_set is True]
    if telemetry.cli_version:
        said.setdefault("12", telemetry.cli_version)
    return said


def _path(item: Any) -> tuple[str, ...]:
    return tuple(item.nested_key) or (item.key,)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        # NaN and the infinities are bare tokens.
        value = json.loads(text)
        if "\\u" in text:
            # Half of a pair is no character: W&B's core has the mark for that in its place.
            said = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
            value = json.loads(said.decode("utf-16", "replace"))
        return value
    except (ValueError, RecursionError):
        return text


def _texts(items: Any) -> list[tuple[tuple[str, ...], str]]:
    """Return each value's path and JSON."""
    return [(_path(item), item.value_json) for item in items]


def _shortened(items: Any) -> list[tuple[tuple[str, ...], str]]:
    """Return each value's path and JSON; values that make a record too large are said to be so."""
    at_most = VALUES_MAX_BYTES // len(items)
    return [
        (path, text if len(text) <= at_most else json.dumps(f"{len(text):,} bytes, {_IN_THEIR_FILE}"))
        for path, text in _texts(items)
    ]


def _row(items: Any) -> dict[str, Any]:
    """Return a row; all its values are parsed at once, unless some are nested or need care."""
    members = []
    for item in items:
        nested = item.nested_key
        if len(nested) > 1:
            return _row_by_values(_texts(items))
        members.append(f"{_quoted(nested[0] if nested else item.key)}:{item.value_json}")
    try:
        row = orjson.loads(f"{{{','.join(members)}}}")
    except orjson.JSONDecodeError:
        return _row_by_values(_texts(items))
    return row if len(row) == len(members) else _row_by_values(_texts(items))


def _row_by_values(texts: list[tuple[tuple[str, ...], str]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for path, text in texts:
        _set(row, path, _value(text))
    return row


@lru_cache(4096)
def _quoted(key: str) -> str:
    return orjson.dumps(key).decode()


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _merged(tree: Any, value: Any) -> Any:
    """Return `tree` with `value` in its place, leaving both alone: dicts grow together, as they do in W&B's config.

    >>> _merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 9}})
    {'a': {'b': 9, 'c': 2}}
    """
    if not isinstance(tree, dict) or not isinstance(value, dict):
        return value
    return {**tree, **{key: _merged(tree.get(key), item) for key, item in value.items()}}


def _set(tree: dict[str, Any], path: Iterable[str], value: Any) -> None:
    *above, last = path
    for key in above:
        below = tree.get(key)
        if type(below) is not dict:
            below = tree[key] = {}
        tree = below
    tree[last] = value


def _ns_of(message: Any, kind: str) -> int:
    """Return when the run began, as far as a record says it that is not the run's; 0 if it does not."""
    if kind == "history":
        row = _row(message.history.item)
        timestamp, runtime = row.get("_timestamp"), row.get("_runtime", 0)
        if all(isinstance(number, (int, float)) and 0 <= number < 2**33 for number in (timestamp, runtime)):
            return int((timestamp - runtime) * 1e9)
    if kind in ("stats", "output_raw", "output"):
        return int(getattr(message, kind).timestamp.ToNanoseconds())
    return 0


def _us(timestamp: Any) -> int:
    return int(timestamp.seconds * 1_000_000 + timestamp.nanos // 1000)
