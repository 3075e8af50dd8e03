"""Remembers of which of W&B's files each piece of a log was made, and how far: `source.json` in the piece's directory.

    file, its head ──log_of──▶ run directory ──claimed──▶ piece ◀── Source(name, digest, token, …)

Invariants
----------
* A file has one piece of a log, whatever it is called and wherever it was copied to; a piece is made of one file.
* Runs of one id have one directory each, where their entities differ.
* A log that is made anew has a token of its own, which is on the disk before the old log is touched.
* What is remembered is read back whole or not at all, also after a power cut; and what is lost of it is found again by
  the log itself: when its run began.

What a file holds is not looked at here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson

from eventlog.cursor import is_leased, lease_files
from eventlog.errors import NotARun
from eventlog.imported import ImportedPiece, header_of, segments_of
from eventlog.piece import RUN_FILE, RunIdentity, ask_lock, primaries, sync_directory
from eventlog.reader import StreamReader, find_runs
from eventlog.segment import primary_name, primary_number
from syncd.wandb_files import Head, WandbFile
from syncd.wandb_records import TRANSLATION, RunFacts

SOURCE_FILE = "source.json"
# What W&B calls a project without a name.
NO_PROJECT = "uncategorized"
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of the file that a piece is made of."""

    source: str
    """What it was called at the last look."""
    digest: str | None = None
    """What it begins with, see `Head`; None if that is damaged, or of a version that did not look at it."""
    token: str = ""
    """That of the log that is being made of it; empty: a version before this one made it."""
    translation: int = TRANSLATION
    ended_at: tuple[int, int | None] | None = None
    """Its size and time of change when it was believed to be over, and the log was made to its end."""
    sha256: str | None = None
    """Of all of it, then."""
    found: dict[str, Any] | None = None
    """What was found in it, once all of that is in the log."""

    @classmethod
    def load(cls, piece_dir: Path) -> Source | None:
        """Return what is remembered, or None if nothing is."""
        try:
            content = orjson.loads((piece_dir / SOURCE_FILE).read_bytes())
            ended_at = content["ended_at"]
            if isinstance(ended_at, int):
                # A version before this one wrote the size, and what it had found beside it.
                ended_at = (ended_at, None)
                content["found"] = dict(content)
            known = {name: content[name] for name in _KEYS if name in content}
            return cls(**{**known, "ended_at": tuple(ended_at) if ended_at else None})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, piece_dir: Path) -> None:
        """Replace what is remembered, for good."""
        temporary = piece_dir / f".{SOURCE_FILE}.new"
        with open(temporary, "wb") as file:
            file.write(orjson.dumps(self) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, piece_dir / SOURCE_FILE)
        sync_directory(piece_dir)

    def is_of(self, status: os.stat_result) -> bool:
        """Whether the file is as it was when it was believed to be over, as far as its status says."""
        size, changed_ns = self.ended_at or (-1, None)
        return size == status.st_size and changed_ns in (None, status.st_mtime_ns)

    def is_still_of(self, file: WandbFile, status: os.stat_result) -> bool:
        """Whether the file is as it was then: copied or touched, its content says so."""
        if self.translation != TRANSLATION or self.ended_at is None or self.ended_at[0] != status.st_size:
            return False
        return self.is_of(status) or (self.sha256 is not None and self.sha256 == _sha256_of(file.path))

    def now_called(self, file: WandbFile, status: os.stat_result) -> Source:
        """Return the same, under the name and with the times that the file has now."""
        return replace(self, source=file.source, ended_at=(status.st_size, status.st_mtime_ns))


_KEYS = frozenset(part.name for part in fields(Source))


# -- the log of a run ------------------------------------------------------------------------------------------


def log_of(file: WandbFile, facts: RunFacts, run_id: str | None = None) -> tuple[Path, RunIdentity]:
    """Return where the log of that run is made, and who it is: the same wherever the file is copied to."""
    project, name = facts.project or NO_PROJECT, run_id or facts.run_id
    log_id = hashlib.sha256(f"wandb\n{facts.entity}\n{project}\n{name}".encode()).hexdigest()[:32]
    identity = RunIdentity(log_id, project, name, facts.entity or None, time.time_ns() // 1000)
    run_dir = identity.directory(file.shadow)
    # The second is for a run of another entity.
    for place in (run_dir, run_dir.with_name(f"{run_dir.name}-{log_id[:8]}")):
        if _published(identity, place) == log_id:
            return place, identity
    raise NotARun(f"{str(run_dir)!r} is the log of another run.")


def _published(identity: RunIdentity, run_dir: Path) -> str | None:
    """Give the directory to that run unless it is another's; return whose it is, if that can be told."""
    try:
        return identity.publish(run_dir).log_id
    except NotARun:
        headers = [header_of(path) for name in primaries(run_dir) for path in segments_of(run_dir / name)]
        if any(header is None or header.log_id != identity.log_id for header in headers):
            return None
        # Made anew it is the same.
        (run_dir / RUN_FILE).unlink(missing_ok=True)
        return identity.publish(run_dir).log_id


# -- the piece of a file ---------------------------------------------------------------------------------------


def claimed(run_dir: Path, identity: RunIdentity, file: WandbFile, head: Head) -> ImportedPiece | None:
    """Open the piece that is that file's, an old one or the next; return None while another process has it open."""
    while True:
        writer = piece_of(run_dir, file, head)
        piece = ImportedPiece.open(run_dir, identity, writer)
        if piece is None or piece_of(run_dir, file, head) == writer:
            return piece
        # Meanwhile it became another file's.
        piece.close()


def piece_of(run_dir: Path, file: WandbFile, head: Head) -> str:
    """Return the name of the piece that is that file's, an old one or the next."""
    sources = {name: Source.load(run_dir / name) for name in primaries(run_dir)}
    for is_its in (_begins_like_it, _is_called_like_it, _began_when_it_did):
        for name, source in sources.items():
            if is_its(run_dir / name, source, file, head):
                return name
    last = next(reversed(sources), None)
    # A killed translation may have made it, and nothing in it.
    if last is not None and sources[last] is None and not segments_of(run_dir / last):
        return last
    return primary_name(1 + max((primary_number(name) or 0 for name in sources), default=0))


def _begins_like_it(piece_dir: Path, source: Source | None, file: WandbFile, head: Head) -> bool:
    return source is not None and head.digest is not None and source.digest == head.digest


def _is_called_like_it(piece_dir: Path, source: Source | None, file: WandbFile, head: Head) -> bool:
    if source is None or source.source != file.source:
        return False
    # Its beginning may have been damaged, then or now.  Where the log says when its run began, that is believed.
    return head.digest is None or _began_us(piece_dir) in (None, head.began_us)


def _began_when_it_did(piece_dir: Path, source: Source | None, file: WandbFile, head: Head) -> bool:
    is_unknown = source is None or source.digest is None
    return is_unknown and head.digest is not None and _began_us(piece_dir) == head.began_us


def _began_us(piece_dir: Path) -> int | None:
    """Return when the run began, as the first record of its log has it; None if it does not say so."""
    record = StreamReader(piece_dir).first()
    says_so = record is not None and record.kind == "start" and record.data.get("started_at")
    return record.time_us if record is not None and says_so else None


def token_of(piece_dir: Path) -> str:
    """Return the token of the log that is in the piece, or a new one."""
    found = (header_of(path) for path in segments_of(piece_dir))
    return next((header.token for header in found if header is not None), new_token())


def new_token() -> str:
    return secrets.token_hex(4)


def is_being_uploaded(run_dir: Path) -> bool:
    """Whether a process uploads the run at this moment: its log must not become another one under its hands."""
    with suppress(FileNotFoundError):
        for path in lease_files(run_dir):
            is_free, line = ask_lock(path)
            # Of a lock that is free here nothing more is asked: another host's process finds out by itself.
            if not is_free and is_leased(is_free, line, time.time_ns() // 1000):
                return True
    return False


# -- all of them -----------------------------------------------------------------------------------------------


def remembered(shadow: Path) -> dict[str, list[tuple[Path, Source]]]:
    """Return what is known of files by what they are called: in which run's log each is, and how far."""
    found = defaultdict(list)
    for run_dir in find_runs(shadow):
        for name in primaries(run_dir):
            source = Source.load(run_dir / name)
            if source is not None:
                found[source.source].append((run_dir, source))
    return found


def project_of(file: WandbFile) -> tuple[str, str] | None:
    """Return the project and the entity of the file of that name, if they were known when it was taken before."""
    found = set()
    for run_dir, _ in remembered(file.shadow).get(file.source, []):
        with suppress(NotARun):
            identity = RunIdentity.load(run_dir)
            found.add((identity.project, identity.entity or ""))
    return found.pop() if len(found) == 1 else None


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
