"""W&B's artifacts as they are before the server knows them: named files and references, and their digest.

    Artifact ── add_file, add_dir, add_reference, add, new_file ──▶ entries, copies ──▶ digest
                 └── Run.log_artifact moves the content into the run's store, and writes the record

Invariants
----------
* The digest is W&B's for the same content: MD5 over the sorted paths and their digests.
* A file is in the artifact as it was when it was added: it is copied then, beside the run, so that logging it takes no
  space again. One added with `policy="immutable"` is copied when the artifact is logged; if it changed between, the
  record says what was copied.
* Nothing is fetched.
* A logged artifact takes no more files.

Versions, downloads and everything else that only the server knows is refused in words.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import shutil
import weakref
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eventlog import ending
from eventlog.errors import EventlogError
from eventlog.media import Value
from eventlog.not_yet import say_once
from eventlog.store import FILES_DIR, Content, Stored, Unreadable, copied, digests

POLICIES = ("mutable", "immutable")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SERVER_KNOWS = frozenset(
    {
        *(
            "id",
            "entity",
            "project",
            "version",
            "qualified_name",
            "source_name",
            "url",
            "state",
            "collection",
        ),
        *(
            "created_at",
            "updated_at",
            "commit_hash",
            "file_count",
            "manifest",
            "new_draft",
            "is_draft",
            "save",
        ),
        *("download", "checkout", "verify", "file", "files", "get", "get_path", "get_entry", "delete"),
        *("link", "unlink", "used_by", "logged_by"),
    }
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of an artifact: a file of ours, or a reference to one elsewhere."""

    digest: str
    """Empty if the file could not be read when it was added."""
    size: int | None
    content: Content | None = None
    ref: str | None = None
    is_ours: bool = False
    """Whether the content is a file that nobody but the artifact knows."""


class Artifact:
    """Files that are an output of a run."""

    def __init__(
        self,
        name: str,
        type: str,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        **other: Any,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"the name of an artifact is up to 128 of A-Z a-z 0-9 _ - and ., not {name!r}. Choose another one."
            )
        if not isinstance(type, str) or not type or set("/:") & set(type):
            raise ValueError(f"the type of an artifact is a text without / and :, not {type!r}.")
        if metadata is not None and not isinstance(metadata, dict):
            raise TypeError(f"the metadata of an artifact is a dict, not {metadata!r}.")
        for argument in other:
            say_once(f"Artifact({argument}=…)", "does nothing here.")
        self.name = name
        self.type = type
        self.description = description
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.aliases: list[str] = []
        self.tags: list[str] = []
        self.client_id = os.urandom(64).hex()
        self.sequence_client_id = os.urandom(64).hex()
        self.entries: dict[str, Entry] = {}
        self._is_final = False
        self._added: dict[int, tuple[Value, str]] = {}
        # Where its own copies are, once there are any.
        self._directory: Path | None = None

    @property
    def digest(self) -> str:
        """W&B's digest of what was added so far."""
        return digest_of({path: entry.digest for path, entry in self.entries.items()})

    @property
    def size(self) -> int:
        return sum(entry.size or 0 for entry in self.entries.values())

    @property
    def ttl(self) -> Any:
        return None

    @ttl.setter
    def ttl(self, value: Any) -> None:
        say_once("Artifact.ttl", "does nothing here: set it in W&B.")

    # ── content ──────────────────────────────────────────────────────────────────────────────────────────────

    def add_file(
        self,
        local_path: str | os.PathLike[str],
        name: str | None = None,
        is_tmp: bool | None = False,
        skip_cache: bool | None = False,
        policy: str | None = "mutable",
        overwrite: bool = False,
    ) -> str:
        """Add a file as it is now, under `name`, or its own; return its path in the artifact."""
        if policy not in (None, *POLICIES):
            raise ValueError(f"policy is one of {', '.join(POLICIES)}, not {policy!r}.")
        if not os.path.isfile(local_path):
            raise ValueError(f"there is no file {str(local_path)!r}. A directory is added with add_dir().")
        source = Path(os.path.abspath(local_path))
        path = _as_path(name or source.name)
        self._refuse_if_final()
        entry = self._entry_of(source, may_change=policy != "immutable")
        if is_tmp and entry.digest:
            # The name of a temporary file says nothing, so its digest stands in.
            md5 = base64.b64decode(entry.digest).hex()
            path = str(PurePosixPath(path).with_name(md5[:20] + "".join(PurePosixPath(path).suffixes)))
        return self._put_entry(path, entry, overwrite)

    def add_dir(
        self,
        local_path: str | os.PathLike[str],
        name: str | None = None,
        skip_cache: bool | None = False,
        policy: str | None = "mutable",
        merge: bool = False,
    ) -> None:
        """Add all files below a directory, through symlinks too; `name` is the directory in the artifact."""
        if not os.path.isdir(local_path):
            raise ValueError(f"there is no directory {str(local_path)!r}. A file is added with add_file().")
        for source in _files_below(str(local_path)):
            path = os.path.join(name or "", os.path.relpath(source, local_path))
            self.add_file(source, path, policy=policy, overwrite=merge)

    def add_reference(
        self,
        uri: str,
        name: str | None = None,
        checksum: bool = True,
        max_objects: int | None = None,
    ) -> list[str]:
        """Add a reference; return its paths.  Nothing is fetched: only `file://` is looked at, anything else is its URI."""
        scheme, separator, rest = str(uri).partition("://")
        if not separator:
            raise ValueError(f"a reference is a URI, not {uri!r}. For a local file, write file:///its/path.")
        if scheme == "file":
            return [
                self._put_entry(path, entry) for path, entry in _local_references(uri, rest, name, checksum)
            ]
        if checksum:
            say_once(
                "add_reference()",
                "fetches nothing: what is at a URI is not looked at, and its digest is the URI, as with checksum=False.",
            )
        if name is None:
            # Of a bucket, the key is the path; of a page, its last part.
            name = rest.partition("/")[2] or rest if scheme in ("s3", "gs") else os.path.basename(rest)
        return [self._put_entry(_as_path(name), Entry(uri, None, ref=uri))]

    @contextmanager
    def new_file(
        self, name: str, mode: str = "x", encoding: str | None = None, policy: str | None = "mutable"
    ) -> Iterator[Any]:
        """Open a file to write to; when it is closed, it is in the artifact."""
        self._refuse_if_final()
        path = _as_path(name)
        local = self._own_directory() / "new" / path
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(local, mode, encoding=encoding)  # noqa: SIM115 - only an open that fails is translated
        except FileExistsError:
            raise ValueError(f"the artifact {self.name!r} has a file {path!r} already.") from None
        with file:
            yield file
        self._put_entry(path, _entry(local, digests(local), is_ours=True), overwrite="x" not in mode)

    def add(self, obj: Value, name: str, overwrite: bool = False) -> str:
        """Add a table or a media value, with the files that it needs; return its path."""
        kind = getattr(obj, "type", None)
        if not isinstance(obj, Value) or kind is None:
            raise TypeError(f"an artifact takes a Table, Image, Audio, Video or Html, not {obj!r}.")
        self._refuse_if_final()
        if id(obj) in self._added:
            return self._added[id(obj)][1]
        suffix = f"{kind}.json"
        path = _as_path(name if name.endswith(suffix) else f"{name}.{suffix}")
        content = json.dumps(obj.in_artifact(self), sort_keys=True).encode()
        if overwrite or path not in self.entries:
            self.put(path, content, overwrite=overwrite)
        # The value stays referenced, so that nothing else gets its id.
        self._added[id(obj)] = (obj, path)
        return path

    def __setitem__(self, name: str, item: Value) -> None:
        self.add(item, name)

    def remove(self, item: str) -> None:
        """Take a file, or all below a directory, out again."""
        self._refuse_if_final()
        path = _as_path(item)
        gone = [there for there in self.entries if there == path or there.startswith(f"{path}/")]
        if not gone:
            raise FileNotFoundError(f"the artifact {self.name!r} has no {path!r}.")
        for there in gone:
            del self.entries[there]

    def put(self, path: str, content: Content, overwrite: bool = False) -> str:
        """Make `content` a file of the artifact, as it is now; return its path there."""
        clean = _as_path(path)
        if isinstance(content, Path):
            return self._put_entry(clean, self._entry_of(content, may_change=True), overwrite)
        return self._put_entry(clean, _entry(content, digests(content)), overwrite)

    def _entry_of(self, source: Path, may_change: bool) -> Entry:
        try:
            if may_change:
                try:
                    copy = self._own_directory() / os.urandom(8).hex()
                    return _entry(copy, copied(source, copy), is_ours=True)
                except Unreadable:
                    raise
                except OSError as error:
                    self._say_not_copied(source, error)
            return _entry(source, digests(source))
        except Unreadable as error:
            if error.errno == errno.EACCES:
                raise
            # Without a free descriptor, say. It may be read when the artifact is logged, or is counted then.
            self._say_not_copied(source, error)
            return Entry("", None, source)

    def _say_not_copied(self, source: Path, error: OSError) -> None:
        say_once(
            f"{str(source)!r}",
            f"is taken as it will be when the artifact is logged: it could not be copied ({error.strerror}).",
        )

    def _own_directory(self) -> Path:
        """Return the directory of the artifact's own copies, which goes when the artifact does."""
        if self._directory is None:
            self._directory = _new_directory()
            weakref.finalize(self, _remove, self._directory, os.getpid())
        return self._directory

    def _put_entry(self, path: str, entry: Entry, overwrite: bool = False) -> str:
        self._refuse_if_final()
        there = self.entries.get(path)
        if there is not None and there.digest != entry.digest and not overwrite:
            raise ValueError(f"the artifact {self.name!r} has another {path!r} already. Choose another name.")
        self.entries[path] = entry
        return path

    # ── its life ─────────────────────────────────────────────────────────────────────────────────────────────

    def finalize(self) -> None:
        """Take no more files."""
        self._is_final = True

    def wait(self, timeout: float | None = None) -> Artifact:
        """Return at once: once logged, nothing more happens here; `syncd` uploads it."""
        return self

    def _refuse_if_final(self) -> None:
        if self._is_final:
            raise EventlogError(
                f"the artifact {self.name!r} was logged. Put more files into another Artifact."
            )

    def __getattr__(self, name: str) -> Any:
        if name in _SERVER_KNOWS:
            raise EventlogError(
                f"Artifact.{name} is known to the server alone, and nothing here talks to it. "
                "Once `syncd` has uploaded the run, wandb.Api().artifact(…) has it."
            )
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"<eventlog.Artifact {self.name!r} of type {self.type!r}, {len(self.entries)} files>"


def _entry(content: Content, stored: Stored, is_ours: bool = False) -> Entry:
    return Entry(base64_md5(stored), stored.size, content, is_ours=is_ours)


def _new_directory() -> Path:
    """Make a directory beside the content of the current run, where a file may become content without a copy."""
    import tempfile

    run = ending.current()
    if run is not None and not run.disabled:
        try:
            files = Path(run.dir, FILES_DIR)
            files.mkdir(0o700, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=".artifact-", dir=files))
        except OSError:
            # Whether the run can be written is its own concern.
            pass
    return Path(tempfile.mkdtemp(prefix="eventlog-"))


def _remove(directory: Path, pid: int) -> None:
    # A forked child has the artifact, too, and its directory is not the child's.
    if os.getpid() == pid:
        shutil.rmtree(directory, ignore_errors=True)


def run_table(run_id: str, key: str) -> Artifact:
    """Return an artifact under the name that W&B gives a logged table."""
    name = f"run-{run_id}-{key}"
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "", name)
    if clean != name:
        checksum = zlib.crc32(name.encode()).to_bytes(4, "big")
        clean += "-" + base64.urlsafe_b64encode(checksum).rstrip(b"=").decode()
    return Artifact(clean[:128], "run_table")


def digest_of(digests: dict[str, str]) -> str:
    """Return W&B's digest of a manifest, from the digest of each path.

    >>> digest_of({})
    '64e7c61456b10382e2f3b571ac24b659'
    """
    md5 = hashlib.md5(b"wandb-artifact-manifest-v1\n", usedforsecurity=False)
    for path in sorted(digests):
        md5.update(f"{path}:{digests[path]}\n".encode())
    return md5.hexdigest()


def base64_md5(stored: Stored) -> str:
    """Return the digest of a file as an artifact's manifest has it."""
    return base64.b64encode(bytes.fromhex(stored.md5)).decode()


def with_latest(aliases: str | Iterable[str] | None) -> list[str]:
    """Return the aliases of a new version: those asked for, and `latest`."""
    given = [aliases] if isinstance(aliases, str) else list(aliases or ())
    for alias in given:
        if not isinstance(alias, str) or set("/:") & set(alias):
            raise ValueError(f"an alias is a text without / and :, not {alias!r}.")
    return list(dict.fromkeys([*given, "latest"]))


def of_path(path: str | os.PathLike[str], run_id: str, name: str | None, type: str | None) -> Artifact:
    """Return an artifact of one file, directory or reference, to be logged at once."""
    text = os.fspath(path)
    artifact = Artifact(name or f"run-{run_id}-{os.path.basename(text)}", type or "unspecified")
    if os.path.isfile(text):
        artifact.add_file(text, policy="immutable")
    elif os.path.isdir(text):
        artifact.add_dir(text, policy="immutable")
    elif "://" in text:
        artifact.add_reference(text)
    else:
        raise ValueError(f"{text!r} is no file, no directory and no URI: there is nothing to log.")
    return artifact


def _as_path(name: str | os.PathLike[str]) -> str:
    """Return a path inside of an artifact, or raise `ValueError` if it is none."""
    path = PurePosixPath(os.fspath(name))
    if path.is_absolute() or ".." in path.parts or str(path) == ".":
        raise ValueError(f"a path in an artifact is relative and has no .., not {str(name)!r}.")
    return str(path)


def _files_below(directory: str) -> Iterator[str]:
    for parent, directories, names in os.walk(directory, followlinks=True):
        # A link to a directory above would lead round for ever.
        above = os.path.realpath(parent)
        directories[:] = [
            each
            for each in directories
            if not f"{above}/".startswith(os.path.realpath(os.path.join(parent, each)) + "/")
        ]
        yield from (os.path.join(parent, name) for name in names)


def _local_references(uri: str, rest: str, name: str | None, checksum: bool) -> Iterator[tuple[str, Entry]]:
    from urllib.parse import unquote

    local = unquote(rest[rest.find("/") :])
    if os.path.isfile(local):
        yield _as_path(name or os.path.basename(local)), _local_reference(local, uri, checksum)
    elif os.path.isdir(local):
        for parent, _, names in os.walk(local):
            for each in names:
                source = os.path.join(parent, each)
                below = os.path.relpath(source, local)
                entry = _local_reference(source, os.path.join(uri, below), checksum)
                yield _as_path(os.path.join(name or "", below)), entry
    else:
        raise ValueError(f"there is no file and no directory {local!r} for the reference {uri!r}.")


def _local_reference(local: str, ref: str, checksum: bool) -> Entry:
    content: Content = Path(local) if checksum else Path(local).resolve().as_uri().encode()
    return Entry(base64_md5(digests(content)), os.path.getsize(local), ref=ref)
