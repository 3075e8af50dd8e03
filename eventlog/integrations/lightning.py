"""A `Logger` for Lightning's Trainer: `lightning.pytorch`, or `pytorch_lightning` where that is what is used.

    Trainer(logger=EventlogLogger(project="demo"))
        log_metrics ──▶ the metrics over trainer/global_step, as Lightning's own logger for W&B names them
        finalize ─────▶ the exit code: 0, or 1 with the traceback of what ended the fit

Invariants
----------
* One logger, one run. It is the run that is active, else one that this begins; only that one is finished here: when
  `fit`, `test`, … is over. What is logged later continues it, and so does another process with the same `version`.
* Only the first process of all logs.
* `save_dir/name/version` is where Lightning puts checkpoints: the project and the run's id.
"""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eventlog.artifact import Artifact
from eventlog.integrations.held import HeldRun, said_if_it_fails
from eventlog.media import Audio, Image, Video
from eventlog.run import Run
from eventlog.table import Table

if TYPE_CHECKING:
    F = TypeVar("F", bound=Callable[..., Any])
    Logger = object

    def rank_zero_only(method: F) -> F:
        """Do nothing on other ranks."""

    def rank_zero_experiment(method: F) -> F:
        """Return something that does nothing on other ranks."""

elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    # Whoever uses the old name has both packages installed, mostly.
    from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
    from pytorch_lightning.utilities.rank_zero import rank_zero_only
else:
    try:
        from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
        from lightning.pytorch.utilities.rank_zero import rank_zero_only
    except ImportError:
        from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
        from pytorch_lightning.utilities.rank_zero import rank_zero_only

_DEFAULT_PROJECT = "lightning_logs"
_STEP = "trainer/global_step"
_CHECKPOINT_FACTS = (
    "monitor",
    "mode",
    "save_last",
    "save_top_k",
    "save_weights_only",
    "_every_n_train_steps",
)


class EventlogLogger(Logger):
    """Logs a Lightning Trainer's run.  `options` are those of `eventlog.init`, for when it has to begin one.

    `version` (or `id`) is the run's id; with one, an earlier run of that id is continued. `log_model` makes artifacts of
    checkpoints: True the best and last ones at the end, "all" each one when it is saved.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        version: str | None = None,
        offline: bool = False,
        id: str | None = None,
        project: str | None = None,
        log_model: bool | str = False,
        experiment: Run | None = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        **options: Any,
    ) -> None:
        if log_model not in (True, False, "all"):
            raise ValueError(f'log_model is True, False or "all", not {log_model!r}.')
        super().__init__()
        for package in ("lightning.pytorch.loggers", "pytorch_lightning.loggers"):
            # The other package's classes ask for their own kind of logger.
            if package in sys.modules:
                sys.modules[package].Logger.register(type(self))
        save_dir = os.fspath(save_dir or options.pop("dir", None) or os.environ.get("WANDB_DIR") or ".")
        project = project or os.environ.get("WANDB_PROJECT") or _DEFAULT_PROJECT
        run_id = version or id or os.environ.get("WANDB_RUN_ID")
        self._options = {
            "name": name,
            "project": project,
            "dir": save_dir,
            "id": run_id,
            "resume": "allow" if run_id else None,
            "mode": "offline" if offline else None,
            **options,
        }
        self._save_dir = save_dir
        self._log_model = log_model
        self._prefix = prefix
        self._checkpoint_name = checkpoint_name
        self._held = HeldRun(experiment)
        # Of each checkpoint that is an artifact: when the file was changed.
        self._logged_at: dict[str, float] = {}
        self._checkpointers: dict[int, Any] = {}

    # ── what Lightning asks for ──────────────────────────────────────────────────────────────────────────────

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The `eventlog.Run`; begun, or continued, by asking for it."""
        return self._held.enter(lambda: self._options, _describe)

    @property
    def name(self) -> str:
        """The project."""
        return self._held.known[0] if self._held.known else str(self._options["project"])

    @property
    def version(self) -> str | None:
        """The run's id; None while there is none."""
        return self._held.known[1] if self._held.known else self._options["id"]

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {self._named(name): value for name, value in metrics.items()}
        if step is not None:
            row[_STEP] = step
        self.experiment.log(row)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        config = _plain({**kwargs, **_mapping_of(params)})
        if config:
            self.experiment.config.update(config, allow_val_change=True)

    @rank_zero_only
    def save(self) -> None:
        """Make what was logged survive a power cut; it survives this process without."""
        if self._held.current is not None:
            self._held.current.flush(durable=True)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        if self._log_model == "all" or (self._log_model is True and checkpoint_callback.save_top_k == -1):
            self._log_checkpoints(checkpoint_callback)
        elif self._log_model is True:
            # Those that will be deleted again are not worth it: the best ones are known at the end.
            self._checkpointers[id(checkpoint_callback)] = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._held.current is None:
            return
        if status not in ("failed", "success"):
            # Slurm is about to put the job into its queue again; the training goes on until then.
            self.save()
            return
        if status == "success":
            for checkpointer in self._checkpointers.values():
                self._log_checkpoints(checkpointer)
        # They are the Trainer's, and gone with it.
        self._checkpointers.clear()
        self._held.finish(*(_what_ended_it() if status == "failed" else ()))

    # ── what Lightning's logger for W&B has besides ──────────────────────────────────────────────────────────

    def watch(
        self, model: Any, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    def unwatch(self, model: Any = None) -> None:
        self.experiment.unwatch(model)

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        self.log_metrics({key: Table(columns=columns, data=data, dataframe=dataframe)}, step)

    log_text = log_table

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **each: list[Any]) -> None:
        """Log images; what else is given is a list with one item for each, as `caption=["a", "b"]`."""
        self._log_media(Image, key, images, step, each)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **each: list[Any]) -> None:
        """Log sounds; what else is given is a list with one item for each, as `sample_rate=[16000]`."""
        self._log_media(Audio, key, audios, step, each)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **each: list[Any]) -> None:
        """Log videos; what else is given is a list with one item for each, as `caption=["a"]`."""
        self._log_media(Video, key, videos, step, each)

    def _log_media(
        self, kind: type[Any], key: str, values: list[Any], step: int | None, each: dict[str, list[Any]]
    ) -> None:
        if not isinstance(values, list):
            raise TypeError(f"{key!r} takes a list of {kind.__name__.lower()}s, not {type(values).__name__}.")
        for name, given in each.items():
            if len(given) != len(values):
                raise ValueError(
                    f"{key!r} has {len(values)} values, and {name} {len(given)}: give one for each."
                )
        made = [
            kind(value, **{name: given[at] for name, given in each.items()})
            for at, value in enumerate(values)
        ]
        self.log_metrics({key: made}, step)

    # ── within ───────────────────────────────────────────────────────────────────────────────────────────────

    def _named(self, name: str) -> str:
        return f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name

    def _log_checkpoints(self, checkpointer: Any) -> None:
        """Make artifacts of the checkpoints that are there and were not logged yet, the oldest first."""
        scores = {checkpointer.last_model_path: getattr(checkpointer, "current_score", None)}
        scores |= dict(getattr(checkpointer, "best_k_models", {}))
        scores[checkpointer.best_model_path] = checkpointer.best_model_score
        with said_if_it_fails("a checkpoint"):
            found = sorted((os.path.getmtime(path), path) for path in scores if path and os.path.exists(path))
            for changed_at, path in found:
                if self._logged_at.get(path) != changed_at:
                    self._log_checkpoint(checkpointer, path, scores[path])
                    self._logged_at[path] = changed_at

    def _log_checkpoint(self, checkpointer: Any, path: str, score: Any) -> None:
        facts = {
            name: getattr(checkpointer, name) for name in _CHECKPOINT_FACTS if hasattr(checkpointer, name)
        }
        artifact = Artifact(
            self._checkpoint_name or f"model-{self.experiment.id}",
            "model",
            metadata={
                "score": None if score is None else float(score),
                "original_filename": Path(path).name,
                # Lightning hands over a proxy, whose type is none of its own.
                checkpointer.__class__.__name__: facts,
            },
        )
        if os.path.isdir(path):
            artifact.add_dir(path)
        else:
            artifact.add_file(path, name="model.ckpt")
        is_best = path == checkpointer.best_model_path
        self.experiment.log_artifact(artifact, aliases=["latest", "best"] if is_best else ["latest"])

    def __getstate__(self) -> dict[str, Any]:
        """Hand the run over to a process that a strategy spawns: it continues it there."""
        self._held.finish()
        state = self.__dict__.copy()
        if self._held.known is not None:
            project, run_id = self._held.known
            state["_options"] = {**self._options, "project": project, "id": run_id, "resume": "allow"}
        state["_held"] = HeldRun()
        return state


def _describe(run: Run) -> None:
    run.define_metric(_STEP)
    run.define_metric("*", step_metric=_STEP, step_sync=True)


def _what_ended_it() -> tuple[int, str | None]:
    """Return the exit code, and the traceback of the exception that Lightning is handling."""
    kind, error, trace = sys.exc_info()
    if error is None:
        return 1, None
    code = 255 if kind is not None and issubclass(kind, KeyboardInterrupt) else 1
    return code, "".join(traceback.format_exception(kind, error, trace))


def _mapping_of(params: Any) -> dict[str, Any]:
    if params is None:
        return {}
    return vars(params) if isinstance(params, Namespace) else dict(params)


def _plain(value: Any) -> Any:
    """Return hyperparameters with namespaces as mappings, and functions and classes by their names."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return value
