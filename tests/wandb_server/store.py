"""What the server knows of its runs: lines spliced by offset, config, files, states.

Invariants
----------
* A line lives at its offset: the same lines at the same offset change nothing (unless `append`).
* History, events and console have a count each; one never moves another.
* Nothing that a client does wrong is silently mended: in strict mode it is a sentence in `violations`.
* A run exists for resume only once its config holds `_wandb.t`.
* A file is announced after it was put, and `complete` comes after every file that was promised or is named by a row.

There is no HTTP, clock or thread here: the caller passes `now_s`, and holds `lock` when it has threads.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from tests.wandb_server.artifacts import Artifacts

HISTORY = "wandb-history.jsonl"
EVENTS = "wandb-events.jsonl"
CONSOLE = "output.log"
SUMMARY = "wandb-summary.json"

# The SDK cuts its bodies at about 10 MiB of lines; a proxy in front of the service refuses more.
BODY_MAX_BYTES = 10 * 1024 * 1024
# The SDK's terminal emulator keeps this many lines open to change.
CONSOLE_OPEN_LINES = 32
# The service does not publish its own limit; ten missed heartbeats of 30 s.
CRASHED_AFTER_S = 300.0

RunKey = tuple[str, str, str]


class Rejected(Exception):
    """The request cannot be carried out; the client gets this HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class ResumeAnswers:
    """How far behind the truth `RunResumeStatus` answers.

    honest: counts, tails and summary as they are.
    late:   all of them as they were `lag_s` ago; or, without `lag_s`, before the last `behind` requests
            that changed them, for the first `queries` answers after such a change. Then they catch up.
    stale:  the counts are true, the tails and the summary are late (and never catch up if `queries` is None).

    of:     which counts are late (`history`, `events`, `console`); the others are true.
    lines:  instead of an older moment: the counts lack so many lines, at most.
    """

    mode: str = "honest"
    lag_s: float = 0.0
    behind: int = 1
    queries: int | None = 2
    of: tuple[str, ...] = ("history", "events", "console")
    lines: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("honest", "late", "stale"):
            raise ValueError(f"resume mode {self.mode!r} is unknown; use 'honest', 'late' or 'stale'")
        if not set(self.of) <= {"history", "events", "console"}:
            raise ValueError(f"of {self.of!r}: the counts are 'history', 'events' and 'console'")


@dataclass(frozen=True)
class DeletedAnswers:
    """The statuses with which a deleted run is answered: nobody could confirm the service's own."""

    file_stream: int = 404
    upsert: int = 409


@dataclass(frozen=True)
class Mark:
    """What a run held at one moment, small enough to keep for every request."""

    at_s: float
    history: int = 0
    events: int = 0
    console: int = 0
    summary_text: str | None = None

    def less(self, lines: int) -> Mark:
        """The same with so many lines less of each kind."""
        counts = {name: max(0, getattr(self, name) - lines) for name in ("history", "events", "console")}
        return replace(self, **counts)


@dataclass
class StoredRun:
    """One run as the server holds it. Lists that it hands out are copies."""

    entity: str
    project: str
    run_id: str
    created_s: float
    heartbeat_s: float
    crashed_after_s: float = CRASHED_AFTER_S
    config_text: str = "{}"
    display_name: str = ""
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=lambda: {HISTORY: [], EVENTS: [], CONSOLE: []})
    summary_text: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    file_times_s: dict[str, float] = field(default_factory=dict)
    uploaded: list[str] = field(default_factory=list)
    promised: set[str] = field(default_factory=set)
    """Files that a client asked an upload URL for, or named in a row."""
    complete: bool = False
    exitcode: int | None = None
    preempting: bool = False
    stopped: bool = False
    replayed_lines: int = 0
    marks: list[Mark] = field(default_factory=list)
    answers_since_change: int = 0
    _steps: tuple[int, list[int | None]] = (0, [])
    _changes: int = 0

    @property
    def key(self) -> RunKey:
        return (self.entity, self.project, self.run_id)

    @property
    def path(self) -> str:
        return "/".join(self.key)

    @property
    def storage_id(self) -> str:
        return opaque_id("Run", self.run_id, self.project, self.entity)

    @property
    def history_lines(self) -> list[str]:
        return list(self.lines[HISTORY])

    @property
    def events_lines(self) -> list[str]:
        return list(self.lines[EVENTS])

    @property
    def console_lines(self) -> list[str]:
        return list(self.lines[CONSOLE])

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, parsed. A hole that a client left open is no row."""
        return [json.loads(line) for line in self.history_lines if line]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.events_lines if line]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.summary_text) if self.summary_text else {}

    @property
    def raw_config(self) -> dict[str, Any]:
        """The config as sent: each top-level key wrapped in {"value": …}."""
        return json.loads(self.config_text)

    @property
    def config(self) -> dict[str, Any]:
        """The config unwrapped, `_wandb` included."""
        return {
            key: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for key, entry in self.raw_config.items()
        }

    @property
    def started(self) -> bool:
        """Whether resume sees this run: W&B and the SDK look for `_wandb.t`."""
        wandb_block = self.config.get("_wandb")
        return isinstance(wandb_block, dict) and "t" in wandb_block

    @property
    def last_step(self) -> int:
        """The highest `_step` of any row, -1 without rows."""
        return max((step for step in self.steps() if step is not None), default=-1)

    def state(self, now_s: float) -> str:
        if self.complete:
            return "finished" if self.exitcode == 0 else "failed"
        if now_s - self.heartbeat_s <= self.crashed_after_s:
            return "running"
        return "preempted" if self.preempting else "crashed"

    def steps(self) -> list[int | None]:
        """The `_step` of every history line, None where there is none. Parsed once per change."""
        changes, steps = self._steps
        if changes != self._changes:
            changes = self._changes
            steps = [_step_of(line) for line in self.history_lines]
            self._steps = (changes, steps)
        return steps

    def mark(self, now_s: float) -> Mark:
        counts = (len(self.lines[name]) for name in (HISTORY, EVENTS, CONSOLE))
        return Mark(now_s, *counts, self.summary_text)


@dataclass
class Store:
    """All runs, the alerts and the artifacts.

    With `append=True` it is deliberately wrong: offsets are ignored, so that a replay doubles its
    lines. A checker that does not notice this is no checker.
    """

    entity: str
    strict: bool = True
    append: bool = False
    crashed_after_s: float = CRASHED_AFTER_S
    resume: ResumeAnswers = field(default_factory=ResumeAnswers)
    runs: dict[RunKey, StoredRun] = field(default_factory=dict)
    deleted: set[RunKey] = field(default_factory=set)
    deleted_answers: DeletedAnswers = field(default_factory=DeletedAnswers)
    signature: int = 1
    """What a URL must carry for an upload; another one is of a URL that has expired."""
    alerts: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    artifacts: Artifacts = field(default_factory=Artifacts)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def violate(self, sentence: str) -> None:
        if self.strict:
            self.violations.append(sentence)

    def run(self, key: RunKey) -> StoredRun:
        """Raises `Rejected` 404 when there is none."""
        if key not in self.runs:
            raise Rejected(404, f"run {'/'.join(key)!r} is unknown")
        return self.runs[key]

    def run_by_id(self, storage_id: str) -> StoredRun:
        for run in self.runs.values():
            if run.storage_id == storage_id:
                return run
        raise Rejected(404, f"no run has the storage id {storage_id!r}")

    def upsert(self, variables: dict[str, Any], now_s: float) -> tuple[StoredRun, bool]:
        """Create or change a run; a variable that is null or absent leaves its field alone."""
        config_text = variables.get("config")
        if config_text is not None:
            self._check_config(variables.get("name"), config_text)
        run, inserted = self._upsert_target(variables, now_s)
        run.config_text = config_text or run.config_text
        # The SDK says displayName; its public API's Run.update() says display_name.
        for variable, name in (
            ("displayName", "display_name"),
            ("display_name", "display_name"),
            ("notes", "notes"),
            ("groupName", "group"),
            ("jobType", "job_type"),
        ):
            if variables.get(variable) is not None:
                setattr(run, name, variables[variable])
        if variables.get("tags") is not None:
            run.tags = list(variables["tags"])
        if variables.get("summaryMetrics") is not None:
            run.summary_text = variables["summaryMetrics"]
        for name in ("host", "program", "commit", "repo", "sweep", "description", "state"):
            if variables.get(name) is not None:
                run.params[name] = variables[name]
        return run, inserted

    def file_stream(self, key: RunKey, body: Any, body_bytes: int, now_s: float) -> dict[str, Any]:
        """Carry out one file_stream request and return the answer's body."""
        if key in self.deleted:
            raise Rejected(self.deleted_answers.file_stream, f"run {'/'.join(key)!r} was deleted")
        if key not in self.runs:
            self.violate(f"{'/'.join(key)}: posted to before any UpsertBucket created it")
        run = self.run(key)
        if body_bytes > BODY_MAX_BYTES:
            self.violate(f"{run.path}: a body of {body_bytes} bytes is over {BODY_MAX_BYTES}")
        chunks = self._checked_chunks(run, body)

        before = run.mark(now_s)
        for name, offset, content in chunks:
            if name == SUMMARY:
                run.summary_text = content[-1]
            else:
                self._splice(run, name, offset, content)
        if before != run.mark(now_s):
            run.marks.append(run.mark(now_s))
            run.answers_since_change = 0

        run.heartbeat_s = now_s
        self.announce(run, body.get("uploaded") or [])
        run.preempting = bool(body.get("preempting"))
        # Any later request makes a finished run a running one again.
        run.complete = bool(body.get("complete"))
        lacking = sorted(run.promised - set(run.files))
        if run.complete and lacking:
            self.violate(f"{run.path}: complete, but never uploaded: {', '.join(lacking)}")
        run.exitcode = body.get("exitcode") if run.complete else None
        return {"stopped": True} if run.stopped else {}

    def announce(self, run: StoredRun, paths: list[str]) -> None:
        for path in paths:
            if path not in run.files:
                self.violate(f"{run.path}: {path!r} is announced as uploaded, and was not")
        run.uploaded.extend(paths)

    def put_file(self, key: RunKey, path: str, content: bytes, now_s: float) -> None:
        run = self.run(key)
        run.files[path] = content
        run.file_times_s[path] = now_s

    def resume_view(self, run: StoredRun, now_s: float, counted: bool = True) -> tuple[Mark, Mark]:
        """What resume says: (the counts, the moment of the tails and the summary).

        `counted=False` looks without using up one of the `queries` for which the answer is late.
        """
        truth = run.mark(now_s)
        answers = run.answers_since_change
        run.answers_since_change += counted
        old = self._old_mark(run, now_s, answers)
        if self.resume.mode == "honest" or old is None:
            return truth, truth
        if self.resume.mode == "stale":
            return truth, old
        late = {name: getattr(old, name) for name in self.resume.of}
        return replace(truth, **late), old

    def delete(self, storage_id: str) -> None:
        run = self.run_by_id(storage_id)
        del self.runs[run.key]
        self.deleted.add(run.key)

    def _old_mark(self, run: StoredRun, now_s: float, answers: int) -> Mark | None:
        if self.resume.lag_s:
            past = [mark for mark in run.marks if mark.at_s <= now_s - self.resume.lag_s]
            return past[-1] if past else run.marks[0]
        if self.resume.queries is not None and answers >= self.resume.queries:
            return None
        if self.resume.lines is not None:
            return run.mark(now_s).less(self.resume.lines)
        return run.marks[max(0, len(run.marks) - 1 - self.resume.behind)]

    def _upsert_target(self, variables: dict[str, Any], now_s: float) -> tuple[StoredRun, bool]:
        name = variables.get("name")
        if not name:
            if not variables.get("id"):
                raise Rejected(400, "upsertBucket needs a name or an id")
            return self.run_by_id(variables["id"]), False
        key = (variables.get("entity") or self.entity, variables.get("project") or "uncategorized", name)
        if key in self.runs:
            return self.runs[key], False
        if key in self.deleted:
            raise Rejected(
                self.deleted_answers.upsert,
                f"run {name!r} was created and deleted before; use another run id",
            )
        if variables.get("id"):
            raise Rejected(404, f"run {'/'.join(key)!r} is unknown")
        run = StoredRun(*key, created_s=now_s, heartbeat_s=now_s, crashed_after_s=self.crashed_after_s)
        run.display_name = name
        run.marks.append(run.mark(now_s))
        self.runs[key] = run
        return run, True

    def _check_config(self, name: str | None, config_text: str) -> None:
        try:
            config = json.loads(config_text)
        except ValueError:
            raise Rejected(400, f"the config is not JSON: {config_text[:100]!r}") from None
        if not isinstance(config, dict):
            raise Rejected(400, f"the config is not an object: {config_text[:100]!r}")
        for key, entry in config.items():
            if not isinstance(entry, dict) or "value" not in entry:
                self.violate(f"{name}: config key {key!r} is not wrapped in a value")

    def _checked_chunks(self, run: StoredRun, body: Any) -> list[tuple[str, int, list[str]]]:
        """The body's line chunks, all valid, so that a refused request has changed nothing."""
        if not isinstance(body, dict):
            raise Rejected(400, "the body is not a JSON object")
        chunks = []
        for name, chunk in (body.get("files") or {}).items():
            if name not in run.lines and name != SUMMARY:
                self.violate(f"{run.path}: {name!r} is not a file of the file stream")
                continue
            offset, content = chunk.get("offset"), chunk.get("content")
            well_formed = isinstance(offset, int) and offset >= 0 and isinstance(content, list) and content
            if not well_formed or not all(isinstance(line, str) for line in content):
                self.violate(f"{run.path}: {name} has no offset or no list of lines")
                raise Rejected(400, f"{name!r} needs an offset and a list of lines")
            if name == SUMMARY:
                self._check_summary(run, offset, content)
            chunks.append((name, offset, content))
        return chunks

    def _check_summary(self, run: StoredRun, offset: int, content: list[str]) -> None:
        if offset != 0 or len(content) != 1:
            self.violate(f"{run.path}: the summary is one line at offset 0, not {len(content)} at {offset}")
        if not isinstance(_parsed(content[-1]), dict):
            self.violate(f"{run.path}: the summary is not a JSON object: {content[-1][:100]!r}")
            raise Rejected(400, "the summary is not a JSON object")

    def _splice(self, run: StoredRun, name: str, offset: int, content: list[str]) -> None:
        lines = run.lines[name]
        count = len(lines)
        if self.append:
            offset = count
        if offset > count:
            self.violate(
                f"{run.path}: {name} leaves a gap: offset {offset}, but the server has {count} lines"
            )
            lines.extend([""] * (offset - count))
        overlap = min(len(content), len(lines) - offset)
        changed = False
        for position, line in enumerate(content[:overlap], start=offset):
            if lines[position] == line:
                run.replayed_lines += 1
                continue
            self._check_overwrite(run, name, position, count)
            lines[position] = line
            changed = True
        if self.strict and name != CONSOLE:
            self._check_lines(run, name, offset + overlap, content[overlap:])
        lines.extend(content[overlap:])
        if name == HISTORY and (changed or overlap < len(content)):
            run._changes += 1

    def _check_overwrite(self, run: StoredRun, name: str, position: int, count: int) -> None:
        hole = run.lines[name][position] == ""
        still_open = name == CONSOLE and position >= count - CONSOLE_OPEN_LINES
        if not hole and not still_open:
            self.violate(f"{run.path}: {name} line {position} is overwritten by another line")

    def _check_lines(self, run: StoredRun, name: str, position: int, new_lines: Iterable[str]) -> None:
        previous_step = _last_step(run.lines[name]) if name == HISTORY else None
        for at, line in enumerate(new_lines, start=position):
            row = _parsed(line)
            if not isinstance(row, dict):
                self.violate(f"{run.path}: {name} line {at} is not a JSON object: {line[:100]!r}")
                continue
            if "\n" in line or "\r" in line:
                self.violate(f"{run.path}: {name} line {at} contains a line break")
            if name != HISTORY:
                continue
            if '"path"' in line:
                run.promised.update(_media_paths(row))
            step = row.get("_step")
            if not isinstance(step, int) or isinstance(step, bool):
                self.violate(f"{run.path}: {name} line {at} has no integer _step: {line[:100]!r}")
                continue
            if previous_step is not None and step <= previous_step:
                self.violate(
                    f"{run.path}: {name} line {at} has _step {step}, not above {previous_step} before it"
                )
            previous_step = step


def opaque_id(kind: str, *parts: str) -> str:
    """An id in the service's manner: only the server should read it."""
    return base64.b64encode(":".join((kind, "v1", *parts)).encode()).decode()


def _parsed(line: str) -> Any:
    """The line's value, bare NaN and Infinity allowed; None when it is not JSON."""
    try:
        return orjson.loads(line)
    except ValueError:
        try:
            return json.loads(line)
        except ValueError:
            return None


def _media_paths(value: Any) -> list[str]:
    """The paths of the media that a row names."""
    if isinstance(value, dict):
        own = [value["path"]] if str(value.get("_type", "")).endswith("-file") and "path" in value else []
        return own + [path for inner in value.values() for path in _media_paths(inner)]
    if isinstance(value, list):
        return [path for inner in value for path in _media_paths(inner)]
    return []


def _step_of(line: str) -> int | None:
    row = _parsed(line)
    step = row.get("_step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None


def _last_step(lines: list[str]) -> int | None:
    return next((step for step in map(_step_of, reversed(lines)) if step is not None), None)
