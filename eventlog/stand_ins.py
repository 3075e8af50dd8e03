"""W&B's names that nothing comes of here, so that a script written for W&B runs.

Invariants
----------
* A name whose result a script can do without says once that it does nothing, and does nothing.
* A name whose result a script needs, and that only W&B's servers have, raises `UnsupportedError` with the way out.
* None is silently wrong.

What is done, if in another way, is not here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any, NoReturn

from eventlog.errors import UnsupportedError
from eventlog.not_yet import say_once
from eventlog.table import Table

_SWEEP = (
    "is W&B's, and nothing here talks to its servers. Start the sweep with `wandb sweep` and `wandb agent`: a script "
    "that the agent starts takes the sweep's parameters as its config, and its run appears in the sweep."
)


class Api:
    """Stands in for `wandb.Api`, which asks W&B's servers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise UnsupportedError(
            "Api() is W&B's, and nothing here talks to its servers. What was logged here is read with "
            "eventlog.read(run_dir), or with `analysis sql`. For what W&B has, use wandb.Api() of the package wandb."
        )


def sweep(*args: Any, **options: Any) -> NoReturn:
    """Refuse, in words: a sweep is W&B's."""
    raise UnsupportedError(f"sweep() {_SWEEP}")


def agent(*args: Any, **options: Any) -> NoReturn:
    """Refuse, in words: an agent is W&B's."""
    raise UnsupportedError(f"agent() {_SWEEP}")


def controller(*args: Any, **options: Any) -> NoReturn:
    """Refuse, in words: a controller is W&B's."""
    raise UnsupportedError(f"controller() {_SWEEP}")


class _InnerApi:
    """Stands in for `wandb.api`, of which scripts ask whether there is a key."""

    @property
    def api_key(self) -> str | None:
        return os.environ.get("WANDB_API_KEY")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedError(
            f"api.{name} is W&B's, and nothing here talks to its servers. For what W&B has, use wandb.Api() of the "
            "package wandb."
        )


API = _InnerApi()


class UsedArtifact:
    """What `use_artifact` returns: its name; its content is W&B's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        refuse_to_fetch(self.name, name)

    def __repr__(self) -> str:
        return f"<UsedArtifact {self.name!r}: not fetched>"


def refuse_to_fetch(name: str, what: str) -> NoReturn:
    """Raise `UnsupportedError` for what an artifact of W&B's was asked for."""
    raise UnsupportedError(
        f"the artifact {name!r} is W&B's, and nothing here talks to its servers: its {what!r} is not known. "
        f"Fetch it before the training, with `wandb artifact get {name}`, and read the files."
    )


class NotStored:
    """A value that W&B shows, and that is not stored here: a row keeps a text in its place."""

    def __init__(self, *args: Any, **options: Any) -> None:
        name = type(self).__name__
        say_once(f"{name}()", "is not stored: the row has a text in its place, and the rest of it is logged.")

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **options: None

    @classmethod
    def from_file(cls, *args: Any, **options: Any) -> NotStored:
        """Stand in for W&B's ways to make one."""
        return cls()

    from_numpy = from_point_cloud = from_rdkit = from_smiles = make_plot_media = from_file

    def __str__(self) -> str:
        return f"<{type(self).__name__}: not stored>"


class Object3D(NotStored):
    """A point cloud or a 3D model."""


class Molecule(NotStored):
    """A molecule."""


class Plotly(NotStored):
    """A figure of Plotly's."""


class Graph(NotStored):
    """The graph of a model."""


class Bokeh(NotStored):
    """A figure of Bokeh's."""


class Classes(NotStored):
    """The class labels of an image."""


class JoinedTable(NotStored):
    """A join of two tables."""


class EvalTable(Table):
    """W&B's table of evaluations: here a table as any other."""

    def __init__(
        self,
        *args: Any,
        input_columns: Any = None,
        output_columns: Any = None,
        score_columns: Any = None,
        backend: Any = None,
        unsupported_media_mode: Any = None,
        **options: Any,
    ) -> None:
        say_once("EvalTable()", "is stored as a Table; which columns are input, output and score is not.")
        super().__init__(*args, **options)


class box3d(NotStored):
    """A box in a point cloud."""


class ArtifactTTL(Enum):
    """How long W&B keeps an artifact."""

    INHERIT = 0


def module_that_does_nothing(name: str, instead: str) -> ModuleType:
    """Return a module of which every function says once that it does nothing."""

    def stand_in(attribute: str) -> Callable[..., Any]:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return does_nothing(f"{name}.{attribute}", instead)

    module = ModuleType(f"eventlog.{name}", f"Stands in for `wandb.{name}`: does nothing, and says so.")
    module.__dict__["__getattr__"] = stand_in
    return module


MODULES = {
    "gym": module_that_does_nothing(
        "gym", "does nothing here: log videos with run.log({'video': eventlog.Video(path)})."
    ),
    "tensorboard": module_that_does_nothing(
        "tensorboard",
        "does nothing here: what is written for TensorBoard is not logged. Log with run.log(…); init(tensorboard=True) "
        "writes the same for TensorBoard.",
    ),
}
# Modules of W&B's package with callbacks for a library, of which each does something that a script needs.
INTEGRATIONS = frozenset(
    {"catboost", "integration", "keras", "lightgbm", "sacred", "sklearn", "tensorflow", "xgboost"}
)


def where_instead(name: str) -> str:
    """Return what to use instead of a module of W&B's package that nothing is in the place of."""
    if name.split(".")[0] in INTEGRATIONS:
        return (
            f"Nothing here is in the place of wandb.{name}. Call run.log(…) in a callback of your own, or use "
            "eventlog.integrations: transformers, lightning, accelerate, tensorboard."
        )
    return f"Nothing here is in the place of wandb.{name}, an inner module of W&B's client."


def does_nothing(name: str, instead: str = "does nothing here.", result: Any = None) -> Callable[..., Any]:
    """Return a function that says once that it does nothing."""

    def stand_in(*args: Any, **options: Any) -> Any:
        say_once(f"{name}()", instead)
        return result

    stand_in.__name__ = stand_in.__qualname__ = name
    stand_in.__doc__ = f"Stand in for `wandb.{name}`: say once that it does nothing, and do nothing."
    return stand_in
