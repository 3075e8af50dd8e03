"""A run as a training script sees it: what is called here is on the disk when the call returns.

    init ──▶ Run ── log ──▶ StreamWriter ──▶ segments ◀── syncd, analysis
                     ├── step rule: W&B's, applied before the record is written
                     └── media ──▶ RunFiles ──▶ files/<sha256>

Invariants
----------
* A mistake in a call raises before it has any effect.  The world failing (a full disk, a deleted directory) raises in
  `init` only; later it is said once on stderr and counted in `Run.dropped`.
* Nothing here talks to the network or to W&B; `finish(sync_timeout=)` alone lets `syncd` do it.
* Each process has its own piece: a forked child that logs claims one, and never touches its parent's.
* A finished run has an `exit` record, and nothing after it, also where Ctrl-C cut `finish` short; a killed one has none.

What a record looks like and when a disk is tried again is decided elsewhere (`record`, `writer`).
"""

from __future__ import annotations

import errno
import operator
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path, PosixPath
from types import TracebackType
from typing import IO, Any, NoReturn

from eventlog import auto_resume, ending, roots
from eventlog.alerts import AlertLevel, alert_record
from eventlog.artifact import Artifact, of_path, with_latest
from eventlog.capture import Capture, Wanted
from eventlog.code import code_artifact, is_of_a_log, is_source
from eventlog.definitions import Metric, defined
from eventlog.entry import Earlier
from eventlog.errors import EventlogError, UsageError
from eventlog.files import NotKept, RunFiles
from eventlog.logged import Config, StaticConfig, Summary
from eventlog.not_yet import say, say_once
from eventlog.outcome import SummaryState
from eventlog.piece import HEARTBEAT_S, Piece, RunIdentity, claim_secondary, primaries
from eventlog.process import facts
from eventlog.reader import read
from eventlog.record import TextMark, encode_data
from eventlog.redact import key_in_bytes, marks_without_key, redacted, without_key, without_secrets
from eventlog.settings import Settings
from eventlog.stand_ins import UsedArtifact, refuse_to_fetch
from eventlog.store import Store
from eventlog.trajectory import Trajectory, encode_trajectory
from eventlog.wishes import STEP_MAX, Wishes, as_step, as_tags
from eventlog.writer import RETRY_S, StreamWriter

VERSION = "0.1.0"
# The promise of durability="interval": on the disk within a second.
_SYNC_INTERVAL_S = 1.0
# Sooner where there is much: a write into a file waits while a sync hands the disk 30 MB of it, 10 ms on ext4.
_LOOKS_A_SYNC = 4
_SYNC_AT_BYTES = 4 * 1024 * 1024
_ACK_POLL_S = 0.5
# For who stores a file, where that one may wait for us.
_CUT_IN_WAIT_S = 10.0
# What a traceback says is at its end.
_ERROR_MAX_CHARS = 8000


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


class RunDirectory(PosixPath):
    """The run's directory: a path, and, as in W&B's client, something to add a text to."""

    def __add__(self, text: str) -> str:
        return f"{self}{text}"


class Run:
    """One execution of a training script.  Made by `init`."""

    def __init__(
        self,
        identity: RunIdentity,
        run_dir: Path,
        *,
        name: str | None,
        wished: Wishes,
        config: Mapping[str, Any],
        locked: Iterable[str] = (),
        earlier: Earlier | None = None,
        disabled: bool = False,
    ) -> None:
        self.id = identity.run_id
        self.project = identity.project
        self.dir = RunDirectory(run_dir)
        self.resumed = earlier is not None
        self.disabled = disabled
        self.offline = wished.about["mode"] == "offline"
        self.sweep_id: str | None = wished.about.get("sweep_id")
        self.settings = Settings(**_as_settings(identity, run_dir, wished, name))
        self.config = Config(
            config,
            self._record_config,
            wished.allow_val_change,
            locked,
            lambda text: self._say_once(text, text),
        )
        self._state = SummaryState() if earlier is None else earlier.summary
        self.summary = Summary(self._record_summary, self._state)
        self.start_time = time.time()
        self.starting_step = 0 if earlier is None else earlier.step
        self._identity = identity
        self._wished = wished
        # What is not given anew stays as it was.
        earlier_about = {} if earlier is None else earlier.about
        self._about = {"name": name, **wished.about}
        self._about |= {key: told for key, told in earlier_about.items() if self._about[key] is None}
        # What W&B is told of the run in the `_wandb` block of its config.
        self._for_wandb: dict[str, Any] = {} if earlier is None else dict(earlier.wandb)
        self._facts: dict[str, Any] = {}
        self._runtime_s = 0.0 if earlier is None else earlier.runtime_s
        self._durability = wished.durability
        self._quiet = wished.is_quiet
        self._step = self.starting_step
        self._is_finished = False
        # Whether nothing is left to be done by `finish`, which a signal handler may call in the middle of `finish`.
        self._is_over = False
        # Whether `exit` is about to be written: no further stream is opened.
        self._is_ending = False
        self._said: set[str] = set()
        self._key = key_in_bytes(os.environ.get("WANDB_API_KEY"))
        self._lost = 0
        self._was_stopped = False
        self._stop_look_at_s = 0.0
        self._watcher: Any = None
        # What else gets each row.
        self._mirror: Any = None
        self._piece: Piece | None = None
        self._events: StreamWriter | None = None
        # The streams beside the events, by name; each is opened by its first record.
        self._beside: dict[str, StreamWriter] = {}
        # Those of a finished run, which know what they dropped.
        self._ended: set[StreamWriter] = set()
        self._begin_anew()

    @property
    def name(self) -> str:
        """What people call the run; to be changed at any time, as its notes and tags."""
        return self._about["name"] or self.id

    @name.setter
    def name(self, name: str) -> None:
        self._change({"name": str(name)})

    @property
    def notes(self) -> str | None:
        return self._about["notes"]  # type: ignore[no-any-return]

    @notes.setter
    def notes(self, notes: str | None) -> None:
        self._change({"notes": notes})

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self._about["tags"] or ())

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None:
        self._change({"tags": as_tags(tags)})

    @property
    def group(self) -> str:
        return self._about["group"] or ""

    @property
    def job_type(self) -> str:
        return self._about["job_type"] or ""

    @property
    def entity(self) -> str:
        """Whose project the run is in: as asked for, or as the server said since; empty if nobody did."""
        return self._identity.entity or self._asked_of_syncd("entity") or ""

    @property
    def step(self) -> int:
        """The current step, as W&B counts: where `log` without a step will go."""
        return self._step

    @property
    def dropped(self) -> int:
        """How many records are not in the log (or, with durability "always", not known to be on the disk)."""
        return self._lost + sum(writer.dropped for writer in {*self._writers(), *self._ended})

    @property
    def should_stop(self) -> bool:
        """Whether somebody pressed Stop on the run's page; `syncd` hears of it when it uploads."""
        # Asked at each step of a training: a look a second is enough.
        if not self._was_stopped and time.monotonic() >= self._stop_look_at_s:
            self._stop_look_at_s = time.monotonic() + _ACK_POLL_S
            # The word was for one piece, and not for the one that resumes it. Other ranks obey the primary's.
            # Without a free descriptor not even the module may be loaded: it is looked again.
            with suppress(OSError):
                from eventlog import on_wandb

                current = primaries(self.dir)[-1:] + ([self._piece.writer] if self._piece else [])
                self._was_stopped = on_wandb.is_stopped(self.dir, current)
        return self._was_stopped

    @property
    def path(self) -> str:
        return f"{self.project}/{self.id}"

    @property
    def url(self) -> str | None:
        """The address of the run's page; None until `syncd` has uploaded something of it."""
        found: str | None = self._asked_of_syncd("url")
        return found

    @property
    def project_url(self) -> str | None:
        """The address of the project's page; None until `syncd` has uploaded something of the run."""
        found: str | None = self._asked_of_syncd("project_url")
        return found

    @property
    def sweep_url(self) -> str | None:
        """The address of the sweep's page, as `url`; None outside of a sweep."""
        page = self.project_url
        return f"{page}/sweeps/{self.sweep_id}" if page and self.sweep_id else None

    @property
    def sync_dir(self) -> str:
        """The run's directory, which `syncd sync` takes."""
        return str(self.dir)

    @property
    def config_static(self) -> StaticConfig:
        """A copy of the config that cannot be changed."""
        return StaticConfig(self.config.as_dict())

    def status(self) -> Any:
        """Return how far the upload is: `sync_items_total`, `sync_items_pending` and `sync_time`."""
        from eventlog import on_wandb

        events = self._events
        piece = self._piece
        if events is None or piece is None:
            return on_wandb.RunStatus()
        return self._asked_of_syncd("status", piece.writer, events.next_seq) or on_wandb.RunStatus()

    def _asked_of_syncd(self, what: str, *arguments: Any) -> Any:
        """Return what `syncd` has noted of the run; None if that cannot be read."""
        try:
            from eventlog import on_wandb

            return getattr(on_wandb, what)(self.dir, *arguments)
        except OSError as error:
            self._say_once("on W&B", f"what syncd noted of {self.path} cannot be read: {error.strerror}.")
            return None

    def log(
        self, data: Mapping[str, Any], step: int | None = None, commit: bool | None = None, sync: Any = None
    ) -> None:
        """Log one row: when this returns, it survives the death of the process, unless `dropped` grew.

        Calls with one `step` make one row, which W&B gets when a later step begins, with `commit=True`, or at the end.
        """
        time_us = time.time_ns() // 1000
        if type(data) is not dict and not isinstance(data, Mapping):
            raise TypeError(f'log takes a dict, as in run.log({{"loss": 0.5}}), not {data!r}.')
        if step is not None and (type(step) is not int or not -STEP_MAX <= step <= STEP_MAX):
            step = as_step(step)
        given = data
        encoded, as_text = encode_data(data)
        events = self._events or self._open()
        if events is None:
            if self.disabled:
                self._state.take_row(data, encoded, as_text, self._step, True)
            return
        if as_text and any(mark[0] == "lossy" for mark in as_text):
            # Only what JSON has no word for can be a chart, or media, whose names have the step before this call, as
            # W&B's do.
            data = self._files.shown(self._without_charts(data), "", self._step)
            encoded, as_text = encode_data(data)
        if self._key is not None and encoded.find(self._key) >= 0:
            encoded, as_text = self._privately(encoded, as_text)
        with events.lock:
            current = self._step
            step, closes, self._step = step_rule(current, step, commit)
            is_written = events.write("metrics", encoded, as_text, time_us, step, closes)
            if step >= current:
                # Here, so that of two threads the summary has the row that is the later one in the log.
                self._state.take_row(data, encoded, as_text, step, closes)
        if events.syncs_each_record and is_written:
            is_written = events.sync_record()
        if not is_written:
            self._say_dropped(events)
        if self._mirror is not None:
            self._mirror.log(given, step, time_us / 1e6)
        if step < current:
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
        step = self._step if step is None else as_step(step)
        encoded, as_text = self._privately(*encode_trajectory(trajectory))
        writer = self._writer_of("trajectories")
        if writer is not None and not writer.append_encoded("trajectory", encoded, as_text, time_us, step):
            self._say_dropped(writer)

    def log_checkpoint(self, path: str | os.PathLike[str], step: int | None = None, **facts: Any) -> None:
        """Note that the state before `step`, or the current one, is on the disk at `path`; `facts` say more of it.

        It is for whoever asks the log (`analysis` has a view `checkpoints`); W&B shows artifacts instead.
        """
        step = self._step if step is None else as_step(step)
        self._record_privately("checkpoint", {**facts, "step": step, "path": os.fsdecode(path)})

    def define_metric(
        self,
        name: str,
        step_metric: str | Metric | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        goal: str | None = None,
        overwrite: bool | None = None,
    ) -> Metric:
        """Say how W&B shows a metric: over which x axis, and which statistics of it are the summary.

        `summary="best"`, of W&B's older clients, is the maximum or minimum, whichever the goal is.
        """
        metric, record = defined(name, step_metric, step_sync, hidden, summary, goal, overwrite)
        self._record("define_metric", record)
        self._state.define(metric.name, metric.summary or (), bool(overwrite))
        return metric

    def alert(
        self,
        title: str,
        text: str,
        level: AlertLevel | str | None = None,
        wait_duration: float | timedelta | None = None,
    ) -> None:
        """Have W&B notify people; of equal titles within `wait_duration` (seconds; one minute) it notifies once."""
        self._record_privately("alert", alert_record(title, text, level, wait_duration))

    def save(
        self,
        glob_str: str | bytes | os.PathLike[str],
        base_path: str | os.PathLike[str] | None = None,
        policy: str = "live",
        glob: bool = True,
    ) -> list[str]:
        """Save files with the run, under their paths relative to `base_path`; return these names.

        "now" stores them at once, "end" at `finish`, and "live" at once and again whenever they changed.
        """
        pattern = os.fsdecode(glob_str)
        base = None if base_path is None else os.fsdecode(base_path)
        if pattern.startswith(("gs://", "s3://")):
            self._say_once(
                f"save {pattern}",
                f"save({pattern!r}) saves nothing, since it is no local file. "
                f"Log a reference: run.log_artifact({pattern!r}).",
            )
            return []
        if self._events is None and self._open() is None:
            return []
        if base is None and os.path.abspath(pattern).startswith(f"{self.dir}/"):
            # What a script has put into the run's directory is named from there.
            base = str(self.dir)
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
        labels = as_tags(tags) or []
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

    def upsert_artifact(self, artifact_or_path: Any, *args: Any, **options: Any) -> Artifact:
        """Make an artifact an output of the run; what other processes add to it is an artifact of their own."""
        say_once(
            "upsert_artifact()", "writes what this process has: artifacts of several processes are not done."
        )
        options.pop("distributed_id", None)
        return self.log_artifact(artifact_or_path, *args, **options)

    def finish_artifact(self, artifact_or_path: Any, *args: Any, **options: Any) -> Any:
        """Return the artifact: `log_artifact` and `upsert_artifact` finish it."""
        say_once("finish_artifact()", "does nothing here: an artifact is finished when it is logged.")
        return artifact_or_path

    def log_model(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        aliases: str | Iterable[str] | None = None,
    ) -> None:
        """Make a file, directory or URI an output of the run, as an artifact of type `model`."""
        self.log_artifact(path, name, "model", aliases)

    def log_code(
        self,
        root: str | os.PathLike[str] | None = ".",
        name: str | None = None,
        include_fn: Callable[..., bool] = is_source,
        exclude_fn: Callable[..., bool] = is_of_a_log,
    ) -> Artifact | None:
        """Make the source files below `root` an output of the run; return the artifact, or None if there are none.

        The two functions take a path, or a path and the root.
        """
        name = name or f"source-{self.project}-{self._facts.get('code_path')}"
        artifact = code_artifact(name, root or ".", include_fn, exclude_fn, self._wished.root)
        if artifact is None:
            self._say_once("log_code", f"log_code({root!r}) found no source file, so none is logged.")
            return None
        self._tell_wandb({"code_path": artifact.name})
        return self.log_artifact(artifact)

    def link_artifact(self, artifact: Any, target_path: str, aliases: Any = None) -> Any:
        """Return the artifact; it is not linked, which only W&B's servers can do."""
        say_once(
            "link_artifact()", f"is not done: link it to {target_path!r} on W&B's pages, once it is uploaded."
        )
        return artifact

    def link_model(
        self,
        path: str | os.PathLike[str],
        registered_model_name: str,
        name: str | None = None,
        aliases: Any = None,
    ) -> Artifact:
        """Log a model as `log_model` does; it is not linked, which only W&B's servers can do."""
        say_once(
            "link_model()",
            f"logs the model, and does not link it to {registered_model_name!r}: do that on W&B's pages.",
        )
        return self.log_artifact(path, name, "model", aliases)

    def use_artifact(self, artifact_or_name: Any, *args: Any, **options: Any) -> Any:
        """Return an artifact as it was given; of one that only W&B has, no more than its name."""
        if isinstance(artifact_or_name, Artifact):
            say_once("use_artifact()", "does not tell W&B that the run uses an artifact.")
            return artifact_or_name
        say_once("use_artifact()", "fetches nothing: what W&B has is to be fetched before the training.")
        return UsedArtifact(str(artifact_or_name))

    def use_model(self, name: str) -> NoReturn:
        """Raise `UnsupportedError`: the model is W&B's."""
        refuse_to_fetch(name, "content")

    def restore(
        self, name: str, run_path: str | None = None, replace: bool = False, root: str | None = None
    ) -> IO[str] | None:
        """Put a file that the run has saved into `root`, or the run's directory, and open it; None if it has none."""
        from eventlog import saved

        where = os.path.join(root or self.dir, name)
        is_of_the_run = run_path in (None, self.path, self.id)
        try:
            is_there = os.path.exists(where) and not replace
            if is_there or (is_of_the_run and saved.restore(self.dir, name, Path(where))):
                return open(where)
        except (OSError, EventlogError) as error:
            self._say_once(f"restore {name}", f"restore({name!r}) failed: {error}.")
            return None
        self._say_once(
            f"restore {name}",
            f"restore({name!r}) found no such file in the log of {self.path}. Nothing is fetched from W&B: "
            f"`wandb pull` does that.",
        )
        return None

    def watch(
        self,
        models: Any,
        criterion: Any = None,
        log: str | None = "gradients",
        log_freq: int = 1000,
        idx: int | None = None,
        log_graph: bool = False,
    ) -> list[Any]:
        """Log histograms of a PyTorch model's gradients, parameters or both, at each `log_freq`-th pass.

        They join the open row and move no step. `criterion` is for W&B's graph of the model, which is not stored.
        """
        if self._watcher is None:
            from eventlog.watcher import Watcher

            self._watcher = Watcher(self._log_watched)
        self._watcher.watch(models, log, log_freq, idx, log_graph)
        return []

    def unwatch(self, models: Any = None) -> None:
        """Log no more of these models, or of any."""
        if self._watcher is not None:
            self._watcher.unwatch(models)

    def pin_config_keys(self, keys: Sequence[str] = ()) -> None:
        """Have W&B show these keys of the config at the top of the run's page."""
        self._tell_wandb({"pinned_keys": list(keys)})

    def mark_preempting(self) -> None:
        """Do nothing: a run whose process is gone is shown as crashed, and `resume="allow"` continues it."""
        say_once(
            "mark_preempting()", 'does nothing here: the next process continues the run with resume="allow".'
        )

    def write_logs(self, text: str) -> None:
        """Add to the run's console what is not printed."""
        if not self._is_finished and text:
            self._record_console("stdout", text if text.endswith("\n") else f"{text}\n")

    def to_html(self, height: int = 420, hidden: bool = False) -> str:
        """Return HTML that shows the run's page, or says where its log is."""
        from html import escape

        page = self.url
        if page is None:
            return f"<p>{escape(self.path)} is logged in <code>{escape(str(self.dir))}</code>.</p>"
        style = f"border:none;width:100%;height:{height}px;{'display:none;' if hidden else ''}"
        return f'<iframe src="{escape(page)}?jupyter=true" style="{style}"></iframe>'

    def display(self, height: int = 420, hidden: bool = False) -> bool:
        """Show the run's page in a notebook; return whether this is one."""
        notebook: Any = sys.modules.get("IPython.display")
        if notebook is None or "ipykernel" not in sys.modules:
            return False
        notebook.display(notebook.HTML(self.to_html(height, hidden)))
        return True

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

        With `sync_timeout`, wait up to so many seconds until W&B has all of it. Where no `syncd` runs, it is uploaded from
        here; what is not there in time is said, and stays.
        """
        exit_code = 0 if exit_code is None else operator.index(exit_code)
        if self._is_over:
            return
        piece, events = self._piece, self._events
        has_log = events is not None
        try:
            self._is_finished = True
            self._stop.set()
            self.unwatch()
            if has_log:
                waits = not self._is_cut_in_on()
                self.config.catch_up()
                if self._capture is not None:
                    self._capture.stop(waits)
                self._files.finish(None if waits else _CUT_IN_WAIT_S)
        finally:
            # Ctrl-C while a large file is stored, say, costs that file, and no `exit`.
            try:
                self._end(exit_code, error)
            finally:
                self._let_go()
        if has_log and exit_code == 0:
            auto_resume.forget(self._wished.root, self.project, self.id)
        if self.dropped and not self.disabled:
            self._say(f"{self.dropped:,} records of {self.path} could not be written and are lost.")
        if sync_timeout is not None and piece is not None and events is not None:
            self._wait_for_acks(sync_timeout, piece, events)

    def _is_cut_in_on(self) -> bool:
        """Say whether a signal handler asks in the middle of a `log`: other threads may then wait for this one."""
        return any(_is_mine(lock) for lock in (self._opening, *(each.lock for each in self._writers())))

    def _end(self, exit_code: int, error: str | None) -> None:
        """Write `exit`, after which no stream has another record."""
        events = self._events
        if events is None:
            return
        with self._opening:
            self._is_ending = True
            beside = list(self._beside.values())
        try:
            for writer in beside:
                if not writer.close():
                    self._say_not_synced(writer)
        finally:
            said: dict[str, Any] = {"exitcode": exit_code}
            if error:
                said["error"] = without_secrets(error)[-_ERROR_MAX_CHARS:]
            # The disk may have space again, and this is the last chance.
            events.retry_now()
            if not events.end("exit", *self._encoded_privately(said), time.time_ns() // 1000):
                self._say_dropped(events)
            if not events.close():
                self._say_not_synced(events)

    def _let_go(self) -> None:
        """Be no run of this process any more."""
        self._is_finished = True
        self._ended.update(self._writers())
        self._events = None
        self._beside.clear()
        with self._piece_lock:
            piece = self._piece
            if piece is not None:
                piece.release()
            self._piece = None
        ending.ended(self)
        self._is_over = True
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.close()

    def get_url(self) -> str | None:
        """`url`, by its older name."""
        return self.url

    def get_project_url(self) -> str | None:
        """`project_url`, by its older name."""
        return self.project_url

    def _label(self, *args: Any, **labels: Any) -> None:
        """Do nothing; W&B's client counts by it which libraries use it, and they call it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        # A copy of what holds a run logs to the same run.
        return self

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.finish(0)
        else:
            code = ending.exit_code_of(error) if isinstance(error, SystemExit) else 1
            self.finish(code, error=ending.in_words(error))

    def __repr__(self) -> str:
        return f"<eventlog.Run {self.path} in {str(self.dir)!r}>"

    # ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_anew(self) -> None:
        """Begin with free locks: in a forked child, the old ones may be held by threads that it does not have."""
        store = Store(self.dir, is_durable=self._durability != "none")
        self._capture: Capture | None = None
        self._files = RunFiles(
            self.id, store, lambda: self._writer_of("files"), self._drop_file, self._say_once, self._key
        )
        self._state.begin_anew()
        self._opening = threading.RLock()
        self._piece_lock = threading.RLock()
        self._stop = threading.Event()
        self._open_again_at_s = 0.0

    def _begin(self, piece: Piece) -> StreamWriter:
        """Make `piece` this process's, write its `start`, and keep it alive; or raise `OSError`."""
        events: StreamWriter | None = None
        self._stop = stop = threading.Event()
        try:
            events = StreamWriter(
                piece.dir, self._identity.log_id, piece.writer, piece.token, "events", self._durability
            )
            self._facts = facts(VERSION, self._wished.facts, self._wished.with_git)
            start = {
                "config": redacted(self.config.as_dict()),
                **{key: redacted(value) for key, value in self._about.items()},
                **({"wandb": self._for_wandb} if self._for_wandb else {}),
                "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "resumed": self.resumed,
                "step": self._step,
                "runtime_s": self._runtime_s,
                **self._facts,
            }
            if not events.append_encoded("start", *self._encoded_privately(start), time.time_ns() // 1000):
                raise OSError(errno.EIO, events.trouble)
            self._start_keeper(piece)
        except BaseException:
            # Also Ctrl-C, for which looking around in a large repository leaves time: nobody else would let go.
            stop.set()
            if events is not None:
                events.close()
            piece.abandon()
            raise
        self._piece, self._events = piece, events
        self._state.read_again = partial(self._read_summary_again, events, piece.writer)
        return events

    def _start_keeper(self, piece: Piece) -> None:
        keeper = threading.Thread(target=self._keep, args=(piece,), name=f"eventlog {self.id}", daemon=True)
        try:
            keeper.start()
        except RuntimeError as error:
            self._say_once(
                "keep", f"the log of {self.path} is synced when it is finished, and not each second: {error}."
            )

    def _open(self) -> StreamWriter | None:
        """Return the writer of events; claim a piece if this process (a forked child) has none; None if it cannot."""
        if self._is_finished:
            raise self._finished()
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

    def _finished(self) -> UsageError:
        return UsageError(
            f"run {self.id!r} is finished. Log before finish(), or begin another run with eventlog.init()."
        )

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
                    opened = StreamWriter(
                        piece.dir,
                        self._identity.log_id,
                        piece.writer,
                        piece.token,
                        stream,
                        self._durability,
                        # What such a stream dropped is said in the events, which somebody always reads.
                        on_drop=lambda reason: events.owe_gap(f"{stream}: {reason}"),
                    )
                    self._beside[stream] = opened
                    if self._is_ending:
                        opened.close()
                        raise self._finished()
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
        look = 0
        while not stop.wait(_SYNC_INTERVAL_S / _LOOKS_A_SYNC):
            look += 1
            if look % _LOOKS_A_SYNC and all(
                writer.unsynced_bytes < _SYNC_AT_BYTES for writer in self._writers()
            ):
                continue
            try:
                self._sync_and_look()
                self.config.catch_up()
                if self._capture is not None:
                    self._capture.flush()
                if time.monotonic() >= heartbeat_at_s:
                    heartbeat_at_s += HEARTBEAT_S
                    with self._piece_lock:
                        if self._piece is piece:
                            piece.heartbeat(time.time_ns() // 1000)
            except Exception as error:  # noqa: BLE001 - the top of a thread: without it, nothing would be synced
                if stop.is_set():
                    return
                self._say_once(
                    "keep", f"looking after the log of {self.path} failed: {error!r}. It is tried again."
                )

    def _sync_and_look(self) -> None:
        for writer in self._writers():
            if self._durability == "interval" and writer.is_dirty and not writer.sync():
                self._say_not_synced(writer)
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

    def _mirror_to(self, mirror: Any) -> None:
        """Let `mirror` have the config, and each row from now on."""
        self._mirror = mirror
        mirror.config(self.config.as_dict())

    def _save_program(self) -> None:
        """Save the program's file with the run."""
        path, program = self._facts.get("code_path"), self._facts.get("program")
        if path and program:
            try:
                self._files.add(f"code/{path}", Path(program).read_bytes())
            except OSError as error:
                self._say_once("save_code", f"the program {program!r} could not be saved: {error.strerror}.")
            else:
                self._tell_wandb({"code_path": f"code/{path}"})

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────

    def _record(self, kind: str, data: Mapping[str, Any]) -> None:
        events = self._events or self._open()
        if events is None:
            return
        if not events.append_encoded(kind, *self._encoded_privately(data), time.time_ns() // 1000):
            self._say_dropped(events)

    def _change(self, changed: dict[str, Any]) -> None:
        """Change what is told of the run besides its rows."""
        self._record_privately("facts", changed)
        self._about.update(changed)

    def _tell_wandb(self, changed: dict[str, Any]) -> None:
        self._record("facts", {"wandb": {**self._for_wandb, **changed}})
        self._for_wandb.update(changed)

    def _without_charts(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `row` with tables in the place of its charts, of which W&B is told."""
        plot = sys.modules.get("eventlog.plot")
        if plot is None:
            return row
        row, charts = plot.taken_out(row)
        for key, chart in charts.items():
            known = self._for_wandb.get(chart.told_under, {})
            panel = chart.panel(key)
            if known.get(key) != panel:
                self._tell_wandb({chart.told_under: {**known, key: panel}})
        return row

    def _log_watched(self, histograms: Mapping[str, Any]) -> None:
        # The last passes may come when the run has ended, and in the middle of somebody's backward().
        if histograms and not self._is_finished:
            with suppress(UsageError):
                self.log(histograms, commit=False)

    def _read_summary_again(self, events: StreamWriter, writer: str) -> None:
        """Make the summary of the log: statistics that were asked for late need the values before."""
        with events.lock:
            before_seq = events.next_seq
            self._state.remember_what_follows()
        state: SummaryState | None = None
        try:
            found = SummaryState(keeps_all=True)
            names = primaries(self.dir)
            for name in names if writer in names else [writer]:
                for record in read(self.dir, writer=name):
                    if name == writer and record.seq >= before_seq:
                        break
                    found.take(record)
            state = found
        except (OSError, EventlogError) as error:
            self._say_once(
                "summary",
                f"the log of {self.path} cannot be read ({error}): run.summary has no statistics of what was logged "
                "before they were asked for. W&B gets all of them.",
            )
        finally:
            self._state.become(state)

    def _start_capture(self, wanted: Wanted) -> None:
        """Record what is printed, how busy the machine is, and what the run runs with."""
        assert self._piece is not None
        self._capture = Capture(
            wanted, self._record_console, self._record, self._files.add, self._say_once, self._piece.dir
        )
        self._capture.start()

    def _record_console(self, source: str, text: str) -> None:
        encoded, as_text = self._encoded_privately({"source": source, "text": without_secrets(text)})
        # What is printed while the run ends is for the terminal alone, and fails no `print`.
        with suppress(UsageError):
            writer = self._writer_of("console")
            if writer is not None and not writer.append_encoded(
                "console", encoded, as_text, time.time_ns() // 1000
            ):
                self._say_dropped(writer)

    def _record_config(self, changes: dict[str, Any]) -> None:
        self._record_privately("config", changes)

    def _record_privately(self, kind: str, data: Mapping[str, Any]) -> None:
        """Record what a person wrote, without the secrets in it."""
        self._record(kind, redacted(data))

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
        return self._privately(*encode_data(data))

    def _privately(self, encoded: bytes, as_text: list[TextMark]) -> tuple[bytes, list[TextMark]]:
        """Return what was encoded without the W&B key of this process."""
        if self._key is None or self._key not in encoded:
            return encoded, as_text
        return without_key(encoded, self._key), marks_without_key(as_text, self._key)

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def _say_once(self, topic: str, text: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            say(text)

    def _say_not_synced(self, writer: StreamWriter) -> None:
        self._say_once(
            "sync",
            f"the log of {self.path} could not be synced: {writer.trouble}. It survives this process, and perhaps not a "
            "power cut.",
        )

    def _say_dropped(self, writer: StreamWriter) -> None:
        self._say_once(
            f"dropped {writer.trouble}",
            f"a record of {self.path} could not be written ({writer.trouble}). Training goes on; run.dropped counts "
            f"what is lost, and logging goes on as soon as {str(self.dir)!r} can be written. This is said once.",
        )

    def _wait_for_acks(self, timeout_s: float, piece: Piece, events: StreamWriter) -> None:
        from eventlog import last_upload

        if self.offline or not roots.daemon_is_watching(self.dir.parent.parent):
            obstacle = last_upload.obstacle()
            if obstacle is None:
                self._say(f"{self.path} is uploaded from here, for {timeout_s:g} s at most.")
            else:
                self._say_once("no syncd", f"no syncd runs on this host, and {obstacle}.")
        reason = last_upload.wait(self.dir, piece.writer, timeout_s, self.offline)
        if reason is None:
            return
        records = events.next_seq
        status = self._asked_of_syncd("status", piece.writer, records)
        left = records if status is None else status.sync_items_pending
        what = f"{left:,} of its {records:,} records" if left else "its files, or its end"
        # Said also where little is to be said: whoever asks for this has a disk that is about to be wiped.
        self._say_once(
            "not uploaded",
            f"{self.path} is not uploaded after {timeout_s:g} s: W&B has not acknowledged {what}"
            f"{f' ({reason})' if reason else ''}. It is intact in {str(self.dir)!r}; "
            f"`syncd sync {shlex.quote(os.path.abspath(self.dir))}` goes on from there.",
        )


def _is_mine(lock: threading.RLock) -> bool:
    """Say whether this thread holds `lock`."""
    try:
        # This asks for that, and does nothing else: nobody waits for it.
        threading.Condition(lock).notify()
    except RuntimeError:
        return False
    return True


def _as_settings(identity: RunIdentity, run_dir: Path, wished: Wishes, name: str | None) -> dict[str, Any]:
    about = wished.about
    return {
        "project": identity.project,
        "entity": identity.entity,
        "run_id": identity.run_id,
        "run_name": name or identity.run_id,
        "run_notes": about["notes"],
        "run_tags": tuple(about["tags"] or ()),
        "run_group": about["group"],
        "run_job_type": about["job_type"],
        "mode": about["mode"],
        "resume": wished.resume,
        "reinit": wished.reinit,
        "root_dir": str(wished.root),
        "sync_dir": str(run_dir),
        "files_dir": str(run_dir),
        "save_code": wished.save_code,
        "silent": wished.is_quiet,
        "sweep_id": about.get("sweep_id"),
    }
