"""What of a run lies in files: media of its rows, saved files, artifacts; and the `files` stream that names them.

    content ──▶ Store ──▶ files/<sha256>     first
    name    ──▶ `file` or `artifact` record  then; whoever reads the record finds the content

Invariants
----------
* A record names only content that is stored already.
* The world failing (a full disk, a file that vanished) is counted and said once; it raises nothing but `NotKept`, which
  ends here.
* A file saved "live" is stored again whenever it changed, at the latest at `finish`; one saved "end" is stored then.
* After `finish`, nothing is written.

What the files mean to W&B is decided in `media`, `table` and `artifact`.
"""

from __future__ import annotations

import glob as globbing
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from eventlog.artifact import Artifact, base64_md5, digest_of
from eventlog.media import Image, Media, Value, many_in_history
from eventlog.record import DEPTH_MAX, encode_data
from eventlog.redact import marks_without_key, redacted, without_key
from eventlog.store import Content, Store, Stored
from eventlog.table import is_dataframe, of_dataframe
from eventlog.writer import StreamWriter

POLICIES = ("live", "now", "end")
# How soon a change of a live file is seen. Each look costs one stat for each of them.
LOOK_INTERVAL_S = 10.0


class NotKept(Exception):
    """The content could not be stored, or its record not be written; that is counted and said already."""


@dataclass(slots=True)
class _Saved:
    """A file that `save` was given, and what of it is stored."""

    name: str
    path: str
    policy: str
    seen: tuple[int, ...] | None = None
    """Size, times and inode when it was stored last."""
    sha256: str | None = None
    is_failing: bool = False


class RunFiles:
    """The files of one run, as one process adds to them.  Safe to use from threads."""

    def __init__(
        self,
        run_id: str,
        store: Store,
        writer: Callable[[], StreamWriter | None],
        drop: Callable[[str], None],
        say_once: Callable[[str, str], None],
        key: bytes | None = None,
    ) -> None:
        """`key` is kept out of what is made into a file here, and out of the records; a file of the caller's is its own."""
        self.run_id = run_id
        self._store = store
        self._writer = writer
        self._drop = drop
        self._say_once = say_once
        self._key = key
        self._saved: dict[str, _Saved] = {}
        # Held while a saved file is stored, so that `finish` waits for it.
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._looker: threading.Thread | None = None

    # ── content ──────────────────────────────────────────────────────────────────────────────────────────────

    def keep(self, content: Content, name: Callable[[Stored], str]) -> tuple[str, Stored]:
        """Make `content` a file of the run, or raise `NotKept`."""
        stored = self._put(content)
        path = name(stored)
        self._record("file", {"path": path, "sha256": stored.sha256, "size": stored.size})
        return path, stored

    def add(self, path: str, content: bytes) -> None:
        """Make `content` a file of the run under that name, unless it is finished."""
        with self._lock, suppress(NotKept):
            if not self._stop.is_set():
                self.keep(content, lambda _: path)

    def keep_artifact(
        self, artifact: Artifact, aliases: Sequence[str], tags: Sequence[str], step: int
    ) -> None:
        """Make `artifact` an output of the run at its current `step`, or raise `NotKept`."""
        artifact.finalize()
        manifest: dict[str, dict[str, Any]] = {}
        for path, entry in artifact.entries.items():
            if entry.content is None:
                manifest[path] = {"digest": entry.digest, "ref": entry.ref}
                if entry.size is not None:
                    manifest[path]["size"] = entry.size
            else:
                stored = self._put(entry.content, may_link=entry.is_ours)
                manifest[path] = {
                    "digest": base64_md5(stored),
                    "size": stored.size,
                    "sha256": stored.sha256,
                }
        self._record(
            "artifact",
            {
                "name": artifact.name,
                "type": artifact.type,
                "description": redacted(artifact.description),
                "metadata": redacted(artifact.metadata),
                "aliases": list(aliases),
                "tags": list(tags),
                "step": step,
                "client_id": artifact.client_id,
                "sequence_client_id": artifact.sequence_client_id,
                "digest": digest_of({path: entry["digest"] for path, entry in manifest.items()}),
                "size": sum(entry.get("size", 0) for entry in manifest.values()),
                "manifest": self._put(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)).sha256,
            },
        )

    def shown(self, value: Any, key: str, step: int) -> Any:
        """Return `value`, with what W&B calls media in it kept, and what stands for it in the history in its place.

        What could not be kept stays as it was, and becomes a text in the record.
        """
        return self._shown(value, key, step, set())

    def _shown(self, value: Any, key: str, step: int, above: set[int]) -> Any:
        try:
            if isinstance(value, Mapping):
                if id(value) in above or len(above) >= DEPTH_MAX:
                    return value
                inside = above | {id(value)}
                return {name: self._shown(item, str(name), step, inside) for name, item in value.items()}
            if is_dataframe(value):
                value = of_dataframe(value)
            elif hasattr(type(value), "savefig"):
                value = Image(value)
            if isinstance(value, Value):
                return value.in_history(key, step, self)
            if isinstance(value, (list, tuple)) and value and all(isinstance(item, Value) for item in value):
                if isinstance(value[0], Media) and all(type(item) is type(value[0]) for item in value):
                    return many_in_history(list(value), key, step, self)
                return [item.in_history(key, step, self) for item in value]
        except NotKept:
            pass
        except Exception as error:  # noqa: BLE001 - the value's own code runs here; whatever it does, the row is kept
            self._say_once(
                f"shown {key}", f"{key!r} is logged as a text, because it cannot be stored: {error}"
            )
        return value

    def _put(self, content: Content, may_link: bool = False) -> Stored:
        if isinstance(content, bytes):
            content = without_key(content, self._key)
        try:
            return self._store.put(content, may_link)
        except OSError as error:
            self._drop_content(content, error)
            raise NotKept from error

    def _drop_content(self, content: Content, error: OSError) -> None:
        what = "media" if isinstance(content, bytes) else repr(str(content))
        self._drop(f"{what} could not be stored: {error.strerror or error}")

    def _record(self, kind: str, data: dict[str, Any]) -> None:
        encoded, as_text = encode_data(data)
        if self._key is not None and self._key in encoded:
            encoded, as_text = without_key(encoded, self._key), marks_without_key(as_text, self._key)
        writer = self._writer()
        if writer is None:
            raise NotKept
        if not writer.append_encoded(kind, encoded, as_text, time.time_ns() // 1000):
            self._say_once(
                f"dropped {writer.trouble}", f"the record of a file could not be written ({writer.trouble})."
            )
            raise NotKept

    # ── saved files ──────────────────────────────────────────────────────────────────────────────────────────

    def save(self, pattern: str, base: str | None, policy: str, is_glob: bool) -> list[str]:
        """Save the files that match, as `policy` says; return their names in the run."""
        if policy not in POLICIES:
            raise ValueError(f"policy is one of {', '.join(POLICIES)}, not {policy!r}.")
        names: list[str] = []
        for name, path in matches(pattern, base, is_glob):
            names.append(name)
            with self._lock:
                saved = self._saved[name] = self._saved.get(name) or _Saved(name, path, policy)
                saved.path, saved.policy = path, policy
                if policy != "end":
                    self._keep_changed(saved)
        if not names:
            self._say_once(f"save {pattern}", f"save({pattern!r}) found no file, so none is saved.")
        elif policy == "live" and self._looker is None:
            self._looker = threading.Thread(
                target=self._look, name=f"eventlog files {self.run_id}", daemon=True
            )
            self._looker.start()
        return names

    def finish(self, wait_s: float | None = None) -> None:
        """Store what changed, and what was saved for the end; with `wait_s`, wait no longer for who stores something."""
        try:
            if self._lock.acquire(timeout=-1 if wait_s is None else wait_s):
                try:
                    self._keep_the_rest()
                finally:
                    self._lock.release()
        finally:
            # Also after Ctrl-C.
            self._stop.set()

    def _keep_the_rest(self) -> None:
        for saved in self._saved.values() if not self._stop.is_set() else ():
            # What was saved "now" and found no space gets its last chance.
            if saved.policy != "now" or saved.sha256 is None:
                self._keep_changed(saved)

    def look_again(self) -> None:
        """Store the live files that changed."""
        for saved in list(self._saved.values()):
            with self._lock:
                if saved.policy == "live" and not self._stop.is_set():
                    self._keep_changed(saved)

    def _look(self) -> None:
        # A thread of its own: storing a checkpoint takes longer than the log may wait for its sync.
        while not self._stop.wait(LOOK_INTERVAL_S):
            try:
                self.look_again()
            except Exception as error:  # noqa: BLE001 - the top of a thread: without it, nothing would be saved
                if self._stop.is_set():
                    return
                self._say_once("look", f"looking after the saved files failed: {error!r}. It is tried again.")

    def _keep_changed(self, saved: _Saved) -> None:
        try:
            found = os.stat(saved.path)
        except OSError as error:
            self._say_once(
                f"gone {saved.name}",
                f"{saved.path!r} was to be saved, and is not there any more ({error.strerror}). "
                + ("What it was last is kept." if saved.sha256 else "Nothing of it is kept."),
            )
            return
        # A file that is replaced keeps neither inode nor change time, whatever its size and time of change say.
        seen = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        if seen == saved.seen:
            return
        try:
            stored = self._store.put(Path(saved.path))
        except OSError as error:
            # It is tried again at each look, and is one loss all the same.
            if not saved.is_failing:
                saved.is_failing = True
                self._drop_content(Path(saved.path), error)
            return
        if stored.sha256 != saved.sha256:
            record = {"path": saved.name, "sha256": stored.sha256, "size": stored.size}
            with suppress(NotKept):
                self._record("file", record)
        saved.seen, saved.sha256, saved.is_failing = seen, stored.sha256, False


def matches(pattern: str, base: str | None, is_glob: bool) -> list[tuple[str, str]]:
    """Return the files that a pattern of `save` stands for: name in the run, and absolute path.

    Names are relative to `base`; without one, to the current directory, or for an absolute pattern to its parent's
    parent.
    """
    absolute = os.path.abspath(pattern)
    if base is None:
        base = os.path.dirname(os.path.dirname(absolute)) if os.path.isabs(pattern) else "."
    base = os.path.abspath(base)
    relative = os.path.relpath(absolute, base)
    if relative == "." or relative.split("/")[0] == "..":
        raise ValueError(
            f"{pattern!r} is not below {base!r}, and a name in the run cannot begin with ..; "
            "give a base_path that it is below: save(pattern, base_path=…)."
        )
    found = sorted(globbing.glob(os.path.join(globbing.escape(base), relative))) if is_glob else [absolute]
    return [(os.path.relpath(path, base), path) for path in found if os.path.isfile(path)]
