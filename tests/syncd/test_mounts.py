"""What is read from the kernel's table of mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from syncd.mounts import kind_in, tells_all


@pytest.mark.parametrize("name", [b"\xff", "für".encode(), b"a\x0bb", b"a b"])
def test_a_mount_is_found_whatever_its_name(name: bytes) -> None:
    escaped = name.replace(b" ", b"\\040")
    table = os.fsdecode(b"dev / ext4 rw 0 0\nsrv:/x /" + escaped + b" nfs4 rw 0 0\n")

    assert kind_in(table, Path(os.fsdecode(b"/" + name + b"/runs"))) == "nfs4"
    assert kind_in(table, Path("/runs")) == "ext4"


def test_of_two_mounts_at_one_place_the_later_is_seen() -> None:
    assert kind_in("a /x autofs rw 0 0\nb /x lustre rw 0 0\n", Path("/x/runs")) == "lustre"


def test_a_file_system_that_a_program_answers_for_does_not_tell_all_but_a_containers_own_disk_does() -> None:
    kinds = ["fuse", "fuse.gcsfuse", "fuse.fuse-overlayfs", "fuseblk", "overlay", "tmpfs"]

    assert [tells_all(kind) for kind in kinds] == [False, False, True, True, True, True]
