"""`eventlog.store`: content under its SHA-256, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from eventlog.store import FILES_DIR, Store, Unreadable, digests


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def names(run_dir: Path) -> list[str]:
    return sorted(os.listdir(run_dir / FILES_DIR))


@pytest.mark.parametrize("is_durable", [True, False])
def test_content_lies_under_its_hash_for_its_owner_alone(tmp_path: Path, is_durable: bool):
    stored = Store(tmp_path, is_durable).put(b"hello")

    path = tmp_path / FILES_DIR / stored.sha256
    assert (stored.sha256, stored.size) == (sha256(b"hello"), 5)
    assert stored.md5 == hashlib.md5(b"hello").hexdigest()
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert names(tmp_path) == [stored.sha256]


def test_a_file_larger_than_one_piece_is_stored_whole(tmp_path: Path):
    content = os.urandom(1000) * 3000
    (tmp_path / "large").write_bytes(content)

    stored = Store(tmp_path, True).put(tmp_path / "large")

    assert (tmp_path / FILES_DIR / stored.sha256).read_bytes() == content
    assert digests(tmp_path / "large") == stored == digests(content)


def test_content_that_is_there_is_not_written_again(tmp_path: Path):
    store = Store(tmp_path, True)
    stored = store.put(b"hello")
    before = (tmp_path / FILES_DIR / stored.sha256).stat()

    store.put(b"hello")

    after = (tmp_path / FILES_DIR / stored.sha256).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names(tmp_path) == [stored.sha256]


def test_content_that_a_power_cut_left_short_is_written_again(tmp_path: Path):
    store = Store(tmp_path, True)
    path = tmp_path / FILES_DIR / store.put(b"hello").sha256
    path.write_bytes(b"")

    store.put(b"hello")

    assert path.read_bytes() == b"hello"


def test_a_symlink_under_the_name_is_replaced_and_not_followed(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"12345")
    (tmp_path / FILES_DIR).mkdir()
    path = tmp_path / FILES_DIR / sha256(b"hello")
    path.symlink_to(elsewhere)

    Store(tmp_path, True).put(b"hello")

    assert elsewhere.read_bytes() == b"12345"
    assert not path.is_symlink()
    assert path.read_bytes() == b"hello"


def test_a_symlink_in_place_of_the_directory_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / FILES_DIR).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="files"):
        Store(tmp_path, True).put(b"hello")

    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path):
    # faults: 61
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            Store(tmp_path, True).put(b"x" * 9000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert names(tmp_path) == []


@pytest.mark.parametrize("may_link", [True, False])
def test_a_file_that_cannot_be_read_is_told_apart_from_a_store_that_cannot_be_written(
    tmp_path: Path, may_link: bool
):
    loop = tmp_path / "loop"
    loop.symlink_to(loop.name)
    (tmp_path / "run").mkdir()

    with pytest.raises(Unreadable, match="symbolic links"):
        Store(tmp_path / "run", True).put(loop, may_link)
    assert names(tmp_path / "run") == []

    (tmp_path / "run" / FILES_DIR).rmdir()
    (tmp_path / "run" / FILES_DIR).touch()
    with pytest.raises(OSError, match="Not a directory") as caught:
        Store(tmp_path / "run", True).put(b"hello", may_link)
    assert not isinstance(caught.value, Unreadable)


def test_threads_that_store_the_same_content_agree(tmp_path: Path):
    store = Store(tmp_path, False)
    contents = [bytes([i]) * 5000 for i in range(20)]
    threads = [
        threading.Thread(target=lambda: [store.put(content) for content in contents]) for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert names(tmp_path) == sorted(map(sha256, contents))
    for content in contents:
        assert (tmp_path / FILES_DIR / sha256(content)).read_bytes() == content
