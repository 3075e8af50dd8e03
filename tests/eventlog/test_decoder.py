"""Sealed segments decoded in a child: the same records, whatever happens to it, and none where nobody asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog import parquet
from eventlog.decoder import ChildLost, Decoder
from eventlog.parquet import Unreadable
from eventlog.seal import seal
from tests.logs import handmade_run
from tests.wandb_server.waiting import wait_for


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A sealed segment with more than one row group."""
    piece = handmade_run(tmp_path)
    for i in range(200):
        piece.log(x=i, nan=float("nan"), big=2**70, nested={"a": [1, {"b": None}]}, text="t" * 30_000, step=i)
    piece.log("exit", exitcode=0)
    piece.die()
    seal(piece.piece.dir.parent)
    (path,) = piece.piece.dir.glob("events-*.parquet")
    return path


def as_bytes(groups: Iterator[list[object]]) -> list[list[str]]:
    # NaN is no equal of itself.
    return [[repr(record) for record in group] for group in groups]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("seq", [0, 150, 10_000])
def test_what_comes_out_of_the_child_is_what_this_process_would_have_read(
    decoder: Decoder, sealed: Path, seq: int, newest_first: bool
):
    here = as_bytes(parquet.groups_of(sealed, "events", seq, newest_first))

    beside = as_bytes(decoder.groups_of(sealed, "events", seq, newest_first))

    assert beside == here
    assert len(here) == (0 if seq > 1000 else len(here))


def test_several_segments_are_read_in_turns(decoder: Decoder, sealed: Path):
    one, other = (decoder.groups_of(sealed, "events") for _ in range(2))

    first = [next(one), next(other), next(one)]

    whole = list(parquet.groups_of(sealed, "events"))
    assert len(whole) > 1
    assert [len(group) for group in first] == [len(whole[0]), len(whole[0]), len(whole[1])]


def test_damage_and_absence_are_raised_as_here(decoder: Decoder, sealed: Path, tmp_path: Path):
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(sealed.read_bytes()[:-100])

    with pytest.raises(Unreadable, match=r"damaged\.parquet"):
        list(decoder.groups_of(damaged, "events"))
    with pytest.raises(FileNotFoundError):
        list(decoder.groups_of(tmp_path / "gone.parquet", "events"))


def test_a_child_that_was_killed_between_two_questions_is_begun_anew(decoder: Decoder, sealed: Path):
    groups = decoder.groups_of(sealed, "events")
    first = next(groups)
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)

    rest = list(groups)

    assert [record.seq for group in (first, *rest) for record in group] == list(range(202))


def test_a_child_that_cannot_live_is_an_error_that_says_so(sealed: Path, monkeypatch: pytest.MonkeyPatch):
    decoder = Decoder()
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(ChildLost, match="the process that decodes it ended"):
        list(decoder.groups_of(sealed, "events"))


def test_a_child_ends_when_nobody_asks_any_more(sealed: Path):
    decoder = Decoder(idle_s=0.1)
    list(decoder.groups_of(sealed, "events"))
    pid = decoder.pid
    assert pid is not None

    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", "the end of the child")
    again = list(decoder.groups_of(sealed, "events"))

    assert decoder.pid != pid
    assert sum(map(len, again)) == 202
    decoder.close()


def test_a_process_that_decodes_beside_reads_a_sealed_run_without_pyarrow(sealed: Path):
    script = (
        "import sys\n"
        "from eventlog.decoder import decode_beside\n"
        "from eventlog.reader import read\n"
        "decode_beside()\n"
        "print(sum(1 for _ in read(sys.argv[1])), 'pyarrow' in sys.modules)\n"
    )

    said = subprocess.run(
        [sys.executable, "-c", script, str(sealed.parent.parent)], capture_output=True, text=True, check=True
    )

    assert said.stdout.split() == ["202", "False"]
