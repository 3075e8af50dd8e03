"""Finds the files that W&B's own SDK left on the disk; says whose they are, and whether they may still grow.

    paths ──files_at──▶ WandbFile ──head──▶ Head(facts, began, digest)
    processes ──being_written──▶ Writers ──may_grow──▶ yes, or never again

Invariants
----------
* Files are only read here, and what may not be looked into stops nobody.
* A file is known by what it begins with, wherever it is copied to and whatever it is called.
* `may_grow` says no only where all that could write the file was asked, or nothing came for a long time.
"""

from __future__ import annotations

import glob as globbing
import hashlib
import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from eventlog import roots as known_roots
from eventlog.piece import this_host
from syncd.dotwandb import Damage, Deframer
from syncd.wandb_records import RunFacts, Translator

SHADOW_DIR = ".tidelog"
MARKER_SUFFIX = ".wandb.synced"
# The `run` record is the second of a file; behind damage it is not looked for in a gigabyte.
HEAD_BYTES, HEAD_MAX_BYTES = 8 * 1024, 1024 * 1024
# A writer that cannot be asked is believed to live for so long after its last byte; W&B writes every 15 s.
STALE_S = 600.0
_READ_BYTES = 1024 * 1024
_RUN_PREFIXES = ("run-", "offline-run-")


@dataclass(frozen=True, slots=True)
class WandbFile:
    """One `.wandb` file: what one process wrote of a run."""

    path: Path

    @property
    def directory(self) -> Path:
        return self.path.parent

    @property
    def name(self) -> str:
        """What it is called to a person."""
        return text_of(self.directory.name)

    @property
    def source(self) -> str:
        """What it is called in our records."""
        return text_of(f"{self.directory.name}/{self.path.name}")

    @property
    def is_in_a_run_directory(self) -> bool:
        return self.directory.name.startswith(_RUN_PREFIXES)

    @property
    def is_offline(self) -> bool:
        # A file that lies alone was put there by a person, and is asked for.
        return not self.directory.name.startswith("run-")

    @property
    def marker(self) -> Path:
        return self.path.with_suffix(MARKER_SUFFIX)

    def is_the_beginning_of(self, other: WandbFile) -> bool:
        """Whether all that is in this one is in the other as well, at the same place."""
        with open(self.path, "rb") as ours, open(other.path, "rb") as theirs:
            while data := ours.read(_READ_BYTES):
                if data != theirs.read(len(data)):
                    return False
        return True

    @property
    def shadow(self) -> Path:
        """The root of the log that is made of it: beside it, or with our own state where nothing may be written there."""
        beside = (self.directory.parent if self.is_in_a_run_directory else self.directory) / SHADOW_DIR
        if os.access(beside if os.path.lexists(beside) else beside.parent, os.W_OK | os.X_OK):
            return beside
        return known_roots.state_dir() / "wandb" / hashlib.sha256(os.fsencode(beside)).hexdigest()[:12]


def text_of(name: str) -> str:
    r"""Return a file's name as text: what of it is no UTF-8 is spelt out.

    >>> text_of(os.fsdecode(b"run-\xff"))
    'run-\\xff'
    """
    return os.fsencode(name).decode(errors="backslashreplace")


# -- finding ---------------------------------------------------------------------------------------------------


def expand(path: str) -> list[Path]:
    """Return the paths that a person meant; a pattern that no shell expanded is expanded here."""
    if os.path.exists(path) or not globbing.has_magic(path):
        return [Path(path)]
    return sorted(map(Path, globbing.glob(path)))


def default_directory() -> Path | None:
    """Return where W&B's SDK puts runs when it is started here, if there is such a directory."""
    base = Path(os.environ.get("WANDB_DIR") or ".")
    return next((base / name for name in ("wandb", ".wandb") if (base / name).is_dir()), None)


def files_at(path: Path) -> tuple[list[WandbFile], bool]:
    """Return the `.wandb` files at `path`, and whether it names a run: a file, or a directory with one in it.

    Otherwise it is a directory of runs, or the directory that holds `wandb/`.  W&B's `latest-run` is a link to one
    of the others, and each file is there once.
    """
    if path.suffix == ".wandb" and os.path.isfile(path):
        return [WandbFile(path.resolve())], True
    for pattern in ("*.wandb", "*/*.wandb", "wandb/*/*.wandb"):
        found = {entry.resolve() for entry in path.glob(pattern) if os.path.isfile(entry)}
        if found:
            return [WandbFile(entry) for entry in sorted(found)], pattern == "*.wandb"
    return [], False


def closed_to_us(path: Path) -> list[Path]:
    """Return W&B's run directories at `path`, or below it, into which we may not look."""
    found = {path, *path.glob("*run-*"), *path.glob("wandb/*run-*")}
    return sorted(
        entry
        for entry in found
        if entry.name.startswith(_RUN_PREFIXES)
        and os.path.isdir(entry)
        and not os.access(entry, os.R_OK | os.X_OK)
    )


# -- whose it is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """What the beginning of a file says."""

    facts: RunFacts
    began_us: int
    size: int
    digest: str | None
    """What tells the file from the run's other files, while it grows and where it is copied to.  None: its beginning
    is damaged or not there yet, and of the facts only the id is known, by the file's name."""


def head(file: WandbFile) -> Head:
    """Read whose file it is."""
    translator, deframer = Translator(), Deframer()
    status = file.path.stat()
    is_damaged = False
    with open(file.path, "rb") as stream:
        # A record of any size is worth waiting for, as long as it comes.
        while not is_damaged or deframer.is_within_a_record or stream.tell() < HEAD_MAX_BYTES:
            data = stream.read(HEAD_BYTES)
            for found in deframer.feed(data):
                if isinstance(found, Damage):
                    is_damaged = True
                    continue
                deque(translator.feed(found.data), maxlen=0)
                if translator.run is not None:
                    digest = hashlib.sha256(found.data).hexdigest()[:32]
                    return Head(translator.run, translator.began_us, status.st_size, digest)
            if not data:
                break
            is_damaged = is_damaged or deframer.is_in_damage
    run_id = text_of(file.path.stem.removeprefix("run-"))
    return Head(RunFacts(run_id, "", "", ""), int(status.st_mtime * 1e6), status.st_size, None)


# -- who writes it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Writers:
    """Which `.wandb` files the processes of this machine have open to write."""

    files: frozenset[Path] = frozenset()
    hidden: frozenset[int] = frozenset()
    """The users of processes that may be W&B's and did not let us look."""

    def have(self, file: WandbFile) -> bool:
        return file.path in self.files

    def may_have(self, file: WandbFile, host: str) -> bool:
        """Whether the file, written on `host`, may grow: always asked before it is read."""
        if self.have(file):
            return True
        status = file.path.stat()
        # Whose processes we may not see, or did not get to see, may be there for all we know.
        sees_all = os.geteuid() in (0, status.st_uid) and status.st_uid not in self.hidden
        if sees_all and host in ("", this_host()):
            return False
        return time.time() - status.st_mtime <= STALE_S


def being_written(processes: Iterable[psutil.Process] | None = None) -> Writers:
    """Take a look at each process, by default of this machine."""
    files, hidden = set(), set()
    for process in psutil.process_iter() if processes is None else processes:
        with suppress(psutil.Error, OSError):
            try:
                opened_files = process.open_files()
            except psutil.AccessDenied:
                if _may_be_wandbs(process):
                    hidden.add(process.uids().effective)
                continue
            for opened in opened_files:
                # Where the mode is not known, it is taken for what would be worse to miss.
                if opened.path.endswith(".wandb") and getattr(opened, "mode", "w") != "r":
                    files.add(Path(opened.path))
    return Writers(frozenset(files), frozenset(hidden))


def _may_be_wandbs(process: psutil.Process) -> bool:
    """Whether it may be W&B's other process or a trainer, and not the agent that keeps somebody's keys."""
    command = " ".join([process.name(), *process.cmdline()])
    return "wandb" in command or "python" in command
