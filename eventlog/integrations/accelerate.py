"""A tracker for Accelerate.

    accelerator = Accelerator(log_with=EventlogTracker("demo"))
    accelerator.init_trackers("demo", config={"lr": 1e-3}) ──▶ the run begins
    accelerator.log({"loss": 0.5}, step=7)                 ──▶ Run.log
    accelerator.end_training()                             ──▶ the run ends, if it began there

Invariants
----------
* One tracker, one run: the run that is active, else one that this begins; only that one is finished here.
* Only the main process logs.

Accelerate tells the project to those trackers only that it makes itself: give it here as well, or register the class
(`accelerate.tracking.register_tracker_class`) and name it, as in `log_with="eventlog"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from eventlog.integrations.held import HeldRun
from eventlog.media import Image
from eventlog.run import Run
from eventlog.table import Table

if TYPE_CHECKING:
    F = TypeVar("F", bound=Callable[..., Any])
    GeneralTracker = object

    def on_main_process(method: F) -> F:
        """Do nothing in other processes."""

else:
    from accelerate.tracking import GeneralTracker, on_main_process


class EventlogTracker(GeneralTracker):
    """Logs what an `Accelerator` is given.  `options` are those of `eventlog.init`, for when it has to begin a run."""

    name = "eventlog"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, project: str | None = None, *, run: Run | None = None, **options: Any) -> None:
        super().__init__()
        self._options = {"project": project, **options}
        self._held = HeldRun(run)

    @property
    def tracker(self) -> Run:
        """The `eventlog.Run`; begun, or continued, by asking for it."""
        return self._held.enter(lambda: self._options)

    @on_main_process
    def start(self) -> None:
        self._held.enter(lambda: self._options)

    @on_main_process
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.tracker.config.update(values, allow_val_change=True)

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        self.tracker.log(values, step=step, **options)

    @on_main_process
    def log_images(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Log lists of images (arrays, tensors, Pillow images or paths) under their names."""
        for name, images in values.items():
            self.log({name: [Image(image) for image in images]}, step, **options)

    @on_main_process
    def log_table(
        self,
        table_name: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **options: Any,
    ) -> None:
        """Log a table, given by columns and rows or as a data frame."""
        self.log({table_name: Table(columns=columns, data=data, dataframe=dataframe)}, step, **options)

    @on_main_process
    def finish(self) -> None:
        self._held.finish()
