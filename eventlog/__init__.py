"""An event log for training runs: `log` appends to local files, and nothing else.

    import eventlog                                   # or: import eventlog as wandb

    with eventlog.init(project="demo", config={"lr": 1e-6}) as run:
        run.log({"train/reward": 0.3}, step=7)

This is the only door: what is not named here may change. `eventlog.run`, `eventlog.config` and `eventlog.summary` are
those of the current run, the one begun last. W&B's other names exist: each does what it does there, or says once what
it does not do.
"""

from __future__ import annotations

import importlib
from typing import Any

from eventlog import ending as _ending
from eventlog import run as _run
from eventlog import stand_ins as _stand_ins
from eventlog.artifact import Artifact
from eventlog.errors import (
    CommError,
    Error,
    EventlogError,
    NotARun,
    RootNotWritable,
    RunExists,
    RunNotFound,
    UsageError,
)
from eventlog.logged import Config
from eventlog.media import Audio, Histogram, Html, Image, Video
from eventlog.not_yet import say as _say
from eventlog.not_yet import say_once as _say_once
from eventlog.reader import read
from eventlog.run import AlertLevel, Run, init
from eventlog.settings import Settings
from eventlog.stand_ins import (
    Api,
    ArtifactTTL,
    Classes,
    EvalTable,
    Graph,
    JoinedTable,
    Molecule,
    Object3D,
    Plotly,
    agent,
    box3d,
    controller,
    sweep,
)
from eventlog.table import Table
from eventlog.trajectory import ToolCall, Trajectory, Turn

__version__ = _run.VERSION
__all__ = [
    "AlertLevel",
    "Api",
    "Artifact",
    "ArtifactTTL",
    "Audio",
    "Classes",
    "CommError",
    "Config",
    "Error",
    "EvalTable",
    "EventlogError",
    "Graph",
    "Histogram",
    "Html",
    "Image",
    "JoinedTable",
    "Molecule",
    "NotARun",
    "Object3D",
    "Plotly",
    "RootNotWritable",
    "Run",
    "RunExists",
    "RunNotFound",
    "Settings",
    "Table",
    "ToolCall",
    "Trajectory",
    "Turn",
    "UsageError",
    "Video",
    "agent",
    "alert",
    "attach",
    "box3d",
    "controller",
    "define_metric",
    "ensure_configured",
    "finish",
    "init",
    "join",
    "link_artifact",
    "link_model",
    "log",
    "log_artifact",
    "log_code",
    "log_model",
    "log_trajectory",
    "login",
    "mark_preempting",
    "pin_config_keys",
    "read",
    "require",
    "restore",
    "save",
    "setup",
    "sweep",
    "teardown",
    "termerror",
    "termlog",
    "termwarn",
    "unwatch",
    "use_artifact",
    "use_model",
    "watch",
]

# Modules of W&B's package that a script may name, and where here what they have is; imported when asked for.
_MODULES = {
    "data_types": "eventlog",
    "errors": "eventlog.errors",
    "plot": "eventlog.plot",
    "plots": "eventlog.plot",
    "util": "eventlog.util",
}
_FROM_PLOT = ("plot_table", "visualize")


# ── of the current run ───────────────────────────────────────────────────────────────────────────────────────


def log(data: dict[str, Any], step: int | None = None, commit: bool | None = None, sync: Any = None) -> None:
    """Log one row to the current run."""
    _current().log(data, step, commit, sync)


def log_trajectory(trajectory: Trajectory, step: int | None = None) -> None:
    """Log one episode to the current run."""
    _current().log_trajectory(trajectory, step)


def define_metric(name: str, *args: Any, **options: Any) -> _run.Metric:
    """Say how W&B shows a metric of the current run; see `Run.define_metric`."""
    return _current().define_metric(name, *args, **options)


def alert(title: str, text: str, *args: Any, **options: Any) -> None:
    """Have W&B notify people of the current run; see `Run.alert`."""
    _current().alert(title, text, *args, **options)


def save(glob_str: Any, *args: Any, **options: Any) -> list[str]:
    """Save files with the current run; see `Run.save`."""
    return _current().save(glob_str, *args, **options)


def restore(name: str, *args: Any, **options: Any) -> Any:
    """Open a file that the current run has saved; see `Run.restore`."""
    return _current().restore(name, *args, **options)


def log_artifact(artifact_or_path: Any, *args: Any, **options: Any) -> Artifact:
    """Make an artifact an output of the current run; see `Run.log_artifact`."""
    return _current().log_artifact(artifact_or_path, *args, **options)


def use_artifact(artifact_or_name: Any, *args: Any, **options: Any) -> Any:
    """Say what an artifact of W&B's can be here; see `Run.use_artifact`."""
    return _current().use_artifact(artifact_or_name, *args, **options)


def link_artifact(artifact: Any, target_path: str, *args: Any, **options: Any) -> Any:
    """Say where to link an artifact; see `Run.link_artifact`."""
    return _current().link_artifact(artifact, target_path, *args, **options)


def log_model(path: Any, *args: Any, **options: Any) -> None:
    """Make a model an output of the current run; see `Run.log_model`."""
    _current().log_model(path, *args, **options)


def use_model(name: str) -> Any:
    """Refuse, in words: see `Run.use_model`."""
    return _current().use_model(name)


def link_model(path: Any, registered_model_name: str, *args: Any, **options: Any) -> Artifact:
    """Log a model, without a link to it; see `Run.link_model`."""
    return _current().link_model(path, registered_model_name, *args, **options)


def log_code(*args: Any, **options: Any) -> Artifact | None:
    """Make source files an output of the current run; see `Run.log_code`."""
    return _current().log_code(*args, **options)


def watch(models: Any, *args: Any, **options: Any) -> list[Any]:
    """Log histograms of a model to the current run; see `Run.watch`."""
    return _current().watch(models, *args, **options)


def unwatch(models: Any = None) -> None:
    """Log no more histograms of a model; see `Run.unwatch`."""
    _current().unwatch(models)


def mark_preempting() -> None:
    """Do nothing; see `Run.mark_preempting`."""
    _current().mark_preempting()


def pin_config_keys(keys: Any = ()) -> None:
    """Have W&B show these keys of the config first; see `Run.pin_config_keys`."""
    _current().pin_config_keys(keys)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """End the current run, if there is one."""
    run = _run.active()
    if run is not None:
        run.finish(exit_code, quiet)


join = finish


# ── of the process ───────────────────────────────────────────────────────────────────────────────────────────


def login(*args: Any, **options: Any) -> bool:
    """Return True: logging needs no account, and `syncd` finds W&B's key where `wandb login` left it."""
    _say_once(
        "login()", "does nothing: only syncd needs the key, and takes it from `wandb login` or WANDB_API_KEY."
    )
    return True


class _Setup:
    """What `setup` returns: W&B's client has its settings there."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


def setup(settings: Any = None) -> _Setup:
    """Return the settings: no process has to be started."""
    return _Setup(Settings(**(settings.given if isinstance(settings, Settings) else dict(settings or {}))))


def ensure_configured() -> None:
    """Do nothing: there is nothing to be configured."""


def teardown(exit_code: int | None = None) -> None:
    """End all runs of this process."""
    for run in _ending.active():
        run.finish(exit_code)


def attach(attach_id: str | None = None, run_id: str | None = None, **options: Any) -> Run:
    """Return the run of that id, in the process that began it or in one forked from it."""
    wanted = attach_id or run_id
    for run in _ending.active():
        if wanted in (None, run.id):
            return run  # type: ignore[no-any-return]
    raise UsageError(
        f"this process has no run {wanted!r}. Begin it here with eventlog.init(id={wanted!r}): while another process "
        "writes the run, this one writes beside it."
    )


_attach = attach


def require(*args: Any, **options: Any) -> None:
    """Do nothing: what W&B's client has as options for some releases is not here."""


def termlog(string: str = "", *args: Any, **options: Any) -> None:
    """Tell the person at the terminal."""
    _say(string)


termwarn = termerror = termlog


class _BeforeInit:
    """What `eventlog.config` and `eventlog.summary` are while there is no run."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def _refuse(self, *args: Any) -> Any:
        raise UsageError(f"eventlog.{self._name} is that of a run: call eventlog.init() first.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    __setattr__ = __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse


def _current() -> Run:
    run = _run.active()
    if run is None:
        raise UsageError("there is no run: call eventlog.init() first.")
    return run


def __getattr__(name: str) -> Any:
    if name == "run":
        return _run.active()
    if name in ("config", "summary"):
        run = _run.active()
        return _BeforeInit(name) if run is None else getattr(run, name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _FROM_PLOT:
        return getattr(importlib.import_module("eventlog.plot"), name)
    if name == "api":
        return _stand_ins.API
    if name in _stand_ins.MODULES:
        return _stand_ins.MODULES[name]
    if name in _stand_ins.INTEGRATIONS:
        raise AttributeError(_stand_ins.where_instead(name))
    raise AttributeError(f"module 'eventlog' has no attribute {name!r}")


# The submodule's name would hide the current run. Its module stays importable as `from eventlog.run import …`.
del globals()["run"]
