"""Brings the files and artifacts that a run logged to W&B, in the order in which they were logged.

    records of `files` ──offer──▶ queue ──▶ batch ──step──▶ CreateRunFiles, PUT … ──▶ done ──▶ `uploaded` (run_sync)
    files made by syncd ──offer_made──▶ ┘     └─ or one artifact ─▶ ArtifactUpload        └─told──▶ cursor

Invariants
----------
* Batches are cut from the front of the queue, and are over one after the other: below `Done.place` every record
  is stored or counted, so a process that goes on from there repeats at most what was not told.
* What is not stored is counted by reason, and what comes after it goes on.
* Trouble on the way changes nothing but what is stored already; `step` again goes on, and asks for fresh URLs.
* Nothing that the server, the network or the disk does raises.

There is no clock here: who calls `step` keeps the back-off.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from eventlog.record import Record
from syncd.artifacts import ArtifactUpload
from syncd.fold import EVENTS, HISTORY
from syncd.shipper import Outcome, Verdict
from syncd.transfer import (
    TRIES,
    Content,
    NotSent,
    Stored,
    Target,
    is_trouble,
    nothing_comes,
    outcome_of_answer,
    put_all,
)
from syncd.wandb_api import WandbApi

BATCH_FILES = 32
BAD_NAME = "file name that W&B does not take"
_ACK = Outcome(Verdict.ACK)


@dataclass(frozen=True, slots=True)
class Done:
    """What is over."""

    paths: tuple[str, ...] = ()
    """Stored, and to be told to the server."""
    place: tuple[str, int] | None = None
    """The piece, and the first seq of its files that is not over; None before the first."""
    not_stored: Mapping[str, int] = field(default_factory=dict)
    """How many files and artifacts below `place` are not on the server, by reason."""


class Batch(Protocol):
    """What is on its way: a few files, or one artifact."""

    is_over: bool

    @property
    def stored(self) -> tuple[str, ...]: ...

    @property
    def not_stored(self) -> Counter[str]: ...

    async def step(self) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One place in the queue."""

    place: tuple[str, int] | None
    path: str | None = None
    content: Content | None = None
    artifact: dict[str, Any] | None = None
    refused: str | None = None


class Uploads:
    """What one run still owes to one sink besides its lines."""

    def __init__(
        self,
        run_dir: Path,
        api: WandbApi,
        entity: str,
        project: str,
        run_id: str,
        not_stored: Mapping[str, int] | None = None,
        may_come: Callable[[], bool] = nothing_comes,
    ) -> None:
        """`not_stored` is what an earlier process had counted below the place that this one goes on from.

        While `may_come` says so, a file that is not here is no reason to give it up.
        """
        self._run_dir = run_dir
        self._may_come = may_come
        self._api = api
        self._run = (entity, project, run_id)
        self._queue: deque[_Wanted] = deque()
        self._batch: Batch | None = None
        self._batch_place: tuple[str, int] | None = None
        self._done: Done | None = None
        self._not_stored: Counter[str] = Counter(not_stored or {})

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do.  Offer more only when it has not, so that memory stays bounded."""
        return bool(self._queue) or self._batch is not None

    @property
    def done(self) -> Done | None:
        """What is over and was not told; None if nothing is."""
        return self._done

    def told(self, done: Done, refused: Iterable[str] = ()) -> Done:
        """The server heard of `done.paths`, or refused to; what was over since then is still to be told.

        Return `done` with the refused ones counted, by their reasons.
        """
        assert self._done is not None, "told what was not done"
        is_all = self._done == done
        since = replace(self._done, paths=self._done.paths[len(done.paths) :])
        reasons = Counter(refused)
        self._not_stored += reasons
        self._done = None if is_all else replace(since, not_stored=dict(Counter(since.not_stored) + reasons))
        return replace(done, not_stored=dict(Counter(done.not_stored) + reasons))

    def offer(self, records: list[Record], writer: str) -> None:
        """Take the next records of that piece's files, in order."""
        for record in records:
            place = (writer, record.seq + 1)
            if record.kind == "artifact":
                self._queue.append(_Wanted(place, artifact=record.data))
            elif record.kind == "file":
                self._queue.append(self._wanted_file(place, record.data))
            else:
                # Of a later version: there is nothing to do for it, but to go past it.
                self._queue.append(_Wanted(place))

    def offer_made(self, files: Mapping[str, Content]) -> None:
        """Take files that are no records; they are in `Done.paths` when they are stored."""
        self._queue.extend(_Wanted(None, path, content) for path, content in files.items())

    async def step(self) -> Outcome:
        """Bring the next batch as far as one try gets it; anything but `ACK` wants to be tried again later."""
        if self._batch is None:
            self._begin_batch()
        if self._batch is None:
            return _ACK
        outcome = await self._batch.step()
        if self._batch.is_over:
            self._not_stored += self._batch.not_stored
            before = self._done or Done()
            self._done = Done(
                before.paths + self._batch.stored, self._batch_place or before.place, dict(self._not_stored)
            )
            self._batch = None
        return outcome

    def _begin_batch(self) -> None:
        """Cut the front of the queue: an artifact, or files up to the next one."""
        if not self._queue:
            return
        place = None
        contents: dict[str, Content] = {}
        refused: Counter[str] = Counter()
        while self._queue:
            wanted = self._queue[0]
            is_new_path = wanted.path is not None and wanted.path not in contents
            if is_new_path and len(contents) == BATCH_FILES:
                break
            if wanted.artifact is not None and (contents or place is not None):
                break
            self._queue.popleft()
            place = wanted.place or place
            if wanted.artifact is not None:
                self._batch = ArtifactUpload(
                    self._run_dir, self._api, *self._run, wanted.artifact, self._may_come
                )
                break
            if wanted.refused is not None:
                refused[wanted.refused] += 1
            if wanted.path is not None and wanted.content is not None:
                contents[wanted.path] = wanted.content
        self._batch = self._batch or FilesUpload(self._api, *self._run, contents, refused)
        self._batch_place = place

    def _wanted_file(self, place: tuple[str, int], data: dict[str, Any]) -> _Wanted:
        path, sha256, size = data.get("path"), data.get("sha256"), data.get("size")
        if not isinstance(path, str) or not _is_clean(path):
            return _Wanted(place, refused=BAD_NAME)
        size = size if type(size) is int else -1
        return _Wanted(place, path, Stored(self._run_dir, str(sha256), size, self._may_come))


class FilesUpload:
    """A few files of the run on their way.  `step` until it is over."""

    def __init__(
        self,
        api: WandbApi,
        entity: str,
        project: str,
        run_id: str,
        contents: dict[str, Content],
        not_stored: Counter[str],
    ) -> None:
        self.is_over = False
        self.not_stored = not_stored
        self._api = api
        self._run = (entity, project, run_id)
        self._left = dict(contents)
        self._stored: list[str] = []
        self._tries: Counter[str] = Counter()
        self._ask_at_once = BATCH_FILES

    @property
    def stored(self) -> tuple[str, ...]:
        return tuple(self._stored)

    async def step(self) -> Outcome:
        """Go as far as one try gets."""
        outcome = await self._look()
        while self._left and outcome.verdict is Verdict.ACK:
            outcome = await self._bring(list(self._left)[: self._ask_at_once])
        self.is_over = not self._left
        return outcome

    async def _look(self) -> Outcome:
        """Leave out what is not here: the server should not hear of files that it will never have."""
        return self._note({path: await _prepared(content) for path, content in self._left.items()})

    async def _bring(self, asked: list[str]) -> Outcome:
        answer = await self._api.create_run_files(*self._run, asked)
        outcome = outcome_of_answer(answer)
        if outcome.verdict in (Verdict.REFUSED, Verdict.TOO_LARGE):
            # One of them it is: less at once, until it is alone.
            self._ask_at_once = max(1, len(asked) // 2)
            if len(asked) == 1:
                self._give_up(asked[0], f"file refused by the server ({outcome.reason})")
            return _ACK
        if outcome.verdict is not Verdict.ACK:
            return outcome
        targets = targets_of(answer.data)
        if targets is None:
            return Outcome(Verdict.RETRY, "the server's answer makes no sense: createRunFiles")
        jobs = {path: (self._left[path], targets[path]) for path in asked if path in targets}
        left_out = Outcome(Verdict.FORBIDDEN, "file refused by the server (no upload URL)")
        results = {path: left_out for path in asked if path not in targets}
        results |= await put_all(self._api, jobs)
        noted = self._note(results, is_put=True)
        return noted if noted.verdict is not Verdict.ACK else outcome

    def _note(self, results: dict[str, Outcome], is_put: bool = False) -> Outcome:
        """Take in what became of some files; return the trouble there was, or an ack."""
        trouble = _ACK
        for path, outcome in results.items():
            if is_trouble(outcome):
                trouble = outcome
            elif outcome.verdict is Verdict.REFUSED:
                self._give_up(path, outcome.reason)
            elif outcome.verdict is Verdict.FORBIDDEN:
                self._tries[path] += 1
                if self._tries[path] >= TRIES:
                    self._give_up(path, outcome.reason)
                elif trouble is _ACK:
                    trouble = Outcome(Verdict.RETRY, outcome.reason)
            elif is_put:
                del self._left[path]
                self._stored.append(path)
        return trouble

    def _give_up(self, path: str, reason: str) -> None:
        del self._left[path]
        self.not_stored[reason] += 1


def targets_of(data: dict[str, Any]) -> dict[str, Target] | None:
    """Return where an answer wants files put, by path; None if it is no answer."""
    created = data.get("createRunFiles")
    if not isinstance(created, dict) or not isinstance(created.get("files"), list):
        return None
    targets = {}
    for file in created["files"]:
        if isinstance(file, dict) and isinstance(file.get("name"), str):
            target = Target.of(file.get("uploadUrl"), created.get("uploadHeaders"))
            if target is not None:
                targets[file["name"]] = target
    return targets


async def _prepared(content: Content) -> Outcome:
    try:
        await content.prepare()
    except NotSent as not_sent:
        return not_sent.outcome
    return _ACK


def _is_clean(path: str) -> bool:
    """Whether a path stays below the run, and is not where the server keeps its lines."""
    is_relative = (
        str(PurePosixPath(path)) == path and not path.startswith("/") and ".." not in path.split("/")
    )
    return is_relative and path not in (".", HISTORY, EVENTS) and not any(ord(c) < 32 for c in path)
