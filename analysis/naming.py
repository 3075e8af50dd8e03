"""Finds what a person means: runs by what they call them, keys, and names that are near to a wrong one.

Invariants
----------
* A name that is not there, or that several things have, is never guessed: the error names the nearest, and the way out.
* `project/id`, an id and a run's directory come before a display name, which costs a look into every log.

Nothing is printed here.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from analysis.printing import visible
from eventlog.piece import RUN_FILE

if TYPE_CHECKING:
    import duckdb

# More names than these are no answer to "what is there?".
_LISTED_MAX = 20
_NEAR_MAX = 3


class NotFound(click.ClickException):
    """What a person named is not there, or not one thing."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Run:
    project: str
    run_id: str
    run_dir: str
    path: str

    @property
    def full(self) -> str:
        return f"{self.project}/{self.run_id}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence about the known names that are like `name`, or about all, if none is.

    >>> nearest("rewrd", ["train/loss", "train/reward", "reward"])
    'The nearest: reward, train/reward.'
    >>> nearest("x", ["a", ""]), nearest("x", [])
    ("There are: a, ''.", 'There are none.')
    """
    names = list(dict.fromkeys(known))
    inside = sorted(
        (each for each in names if name and name.lower() in each.lower().replace('"', "")), key=len
    )
    alike = difflib.get_close_matches(name, names, n=_NEAR_MAX, cutoff=0.5)
    if near := list(dict.fromkeys([*inside, *alike]))[:_NEAR_MAX]:
        return f"The nearest: {_in_a_row(near)}."
    if not names:
        return "There are none."
    more = f", and {len(names) - _LISTED_MAX} more" if len(names) > _LISTED_MAX else ""
    return f"There are: {_in_a_row(names[:_LISTED_MAX])}{more}."


def _in_a_row(names: Iterable[str]) -> str:
    return ", ".join(visible(name) or "''" for name in names)


def runs_of(con: duckdb.DuckDBPyConnection) -> list[Run]:
    rows = con.execute("SELECT project, run_id, run_dir, path FROM internal.runs ORDER BY ALL").fetchall()
    return [Run(*row) for row in rows]


def find_run(con: duckdb.DuckDBPyConnection, word: str) -> Run:
    """Return the one run that is called so: `project/id`, an id, a run's directory, or a display name."""
    run = _run_at(con, word) or _run_named(con, word)
    if run is not None:
        return run
    runs = runs_of(con)
    names = [name for _, name in _display_names(con)]
    candidates = [*(run.run_id for run in runs), *names, *(run.full for run in runs)]
    raise NotFound(f"there is no run {word!r}. {nearest(word, candidates)} `analysis runs` lists them.")


def find_runs(con: duckdb.DuckDBPyConnection, words: Sequence[str]) -> list[Run]:
    """Return the runs in the order in which they were named, each once."""
    return list(dict.fromkeys(find_run(con, word) for word in words))


def runs_and_keys(con: duckdb.DuckDBPyConnection, words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs, and the keys of them that the other words mean.

    A word that is no run's id or directory is taken for a key if the runs have it, and for a display name otherwise:
    so that a curve of runs that are named by their ids costs a look into their logs only.
    """
    called = {word: _run_at(con, word) for word in words}
    known = keys_of(con, [run for run in called.values() if run is not None])
    for word, run in called.items():
        if run is None and not _matching(word, known):
            called[word] = _run_named(con, word)
    runs = list(dict.fromkeys(run for run in called.values() if run is not None))
    if not runs:
        find_run(con, words[0])
    known = keys_of(con, runs)
    rest = [word for word, run in called.items() if run is None]
    for word in rest:
        if not _matching(word, known):
            ids = [run.run_id for run in runs_of(con)]
            raise NotFound(
                f"{word!r} is neither a run nor a metric of {_listed(runs)}. {nearest(word, [*known, *ids])}"
            )
    return runs, [key for word in rest for key in _matching(word, known)]


def keys_of(con: duckdb.DuckDBPyConnection, runs: Sequence[Run]) -> list[str]:
    """Return the keys that are in the histories of these runs."""
    if not runs:
        return []
    rows = con.execute(
        "SELECT DISTINCT project, run_id, key FROM metrics_of(?) WHERE writer LIKE 'main-%'",
        [[run.run_id for run in runs]],
    ).fetchall()
    wanted = {(run.project, run.run_id) for run in runs}
    return sorted({key for project, run_id, key in rows if (project, run_id) in wanted})


def find_keys(con: duckdb.DuckDBPyConnection, runs: Sequence[Run], words: Sequence[str]) -> list[str]:
    """Return the keys that are meant, each once; `train/*` means all that begin so."""
    known = keys_of(con, runs)
    keys = []
    for word in words:
        matching = _matching(word, known)
        if not matching:
            raise NotFound(f"{_listed(runs)} logged no metric {word!r}. {nearest(word, known)}")
        keys += matching
    return list(dict.fromkeys(keys))


def labels(runs: Sequence[Run]) -> dict[Run, str]:
    """Return what to call each of these runs: its id, where that tells it from the others."""
    same = Counter(run.run_id for run in runs)
    return {run: run.run_id if same[run.run_id] == 1 else run.full for run in runs}


def views(con: duckdb.DuckDBPyConnection) -> list[str]:
    rows = con.execute(
        "SELECT view_name FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal ORDER BY 1"
    ).fetchall()
    return [name for (name,) in rows]


def macros(con: duckdb.DuckDBPyConnection) -> list[tuple[str, list[str]]]:
    """Return the macros that stand beside the views, with what they take; but for those that are a view of some runs."""
    rows: list[tuple[str, list[str]]] = con.execute(
        "SELECT function_name, any_value(parameters) FROM duckdb_functions() WHERE schema_name = 'main' "
        "AND NOT internal AND function_type IN ('macro', 'table_macro') AND function_name NOT IN "
        "(SELECT view_name || '_of' FROM duckdb_views() WHERE schema_name = 'main') GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return rows


def signature(name: str, takes: Iterable[str]) -> str:
    """Return how a view with its columns is shown, or a macro with its arguments."""
    return f"{name}({', '.join(takes)})"


OF_SOME = (
    "Each view of some runs alone, whatever else there is: FROM metrics_of(['id', …]), runs_of(['id', …])."
)
"""Is said where the views are listed."""


def columns(con: duckdb.DuckDBPyConnection, view: str) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in con.execute(f'DESCRIBE "{view}"').fetchall()]


def _run_at(con: duckdb.DuckDBPyConnection, word: str) -> Run | None:
    """Return the run of that id, `project/id` or directory; no log is looked into."""
    runs = runs_of(con)
    for run in runs:
        if run.full == word:
            return run
    if same_id := [run for run in runs if run.run_id == word]:
        return _only(same_id, f"several runs have the id {word!r}")
    # An id may be longer than a file name.
    with suppress(OSError, ValueError):
        directory = Path(word).resolve()
        if (directory / RUN_FILE).is_file():
            return next((run for run in runs if Path(run.path).resolve() == directory), None)
    return None


def _run_named(con: duckdb.DuckDBPyConnection, word: str) -> Run | None:
    named = {full for full, name in _display_names(con) if name == word}
    same_name = [run for run in runs_of(con) if run.full in named]
    return _only(same_name, f"several runs are named {word!r}") if same_name else None


def _only(runs: list[Run], what: str) -> Run:
    if len(runs) > 1:
        raise NotFound(f"{what}. Say which: {_listed(runs)}.")
    return runs[0]


def _display_names(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = con.execute(
        "SELECT project || '/' || run_id, name FROM runs WHERE name IS NOT NULL ORDER BY ALL"
    ).fetchall()
    return rows


def _matching(word: str, known: list[str]) -> list[str]:
    return [word] if word in known else fnmatch.filter(known, word)


def _listed(runs: Sequence[Run]) -> str:
    return ", ".join(run.full for run in runs)
