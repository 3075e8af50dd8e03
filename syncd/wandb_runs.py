"""Takes the runs that W&B's own SDK left on the disk: finds them, and writes a log of ours beside them.

    wandb/offline-run-…/run-<id>.wandb ──dotwandb, wandb_records──▶ wandb/.tidelog/<project>/<id>/main-0001/
          └── files/…, artifacts ─────────────── links ───────────▶ wandb/.tidelog/<project>/<id>/files/<sha256>

Invariants
----------
* W&B's files are only read; the one thing written among them is the marker `.synced` that W&B itself writes.
* A log made here is W&B's file said in our words: made anew it is the same, so it may be lost at any time.
* Directories of one run id are pieces of one run, in the order in which they were begun.
* A run that a process still writes stays open: to whoever uploads the log its writer lives.

How the log gets to a server is no concern of this module.
"""

from __future__ import annotations

import glob as globbing
import gzip
import hashlib
import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil

from eventlog.artifact import base64_md5
from eventlog.imported import ImportedPiece
from eventlog.piece import RunIdentity, primaries, this_host
from eventlog.reader import find_runs, read
from eventlog.segment import primary_name, primary_number, segments_in
from eventlog.store import Store, Stored
from syncd.dotwandb import Damage, Deframer
from syncd.fold import CONSOLE, SUMMARY
from syncd.run_files import CONFIG, METADATA
from syncd.wandb_records import TRANSLATION, Artifact, Event, File, RunFacts, Translator

SHADOW_DIR = ".tidelog"
SOURCE_FILE = "source.json"
MARKER_SUFFIX = ".wandb.synced"
# Without a `run` record, which says it: what W&B calls a project without a name.
NO_PROJECT = "uncategorized"
READ_BYTES = 1024 * 1024
# The `run` record is the second of a file; where the first block is damaged it is not looked for in a gigabyte.
HEAD_BYTES, HEAD_MAX_BYTES = 8 * 1024, 1024 * 1024
# A writer on another host is believed to live for so long after its last byte; W&B writes every 15 s.
STALE_S = 600.0
# Made from the log, as they are for a run of ours.
_MADE = frozenset((CONFIG, METADATA, CONSOLE, SUMMARY))


@dataclass(frozen=True, slots=True)
class WandbFile:
    """One `.wandb` file: what one process wrote of a run."""

    path: Path

    @property
    def directory(self) -> Path:
        return self.path.parent

    @property
    def source(self) -> str:
        """What tells it from the run's other files, wherever they are copied to."""
        return f"{self.directory.name}/{self.path.name}"

    @property
    def is_offline(self) -> bool:
        # A file that lies alone was put there by a person, and is asked for.
        return not self.directory.name.startswith("run-")

    @property
    def marker(self) -> Path:
        return self.path.with_suffix(MARKER_SUFFIX)

    @property
    def shadow(self) -> Path:
        """The root of the log that is made of it."""
        is_in_a_wandb_directory = self.directory.name.startswith(("run-", "offline-run-"))
        return (self.directory.parent if is_in_a_wandb_directory else self.directory) / SHADOW_DIR


@dataclass(slots=True)
class Taken:
    """What was made of one file."""

    file: WandbFile
    run_dir: Path
    is_live: bool = False
    records: int = 0
    rows: int = 0
    damage: list[Damage] = field(default_factory=list)
    torn: Damage | None = None
    """What its writer did not come to finish, at the end."""
    not_taken: Counter[str] = field(default_factory=Counter)
    """What could not be made part of the log, by reason."""
    piece: ImportedPiece | None = None
    """Open for as long as the run is written to."""

    @property
    def is_whole(self) -> bool:
        return not self.damage and not self.not_taken

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it can be uploaded, now or later."""
        return self.records == 0 and not self.is_live and not self.not_taken

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.file.path),
            "run_dir": str(self.run_dir),
            "records": self.records,
            "rows": self.rows,
            "live": self.is_live,
            "damage": [asdict(damage) for damage in self.damage],
            "torn": asdict(self.torn) if self.torn is not None else None,
            "not_taken": dict(self.not_taken),
        }

    def close(self) -> None:
        if self.piece is not None:
            self.piece.close()
            self.piece = None


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
    if path.suffix == ".wandb" and path.is_file():
        return [WandbFile(path.resolve())], True
    for pattern in ("*.wandb", "*/*.wandb", "wandb/*/*.wandb"):
        found = {entry.resolve() for entry in path.glob(pattern) if entry.is_file()}
        if found:
            return [WandbFile(entry) for entry in sorted(found)], pattern == "*.wandb"
    return [], False


@dataclass(frozen=True, slots=True)
class Head:
    """What the beginning of a file says."""

    facts: RunFacts
    began_us: int
    size: int


def head(file: WandbFile) -> Head:
    """Read whose file it is; where that is damaged, its names say the rest."""
    translator, deframer = Translator(), Deframer()
    status = file.path.stat()
    with open(file.path, "rb") as stream:
        while stream.tell() < HEAD_MAX_BYTES and (data := stream.read(HEAD_BYTES)):
            for found in deframer.feed(data):
                if not isinstance(found, Damage):
                    deque(translator.feed(found.data), maxlen=0)
                if translator.run is not None:
                    return Head(translator.run, translator.began_us, status.st_size)
    run_id = file.path.stem.removeprefix("run-")
    return Head(RunFacts(run_id, "", "", ""), int(status.st_mtime * 1e6), status.st_size)


def being_written() -> frozenset[Path]:
    """Return the `.wandb` files that a process of this machine has open to write; it takes a look at each process."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            for opened in process.open_files():
                # Where the mode is not known, it is taken for what would be worse to miss.
                if opened.path.endswith(".wandb") and getattr(opened, "mode", "w") != "r":
                    found.add(Path(opened.path))
    return frozenset(found)


# -- translating -----------------------------------------------------------------------------------------------


def run_dir_of(file: WandbFile, facts: RunFacts, run_id: str | None = None) -> tuple[Path, RunIdentity]:
    """Return where the log of that run is made, and who it is: the same wherever the file is copied to."""
    project = facts.project or NO_PROJECT
    name = run_id or facts.run_id
    log_id = hashlib.sha256(f"wandb\n{facts.entity}\n{project}\n{name}".encode()).hexdigest()[:32]
    identity = RunIdentity(log_id, project, name, facts.entity or None, time.time_ns() // 1000)
    return identity.directory(file.shadow), identity


def take(
    file: WandbFile,
    facts: RunFacts,
    may_grow: bool,
    run_id: str | None = None,
    progress: Callable[[int], object] = lambda size: None,
) -> Taken:
    """Bring the log of the run up to date with the file; `progress` is told of the bytes that were read.

    `may_grow` says that the file was `being_written`: asked before it is read, since what is read after a no is all
    there will ever be.  Files of one run are to be taken in the order in which they were begun.
    """
    run_dir, identity = run_dir_of(file, facts, run_id)
    file.shadow.mkdir(mode=0o700, exist_ok=True)
    identity = identity.publish(run_dir)
    writer = _writer_of(run_dir, file)
    token = hashlib.sha256(file.source.encode()).hexdigest()[:8]
    taken = Taken(file, run_dir)
    found = file.path.stat()
    before = _read_source(run_dir / writer)
    if before.get("ended_at") is not None:
        if (before["ended_at"], before.get("translation")) == (found.st_size, TRANSLATION) and not may_grow:
            known = _known(taken, before)
            if known is not None:
                progress(found.st_size)
                return known
        else:
            _forget(run_dir, writer)
    piece = ImportedPiece.open(run_dir, identity, writer, token)
    if piece is None:
        taken.not_taken["another syncd is reading it"] += 1
        return taken
    try:
        _write_source(run_dir / writer, {"source": file.source, "translation": TRANSLATION, "ended_at": None})
        translation = _Translation(taken, piece, _metadata_of(file))
        is_gone = facts.host in ("", this_host()) or time.time() - found.st_mtime > STALE_S
        # A network file system may show a hole that is filled later: what lies behind one waits until the run is over,
        # since the log counts on finding the same records again.
        may_pass = not may_grow and is_gone
        translation.read_events(progress, may_pass)
        taken.is_live = may_grow or not (translation.has_ended or is_gone)
        translation.finish()
        piece.flush()
        if not taken.is_live:
            _write_source(run_dir / writer, _as_known(taken, found.st_size))
    except BaseException:
        piece.close()
        raise
    taken.piece = piece
    if not taken.is_live:
        taken.close()
    return taken


def _as_known(taken: Taken, size: int) -> dict[str, Any]:
    """Return what is remembered of a file that is over."""
    return {
        "source": taken.file.source,
        "translation": TRANSLATION,
        "ended_at": size,
        "records": taken.records,
        "rows": taken.rows,
        "damage": [asdict(damage) for damage in taken.damage],
        "torn": asdict(taken.torn) if taken.torn else None,
        "not_taken": taken.not_taken,
    }


def _known(taken: Taken, source: dict[str, Any]) -> Taken | None:
    """Return what is remembered of a file that is over, unless something may be had from it now."""
    try:
        taken.records, taken.rows = source["records"], source["rows"]
        taken.damage = [Damage(**damage) for damage in source["damage"]]
        taken.torn = Damage(**source["torn"]) if source["torn"] else None
        return None if source["not_taken"] else taken
    except (KeyError, TypeError):
        return None


def taken_below(shadow: Path, written: frozenset[Path]) -> dict[WandbFile, Taken]:
    """Return what is known of the files that were taken whole and have not changed since."""
    found = {}
    for run_dir in find_runs(shadow):
        for name in primaries(run_dir):
            source = _read_source(run_dir / name)
            file = WandbFile(shadow.parent / str(source.get("source")))
            with suppress(OSError):
                if file.path.stat().st_size == source.get("ended_at") and file.path not in written:
                    taken = _known(Taken(file, run_dir), source)
                    if taken is not None:
                        found[file] = taken
    return found


class _Translation:
    """One pass over a file."""

    def __init__(self, taken: Taken, piece: ImportedPiece, metadata: dict[str, Any]) -> None:
        self._taken = taken
        self._piece = piece
        self._translator = Translator(taken.file.is_offline, metadata)
        self._deframer = Deframer()
        self._files: dict[str, File] = {}
        self._artifacts: list[Artifact] = []
        self._store = Store(taken.run_dir, is_durable=False)

    @property
    def has_ended(self) -> bool:
        return self._translator.has_ended

    def read_events(self, progress: Callable[[int], object], may_pass: bool) -> None:
        """Read to the end of the file, or up to the first damage if that may not be passed."""
        with open(self._taken.file.path, "rb") as stream:
            while data := stream.read(READ_BYTES):
                for found in self._deframer.feed(data):
                    if isinstance(found, Damage):
                        self._taken.damage.append(found)
                        if not may_pass:
                            return
                        self._translator.note_damage(
                            f"{found.cause}, at byte {found.offset} of {self._taken.file.source}"
                        )
                    else:
                        self._take(self._translator.feed(found.data))
                progress(len(data))

    def finish(self) -> None:
        """Write what is known now: all of it, unless the run goes on."""
        if not self._taken.is_live:
            for damage in self._deframer.end():
                if damage.offset == 0:
                    # Not even its header is W&B's: no writer was interrupted there.
                    self._taken.damage.append(damage)
                else:
                    self._taken.torn = damage
            self._take(self._translator.end())
        self._write_files()
        self._taken.records, self._taken.rows = self._translator.records, self._translator.rows
        for what, times in self._translator.not_understood.items():
            self._taken.not_taken[f"W&B's record of {what}, which is not understood"] += times

    def _take(self, things: Iterable[Event | File | Artifact]) -> None:
        for thing in things:
            if isinstance(thing, Event):
                self._piece.append(
                    thing.stream, thing.kind, thing.data, thing.time_us, thing.step, thing.kind == "metrics"
                )
            elif isinstance(thing, File):
                self._files[thing.path] = thing
            else:
                self._artifacts.append(thing)

    def _write_files(self) -> None:
        known: dict[str, dict[str, dict[str, Any]]] = {"file": {}, "artifact": {}}
        for record in read(self._taken.run_dir, "files", self._piece.dir.name):
            if record.kind in known:
                name = record.data["path" if record.kind == "file" else "client_id"]
                known[record.kind][name] = record.data
        for file in self._files.values():
            self._write_file(file, known["file"].get(file.path))
        for artifact in self._artifacts:
            if artifact.data["client_id"] not in known["artifact"]:
                self._write_artifact(artifact)

    def _write_file(self, file: File, known: dict[str, Any] | None) -> None:
        if file.path in _MADE or (file.policy == "end" and self._taken.is_live):
            return
        is_immutable = file.path.startswith("media/")
        if known is not None and is_immutable:
            return
        if file.path.startswith("/") or ".." in file.path.split("/"):
            self._taken.not_taken[f"file {file.path}, which is not below the run's directory"] += 1
            return
        path = self._taken.file.directory / "files" / file.path
        stored = self._stored(path, f"file {file.path}", may_link=is_immutable)
        if stored is not None and (known is None or known["sha256"] != stored.sha256):
            data = {"path": file.path, "sha256": stored.sha256, "size": stored.size}
            self._piece.append("files", "file", data, file.time_us)

    def _write_artifact(self, artifact: Artifact) -> None:
        name = artifact.data["name"]
        manifest: dict[str, dict[str, Any]] = {}
        size = 0
        try:
            entries = [*artifact.entries, *_manifest_entries(artifact.manifest_path)]
        except (OSError, ValueError):
            self._taken.not_taken[f"artifact {name}, whose list of files is gone from this machine"] += 1
            return
        for entry in entries:
            size += entry.get("size") or 0
            if entry.get("ref"):
                manifest[entry["path"]] = {"digest": entry["digest"], "ref": entry["ref"]}
                if entry.get("size"):
                    manifest[entry["path"]]["size"] = entry["size"]
                continue
            stored = self._stored(Path(entry.get("local_path") or ""), f"artifact {name}", may_link=True)
            if stored is None:
                return
            if base64_md5(stored) != entry["digest"]:
                self._taken.not_taken[f"artifact {name}, of which a file was changed since"] += 1
                return
            manifest[entry["path"]] = {
                "digest": entry["digest"],
                "size": stored.size,
                "sha256": stored.sha256,
            }
        listed = self._store.put(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS))
        data = {**artifact.data, "size": size, "manifest": listed.sha256}
        self._piece.append("files", "artifact", data, artifact.time_us)

    def _stored(self, path: Path, what: str, may_link: bool) -> Stored | None:
        try:
            return self._store.put(path, may_link=may_link)
        except FileNotFoundError:
            self._taken.not_taken[f"{what}, which is gone from this machine"] += 1
        except (IsADirectoryError, NotADirectoryError):
            self._taken.not_taken[f"{what}, which is no file"] += 1
        return None


def _manifest_entries(path: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of an artifact that has too many of them for one record: a line of JSON each."""
    if path:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _metadata_of(file: WandbFile) -> dict[str, Any]:
    """Return what SDKs before 0.18 say of the machine in a file only."""
    try:
        found = orjson.loads((file.directory / "files" / METADATA).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _writer_of(run_dir: Path, file: WandbFile) -> str:
    """Return the piece that is this file's, an old one or the next."""
    names = primaries(run_dir)
    for name in names:
        if _read_source(run_dir / name).get("source") == file.source:
            return name
    # A killed translation may have made the last directory, and nothing in it.
    if names and not _read_source(run_dir / names[-1]):
        return names[-1]
    return primary_name(1 + max((primary_number(name) or 0 for name in names), default=0))


def _forget(run_dir: Path, writer: str) -> None:
    """Let a piece be made anew: its file grew after it was believed to be over, or another version made it.

    Cursors count its records, and are forgotten with them; the server's own counts take their place.
    """
    for name in os.listdir(run_dir / writer):
        if any(segments_in([name], stream) for stream in ("events", "console", "files")):
            os.unlink(run_dir / writer / name)
    shutil.rmtree(run_dir / "sync", ignore_errors=True)


def _read_source(piece_dir: Path) -> dict[str, Any]:
    try:
        found = orjson.loads((piece_dir / SOURCE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_source(piece_dir: Path, source: dict[str, Any]) -> None:
    temporary = piece_dir / f".{SOURCE_FILE}.new"
    temporary.write_bytes(orjson.dumps(source) + b"\n")
    os.replace(temporary, piece_dir / SOURCE_FILE)
