"""Databases of ours in the user's cache directory: made again where they are missing, broken, or of another version.

Invariants
----------
* A name has the version of what its content means; what has another is another file.
* A database is written beside its place and put there by a rename: nobody sees half of one, and who has the one before
  open goes on with it.
* It is for its user only.

What is in them is their owners' to say: index.py and schema.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

import duckdb

from analysis.sqltext import literal

_MEANT_BY = ("kept.sql", "tables.sql", "views.sql", "macros.sql", "catalog.py", "index.py", "sources.py")


def path_of(name: str) -> Path:
    """Return where the database of that name and of this version is, or would be."""
    return cache_dir() / f"{name}-{version()}.duckdb"


def cache_dir() -> Path:
    """Return the directory of what can be made again: `$TIDELOG_CACHE_DIR`, or where the platform keeps such things."""
    chosen = os.environ.get("TIDELOG_CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("tidelog"))


@cache
def version() -> str:
    """Return what tells apart files of ours that may mean different things: DuckDB's version, and the text of all this."""
    texts = [files("analysis").joinpath(name).read_bytes() for name in _MEANT_BY]
    return hashlib.sha256(b"".join([duckdb.__version__.encode(), *texts])).hexdigest()[:16]


@contextmanager
def writing(con: duckdb.DuckDBPyConnection, path: Path, name: str) -> Iterator[None]:
    """Attach a new database as `name`; after the block, unless it raises, it is the one at `path`, and detached.

    Raises `OSError` or `duckdb.Error` where that cannot be.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        con.execute(f"ATTACH {literal(str(temporary))} AS {name}")
        try:
            os.chmod(temporary, 0o600)
            yield
        finally:
            con.execute(f"DETACH DATABASE IF EXISTS {name}")
        os.replace(temporary, path)
    finally:
        for left in (temporary, temporary.with_name(f"{temporary.name}.wal")):
            with suppress(OSError):
                left.unlink()
