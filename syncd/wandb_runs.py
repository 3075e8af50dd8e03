"""Takes a run that W&B's own SDK left on the disk: writes a log of ours beside it.

    wandb/offline-run-…/run-<id>.wandb ──dotwandb, wandb_records──▶ wandb/.tidelog/<project>/<id>/main-0001/
          └── files/…, artifacts ─────────────── links ───────────▶ wandb/.tidelog/<project>/<id>/files/<sha256>

Invariants
----------
* W&B's files are only read.
* A log made here is W&B's file said in our words: made anew it is the same, so it may be lost at any time.
* A log is gone on with only if what was written of it still holds: else it is made anew, with another token, and never
  while somebody uploads it.
* Directories of one run id are pieces of one run, in the order in which they were begun.
* A run that a process still writes stays open: to whoever uploads the log its writer lives.

Which files there are is the business of `wandb_files`, whose piece is whose of `wandb_sources`; how the log gets to a
server is no concern of this module.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from eventlog.artifact import base64_md5
from eventlog.imported import ImportedPiece, segments_of
from eventlog.reader import read
from eventlog.store import Store, Stored, Unreadable
from syncd.dotwandb import Damage, Deframer, Torn
from syncd.fold import CONSOLE, SUMMARY
from syncd.run_files import CONFIG, METADATA
from syncd.wandb_files import Head, WandbFile, Writers
from syncd.wandb_records import TRANSLATION, Artifact, Event, File, Translator
from syncd.wandb_sources import Source, claimed, is_being_uploaded, log_of, new_token, piece_of, token_of

READ_BYTES = 1024 * 1024
# Made from the log, as they are for a run of ours.
_MADE = frozenset((CONFIG, METADATA, CONSOLE, SUMMARY))
_WHY_UNREADABLE = {
    errno.ENOENT: "which is gone from this machine",
    errno.EISDIR: "which is no file",
    errno.ENOTDIR: "which is no file",
}


@dataclass(slots=True)
class Taken:
    """What was made of one file."""

    file: WandbFile
    run_dir: Path | None
    """None: whose file it is is not known, and no log was made."""
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
        return (self.records == 0 or self.run_dir is None) and not self.is_live and not self.not_taken

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.file.path),
            "run_dir": str(self.run_dir) if self.run_dir is not None else None,
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


def take(
    file: WandbFile,
    head: Head,
    writers: Writers,
    run_id: str | None = None,
    progress: Callable[[int], object] = lambda size: None,
) -> Taken:
    """Bring the log of the run up to date with the file; `progress` is told of the bytes that were read.

    `writers` are asked for before the file is read, since what is read after a no is all there will ever be.  Files of
    one run are to be taken in the order in which they were begun.
    """
    file.shadow.mkdir(mode=0o700, parents=True, exist_ok=True)
    run_dir, identity = log_of(file, head.facts, run_id)
    taken = Taken(file, run_dir)
    status = file.path.stat()
    if not writers.may_have(file, head.facts.host) and _is_known(
        taken, run_dir / piece_of(run_dir, file, head), status
    ):
        progress(status.st_size)
        return taken
    piece = claimed(run_dir, identity, file, head)
    if piece is None:
        taken.not_taken["another syncd is reading it"] += 1
        return taken
    try:
        _write(taken, piece, head, writers, status, progress)
    except BaseException:
        piece.close()
        raise
    taken.piece = piece
    if not taken.is_live:
        taken.close()
    return taken


def look_through(file: WandbFile, writers: Writers, progress: Callable[[int], object]) -> Taken:
    """Say what is in a file of which it cannot be told whose it is; no log is made of it."""
    taken = Taken(file, None, writers.may_have(file, ""))
    deframer = Deframer()
    with open(file.path, "rb") as stream:
        while data := stream.read(READ_BYTES):
            found = deframer.feed(data)
            taken.damage += [one for one in found if isinstance(one, Damage)]
            taken.records += sum(not isinstance(one, Damage) for one in found)
            progress(len(data))
    for wrong in deframer.end() if not taken.is_live else ():
        if isinstance(wrong, Torn):
            taken.torn = wrong
        else:
            taken.damage.append(wrong)
    return taken


def known(taken: Taken, source: Source) -> bool:
    """Whether all that is in the file is in the log, and what was found in it is noted in `taken` now.

    What could not be had of it may be had the next time.
    """
    found = source.found
    try:
        if found is None or found["not_taken"]:
            return False
        taken.records, taken.rows = found["records"], found["rows"]
        taken.damage = [Damage(**damage) for damage in found["damage"]]
        taken.torn = Torn(**found["torn"]) if found["torn"] else None
    except (KeyError, TypeError):
        return False
    return True


def _is_known(taken: Taken, piece_dir: Path, status: os.stat_result) -> bool:
    source = Source.load(piece_dir)
    if source is None or not source.is_still_of(taken.file, status) or not known(taken, source):
        return False
    now = source.now_called(taken.file, status)
    if now != source:
        now.save(piece_dir)
    return True


def _write(
    taken: Taken,
    piece: ImportedPiece,
    head: Head,
    writers: Writers,
    status: os.stat_result,
    progress: Callable[[int], object],
) -> None:
    """Write what is not yet in the log; when that is all, note what it was."""
    file = taken.file
    may_grow = writers.may_have(file, head.facts.host)
    ended_at = (status.st_size, status.st_mtime_ns)
    token = _token_to_go_on_with(piece.dir, file, status, may_grow)
    if token is None and segments_of(piece.dir) and is_being_uploaded(piece.dir.parent):
        taken.not_taken["another syncd is uploading it as it was"] += 1
        return
    # The log holds from here on what is true only of a file that is over; killed, the next one knows it by this.
    source = Source(
        file.source, head.digest, token or new_token(), ended_at=ended_at if not may_grow else None
    )
    source.save(piece.dir)
    piece.begin(source.token)
    translation = _Translation(taken, piece, _metadata_of(file))
    # A network file system may show a hole that is filled later: what lies behind one waits until the run is over,
    # since the log counts on finding the same records again.
    sha256 = translation.read_events(progress, may_pass=not may_grow)
    taken.is_live = writers.have(file) or (may_grow and not translation.has_ended)
    if not taken.is_live and source.ended_at is None:
        source = replace(source, ended_at=ended_at)
        source.save(piece.dir)
    translation.finish()
    piece.flush()
    if not taken.is_live:
        replace(source, sha256=sha256, found=_found(taken)).save(piece.dir)


def _token_to_go_on_with(
    piece_dir: Path, file: WandbFile, status: os.stat_result, may_grow: bool
) -> str | None:
    """Return the token of the log that is there, or None if it does not hold any more."""
    before = Source.load(piece_dir)
    if before is None or before.translation != TRANSLATION:
        return None
    if before.ended_at is not None and (may_grow or not before.is_still_of(file, status)):
        return None
    return before.token or token_of(piece_dir)


def _found(taken: Taken) -> dict[str, Any]:
    return {
        "records": taken.records,
        "rows": taken.rows,
        "damage": [asdict(damage) for damage in taken.damage],
        "torn": asdict(taken.torn) if taken.torn else None,
        "not_taken": taken.not_taken,
    }


class _Translation:
    """One pass over a file."""

    def __init__(self, taken: Taken, piece: ImportedPiece, metadata: dict[str, Any]) -> None:
        self._taken = taken
        self._piece = piece
        self._translator = Translator(taken.file.is_offline, metadata)
        self._deframer = Deframer()
        self._files: dict[str, File] = {}
        self._artifacts: list[Artifact] = []
        self._store = Store(piece.dir.parent, is_durable=False)

    @property
    def has_ended(self) -> bool:
        return self._translator.has_ended

    def read_events(self, progress: Callable[[int], object], may_pass: bool) -> str | None:
        """Read to the end of the file and return its SHA-256, or up to the first damage if that may not be passed."""
        content = hashlib.sha256()
        with open(self._taken.file.path, "rb") as stream:
            while data := stream.read(READ_BYTES):
                content.update(data)
                for found in self._deframer.feed(data):
                    if isinstance(found, Damage):
                        self._note_damage(found)
                        if not may_pass:
                            return None
                    else:
                        self._take(self._translator.feed(found.data))
                progress(len(data))
        return content.hexdigest()

    def _note_damage(self, damage: Damage) -> None:
        self._taken.damage.append(damage)
        self._translator.note_damage(f"{damage.cause}, at byte {damage.offset} of {self._taken.file.source}")

    def finish(self) -> None:
        """Write what is known now: all of it, unless the run goes on."""
        if not self._taken.is_live:
            for wrong in self._deframer.end():
                if isinstance(wrong, Torn):
                    self._taken.torn = wrong
                else:
                    self._note_damage(wrong)
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
        for record in read(self._piece.dir.parent, "files", self._piece.dir.name):
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
        except FileNotFoundError:
            self._taken.not_taken[f"artifact {name}, whose list of files is gone from this machine"] += 1
            return
        except (OSError, EOFError, zlib.error, ValueError):
            self._taken.not_taken[f"artifact {name}, whose list of files cannot be read"] += 1
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
        except Unreadable as error:
            why = _WHY_UNREADABLE.get(error.errno or 0, f"which cannot be read ({error.strerror})")
            self._taken.not_taken[f"{what}, {why}"] += 1
        return None


def _manifest_entries(path: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of an artifact that has too many of them for one record: a line of JSON each."""
    if path:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                if not (isinstance(entry, dict) and {"path", "digest"} <= entry.keys()):
                    raise ValueError(f"no entry of an artifact: {line[:80]!r}")
                yield entry


def _metadata_of(file: WandbFile) -> dict[str, Any]:
    """Return what SDKs before 0.18 say of the machine in a file only."""
    try:
        found = orjson.loads((file.directory / "files" / METADATA).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
