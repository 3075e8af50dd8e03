"""The list of roots, when it is damaged, when a root is gone for good, and which of them the daemon looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eventlog import roots
from syncd.instance import Instance


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDELOG_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.mark.parametrize("content", [b"", b"/data/runs\n", b"{}", b"[1]"])
def test_a_damaged_list_is_empty_and_said_to_be_damaged_and_is_not_written_over(state: Path, content: bytes):
    state.mkdir()
    (state / "roots.json").write_bytes(content)

    assert roots.registered() == []
    assert str(state / "roots.json") in (roots.unreadable() or "")
    with pytest.raises(OSError, match="the list there is damaged"):
        roots.register(state / "new")
    assert (state / "roots.json").read_bytes() == content


def test_no_list_and_one_of_roots_that_are_gone_are_not_damaged(state: Path):
    none = roots.unreadable()
    roots.register(state / "gone")

    assert (none, roots.unreadable()) == (None, None)


def test_a_root_is_forgotten_and_the_others_stay(tmp_path: Path):
    for name in ("a", "b", "c"):
        roots.register(tmp_path / name)

    assert roots.forget(tmp_path / "b")
    assert not roots.forget(tmp_path / "b")
    assert roots.registered() == [tmp_path / "a", tmp_path / "c"]


@pytest.mark.parametrize(("given", "watched"), [(["there"], {"there"}), ([], {"here"}), (None, {"here"})])
def test_a_daemon_looks_at_the_roots_that_it_was_given_or_else_at_those_in_the_list(
    tmp_path: Path, given: list[str] | None, watched: set[str]
):
    roots.register(tmp_path / "here")
    page = {"has_chosen_roots": bool(given), "roots": [str(tmp_path / name) for name in given or ()]}

    found = {name for name in ("here", "there") if roots.is_watched(tmp_path / name, page)}

    assert found == watched


def test_of_a_daemon_that_does_not_say_its_roots_nothing_is_said(tmp_path: Path):
    assert roots.is_watched(tmp_path, {"state": "online"})


def test_a_root_by_another_name_is_the_same(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    assert roots.is_watched(tmp_path / "link", {"has_chosen_roots": True, "roots": [str(tmp_path / "real")]})


def test_what_the_running_daemon_says_of_its_roots_counts_and_what_an_earlier_one_said_does_not(
    tmp_path: Path, state: Path
):
    daemon = Instance(state)
    daemon.acquire()
    roots.register(tmp_path / "runs")
    before = roots.daemon_is_watching(tmp_path / "runs")
    daemon.write_page({"has_chosen_roots": True, "roots": [str(tmp_path / "other")]})
    of_others = roots.daemon_is_watching(tmp_path / "runs")
    page = json.loads((state / "syncd.json").read_bytes())
    (state / "syncd.json").write_text(json.dumps({**page, "pid": 1}))

    assert (before, of_others, roots.daemon_is_watching(tmp_path / "runs")) == (True, False, True)
    assert roots.daemon_is_watching()
