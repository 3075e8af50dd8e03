"""Artifacts that are in the logs of a project, with versions and aliases as W&B's server gives them.

    artifact records, oldest first ──versions──▶ ds:v0, ds:v1 (latest, best), …

Invariants
----------
* Equal content under one name is one version, whoever logged it, and its number is its place among them.
* An alias names one version: the newest that asked for it.  `latest` is the newest that was logged.
* A download is below the directory that it is given, and whole files only.

What is numbered here is what lies below this root: where other machines log into the same project, W&B's numbers are others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson

from analysis.errors import CommError
from analysis.naming import nearest
from analysis.run import File, below, iso, refusal
from eventlog.store import FILES_DIR

if TYPE_CHECKING:
    from analysis.api import Api
    from analysis.run import Run

_CHANGES = (
    "save",
    "delete",
    "add",
    "add_file",
    "add_dir",
    "add_reference",
    "new_file",
    "remove",
    "link",
    "unlink",
)


@dataclass(frozen=True, slots=True)
class Logged:
    """One artifact record."""

    run_id: str
    name: str
    type: str
    digest: str
    size: int
    description: str | None
    metadata: str | None
    aliases: list[str]
    tags: list[str]
    step: int | None
    time_us: int
    run_path: str
    manifest: str

    @property
    def files_dir(self) -> Path:
        """Where the content is that its run logged."""
        return Path(self.run_path) / FILES_DIR


def versions(records: Iterable[Logged]) -> dict[str, list[Version]]:
    """Return the versions of each name, from its records in the order of time."""
    known: dict[str, list[Version]] = {}
    for record in records:
        of_name = known.setdefault(record.name, [])
        version = next((each for each in of_name if each.first.digest == record.digest), None)
        if version is None:
            version = Version(len(of_name), record, [], [])
            of_name.append(version)
        version.run_ids.append(record.run_id)
        for alias in (*record.aliases, "latest"):
            for other in of_name:
                if alias in other.aliases:
                    other.aliases.remove(alias)
            version.aliases.append(alias)
    return known


@dataclass(slots=True)
class Version:
    number: int
    first: Logged
    """The record that it was made by."""
    aliases: list[str]
    run_ids: list[str]


class Artifact:
    """One version of an artifact.  It can be read only."""

    def __init__(self, api: Api, project: str, version: Version) -> None:
        self._api = api
        self._first = version.first
        self.project = project
        self.version = f"v{version.number}"
        self.aliases = list(version.aliases)
        self.run_ids = list(version.run_ids)
        """Whoever logged this content, the first of them first."""
        self.name = self.source_name = f"{version.first.name}:{self.version}"
        self.type = version.first.type
        self.digest = version.first.digest
        self.size = version.first.size
        self.description = version.first.description
        self.metadata: dict[str, Any] = orjson.loads(version.first.metadata or "{}")
        self.tags = list(version.first.tags)
        self.history_step = version.first.step
        self.created_at = iso(version.first.time_us)
        self.state = "COMMITTED"

    @property
    def entity(self) -> str | None:
        run = self.logged_by()
        return None if run is None else run.entity

    @property
    def qualified_name(self) -> str:
        return "/".join(filter(None, [self.entity, self.project, self.name]))

    @property
    def file_count(self) -> int:
        return len(self._entries())

    def logged_by(self) -> Run | None:
        return self._api.known_run(self.project, self.run_ids[0])

    def files(self, names: list[str] | None = None, per_page: int = 50) -> list[File]:
        """Return what is in it; references lead elsewhere, and are no files here."""
        return [
            self._file(name, entry)
            for name, entry in self._entries().items()
            if "ref" not in entry and (not names or name in names)
        ]

    def get_entry(self, name: str | os.PathLike[str]) -> File:
        """Return the file of that name."""
        entries = self._entries()
        if (entry := entries.get(str(name))) is None or "ref" in entry:
            raise CommError(
                f"artifact {self.name!r} has no file {str(name)!r}. {nearest(str(name), entries)}"
            )
        return self._file(str(name), entry)

    get_path = get_entry

    def file(self, root: str | os.PathLike[str] | None = None) -> str:
        """Download the only file that is in it, and return where it is."""
        if len(self._entries()) != 1:
            raise CommError(
                f"artifact {self.name!r} holds {self.file_count} files: download() gets all, get_entry(name) one."
            )
        return str(Path(self.download(root)) / next(iter(self._entries())))

    def download(
        self,
        root: str | os.PathLike[str] | None = None,
        allow_missing_references: bool = False,
        skip_cache: bool | None = None,
        path_prefix: str | os.PathLike[str] | None = None,
        multipart: bool | None = None,
    ) -> str:
        """Copy its files into `root` (`./artifacts/NAME`, or below `$WANDB_ARTIFACT_DIR`), and return that directory.

        A reference to a file of this machine is copied too; one that leads elsewhere is an error, unless missing ones are allowed.
        """
        top = Path(
            root or Path(os.environ.get("WANDB_ARTIFACT_DIR") or "artifacts", self.source_name)
        ).absolute()
        prefix = os.fspath(path_prefix or "")
        wanted = {name: entry for name, entry in self._entries().items() if name.startswith(prefix)}
        # All of it is looked at before any of it is written.
        paths = {name: below(top, name) for name in wanted}
        sources = {name: self._referenced(name, entry) for name, entry in wanted.items() if "ref" in entry}
        gone = [name for name, source in sources.items() if source is None]
        if gone and not allow_missing_references:
            raise CommError(
                f"{gone[0]!r} of artifact {self.name!r} is a reference to {wanted[gone[0]]['ref']!r}, which is not on this "
                "machine. allow_missing_references=True downloads the rest."
            )
        top.mkdir(parents=True, exist_ok=True)
        for name, entry in wanted.items():
            if "ref" not in entry:
                self._file(name, entry).copy_to(paths[name])
            elif source := sources[name]:
                paths[name].parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, paths[name])
        return str(top)

    def _referenced(self, name: str, entry: dict[str, Any]) -> Path | None:
        url = urlsplit(str(entry["ref"]))
        path = Path(unquote(url.path))
        return path if url.scheme == "file" and path.is_file() else None

    def _entries(self) -> dict[str, dict[str, Any]]:
        path = self._first.files_dir / self._first.manifest
        try:
            entries: dict[str, dict[str, Any]] = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            raise CommError(
                f"what is in artifact {self.name!r} is not on this machine any more ({str(path)!r}): once it is uploaded, it "
                "may be given up. W&B's own `wandb.Api()` downloads it."
            ) from None
        return entries

    def _file(self, name: str, entry: dict[str, Any]) -> File:
        sha256 = str(entry.get("sha256"))
        content = str(self._first.files_dir / sha256)
        return File(self, name, int(entry.get("size") or 0), content, sha256, self._first.time_us)

    def __getattr__(self, name: str) -> Any:
        if name in _CHANGES:
            return refusal(
                f"artifact.{name}",
                "log another version from a run: `eventlog.init(…)`, `run.log_artifact(artifact)`",
            )
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Artifact {self.project}/{self.name} ({self.type})>"
