"""An event log for training runs: `log` appends to local files, and nothing else.

    import eventlog                                   # or: import eventlog as wandb

    with eventlog.init(project="demo", config={"lr": 1e-6}) as run:
        run.log({"train/reward": 0.3}, step=7)

This is the only door: what is not named here may change. `eventlog.run`, `eventlog.config` and `eventlog.summary` are
those of the run that was begun last. W&B's other names exist, say once that they do nothing yet, and do nothing.
"""

from __future__ import annotations

from typing import Any

from eventlog import run as _run
from eventlog.artifact import Artifact
from eventlog.errors import EventlogError, NotARun, RootNotWritable, RunExists, RunNotFound
from eventlog.media import Audio, Histogram, Html, Image, Video
from eventlog.not_yet import Settings, log_code, login, unwatch, use_artifact, watch
from eventlog.reader import read
from eventlog.run import AlertLevel, Run, init
from eventlog.table import Table
from eventlog.trajectory import ToolCall, Trajectory, Turn

__version__ = _run.VERSION
__all__ = [
    "AlertLevel",
    "Artifact",
    "Audio",
    "EventlogError",
    "Histogram",
    "Html",
    "Image",
    "NotARun",
    "RootNotWritable",
    "Run",
    "RunExists",
    "RunNotFound",
    "Settings",
    "Table",
    "ToolCall",
    "Trajectory",
    "Turn",
    "Video",
    "alert",
    "define_metric",
    "finish",
    "init",
    "log",
    "log_artifact",
    "log_code",
    "log_trajectory",
    "login",
    "read",
    "save",
    "unwatch",
    "use_artifact",
    "watch",
]


def log(data: dict[str, Any], step: int | None = None, commit: bool | None = None, sync: Any = None) -> None:
    """Log one row to the current run."""
    _current().log(data, step, commit, sync)


def log_trajectory(trajectory: Trajectory, step: int | None = None) -> None:
    """Log one episode to the current run."""
    _current().log_trajectory(trajectory, step)


def define_metric(name: str, *args: Any, **options: Any) -> None:
    """Say how W&B shows a metric of the current run; see `Run.define_metric`."""
    _current().define_metric(name, *args, **options)


def alert(title: str, text: str, *args: Any, **options: Any) -> None:
    """Have W&B notify people of the current run; see `Run.alert`."""
    _current().alert(title, text, *args, **options)


def save(glob_str: Any, *args: Any, **options: Any) -> list[str]:
    """Save files with the current run; see `Run.save`."""
    return _current().save(glob_str, *args, **options)


def log_artifact(artifact_or_path: Any, *args: Any, **options: Any) -> Artifact:
    """Make an artifact an output of the current run; see `Run.log_artifact`."""
    return _current().log_artifact(artifact_or_path, *args, **options)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """End the current run, if there is one."""
    run = _run.active()
    if run is not None:
        run.finish(exit_code, quiet)


def _current() -> Run:
    run = _run.active()
    if run is None:
        raise EventlogError("there is no run: call eventlog.init() first.")
    return run


def __getattr__(name: str) -> Any:
    if name == "run":
        return _run.active()
    if name in ("config", "summary"):
        run = _run.active()
        if run is None:
            raise AttributeError(f"eventlog.{name} is that of a run: call eventlog.init() first.")
        return getattr(run, name)
    raise AttributeError(f"module 'eventlog' has no attribute {name!r}")


# The submodule's name would hide the current run. Its module stays importable as `from eventlog.run import …`.
del globals()["run"]
