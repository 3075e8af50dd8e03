"""Lets a script that says `import wandb` log here, as it is.

    python -m eventlog.as_wandb train.py --lr 0.1        # a script
    python -m eventlog.as_wandb -m my.trainer            # a module
    from eventlog.as_wandb import take_its_place         # or first of all in a program: take_its_place()

Invariants
----------
* In this process, `import wandb` is `import eventlog`, whichever library says it, and whether W&B's client is
  installed or not.
* A module of W&B's that has nothing in its place here is not found, as one that is not installed; the error says what
  to use instead.

Nothing is changed on the disk, and no other process: a script that starts Python processes of its own has `wandb` there
again.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import eventlog
from eventlog import errors, logged, stand_ins
from eventlog.entry import random_id

# Where W&B's client has something that libraries name, and what is in its place.
_PLACES = {
    "wandb": "eventlog",
    "wandb.data_types": "eventlog",
    "wandb.errors": "eventlog.errors",
    "wandb.plot": "eventlog.plot",
    "wandb.sdk.wandb_run": "eventlog.run",
    "wandb.sdk.wandb_settings": "eventlog.settings",
    "wandb.util": "eventlog.util",
    "wandb.wandb_run": "eventlog.run",
}
_INNER: dict[str, dict[str, Any]] = {
    "wandb.apis": {"PublicApi": stand_ins.Api},
    "wandb.apis.public": {"Api": stand_ins.Api},
    "wandb.sdk": {},
    "wandb.sdk.artifacts": {},
    "wandb.sdk.artifacts.artifact": {"Artifact": eventlog.Artifact},
    "wandb.sdk.wandb_config": {"Config": logged.Config},
    "wandb.sdk.wandb_summary": {"Summary": logged.Summary},
    "wandb.sdk.lib": {"RunDisabled": type("RunDisabled", (), {"__doc__": "No run here is one."})},
    "wandb.sdk.lib.config_util": {"ConfigError": errors.ConfigError},
    "wandb.sdk.lib.runid": {"generate_id": random_id},
}


class _NothingElse:
    """Finds no module of W&B's besides those that have something in their place: not by its name among ours either."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.startswith("wandb."):
            inner = name.partition(".")[2]
            raise ModuleNotFoundError(
                f"No module named {name!r}. {stand_ins.where_instead(inner)}", name=name
            )


def take_its_place() -> None:
    """Make `wandb` mean `eventlog` in this process; call it before anything imports `wandb`."""
    already = sys.modules.get("wandb")
    if already is not None and already is not eventlog:
        raise errors.UsageError(
            "W&B's client is imported already: call take_its_place() first of all, or run the script with "
            "`python -m eventlog.as_wandb SCRIPT`."
        )
    for name, place in _PLACES.items():
        sys.modules[name] = importlib.import_module(place)
    for name, inside in _INNER.items():
        module = ModuleType(name, "What of W&B's inner modules libraries name.")
        module.__path__ = []
        for attribute, value in inside.items():
            setattr(module, attribute, value)
        sys.modules[name] = module
    for name, module in stand_ins.MODULES.items():
        sys.modules[f"wandb.{name}"] = module
    if _NothingElse not in sys.meta_path:
        sys.meta_path.insert(0, _NothingElse)
    for name in (*_INNER, *_PLACES):
        # As importing them would do.
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])


def main(arguments: list[str]) -> None:
    """Run a script, or a module after `-m`, with eventlog in the place of `wandb`."""
    import os
    import runpy

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m eventlog.as_wandb SCRIPT | -m MODULE [ARGUMENT …]", file=sys.stderr)
        sys.exit(2 if not arguments else 0)
    take_its_place()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    # As Python does it: the script's directory comes first.
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
