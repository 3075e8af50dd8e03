"""What is in a pack, and what the next one has to write: decided from names, digests and sizes.

    old manifest + digests of the runs that are there ──plan──▶ Plan      (which runs are new, changed, gone)
    files of one part + Plan                        ──rewrite──▶ Rewrite (which files stay, which runs are written)

Invariants
----------
* A run is in a pack once: all that one view has of it is in the files that name it.
* A file that holds nothing that changed is not written again, but to make one of many small ones.
* What is gone from the root stays in the pack, unless it is asked to go: it may be the only copy.
* A run never takes the place of another run of its name, unless it is asked to.

There is no file, clock or DuckDB here; `pack` does what this says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

FORMAT = 1
# Readers open few files, and a changed run costs the writing of one: tests/bench/pack.py prints what other sizes cost.
FILE_BYTES = 256 * 1024 * 1024
# Each pack adds a file to a part. More small ones than these become one.
SMALL_FILES_MAX = 8
SMALL_FILE_BYTES = FILE_BYTES // 2

Run = tuple[str, str]
"""Its project and its id."""


class NotAPack(Exception):
    """What was given as a pack is none, or one that this version cannot read."""


@dataclass(frozen=True, slots=True)
class PackedRun:
    digest: str
    """What changes whenever something was added to the run."""
    log_ids: list[str]


@dataclass(frozen=True, slots=True)
class PackedFile:
    """One Parquet file.  `part` is the project that its rows are of; none where a view is not divided by project."""

    path: str
    view: str
    part: str | None
    rows: int
    bytes: int
    runs: list[Run]


@dataclass(slots=True)
class Manifest:
    """What `pack.json` says."""

    views: dict[str, dict[str, str]] = field(default_factory=dict)
    """The columns of each view, with DuckDB's name of their types."""
    runs: dict[Run, PackedRun] = field(default_factory=dict)
    files: list[PackedFile] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return it as JSON.  Runs are numbered, so that ten thousand of them in a hundred files stay small."""
        number = {run: at for at, run in enumerate(self.runs)}
        content = {
            "format": FORMAT,
            "views": self.views,
            "runs": [
                {"project": run[0], "run_id": run[1], **asdict(said)} for run, said in self.runs.items()
            ],
            "files": [{**asdict(file), "runs": [number[run] for run in file.runs]} for file in self.files],
        }
        return orjson.dumps(content, option=orjson.OPT_INDENT_2)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Manifest:
        """Return what `encode` made, or raise `NotAPack`."""
        try:
            content = orjson.loads(data)
            version = content["format"]
            runs = [((run["project"], run["run_id"]), run) for run in content["runs"]]
            found = cls(
                content["views"],
                {run: PackedRun(said["digest"], said["log_ids"]) for run, said in runs},
                [
                    PackedFile(**{**file, "runs": [runs[number][0] for number in file["runs"]]})
                    for file in content["files"]
                ],
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise NotAPack(
                f"{where!r} cannot be read: {error!r}. Restore it from a copy, or pack anew."
            ) from None
        if version != FORMAT:
            raise NotAPack(
                f"{where!r} has format {version!r}, and this version reads format {FORMAT}. Update tidelog to read it."
            )
        return found

    def files_of(self, view: str) -> list[PackedFile]:
        return [file for file in self.files if file.view == view]


@dataclass(slots=True)
class Plan:
    """What becomes of each run."""

    new: list[Run] = field(default_factory=list)
    changed: list[Run] = field(default_factory=list)
    unchanged: list[Run] = field(default_factory=list)
    gone: list[Run] = field(default_factory=list)
    """In the pack and not below the root; they stay."""
    removed: list[Run] = field(default_factory=list)
    another: list[Run] = field(default_factory=list)
    """Below the root, but another run of that name is in the pack, and stays."""

    @property
    def written(self) -> list[Run]:
        return sorted([*self.new, *self.changed])

    @property
    def is_nothing(self) -> bool:
        return not (self.new or self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What becomes of the files of one part of a view."""

    kept: list[PackedFile]
    merged: list[PackedFile]
    """Their runs are written again, from these files, but for those that the log has in a newer state or that go."""
    carried: list[Run]
    runs: list[Run]
    """All that is written, sorted."""


def digest_of(facts: Any, views: Mapping[str, Mapping[str, str]]) -> str:
    """Return the digest of a run from all that is known of it without reading it, and from what would be made of it."""
    return hashlib.sha256(orjson.dumps([FORMAT, views, facts], option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def plan(old: Manifest, found: Mapping[Run, PackedRun], prune: bool = False) -> Plan:
    """Decide what becomes of each run; with `prune` the pack comes to hold what was found, and nothing else.

    >>> old = Manifest(runs={("p", "a"): PackedRun("1", ["x"]), ("p", "b"): PackedRun("1", ["y"])})
    >>> found = {("p", "a"): PackedRun("2", ["x"]), ("p", "c"): PackedRun("1", ["z"])}
    >>> made = plan(old, found)
    >>> made.new, made.changed, made.gone
    ([('p', 'c')], [('p', 'a')], [('p', 'b')])
    """
    made = Plan()
    for run, now in sorted(found.items()):
        before = old.runs.get(run)
        if before is None:
            made.new.append(run)
        elif not prune and set(before.log_ids).isdisjoint(now.log_ids):
            made.another.append(run)
        elif before == now:
            made.unchanged.append(run)
        else:
            made.changed.append(run)
    absent = sorted(old.runs.keys() - found.keys())
    if prune:
        made.removed = absent
    else:
        made.gone = absent
    return made


def rewrite(
    files: Sequence[PackedFile],
    written: Sequence[Run],
    removed: Iterable[Run] = (),
    anew: bool = False,
    small_bytes: int = SMALL_FILE_BYTES,
) -> Rewrite:
    """Decide what becomes of the files of a part in which these runs are new or changed.

    Only what holds one of them is written again.  But each pack leaves a file, however little is new: when there would be
    too many small ones, these become one, so that a byte is written a few times in all and not at each pack.  With `anew`
    all is written: the view has other columns now.
    """
    stale = {*written, *removed}
    merged = [file for file in files if anew or not stale.isdisjoint(file.runs)]
    small = [file for file in files if file.bytes < small_bytes and file not in merged]
    if (written or merged) and len(small) + 1 > SMALL_FILES_MAX:
        merged += small
    carried = sorted({run for file in merged for run in file.runs} - stale)
    return Rewrite(
        [file for file in files if file not in merged], merged, carried, sorted([*written, *carried])
    )


def chunks(runs: Sequence[Run], sizes: Mapping[Run, int], chunk_bytes: int, runs_max: int) -> list[list[Run]]:
    """Return the sorted runs in pieces of one project each that are read at once; one run is never divided.

    >>> chunks([("p", "a"), ("p", "b"), ("p", "c"), ("q", "a")], {("p", "a"): 3, ("p", "b"): 3}, 5, 10)
    [[('p', 'a')], [('p', 'b'), ('p', 'c')], [('q', 'a')]]
    """
    found: list[list[Run]] = []
    size = 0
    for run in runs:
        size += sizes.get(run, 0)
        if not found or found[-1][0][0] != run[0] or size > chunk_bytes or len(found[-1]) == runs_max:
            found.append([])
            size = sizes.get(run, 0)
        found[-1].append(run)
    return found
