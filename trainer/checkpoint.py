"""Checkpoints: the whole state of a training in one file, there whole or not at all.

    <output-dir>/run.json                  which run this is, with which settings; written before the first step
    <output-dir>/step-00000012.pt          the state before global step 12
    <output-dir>/best.pt                   the state with the best evaluation so far
    <output-dir>/lock                      held by the process that trains here

Invariants
----------
* A file under its final name is complete: it is written under another name, synced and renamed.
* The newest few are kept: if the newest cannot be read, the one before it serves.
* Loading runs no code from the file (`weights_only`).

What the state is made of is the loop's business.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from eventlog.segment import directory_name
from trainer.errors import CheckpointError

# What reading a file that torch did not finish, or never wrote, can raise.
UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
)
_NAME = re.compile(r"step-(\d{8,})\.pt")


@dataclass(frozen=True)
class RunFile:
    """What `--resume` must know even if no checkpoint was written yet."""

    recipe: str
    run_id: str
    name: str
    settings: dict[str, Any]
    data: str  # fingerprint of the problems


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep a second trainer out of this directory; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is training in {str(directory)!r}. "
                "Wait for it, stop it, or choose another --run-name."
            ) from None
        yield


def save(directory: Path, step: int, state: Mapping[str, Any], kept: int) -> Path:
    """Write the state before global step `step`, and delete all but the newest `kept` checkpoints."""
    path = directory / f"step-{step:08d}.pt"
    write_state(path, state)
    # The directory is this process's: what is partial was left by one that was killed.
    for old in [*_checkpoints(directory)[:-kept], *directory.glob(".*.partial")]:
        old.unlink(missing_ok=True)
    return path


def save_best(directory: Path, state: Mapping[str, Any]) -> Path:
    """Write the state with the best evaluation so far, in the place of the one before."""
    path = directory / "best.pt"
    write_state(path, state)
    return path


def home_of(name: str) -> Path:
    """Return where the checkpoints of a run of this name are kept, if nobody says otherwise; no name leads out of there."""
    return Path("checkpoints") / directory_name(name)


def any_in(directory: Path) -> bool:
    """Say whether a training has got as far as a checkpoint here."""
    return bool(_checkpoints(directory))


def load(path: Path) -> dict[str, Any]:
    """Return the state in one file."""
    try:
        return read_state(path)
    except UNREADABLE as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {reason_of(error)}.") from None


def load_newest(directory: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the newest state that can be read; None if there is no checkpoint."""
    paths = _checkpoints(directory)
    for path in reversed(paths):
        try:
            return read_state(path)
        except UNREADABLE as error:
            warn(f"checkpoint {str(path)!r} cannot be read ({reason_of(error)}); trying the one before it.")
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {str(directory)!r} can be read. "
            "Choose another --run-name to train anew; the log of the old run is untouched."
        )
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Return what `write_state` wrote; what else is there is one of `UNREADABLE`."""
    # torch writes checksums and does not look at them: a flipped bit would be another weight.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged!r} is damaged")
    # On the CPU first: the machine that goes on need not have the GPUs of the one that saved.
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values; `OSError` if the disk does not take them."""

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # how torch says that the disk is full
            raise OSError(f"it was not written: {reason_of(error)}") from error

    write_whole(path, write)


def reason_of(error: Exception) -> str:
    """Return the first line of what an error says; torch's go on for long."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_run_file(directory: Path, run: RunFile) -> None:
    text = json.dumps(vars(run), indent=2) + "\n"
    try:
        write_whole(directory / "run.json", lambda file: file.write(text.encode()))
    except OSError as error:
        raise CheckpointError(
            f"{str(directory / 'run.json')!r} cannot be written: {error}. Free some space, or give another --output-dir."
        ) from None


def read_run_file(directory: Path) -> RunFile | None:
    """Return what `write_run_file` wrote; None if nothing was ever started here."""
    path = directory / "run.json"
    try:
        return RunFile(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {error}. Choose another --output-dir; the log of the run is untouched."
        ) from None


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's default generators, as plain values and tensors."""
    name, keys, position, has_gauss, cached = cast("tuple[Any, ...]", np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _checkpoints(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a file that has its name only when it is whole, and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # By process: not every directory is locked, and two that write one file must not mix.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # On a full disk it would be in the way of everything else.
        temporary.unlink(missing_ok=True)
    # The rename is durable only once the directory is synced.
    directory_fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
