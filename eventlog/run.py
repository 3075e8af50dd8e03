"""A run as a training script sees it: what is called here is on the disk when the call returns.

    init ──▶ Run ── log ──▶ StreamWriter ──▶ segments ◀── syncd, analysis
                     ├── step rule: W&B's, applied before the record is written
                     └── media ──▶ RunFiles ──▶ files/<sha256>

Invariants
----------
* A mistake in a call raises before it has any effect.  The world failing (a full disk, a deleted directory) raises in
  `init` only; later it is said once on stderr and counted in `Run.dropped`.
* Nothing here talks to the network, to `syncd` or to W&B.
* Each process has its own piece: a forked child that logs claims one, and never touches its parent's.
* A finished run has an `exit` record; a killed one has none.

What a record looks like and when a disk is tried again is decided elsewhere (`record`, `writer`).
"""

from __future__ import annotations

import atexit
import errno
import math
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from eventlog import not_yet, roots
from eventlog.artifact import Artifact, of_path, with_latest
from eventlog.capture import Capture, Wanted
from eventlog.entry import Entry, enter, random_id
from eventlog.errors import EventlogError, RootNotWritable
from eventlog.files import NotKept, RunFiles
from eventlog.logged import Config, Summary, as_config
from eventlog.not_yet import Settings
from eventlog.piece import HEARTBEAT_S, Piece, RunIdentity, claim_secondary, primaries
from eventlog.process import facts, rank_of
from eventlog.record import TextMark, encode_data
from eventlog.redact import redacted, without_key
from eventlog.store import Store
from eventlog.trajectory import Trajectory, encode_trajectory
from eventlog.writer import DURABILITIES, RETRY_S, StreamWriter

VERSION = "0.1.0"
# The promise of durability="interval": on the disk within a second.
_SYNC_INTERVAL_S = 1.0
_ACK_POLL_S = 0.5
# What a traceback says is at its end.
_ERROR_MAX_CHARS = 8000
_STEP_MAX = 2**63 - 1
# W&B's: how long it stays quiet about alerts of one title.
_ALERT_WAIT_S = 60.0
_DEFAULT_PROJECT = "uncategorized"
_MODES = {"online": "online", "offline": "offline", "disabled": "disabled", "shared": "online"}
_MODES |= {"run": "online", "dryrun": "offline"}
_RESUMES: dict[Any, str | None] = {None: None, False: None, "": None, True: "allow", "auto": "allow"}
_RESUMES |= {"allow": "allow", "must": "must", "never": "never"}
_UPLOAD_RANKS = {"primary": "primary", "all": "all"}
_REINITS = (None, True, False, "default", "create_new", "return_previous", "finish_previous")
_SUMMARIES = frozenset({"min", "max", "mean", "best", "last", "first", "copy", "none"})
# Arguments of wandb.init that mean nothing here: a script that gives them runs, and is told.
_NOT_OURS = {
    "allow_val_change",
    "anonymous",
    "config_exclude_keys",
    "config_include_keys",
    "force",
    "fork_from",
}
_NOT_OURS |= {
    "magic",
    "monitor_gym",
    "resume_from",
    "sync_tensorboard",
    "tensorboard",
}


class AlertLevel(Enum):
    """How loud an alert is."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


def step_rule(current: int, step: int | None, commit: bool | None) -> tuple[int, bool, int]:
    """Return the step of a call of `log`, whether it closes its row, and the current step after it.

    >>> step_rule(5, None, None), step_rule(5, 7, None), step_rule(5, 7, True)
    ((5, True, 6), (7, False, 7), (7, True, 8))
    >>> step_rule(5, 3, None)   # kept as given; W&B shows no step that is past
    (3, False, 5)
    """
    if step is None:
        return current, commit is not False, current + (commit is not False)
    closes = commit is True
    return step, closes, max(current, step + closes) if step >= current else current


class Run:
    """One execution of a training script.  Made by `init`."""

    def __init__(
        self,
        identity: RunIdentity,
        run_dir: Path,
        *,
        name: str | None,
        about: Mapping[str, Any],
        config: Mapping[str, Any],
        step: int,
        resumed: bool,
        runtime_s: float,
        durability: str,
        quiet: bool,
        disabled: bool,
    ) -> None:
        self.id = identity.run_id
        self.project = identity.project
        self.entity = identity.entity
        self.dir = run_dir
        self.name = name or identity.run_id
        self.notes: str | None = about["notes"]
        self.tags: tuple[str, ...] = tuple(about["tags"] or ())
        self.group: str | None = about["group"]
        self.job_type: str | None = about["job_type"]
        self.resumed = resumed
        self.disabled = disabled
        self.config = Config(config, self._record_config)
        self.summary = Summary(self._record_summary)
        self._identity = identity
        self._about = {"name": name, **about}
        self._runtime_s = runtime_s
        self._durability = durability
        self._quiet = quiet
        self._step = step
        self._is_finished = False
        self._said: set[str] = set()
        self._api_key = os.environ.get("WANDB_API_KEY")
        self._lost = 0
        self._was_stopped = False
        self._stop_look_at_s = 0.0
        self._piece: Piece | None = None
        self._events: StreamWriter | None = None
        # The streams beside the events, by name; each is opened by its first record.
        self._beside: dict[str, StreamWriter] = {}
        self._begin_anew()

    @property
    def step(self) -> int:
        """The current step, as W&B counts: where `log` without a step will go."""
        return self._step

    @property
    def dropped(self) -> int:
        """How many records are not in the log (or, with durability "always", not known to be on the disk)."""
        return self._lost + sum(writer.dropped for writer in self._writers())

    @property
    def should_stop(self) -> bool:
        """Whether somebody pressed Stop on the run's page; `syncd` hears of it when it uploads."""
        from eventlog.cursor import cursors

        # Asked at each step of a training: a look a second is enough.
        if not self._was_stopped and time.monotonic() >= self._stop_look_at_s:
            self._stop_look_at_s = time.monotonic() + _ACK_POLL_S
            # The word was for one piece, and not for the one that resumes it. Other ranks obey the primary's.
            current = primaries(self.dir)[-1:] + ([self._piece.writer] if self._piece else [])
            self._was_stopped = any(cursor.stopped in current for cursor in cursors(self.dir))
        return self._was_stopped

    @property
    def path(self) -> str:
        return f"{self.project}/{self.id}"

    def log(
        self, data: Mapping[str, Any], step: int | None = None, commit: bool | None = None, sync: Any = None
    ) -> None:
        """Log one row: when this returns, it survives the death of the process, unless `dropped` grew.

        Calls with one `step` make one row, which W&B gets when a later step begins, with `commit=True`, or at the end.
        """
        time_us = time.time_ns() // 1000
        if type(data) is not dict and not isinstance(data, Mapping):
            raise TypeError(f'log takes a dict, as in run.log({{"loss": 0.5}}), not {data!r}.')
        if step is not None and (type(step) is not int or not -_STEP_MAX <= step <= _STEP_MAX):
            step = _as_step(step)
        encoded, as_text = encode_data(data)
        events = self._events or self._open()
        if events is None:
            return
        if as_text and any(mark[0] == "lossy" for mark in as_text):
            # Only what JSON has no word for can be media. Their names have the step before this call, as W&B's do.
            data = self._files.shown(data, "", self._step)
            encoded, as_text = encode_data(data)
        with events.lock:
            current = self._step
            step, closes, self._step = step_rule(current, step, commit)
            is_written = events.write("metrics", encoded, as_text, time_us, step, closes)
        if events.syncs_each_record and is_written:
            is_written = events.sync_record()
        if not is_written:
            self._say_dropped(events)
        if step >= current:
            # No further brace: no value is a dict, which nearly every row spares a look at each.
            self.summary.show_logged(data, encoded.find(b"{", 1) < 0)
        else:
            self._say_once(
                "past step",
                f"log(step={step}) came after step {current}: the record is kept, and W&B will not show it, "
                "because its steps only go up. This is said once.",
            )

    def log_trajectory(self, trajectory: Trajectory, step: int | None = None) -> None:
        """Log what a policy did in one episode; it belongs to `step`, or to the current one."""
        time_us = time.time_ns() // 1000
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"log_trajectory takes an eventlog.Trajectory, not {trajectory!r}.")
        step = self._step if step is None else _as_step(step)
        encoded, as_text = encode_trajectory(trajectory)
        writer = self._writer_of("trajectories")
        if writer is not None and not writer.append_encoded("trajectory", encoded, as_text, time_us, step):
            self._say_dropped(writer)

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        goal: str | None = None,
        overwrite: bool | None = None,
    ) -> None:
        """Say how W&B shows a metric: over which x axis, and which statistics of it are the summary."""
        if not isinstance(name, str) or not name:
            raise TypeError(f'the name of a metric is a string, as in define_metric("eval/*"), not {name!r}.')
        if "*" in name[:-1]:
            raise ValueError(f"a metric's name may have one * at its end, not {name!r}.")
        if step_metric is not None and (not isinstance(step_metric, str) or "*" in step_metric):
            raise ValueError(f"step_metric is the name of one metric, not {step_metric!r}.")
        for word in str(summary).split(",") if summary is not None else ():
            if word not in _SUMMARIES:
                raise ValueError(
                    f"summary is a comma list of {', '.join(sorted(_SUMMARIES))}, not {summary!r}."
                )
        if goal not in (None, "maximize", "minimize"):
            raise ValueError(f'goal is "maximize" or "minimize", not {goal!r}.')
        options = {
            "step_metric": step_metric,
            "step_sync": step_sync,
            "hidden": hidden,
            "summary": summary.split(",") if summary is not None else None,
            "goal": goal,
            "overwrite": overwrite,
        }
        given = {key: value for key, value in options.items() if value is not None}
        self._record("define_metric", {"name": name, **given})

    def alert(
        self,
        title: str,
        text: str,
        level: AlertLevel | str | None = None,
        wait_duration: float | timedelta | None = None,
    ) -> None:
        """Have W&B notify people; of equal titles within `wait_duration` (seconds; one minute) it notifies once."""
        word = level.value if isinstance(level, AlertLevel) else level or "INFO"
        if word not in AlertLevel.__members__:
            raise ValueError(f"level is one of {', '.join(AlertLevel.__members__)}, not {level!r}.")
        wait_s = wait_duration.total_seconds() if isinstance(wait_duration, timedelta) else wait_duration
        if wait_s is not None and not (isinstance(wait_s, (int, float)) and 0 <= wait_s < math.inf):
            raise ValueError(f"wait_duration is seconds or a timedelta, not {wait_duration!r}.")
        self._record(
            "alert",
            {
                "title": str(title),
                "text": str(text),
                "level": word,
                "wait_s": float(wait_s or _ALERT_WAIT_S),
            },
        )

    def save(
        self,
        glob_str: str | os.PathLike[str],
        base_path: str | os.PathLike[str] | None = None,
        policy: str = "live",
        glob: bool = True,
    ) -> list[str]:
        """Save files with the run, under their paths relative to `base_path`; return these names.

        "now" stores them at once, "end" at `finish`, and "live" at once and again whenever they changed.
        """
        pattern, base = os.fspath(glob_str), None if base_path is None else os.fspath(base_path)
        if pattern.startswith(("gs://", "s3://")):
            raise ValueError(
                f"{pattern!r} is not a local file. Log a reference: run.log_artifact({pattern!r})."
            )
        if self._events is None and self._open() is None:
            return []
        return self._files.save(pattern, base, policy, glob)

    def log_artifact(
        self,
        artifact_or_path: Artifact | str | os.PathLike[str],
        name: str | None = None,
        type: str | None = None,
        aliases: str | Iterable[str] | None = None,
        tags: str | Iterable[str] | None = None,
    ) -> Artifact:
        """Make an artifact, or a file, directory or URI as one, an output of the run.

        Its files are copied now. `syncd` uploads it, as the next version of its name.
        """
        names = with_latest(aliases)
        labels = _as_tags(tags or ()) or []
        if isinstance(artifact_or_path, (str, os.PathLike)):
            artifact = of_path(artifact_or_path, self.id, name, type)
        elif isinstance(artifact_or_path, Artifact):
            artifact = artifact_or_path
        else:
            raise TypeError(f"log_artifact takes an eventlog.Artifact or a path, not {artifact_or_path!r}.")
        if self._events is not None or self._open() is not None:
            with suppress(NotKept):
                self._files.keep_artifact(artifact, names, labels, self._step)
        return artifact

    def flush(self, durable: bool = False) -> bool:
        """Return whether all that was logged is where it should be.

        It survives this process without any call. With `durable`, wait until it survives a power cut.
        """
        are_durable = [writer.sync() for writer in self._writers()] if durable else []
        return all(are_durable)

    def finish(
        self,
        exit_code: int | None = None,
        quiet: bool | None = None,
        sync_timeout: float | None = None,
        error: str | None = None,
    ) -> None:
        """End the run; a second call does nothing.

        With `sync_timeout`, wait up to so many seconds until `syncd` has told W&B that the run is complete.
        """
        exit_code = 0 if exit_code is None else operator.index(exit_code)
        if self._is_finished:
            return
        self._is_finished = True
        self._stop.set()
        events = self._events
        if events is not None:
            if self._capture is not None:
                self._capture.stop()
            self._files.finish()
            for writer in list(self._beside.values()):
                writer.close()
            # The disk may have space again, and this is the last chance.
            events.retry_now()
            said: dict[str, Any] = {"exitcode": exit_code}
            if error:
                said["error"] = error[-_ERROR_MAX_CHARS:]
            if not events.append_encoded("exit", *self._encoded_privately(said), time.time_ns() // 1000):
                self._say_dropped(events)
            events.close()
            self._lost = self.dropped
            self._events = None
            self._beside.clear()
            with self._piece_lock:
                if self._piece is not None:
                    self._piece.release()
                    self._piece = None
        _no_longer_active(self)
        if self._lost and not self.disabled:
            self._say(f"{self._lost:,} records of {self.path} could not be written and are lost.")
        if sync_timeout is not None and events is not None:
            self._wait_for_acks(sync_timeout)

    # W&B's methods that do nothing yet.
    log_code = staticmethod(not_yet.log_code)
    unwatch = staticmethod(not_yet.unwatch)
    use_artifact = staticmethod(not_yet.use_artifact)
    watch = staticmethod(not_yet.watch)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.finish(0)
        else:
            self.finish(1, error=_in_words(error))

    def __repr__(self) -> str:
        return f"<eventlog.Run {self.path} in {str(self.dir)!r}>"

    # ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_anew(self) -> None:
        """Begin with free locks: in a forked child, the old ones may be held by threads that it does not have."""
        store = Store(self.dir, is_durable=self._durability != "none")
        self._capture: Capture | None = None
        self._files = RunFiles(
            self.id, store, lambda: self._writer_of("files"), self._drop_file, self._say_once
        )
        self._opening = threading.RLock()
        self._piece_lock = threading.RLock()
        self._stop = threading.Event()
        self._open_again_at_s = 0.0

    def _begin(self, piece: Piece) -> StreamWriter:
        """Make `piece` this process's, write its `start`, and keep it alive; or raise `OSError`."""
        events = StreamWriter(
            piece.dir, self._identity.log_id, piece.writer, piece.token, "events", self._durability
        )
        start = {
            "config": redacted(self.config.as_dict()),
            **{key: redacted(value) for key, value in self._about.items()},
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "resumed": self.resumed,
            "step": self._step,
            "runtime_s": self._runtime_s,
            **facts(VERSION),
        }
        if not events.append_encoded("start", *self._encoded_privately(start), time.time_ns() // 1000):
            events.close()
            piece.release()
            raise OSError(errno.EIO, events.trouble)
        self._piece, self._events = piece, events
        threading.Thread(target=self._keep, args=(piece,), name=f"eventlog {self.id}", daemon=True).start()
        return events

    def _open(self) -> StreamWriter | None:
        """Return the writer of events; claim a piece if this process (a forked child) has none; None if it cannot."""
        if self._is_finished:
            raise EventlogError(
                f"run {self.id!r} is finished. Log before finish(), or begin another run with eventlog.init()."
            )
        if self.disabled:
            return None
        with self._opening:
            if self._events is not None:
                return self._events
            now_s = time.monotonic()
            if now_s >= self._open_again_at_s:
                self._open_again_at_s = now_s + RETRY_S
                try:
                    events = self._begin(claim_secondary(self.dir, "fork"))
                except OSError as error:
                    self._say_once(
                        "open", f"a forked process cannot log into {str(self.dir)!r}: {error.strerror}."
                    )
                else:
                    for _ in range(self._lost):
                        events.owe_gap("the piece could not be opened")
                    return events
            self._lost += 1
            return None

    def _writers(self) -> list[StreamWriter]:
        events = self._events
        return [*([] if events is None else [events]), *self._beside.values()]

    def _writer_of(self, stream: str) -> StreamWriter | None:
        """Return the writer of a stream beside the events, opened if it is not yet; None if it cannot be."""
        if self._events is None and self._open() is None:
            return None
        return self._beside.get(stream) or self._open_beside(stream)

    def _open_beside(self, stream: str) -> StreamWriter | None:
        with self._opening:
            piece, events = self._piece, self._events
            if stream not in self._beside and piece is not None and events is not None:
                try:
                    self._beside[stream] = StreamWriter(
                        piece.dir,
                        self._identity.log_id,
                        piece.writer,
                        piece.token,
                        stream,
                        self._durability,
                        # What such a stream dropped is said in the events, which somebody always reads.
                        on_drop=lambda reason: events.owe_gap(f"{stream}: {reason}"),
                    )
                except OSError as error:
                    self._lost += 1
                    events.owe_gap(f"{stream}: {error.strerror}")
                    self._say_once(
                        f"open {stream}", f"no record of {stream} can be logged: {error.strerror}."
                    )
            return self._beside.get(stream)

    def _drop_file(self, reason: str) -> None:
        """Count content that could not be stored, and say so, here and in the log."""
        self._lost += 1
        events = self._events
        if events is not None:
            events.owe_gap(f"files: {reason}")
        self._say_once(
            "dropped file",
            f"{reason}. Training goes on, and the rest of the row is logged; run.dropped counts what is lost. "
            "This is said once.",
        )

    def _keep(self, piece: Piece) -> None:
        """Sync each second, and say twice a minute that this process lives."""
        stop = self._stop
        heartbeat_at_s = time.monotonic() + HEARTBEAT_S
        while not stop.wait(_SYNC_INTERVAL_S):
            try:
                self._sync_and_look()
                if self._capture is not None:
                    self._capture.flush()
                if time.monotonic() >= heartbeat_at_s:
                    heartbeat_at_s += HEARTBEAT_S
                    with self._piece_lock:
                        if self._piece is piece:
                            piece.heartbeat(time.time_ns() // 1000)
            except Exception as error:  # noqa: BLE001 - the top of a thread: without it, nothing would be synced
                self._say_once(
                    "keep", f"looking after the log of {self.path} failed: {error!r}. It is tried again."
                )

    def _sync_and_look(self) -> None:
        for writer in self._writers():
            if self._durability == "interval" and writer.is_dirty and not writer.sync():
                self._say_once("sync", f"the log of {self.path} could not be synced: {writer.trouble}.")
            if writer.is_deleted():
                self._say_once("deleted", f"{writer.trouble}. What it held is gone from {str(self.dir)!r}.")

    def _after_fork(self) -> None:
        """In the child: let go of the parent's files; the next `log` claims a piece of the child's own."""
        for writer in self._writers():
            writer.abandon_after_fork()
        if self._piece is not None:
            self._piece.abandon_after_fork()
        self._piece = self._events = None
        self._beside.clear()
        self._lost = 0
        self._begin_anew()

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────

    def _record(self, kind: str, data: Mapping[str, Any]) -> None:
        events = self._events or self._open()
        if events is not None and not events.append(kind, data):
            self._say_dropped(events)

    def _start_capture(self, wanted: Wanted) -> None:
        """Record what is printed, how busy the machine is, and what the run runs with."""
        self._capture = Capture(wanted, self._record_console, self._record, self._files.add)
        for source in self._capture.start():
            self._say_once(f"console {source}", f"what is printed to {source} cannot be captured.")

    def _record_console(self, source: str, text: str) -> None:
        writer = self._writer_of("console")
        if writer is None:
            return
        encoded, as_text = self._encoded_privately({"source": source, "text": text})
        if not writer.append_encoded("console", encoded, as_text, time.time_ns() // 1000):
            self._say_dropped(writer)

    def _record_config(self, changes: dict[str, Any]) -> None:
        events = self._events or self._open()
        if events is None:
            return
        encoded, as_text = self._encoded_privately(redacted(changes))
        if not events.append_encoded("config", encoded, as_text, time.time_ns() // 1000):
            self._say_dropped(events)

    def _record_summary(
        self, changes: list[tuple[tuple[str, ...], Any]], deleted: list[tuple[str, ...]]
    ) -> None:
        self._record(
            "summary",
            {
                "set": [[list(path), value] for path, value in changes],
                "delete": [list(path) for path in deleted],
            },
        )

    def _encoded_privately(self, data: Mapping[str, Any]) -> tuple[bytes, list[TextMark]]:
        encoded, as_text = encode_data(data)
        return without_key(encoded, self._api_key), as_text

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def _say_once(self, topic: str, text: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            say(text)

    def _say_dropped(self, writer: StreamWriter) -> None:
        self._say_once(
            f"dropped {writer.trouble}",
            f"a record of {self.path} could not be written ({writer.trouble}). Training goes on; run.dropped counts "
            f"what is lost, and logging goes on as soon as {str(self.dir)!r} can be written. This is said once.",
        )

    def _wait_for_acks(self, timeout_s: float) -> None:
        from eventlog.cursor import cursors

        if not roots.daemon_is_watching():
            self._say(f"no syncd runs on this host: `syncd sync {self.dir}` uploads the run.")
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            found = list(cursors(self.dir))
            if found and all(cursor.finished for cursor in found):
                return
            time.sleep(_ACK_POLL_S)
        self._say(
            f"{self.path} is not uploaded after {timeout_s:g} s. It is intact in {str(self.dir)!r}; `syncd status` says more."
        )


def init(
    project: str | None = None,
    entity: str | None = None,
    *,
    name: str | None = None,
    id: str | None = None,
    config: Any = None,
    tags: Iterable[str] | None = None,
    notes: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    resume: bool | str | None = None,
    root: str | os.PathLike[str] | None = None,
    dir: str | os.PathLike[str] | None = None,
    mode: str | None = None,
    reinit: bool | str | None = None,
    durability: str = "interval",
    upload_ranks: str | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    save_code: bool | None = None,
    quiet: bool | None = None,
    **other: Any,
) -> Run:
    """Begin a run, or continue one, and return it.

    What is not given comes from W&B's environment variables. An id that exists begins a new run beside it, unless
    `resume` says otherwise. `durability` is "interval" (on the disk within a second), "always" or "none". With
    `upload_ranks="all"` W&B gets each rank as a run of its own, in one group; without, rank 0 alone.
    """
    env = os.environ
    _refuse_unknown(other)
    project = _text("project", project or env.get("WANDB_PROJECT")) or _DEFAULT_PROJECT
    entity = _text("entity", entity or env.get("WANDB_ENTITY"))
    name = _text("name", name or env.get("WANDB_NAME"))
    run_id = _text("id", id or env.get("WANDB_RUN_ID") or env.get("RUN_ID"))
    about = {
        "notes": _text("notes", notes or env.get("WANDB_NOTES")),
        "tags": _as_tags(tags if tags is not None else env.get("WANDB_TAGS", "").split(",")),
        "group": _text("group", group or env.get("WANDB_RUN_GROUP")),
        "job_type": _text("job_type", job_type or env.get("WANDB_JOB_TYPE")),
        "mode": _one_of("mode", mode or env.get("WANDB_MODE") or "online", _MODES),
        "upload_ranks": _one_of(
            "upload_ranks", upload_ranks or env.get("EVENTLOG_UPLOAD_RANKS") or "primary", _UPLOAD_RANKS
        ),
    }
    how = _one_of("resume", resume if resume is not None else env.get("WANDB_RESUME"), _RESUMES)
    if durability not in DURABILITIES:
        raise ValueError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}.")
    if reinit not in _REINITS:
        raise ValueError(f"reinit is one of {', '.join(map(repr, _REINITS))}, not {reinit!r}.")
    if how == "must" and run_id is None:
        raise ValueError('resume="must" needs to know which run: give its id, or set WANDB_RUN_ID.')
    given_config = as_config(config)
    is_quiet = env.get("WANDB_SILENT", "").lower() in ("1", "true", "yes") if quiet is None else bool(quiet)

    previous = _previous(project, run_id, reinit)
    if previous is not None:
        previous.config.update(given_config)
        return previous

    root_dir = Path(
        os.path.abspath(root or env.get("EVENTLOG_ROOT") or _beside_wandb(dir or env.get("WANDB_DIR")))
    )
    shared: dict[str, Any] = {"about": about, "durability": durability, "quiet": is_quiet}
    if about["mode"] == "disabled":
        identity = RunIdentity.new(project, run_id or random_id(), entity)
        run_dir = identity.directory(root_dir)
        run = Run(
            identity,
            run_dir,
            name=name,
            config=given_config,
            step=0,
            resumed=False,
            runtime_s=0.0,
            disabled=True,
            **shared,
        )
    else:
        entry = _enter(root_dir, project, entity, run_id, how, is_quiet)
        run = _run_of(entry, name, given_config, shared, root_dir)
        run._start_capture(Wanted.of({"save_code": save_code, **Settings.of(settings).given}, env))
        if entry.notice:
            say(entry.notice)
        _announce(run, root_dir)
    _active_from_now_on(run)
    return run


def _enter(
    root: Path, project: str, entity: str | None, run_id: str | None, resume: str | None, quiet: bool
) -> Entry:
    rank = rank_of(os.environ)
    if rank > 0 and run_id is None:
        rank = 0
        if not quiet:
            say(
                "this is not rank 0, and no id says which run it belongs to: it begins a run of its own. "
                "Set WANDB_RUN_ID to the same id on all ranks to have them in one."
            )
    try:
        return enter(root, project, entity, run_id or random_id(), resume, rank, say)
    except OSError as error:
        raise _not_writable(root, error) from error


def _run_of(
    entry: Entry, name: str | None, config: dict[str, Any], shared: dict[str, Any], root: Path
) -> Run:
    earlier = entry.earlier
    if name is None:
        name = earlier.name if earlier else entry.asked_id
    run = Run(
        entry.identity,
        entry.run_dir,
        name=name,
        config={**(earlier.config if earlier else {}), **config},
        step=earlier.step if earlier else 0,
        resumed=earlier is not None,
        runtime_s=earlier.runtime_s if earlier else 0.0,
        disabled=False,
        **shared,
    )
    try:
        run._begin(entry.piece)
    except OSError as error:
        raise _not_writable(root, error) from error
    return run


def _not_writable(root: Path, error: OSError) -> RootNotWritable:
    return RootNotWritable(
        f"the root {str(root)!r} cannot be written: {error.strerror or error}. "
        "Give another one (root=…, or EVENTLOG_ROOT), or make space or permission there."
    )


def _announce(run: Run, root: Path) -> None:
    try:
        roots.register(root)
    except OSError as error:
        say(
            f"the root cannot be entered in {str(roots.state_dir())!r} ({error.strerror}): start the daemon with "
            f"`syncd start --root {root}`."
        )
    daemon = (
        "syncd uploads it" if roots.daemon_is_watching() else "no syncd is running: `syncd start` uploads it"
    )
    run._say(f"{run.path} is logged in {run.dir} ({daemon}).")


def say(text: str) -> None:
    """Tell the person at the terminal."""
    # A closed or broken stderr is no reason to fail a training.
    with suppress(OSError, ValueError, AttributeError):
        print(f"eventlog: {text}", file=sys.stderr, flush=True)


# ── which run is the current one, and how the process ends ───────────────────────────────────────────────────

_active: list[Run] = []
_ending: dict[str, Any] = {"code": 0, "error": None}
_is_hooked = False


def active() -> Run | None:
    """Return the run that `eventlog.log` logs to: the one begun last and not finished."""
    return _active[-1] if _active else None


def _previous(project: str, run_id: str | None, reinit: bool | str | None) -> Run | None:
    """Return the run that a second `init` stands for, if it does not begin one."""
    if reinit in (True, "finish_previous"):
        for run in list(_active):
            run.finish()
        return None
    if reinit == "create_new" or not _active:
        return None
    if reinit == "return_previous":
        return _active[-1]
    # Two libraries that both call init for the run that the environment names mean one run.
    return next((run for run in _active if run_id == run.id and project == run.project), None)


def _active_from_now_on(run: Run) -> None:
    global _is_hooked
    _active.append(run)
    if _is_hooked:
        return
    _is_hooked = True
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_after_fork_in_child)
    sys.excepthook = _noting_errors(sys.excepthook)
    sys.exit = _noting_codes(sys.exit)


def _no_longer_active(run: Run) -> None:
    if run in _active:
        _active.remove(run)


def _after_fork_in_child() -> None:
    for run in _active:
        run._after_fork()


def _at_exit() -> None:
    for run in list(_active):
        run.finish(_ending["code"], error=_ending["error"])


def _noting_errors(hook: Callable[..., Any]) -> Callable[..., Any]:
    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _ending["code"] = 255 if issubclass(kind, KeyboardInterrupt) else 1
        _ending["error"] = _in_words(error)
        hook(kind, error, trace)

    return excepthook


def _in_words(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _noting_codes(leave: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    # `atexit` is not told the exit code, and SystemExit never reaches the except hook.
    def exit(status: Any = None, /) -> NoReturn:
        _ending["code"] = status if isinstance(status, int) else int(status is not None)
        leave(status)

    return exit


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────


def _as_step(step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"step is an int, not {step!r}.") from None
    if isinstance(step, bool):
        raise TypeError(f"step is an int, not {step!r}.")
    if not -_STEP_MAX <= number <= _STEP_MAX:
        raise ValueError(f"step {step!r} does not fit into 64 bits.")
    return number


def _as_tags(tags: Any) -> list[str] | None:
    if isinstance(tags, str):
        tags = [tags]
    listed = list(tags)
    if not all(isinstance(tag, str) for tag in listed):
        raise TypeError(f"tags are strings, not {tags!r}.")
    return [tag.strip() for tag in listed if tag.strip()] or None


def _text(what: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{what} is a string, not {value!r}.")
    if not value.strip():
        raise ValueError(f"{what} is blank: {value!r}. Leave it out, or give a name.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {value!r} has a character that UTF-8 cannot hold.") from None
    return value


def _one_of(what: str, value: Any, words: Mapping[Any, str | None]) -> Any:
    try:
        return words[value]
    except (KeyError, TypeError):
        known = ", ".join(repr(word) for word in words)
        raise ValueError(f"{what} is one of {known}, not {value!r}.") from None


def _refuse_unknown(other: Mapping[str, Any]) -> None:
    for argument in other:
        if argument not in _NOT_OURS:
            raise TypeError(f"init has no argument {argument!r}.")
        if other[argument] is not None:
            say(f"init({argument}=…) does nothing here.")


def _beside_wandb(directory: str | os.PathLike[str] | None) -> Path:
    return Path(directory or ".") / "runs"
