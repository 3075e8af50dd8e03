"""A content that nobody changes any more is linked into the store where that can be done, and copied where not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from eventlog.store import FILES_DIR, Store

CONTENT = b"weights" * 1000
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "run").mkdir()
    return Store(tmp_path / "run", is_durable=False)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return tmp_path / "run" / FILES_DIR / NAME


def test_it_takes_no_space_again(store: Store, stored: Path, tmp_path: Path):
    original = tmp_path / "model.bin"
    original.write_bytes(CONTENT)

    assert store.put(original, may_link=True).sha256 == NAME

    assert stored.samefile(original)


def test_a_link_is_followed_to_the_file_itself(store: Store, stored: Path, tmp_path: Path):
    original = tmp_path / "model.bin"
    original.write_bytes(CONTENT)
    (tmp_path / "link").symlink_to(original)

    store.put(tmp_path / "link", may_link=True)

    assert not stored.is_symlink()
    assert stored.samefile(original)


def test_on_another_file_system_it_is_copied(store: Store, stored: Path, tmp_path: Path):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    original = elsewhere / f"tidelog-{tmp_path.name}.bin"
    original.write_bytes(CONTENT)
    try:
        store.put(original, may_link=True)
    finally:
        original.unlink()

    assert stored.read_bytes() == CONTENT


def test_a_wrong_content_under_its_name_is_replaced(store: Store, stored: Path, tmp_path: Path):
    stored.parent.mkdir()
    stored.write_bytes(b"torn")
    original = tmp_path / "model.bin"
    original.write_bytes(CONTENT)

    store.put(original, may_link=True)

    assert stored.read_bytes() == CONTENT
    assert original.read_bytes() == CONTENT


def test_without_leave_it_is_copied(store: Store, stored: Path, tmp_path: Path):
    original = tmp_path / "model.bin"
    original.write_bytes(CONTENT)

    store.put(original)

    assert not stored.samefile(original)
