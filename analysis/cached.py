"""Databases of ours in the user's cache directory: made again where they are missing, broken, or of another version.

    <name>-<version>-<checksum>.duckdb

Invariants
----------
* What is found is what was written, to the last bit: its checksum is in its name.
* The version is that of what its content means; a database of another is none, and goes when there is a new one.
* A database is written beside its place and put there by a rename: nobody sees half of one, and who has the one before
  open goes on with it.
* It is for its user only, and what others could have written is none: it says what a query means.

What is in them is their owners' to say: index.py and schema.py.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

import duckdb

from analysis.sqltext import literal

_MEANT_BY = {
    "analysis": (
        *("kept.sql", "tables.sql", "views.sql", "macros.sql"),
        *("__init__.py", "cached.py", "catalog.py", "index.py", "rows.py", "schema.py", "sources.py"),
    ),
    # What catalog.py finds is what these say.
    "eventlog": ("cursor.py", "parquet.py", "piece.py", "reader.py", "record.py", "segment.py"),
}


# What is being made is not so old.
_LEFT_S = 3600.0


def find(name: str) -> Path | None:
    """Return where the newest whole database of that name and of this version is."""
    try:
        found = [path for path in cache_dir().glob(f"{name}-{version()}-*.duckdb") if _is_ours_alone(path)]
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if path.name.endswith(f"-{_checksum(path)}.duckdb"):
                return path
    except OSError:
        # Replaced meanwhile, or not to be read.
        return None
    return None


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def _is_ours_alone(path: Path) -> bool:
    found = path.lstat()
    is_ours = found.st_uid in (os.geteuid(), 0)
    return stat.S_ISREG(found.st_mode) and is_ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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
    texts = [
        files(package).joinpath(name).read_bytes() for package, names in _MEANT_BY.items() for name in names
    ]
    return hashlib.sha256(b"".join([duckdb.__version__.encode(), *texts])).hexdigest()[:16]


@contextmanager
def writing(con: duckdb.DuckDBPyConnection, name: str, attached: str) -> Iterator[None]:
    """Attach a new database as `attached`; after the block, unless it raises, it is the one of that name, and detached.

    Raises `OSError` or `duckdb.Error` where that cannot be.
    """
    temporary = cache_dir() / f".{name}-{os.urandom(4).hex()}"
    try:
        temporary.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        con.execute(f"ATTACH {literal(str(temporary))} AS {attached}")
        try:
            os.chmod(temporary, 0o600)
            yield
        finally:
            con.execute(f"DETACH DATABASE IF EXISTS {attached}")
        path = temporary.with_name(f"{name}-{version()}-{_checksum(temporary)}.duckdb")
        os.replace(temporary, path)
    finally:
        for left in (temporary, temporary.with_name(f"{temporary.name}.wal")):
            with suppress(OSError):
                left.unlink()
    _sweep(name, path)


def _sweep(name: str, path: Path) -> None:
    """Remove what the new one takes the place of, and what was left by who was killed."""
    for other in [*path.parent.glob(f"{name}-*.duckdb"), *path.parent.glob(f".{name}-*")]:
        with suppress(OSError):
            if other != path and (other.suffix == ".duckdb" or time.time() - other.stat().st_mtime > _LEFT_S):
                other.unlink()
