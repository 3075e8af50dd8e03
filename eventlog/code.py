"""The source files of a run, as W&B keeps them: an artifact of type `code`.

Invariants
----------
* What is taken is decided by name alone: by default Python files, `requirements.txt` and Dockerfiles.
* W&B's directories (`wandb`, `.wandb`) and the log's own root are left out unless the caller's own rule takes them.

Nothing is copied here: that is done when the artifact is logged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from eventlog.artifact import Artifact

_NAME_MAX_CHARS = 128
_LEFT_OUT = ("wandb", ".wandb")


def is_source(path: str) -> bool:
    """Say whether a file is source code, by its name.

    >>> is_source("src/train.py"), is_source("Dockerfile.gpu"), is_source("weights.bin")
    (True, True, False)
    """
    name = os.path.basename(path)
    return name.endswith(".py") or name.startswith("Dockerfile") or name == "requirements.txt"


def is_of_a_log(path: str, root: str) -> bool:
    """Say whether a file is in a directory where runs are kept.

    >>> is_of_a_log("/here/wandb/run/x.py", "/here"), is_of_a_log("/here/wandb.py", "/here")
    (True, False)
    """
    return os.path.relpath(path, root).split(os.sep)[0] in _LEFT_OUT and os.path.dirname(path) != root


def code_artifact(
    name: str,
    root: str | os.PathLike[str],
    include: Callable[..., bool],
    exclude: Callable[..., bool],
    log_root: Path,
) -> Artifact | None:
    """Return the source files below `root` as an artifact, or None if there are none.

    `include` and `exclude` take a path, or a path and the root.
    """
    artifact = Artifact(safe_name(name), "code")
    top = os.path.abspath(root)
    for parent, directories, files in os.walk(top):
        directories[:] = [each for each in directories if Path(parent, each) != log_root]
        for path in (os.path.join(parent, each) for each in files):
            if _asks(include, path, top) and not _asks(exclude, path, top) and os.path.isfile(path):
                artifact.add_file(path, os.path.relpath(path, top), policy="immutable")
    return artifact if artifact.entries else None


def safe_name(name: str) -> str:
    """Return a name as artifacts may have it, as W&B makes it.

    >>> safe_name("source-my project-train.py")
    'source-my_project-train.py'
    """
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    half = _NAME_MAX_CHARS // 2 - 1
    return clean if len(clean) <= _NAME_MAX_CHARS else f"{clean[:half]}..{clean[-half:]}"


def _asks(rule: Callable[..., bool], path: str, root: str) -> bool:
    import inspect

    # W&B's older rules take the path alone.
    takes_root = len(inspect.signature(rule).parameters) == 2
    return rule(path, root) if takes_root else rule(path)
