"""`eventlog.run`: what a training script may do, and what the log says then."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eventlog
from eventlog import files, roots, running, writer
from eventlog.entry import Earlier
from eventlog.errors import ConfigError
from eventlog.piece import HEARTBEAT_S, LOCK_FILE, RunIdentity, lock_owner_is_gone, primaries
from eventlog.reader import find_runs, read, writers
from eventlog.record import Record
from eventlog.run import step_rule
from syncd.instance import Instance
from tests.bytecodes import Interrupted, at_bytecode_of, at_every_bytecode
from tests.logs import handmade_run, resumed

PROJECT = Path(__file__).parents[2]


def begin(root: Path, **options: Any) -> eventlog.Run:
    return eventlog.init(**{"project": "demo", "id": "run", "root": root, "quiet": True, **options})


def events(run: eventlog.Run | Path, writer: str | None = None) -> list[Record]:
    return list(read(run if isinstance(run, Path) else run.dir, writer=writer))


def of_kind(run: eventlog.Run | Path, kind: str) -> list[Record]:
    return [record for record in events(run) if record.kind == kind]


def rows(run: eventlog.Run | Path) -> list[tuple[int | None, bool, dict[str, Any]]]:
    return [(record.step, record.commit, record.data) for record in of_kind(run, "metrics")]


def in_a_process(script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import eventlog, os, sys\n" + script, *arguments],
        cwd=PROJECT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


# ── rows and steps ───────────────────────────────────────────────────────────────────────────────────────────


def test_each_log_without_a_step_is_a_row_of_its_own(tmp_path: Path):
    run = begin(tmp_path)

    run.log({"loss": 0.5})
    run.log({"loss": 0.25})

    assert rows(run) == [(0, True, {"loss": 0.5}), (1, True, {"loss": 0.25})]
    assert run.step == 2


def test_a_row_with_a_step_stays_open(tmp_path: Path):
    run = begin(tmp_path)

    run.log({"a": 1}, step=5)
    run.log({"b": 2}, step=5)
    run.log({"c": 3})

    assert rows(run) == [(5, False, {"a": 1}), (5, False, {"b": 2}), (5, True, {"c": 3})]
    assert run.step == 6


def test_commit_closes_a_row_and_no_commit_leaves_it_open(tmp_path: Path):
    run = begin(tmp_path)

    run.log({"a": 1}, commit=False)
    run.log({"b": 2}, step=7, commit=True)

    assert rows(run) == [(0, False, {"a": 1}), (7, True, {"b": 2})]
    assert run.step == 8


def test_a_past_step_is_kept_as_given_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(tmp_path)
    run.log({"a": 1}, step=5)

    run.log({"a": 2}, step=3)
    run.log({"a": 3}, step=4)

    assert rows(run) == [(5, False, {"a": 1}), (3, False, {"a": 2}), (4, False, {"a": 3})]
    assert run.step == 5
    assert capsys.readouterr().err.count("came after step 5") == 1


@given(
    calls=st.lists(st.tuples(st.none() | st.integers(-1, 6), st.none() | st.booleans()), max_size=8),
    current=st.integers(0, 3),
)
def test_the_step_rule_is_wandbs(calls, current):
    # PROTOCOL § 6, written out the long way.
    model = current
    for step, commit in calls:
        stored, closes, after = step_rule(current, step, commit)
        if step is None:
            assert stored == model
            assert closes == (commit is not False)
            model += commit is not False
        elif step < model:
            assert stored == step
        else:
            assert stored == step
            model = step + 1 if commit else step
            assert closes == bool(commit)
        assert after == model
        current = after


def test_an_empty_row_is_a_row(tmp_path: Path):
    run = begin(tmp_path)

    run.log({})

    assert rows(run) == [(0, True, {})]


def test_numpy_steps_are_steps(tmp_path: Path):
    run = begin(tmp_path)

    run.log({"a": 1}, step=np.int64(3))

    assert rows(run) == [(3, False, {"a": 1})]


@pytest.mark.parametrize("data", [1, None, "loss", [("loss", 1)]])
def test_what_is_no_dict_is_refused_before_anything_happens(tmp_path: Path, data: Any):
    run = begin(tmp_path)

    with pytest.raises(TypeError, match="log takes a dict"):
        run.log(data)

    assert rows(run) == []
    assert run.step == 0


@pytest.mark.parametrize(
    ("step", "error"), [(1.0, TypeError), ("1", TypeError), (True, TypeError), (2**63, ValueError)]
)
def test_a_step_that_is_no_step_is_refused_before_anything_happens(tmp_path: Path, step: Any, error: type):
    run = begin(tmp_path)

    with pytest.raises(error, match="step"):
        run.log({"a": 1}, step=step)

    assert rows(run) == []


def test_a_record_is_readable_as_soon_as_log_returned(tmp_path: Path):
    run = begin(tmp_path)

    for i in range(3):
        run.log({"i": i})
        assert of_kind(run, "metrics")[-1].data == {"i": i}


def test_threads_log_each_row_once(tmp_path: Path):
    run = begin(tmp_path)
    threads = [
        threading.Thread(target=lambda k=k: [run.log({"i": [k, n]}) for n in range(200)]) for k in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(tuple(data["i"]) for _, _, data in rows(run)) == [
        (k, n) for k in range(4) for n in range(200)
    ]
    assert [step for step, _, _ in rows(run)] == list(range(800))


def test_a_trajectory_has_a_stream_of_its_own_and_moves_no_step(tmp_path: Path):
    run = begin(tmp_path)

    run.log_trajectory(eventlog.Trajectory([eventlog.Turn("user", "hi")], reward=1.0), step=7)
    run.log_trajectory(eventlog.Trajectory([]))

    stored = list(read(run.dir, "trajectories"))
    assert [(record.kind, record.step) for record in stored] == [("trajectory", 7), ("trajectory", 0)]
    assert stored[0].data["turns"][0]["content"] == "hi"
    assert run.step == 0
    with pytest.raises(TypeError, match=r"eventlog\.Trajectory"):
        run.log_trajectory({"turns": []})  # type: ignore[arg-type]


def test_a_checkpoint_is_a_record_with_its_step_and_place(tmp_path: Path):
    run = begin(tmp_path)
    run.log({"loss": 1})

    run.log_checkpoint(Path("kept/step-1.pt"), best=True)
    run.log_checkpoint("kept/step-7.pt", 7)

    assert [record.data for record in of_kind(run, "checkpoint")] == [
        {"best": True, "step": 1, "path": "kept/step-1.pt"},
        {"step": 7, "path": "kept/step-7.pt"},
    ]
    assert run.step == 1


def test_media_are_files_of_the_run_before_the_row_names_them(tmp_path: Path):
    run = begin(tmp_path)

    run.log({"loss": 1, "page": eventlog.Html("<b>x</b>"), "in": {"deep": [eventlog.Html("y")]}}, step=7)

    (file, deep) = read(run.dir, "files")
    (row,) = of_kind(run, "metrics")
    assert row.step == 7
    assert row.data["loss"] == 1
    assert row.data["page"]["path"] == file.data["path"]
    assert row.data["page"]["path"].startswith("media/html/page_0_")
    assert row.data["in"]["deep"]["html"][0]["path"] == deep.data["path"]
    assert row.lossy == ()
    content = (run.dir / "files" / file.data["sha256"]).read_bytes()
    assert content.endswith(b"<b>x</b>")
    assert len(content) == file.data["size"]
    assert run.summary["page"]["path"] == file.data["path"]


def test_the_callers_row_is_not_changed_by_its_media(tmp_path: Path):
    run = begin(tmp_path)
    page = eventlog.Html("x")
    row = {"page": page, "in": {"deep": page}, "nan": float("nan")}

    run.log(row)

    assert row["page"] is page
    assert row["in"] == {"deep": page}


@pytest.mark.parametrize("depth", [300, 600, 5000])
def test_a_value_nested_deeper_than_any_costs_not_its_row(tmp_path: Path, depth: int):
    run = begin(tmp_path)
    eventlog.plot.line(eventlog.Table(columns=["x", "y"]), "x", "y")
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(depth):
        inner["a"] = inner = {}

    run.log({"deep": deep, "page": eventlog.Html("x"), "loss": 1.0})

    (record,) = of_kind(run, "metrics")
    assert (record.data["loss"], record.data["page"]["_type"]) == (1.0, "html-file")
    assert [path[0] for path in record.lossy] == ["deep"]
    assert (run.summary["loss"], run.step) == (1.0, 1)


def test_a_row_that_is_strange_all_over_keeps_its_media(tmp_path: Path):
    run = begin(tmp_path)
    row: dict[str, Any] = {"page": eventlog.Html("x"), "object": object(), "big": 2**70, 3: float("inf")}
    row["itself"] = row

    run.log(row)

    (record,) = of_kind(run, "metrics")
    assert record.data["page"]["_type"] == "html-file"
    assert (record.data["big"], record.data["3"]) == (2**70, math.inf)
    assert ("object",) in record.lossy


def test_a_value_that_cannot_be_stored_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(tmp_path)
    cycle: list[Any] = [1]
    table = eventlog.Table(columns=["a"], allow_mixed_types=True)
    table.data.append([cycle])
    cycle.append(cycle)

    run.log({"table": table, "loss": 1})

    (record,) = of_kind(run, "metrics")
    assert record.data == {"table": "<Table: not stored>", "loss": 1}
    assert record.lossy == (("table",),)
    assert "'table' is logged as a text" in capsys.readouterr().err


def test_a_tables_artifact_is_recorded_once_for_each_state_of_it(tmp_path: Path):
    run = begin(tmp_path)
    table = eventlog.Table(columns=["a"], data=[[1]])

    run.log({"table": table})
    run.log({"table": table})

    kinds = [record.kind for record in read(run.dir, "files")]
    assert kinds == ["file", "artifact"]
    first, second = (record.data["table"] for record in of_kind(run, "metrics"))
    assert first == second


def test_an_alert_is_a_record(tmp_path: Path):
    from datetime import timedelta

    run = begin(tmp_path)

    run.alert("loss", "it is NaN", level=eventlog.AlertLevel.ERROR, wait_duration=timedelta(minutes=2))
    eventlog.alert("again", "and again", "WARN", 5)
    run.alert("plain", "text")

    assert [record.data for record in of_kind(run, "alert")] == [
        {"title": "loss", "text": "it is NaN", "level": "ERROR", "wait_s": 120.0},
        {"title": "again", "text": "and again", "level": "WARN", "wait_s": 5.0},
        {"title": "plain", "text": "text", "level": "INFO", "wait_s": 60.0},
    ]


@pytest.mark.parametrize("wrong", [{"level": "LOUD"}, {"wait_duration": -1}, {"wait_duration": "long"}])
def test_an_alert_that_is_none_is_refused_before_anything_happens(tmp_path: Path, wrong: dict[str, Any]):
    run = begin(tmp_path)

    with pytest.raises(ValueError, match=next(iter(wrong))):
        run.alert("title", "text", **wrong)

    assert of_kind(run, "alert") == []


# ── config, summary, definitions ─────────────────────────────────────────────────────────────────────────────


def test_a_change_of_the_config_is_a_record(tmp_path: Path):
    run = begin(tmp_path, config={"lr": 1.0, "model": {"size": 1}})

    run.config.update({"lr": 0.5}, allow_val_change=True)
    run.config.steps = 10
    run.config.update({"a": 1, "b": 2})

    assert events(run)[0].data["config"] == {"lr": 1.0, "model": {"size": 1}}
    assert [record.data for record in of_kind(run, "config")] == [
        {"lr": 0.5},
        {"steps": 10},
        {"a": 1, "b": 2},
    ]
    assert run.config.lr == 0.5
    assert dict(run.config) == {"lr": 0.5, "model": {"size": 1}, "steps": 10, "a": 1, "b": 2}


def test_a_config_value_is_protected_from_change(tmp_path: Path):
    run = begin(tmp_path, config={"lr": 1.0})

    with pytest.raises(ValueError, match=r"'lr' is 1\.0 and would become 2\.0"):
        run.config.update({"lr": 2.0, "new": 1})

    assert dict(run.config) == {"lr": 1.0}
    assert of_kind(run, "config") == []


def test_what_is_changed_inside_of_a_config_value_shows_and_is_recorded(tmp_path: Path):
    run = begin(tmp_path, config={"opt": {"lr": 0.1}, "layers": [1], "seed": 7})

    run.config["opt"]["lr"] = 0.5
    run.config.layers.append((2,))
    run.config["new"] = 1
    read = run.config["opt"]
    run.config["opt"]["wd"] = float("nan")
    shown = (run.config["opt"]["lr"], run.config.layers, run.config["opt"] is read)
    run.finish()

    assert shown == (0.5, [1, (2,)], True)
    changes: dict[str, Any] = {}
    for record in of_kind(run, "config"):
        changes.update(record.data)
    assert changes["layers"] == [1, [2]]
    assert changes["new"] == 1
    assert changes["opt"]["lr"] == 0.5
    assert math.isnan(changes["opt"]["wd"])
    assert "seed" not in changes


def test_a_config_value_that_was_only_read_is_not_recorded(tmp_path: Path):
    run = begin(tmp_path, config={"opt": {"lr": 0.1, "weights": np.arange(3)}, "layers": [1, float("nan")]})

    for value in dict(run.config).values():
        assert value
    run.config.as_dict()["opt"]["lr"] = 5
    run.finish()

    assert of_kind(run, "config") == []


def test_a_config_may_hold_what_cannot_be_copied_or_asked(tmp_path: Path):
    class Unloaded:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("not loaded")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not loaded")

        __hash__ = None  # type: ignore[assignment]

    strange = {"lock": threading.Lock(), "later": (i for i in range(3)), "inside": {"lock": threading.Lock()}}

    run = begin(tmp_path, config={**strange, "layers": deque([1, range(2)])})
    run.config.update({"model": Unloaded(), "in": [Unloaded(), {2}]})
    run.config.update({"model": Unloaded()}, allow_val_change=True)
    run.finish()

    start = events(run)[0]
    assert start.data["config"]["layers"] == [1, [0, 1]]
    assert set(start.data["config"]) == {*strange, "layers"}
    assert run.config["layers"] == [1, [0, 1]]
    assert of_kind(run, "config")[0].data["in"][1] == [2]
    assert run.config.as_dict()["lock"] is strange["lock"]


def test_what_is_locked_stays(tmp_path: Path):
    run = begin(tmp_path, config={"opt": {"lr": 1, "wd": 0}})

    run.config.update_locked({"seed": 1}, "agent")
    run.config.merge_locked({"opt": {"lr": 2}}, user="agent", _allow_val_change=True)
    run.config.update({"seed": 5, "opt": {}}, allow_val_change=True)
    run.finish()

    assert dict(run.config) == {"opt": {"lr": 2, "wd": 0}, "seed": 1}
    assert [record.data for record in of_kind(run, "config")] == [{"seed": 1}, {"opt": {"lr": 2, "wd": 0}}]
    with pytest.raises(ConfigError):
        begin(tmp_path, config={"a": 1}).config.update_locked({"a": 2})


@dataclasses.dataclass
class Settings:
    lr: float = 0.5


@pytest.mark.parametrize(
    "config", [{"lr": 0.5}, argparse.Namespace(lr=0.5), Settings()], ids=["dict", "args", "dataclass"]
)
def test_a_config_may_be_a_dict_a_namespace_or_a_dataclass(tmp_path: Path, config: Any):
    run = begin(tmp_path, config=config)

    assert events(run)[0].data["config"] == {"lr": 0.5}


def test_a_config_that_is_none_is_refused_before_anything_happens(tmp_path: Path):
    with pytest.raises(TypeError, match="a config is a dict"):
        begin(tmp_path, config=5)

    assert list(tmp_path.iterdir()) == []


def test_a_change_of_the_summary_is_a_record(tmp_path: Path):
    run = begin(tmp_path)

    run.summary["best"] = 1.0
    run.summary["eval"] = {"acc": 0.5}
    run.summary["eval"]["loss"] = 2.0
    run.summary.update({"a": 1, "b": 2})
    del run.summary["eval"]["acc"]
    del run.summary["a"]

    assert [record.data for record in of_kind(run, "summary")] == [
        {"set": [[["best"], 1.0]], "delete": []},
        {"set": [[["eval"], {"acc": 0.5}]], "delete": []},
        # W&B takes a dict that was set for one value, and forgets the rest of it when a part is set.
        {"set": [[["eval"], {"acc": 0.5, "loss": 2.0}]], "delete": []},
        {"set": [[["a"], 1], [["b"], 2]], "delete": []},
        {"set": [[["eval"], {"loss": 2.0}]], "delete": []},
        {"set": [], "delete": [["a"]]},
    ]
    assert run.summary["eval"] == {"loss": 2.0}
    with pytest.raises(KeyError):
        del run.summary["never set"]


def test_a_definition_holds_what_was_given(tmp_path: Path):
    run = begin(tmp_path)

    run.define_metric("eval/*", step_metric="global_step", summary="min,max")

    (record,) = of_kind(run, "define_metric")
    assert record.data == {"name": "eval/*", "step_metric": "global_step", "summary": ["min", "max"]}


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": 1},
        {"name": "a*b"},
        {"name": "a", "step_metric": "b*"},
        {"name": "a", "summary": "most"},
        {"name": "a", "goal": "up"},
    ],
)
def test_a_wrong_definition_is_refused_before_anything_happens(tmp_path: Path, options: dict[str, Any]):
    run = begin(tmp_path)

    with pytest.raises((TypeError, ValueError)):
        run.define_metric(**options)

    assert of_kind(run, "define_metric") == []


# ── the start ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_record_says_who_where_and_with_what(tmp_path: Path):
    run = begin(
        tmp_path, name="first", tags=["a", "b"], notes="why", group="g", job_type="train", config={"lr": 1}
    )

    start = events(run)[0]

    assert start.kind == "start"
    said = {key: start.data[key] for key in ("name", "tags", "notes", "group", "job_type", "config", "mode")}
    assert said == {
        "name": "first",
        "tags": ["a", "b"],
        "notes": "why",
        "group": "g",
        "job_type": "train",
        "config": {"lr": 1},
        "mode": "online",
    }
    assert (start.data["pid"], start.data["rank"], start.data["resumed"]) == (os.getpid(), 0, False)
    assert set(start.data) >= {
        "host", "boot_id", "world_size", "program", "argv", "cwd", "executable", "python", "os", "cpu_count", "git",
        "version", "step", "runtime_s", "started_at",
    }  # fmt: skip
    assert start.data["version"] == eventlog.__version__


def test_what_is_not_given_comes_from_wandbs_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "WANDB_PROJECT": "p",
        "WANDB_ENTITY": "e",
        "WANDB_NAME": "n",
        "WANDB_RUN_ID": "i",
        "WANDB_RUN_GROUP": "g",
        "WANDB_TAGS": "a, b",
        "WANDB_NOTES": "why",
        "WANDB_MODE": "offline",
        "EVENTLOG_ROOT": str(tmp_path / "root"),
    }.items():
        monkeypatch.setenv(name, value)

    run = eventlog.init(quiet=True)

    assert (run.project, run.entity, run.name, run.id, run.group) == ("p", "e", "n", "i", "g")
    assert (run.tags, run.notes) == (("a", "b"), "why")
    assert run.dir == tmp_path / "root" / "p" / "i"
    assert events(run)[0].data["mode"] == "offline"


def test_run_id_is_used_if_wandb_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RUN_ID", "from-the-guide")

    assert begin(tmp_path, id=None).id == "from-the-guide"


def test_a_run_without_an_id_gets_one_as_wandb_makes_them(tmp_path: Path):
    run = begin(tmp_path, id=None)

    assert len(run.id) == 8
    assert run.id.isalnum()
    assert run.name == run.id


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_everything_is_for_its_user_alone_whatever_the_umask(tmp_path: Path, umask: int):
    # faults: 95
    before = os.umask(umask)
    try:
        run = begin(tmp_path / "new" / "root")
        run.log_trajectory(eventlog.Trajectory([]))
    finally:
        os.umask(before)

    for path in [tmp_path / "new", *(tmp_path / "new").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("run_id", ["../../x", "a/b", ".", "x" * 300, "nul\x00", "line\nbreak", "é"])
def test_any_id_is_a_run_below_the_root(tmp_path: Path, run_id: str):
    # faults: 93
    run = begin(tmp_path / "root", id=run_id)

    assert run.dir.parent.parent == tmp_path / "root"
    assert RunIdentity.load(run.dir).run_id == run_id
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"project": 1}, TypeError),
        ({"id": " "}, ValueError),
        ({"id": "\ud800"}, ValueError),
        ({"name": b"x"}, TypeError),
        ({"tags": [1]}, TypeError),
        ({"mode": "sometimes"}, ValueError),
        ({"resume": "perhaps"}, ValueError),
        ({"resume": "must", "id": None}, ValueError),
        ({"durability": "forever"}, ValueError),
        ({"reinit": "x"}, ValueError),
        ({"colour": "red"}, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_argument_is_refused_before_anything_happens(
    tmp_path: Path, options: dict[str, Any], error: type
):
    with pytest.raises(error):
        begin(tmp_path, **options)

    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path):
    (tmp_path / "file").write_text("")

    with pytest.raises(eventlog.RootNotWritable, match="EVENTLOG_ROOT"):
        begin(tmp_path / "file" / "root")


@pytest.mark.parametrize("link", ["demo", "demo/run"])
def test_no_run_is_written_where_nobody_would_find_it(tmp_path: Path, link: str):
    root, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(elsewhere)

    for rank in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", rank)
            with pytest.raises(eventlog.RootNotWritable, match=r"is a symlink.*elsewhere"):
                begin(root)

    assert list(elsewhere.iterdir()) == []


def test_a_root_may_be_a_symlink(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")

    begin(tmp_path / "runs").finish()

    assert list(find_runs(tmp_path / "runs")) == [tmp_path / "runs" / "demo" / "run"]


def test_init_says_where_the_log_is_and_whether_a_daemon_watches_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    begin(tmp_path, quiet=False)

    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / "demo" / "run") in said
    assert "no syncd is running" in said


def test_a_running_daemon_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import fcntl

    roots.state_dir().mkdir(parents=True)
    with open(roots.state_dir() / roots.DAEMON_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begin(tmp_path, quiet=False)

    assert "syncd uploads it" in capsys.readouterr().err


def test_wandb_silent_keeps_init_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_SILENT", "true")

    begin(tmp_path, quiet=None)

    assert capsys.readouterr().err == ""


def test_the_root_is_entered_in_the_users_list_once(tmp_path: Path):
    begin(tmp_path / "a", id="one")
    begin(tmp_path / "a", id="two")
    begin(tmp_path / "b")

    assert roots.registered() == [tmp_path / "a", tmp_path / "b"]
    assert (roots.state_dir() / roots.ROOTS_FILE).stat().st_mode & 0o777 == 0o600


def test_a_list_of_roots_that_cannot_be_written_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIDELOG_STATE_DIR", str(tmp_path / "file" / "state"))

    run = begin(tmp_path / "root")
    run.log({"a": 1})

    assert len(rows(run)) == 1
    assert "syncd start --root" in capsys.readouterr().err


def test_a_list_of_roots_that_is_a_symlink_is_refused(tmp_path: Path):
    # faults: 94
    roots.state_dir().mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(orjson.dumps([str(tmp_path)]))
    (roots.state_dir() / roots.ROOTS_FILE).symlink_to(tmp_path / "elsewhere")

    assert roots.registered() == []


@pytest.mark.parametrize(
    ("watched", "said"),
    [
        (None, "no syncd is running"),
        ("other", "was started for other roots: `syncd sync "),
        ("root", "syncd uploads it"),
    ],
)
def test_init_says_whether_a_daemon_looks_at_its_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], watched: str | None, said: str
):
    if watched is not None:
        daemon = Instance(roots.state_dir())
        daemon.acquire()
        daemon.write_page({"has_chosen_roots": True, "roots": [str(tmp_path / watched)]})

    begin(tmp_path / "root", quiet=None)

    assert said in capsys.readouterr().err


def test_two_processes_that_start_at_once_are_both_in_the_list(tmp_path: Path):
    script = "from pathlib import Path; from eventlog import roots\nroots.register(Path(sys.argv[1]))"

    started = [
        subprocess.Popen([sys.executable, "-c", "import sys\n" + script, str(tmp_path / str(i))], cwd=PROJECT)
        for i in range(6)
    ]
    for process in started:
        assert process.wait() == 0

    assert sorted(roots.registered()) == [tmp_path / str(i) for i in range(6)]


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────

CANARY = "canary0123456789abcdef0123456789abcdef01"


def test_no_credential_is_in_the_log(tmp_path: Path):
    # faults: 96
    script = """
run = eventlog.init(project="demo", root=sys.argv[1], notes=f"key {os.environ['WANDB_API_KEY']}", config={
    "api_key": "canary-1", "judge": {"password": "canary-2"}, "url": "https://u:canary-3@host/v1",
    "innocent": os.environ["WANDB_API_KEY"], "max_tokens": 4096, "pad_token": "<pad>", "tokenizer": "qwen"})
run.config["hf_token"] = "canary_456789abcdefgh"
raise RuntimeError(os.environ["WANDB_API_KEY"])
"""
    arguments = [str(tmp_path / "root"), "--api-key", "canary-4", "--password=canary-5", f"--note={CANARY}"]

    done = in_a_process(script, *arguments, WANDB_API_KEY=CANARY)

    written = b"".join(path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file())
    assert b"canary" not in written.replace(b"canary-free", b"")
    assert "canary" not in done.stderr.partition("Traceback")[0]
    (run_dir,) = (tmp_path / "root" / "demo").iterdir()
    config = events(run_dir)[0].data["config"]
    assert (config["max_tokens"], config["pad_token"], config["tokenizer"]) == (4096, "<pad>", "qwen")
    assert config["url"] == "https://host/v1"
    assert events(run_dir)[0].data["argv"][2:] == [
        "--api-key",
        "[redacted]",
        "--password=[redacted]",
        "--note=[redacted]",
    ]


def test_the_remote_of_the_repository_is_noted_without_its_credentials(tmp_path: Path):
    repository = tmp_path / "repository"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://me:canary@host/repo.git"], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import eventlog; eventlog.init(project='demo', id='run', root={str(tmp_path)!r})",
        ],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert events(tmp_path / "demo" / "run")[0].data["git"] == {
        "commit": commit,
        "remote": "https://host/repo.git",
    }


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_finish_writes_an_exit_once(tmp_path: Path):
    run = begin(tmp_path)

    run.finish()
    run.finish(exit_code=3)

    assert [record.data for record in of_kind(run, "exit")] == [{"exitcode": 0}]
    assert events(run)[-1].kind == "exit"
    assert eventlog.run is None


def test_an_exception_in_the_block_is_exit_code_1_with_its_words(tmp_path: Path):
    with pytest.raises(RuntimeError), begin(tmp_path) as run:
        raise RuntimeError("the loss is a banana")

    (record,) = of_kind(run, "exit")
    assert record.data["exitcode"] == 1
    assert "the loss is a banana" in record.data["error"]


def test_a_finished_run_refuses_to_log(tmp_path: Path):
    run = begin(tmp_path)
    run.finish()

    for call in (
        lambda: run.log({"a": 1}),
        lambda: run.config.update({"a": 1}),
        lambda: run.define_metric("a"),
    ):
        with pytest.raises(eventlog.EventlogError, match="finished"):
            call()

    assert dict(run.config) == {}


@pytest.mark.parametrize(
    ("ending", "exitcode"),
    [
        ("", 0),
        ("sys.exit()", 0),
        ("sys.exit(0)", 0),
        ("sys.exit(7)", 7),
        ("sys.exit('no')", 1),
        ("sys.exit(256)", 0),
        ("sys.exit(-1)", 255),
        ("exit(4)", 4),
        ("quit()", 0),
        ("with run: sys.exit(3)", 3),
        ("1/0", 1),
        ("sys.excepthook = lambda *error: None; 1/0", 1),
        ("sys.excepthook = lambda *error: None; raise KeyboardInterrupt", 255),
        ("raise KeyboardInterrupt", 255),
        ("run.finish(4)", 4),
        ("os.kill(os.getpid(), 9)", None),
    ],
)
def test_the_log_says_how_the_process_ended(tmp_path: Path, ending: str, exitcode: int | None):
    begun = "run = eventlog.init(project='demo', id='run', root=sys.argv[1])\n"
    done = in_a_process(begun + ending, str(tmp_path))

    ends = [record.data["exitcode"] for record in of_kind(tmp_path / "demo" / "run", "exit")]
    assert ends == ([] if exitcode is None else [exitcode])
    if "run" not in ending:
        assert done.returncode == in_a_process(ending).returncode


def test_a_process_that_ctrl_c_ends_dies_of_that_signal(tmp_path: Path):
    # As when the run, or another thread, imports something while it ends.
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1])
run.log({"a": 1})
look = run._files.finish
run._files.finish = lambda *args: (exec("import_of = 1"), look(*args))
raise KeyboardInterrupt
"""

    done = in_a_process(script, str(tmp_path))

    # A shell's loop, or a launcher, ends with it.
    assert done.returncode == -signal.SIGINT
    (end,) = of_kind(tmp_path / "demo" / "run", "exit")
    assert end.data["exitcode"] == 255
    assert "KeyboardInterrupt" in end.data["error"]


def test_a_signal_handler_may_finish_the_run_and_exit_at_once(tmp_path: Path):
    script = """
import signal, time
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
n = 0
def stop(*_):
    run.log({"n": n, "last": True})
    run.finish()
    print(n, flush=True)
    os._exit(0)
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.05 + float(sys.argv[2]))
while True:
    run.log({"n": n})
    n += 1
"""
    for attempt in range(8):
        root = tmp_path / str(attempt)

        done = in_a_process(script, str(root), str(attempt * 0.0007))

        logged = [record.data["n"] for record in of_kind(root / "demo" / "run", "metrics")]
        assert done.returncode == 0, done.stderr
        assert set(range(int(done.stdout))) <= set(logged)
        assert events(root / "demo" / "run")[-1].kind == "exit"


def test_ctrl_c_while_init_looks_around_leaves_no_piece_behind(tmp_path: Path):
    # A `git` that takes long, and that somebody has no patience with.
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text('#!/bin/sh\nmkdir "$0.asked" && kill -INT $PPID\nexec sleep 10\n')
    git.chmod(0o755)
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    script = """
os.chdir(sys.argv[2])
try:
    eventlog.init(project="demo", id="run", root=sys.argv[1], resume="allow", quiet=True)
except KeyboardInterrupt:
    print(os.listdir(os.path.join(sys.argv[1], "demo", "run")))
os.environ["PATH"] = os.environ["PATH"].split(":", 1)[1]
with eventlog.init(project="demo", id="run", root=sys.argv[1], resume="allow", quiet=True) as run:
    run.log({"a": 1})
"""

    done = in_a_process(
        script,
        str(tmp_path / "runs"),
        str(tmp_path / "repository"),
        PATH=f"{git.parent}:{os.environ['PATH']}",
    )

    assert (done.stdout, done.returncode) == ("['run.json']\n", 0), done.stderr
    assert writers(tmp_path / "runs" / "demo" / "run") == ["main-0001"]
    assert rows(tmp_path / "runs" / "demo" / "run") == [(0, True, {"a": 1})]


class Impatient:
    """A terminal on which somebody presses Ctrl-C when a word appears."""

    def __init__(self, word: str) -> None:
        self._word = word

    def write(self, text: str) -> int:
        if self._word in text:
            raise KeyboardInterrupt
        return len(text)

    def flush(self) -> None:
        pass


def test_ctrl_c_when_init_has_begun_the_run_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Impatient("is logged in"))

    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, quiet=False)

    run_dir = tmp_path / "demo" / "run"
    assert eventlog.run is None
    assert lock_owner_is_gone(run_dir / "main-0001")
    assert events(run_dir)[-1].data["exitcode"] == 255


def test_ctrl_c_in_finish_ends_the_run_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone = tmp_path / "gone.txt"
    gone.write_text("saved at the end, and deleted before that")
    run = begin(tmp_path)
    run.log({"a": 1})
    run.log_trajectory(eventlog.Trajectory([]))
    run.save(str(gone), policy="end")
    gone.unlink()
    monkeypatch.setattr(sys, "stderr", Impatient("not there any more"))

    with pytest.raises(KeyboardInterrupt):
        run.finish(3)

    assert eventlog.run is None
    assert lock_owner_is_gone(run.dir / "main-0001")
    assert [record.kind for record in events(run)][-2:] == ["metrics", "exit"]
    assert events(run)[-1].data["exitcode"] == 3
    run.finish()
    assert len(of_kind(run, "exit")) == 1


@at_every_bytecode
@pytest.mark.parametrize("does", ["interrupts", "finishes"])
def test_finish_may_be_cut_in_on_at_any_moment_and_called_again(tmp_path: Path, does: str):
    def interrupt() -> None:
        raise Interrupted

    n, reached = 0, True
    while reached:
        # Not each of them, or this would take long.
        n += 5
        run = begin(tmp_path, id=str(n))
        run.log({"a": 1})
        run.log_trajectory(eventlog.Trajectory([]))

        try:
            _, reached = at_bytecode_of(
                [running, files], n, interrupt if does == "interrupts" else run.finish, run.finish
            )
        except Interrupted:
            run.finish()

        assert eventlog.run is None
        assert lock_owner_is_gone(run.dir / "main-0001"), f"bytecode {n}"
        kinds = [record.kind for record in events(run)]
        # Ctrl-C in the very moment that the exit is written leaves none, as a kill does.
        assert kinds in (["start", "metrics", "exit"], ["start", "metrics"][: 2 * (does == "interrupts")])
        with pytest.raises(eventlog.errors.UsageError):
            run.log({"a": 2})
    assert n > 200


def test_a_log_beside_finish_is_before_the_exit_or_refused(tmp_path: Path):
    for attempt in range(8):
        run = begin(tmp_path, id=str(attempt))
        counts: dict[str, int] = {}

        def work(who: str, log: Callable[[str, int], object], counts: dict[str, int] = counts) -> None:
            counts[who] = 0
            with suppress(eventlog.errors.UsageError):
                while log(who, counts[who]) is None:
                    counts[who] += 1

        def log(who: str, i: int, run: eventlog.Run = run) -> None:
            run.log({"who": who, "i": i})

        def log_trajectory(who: str, i: int, run: eventlog.Run = run) -> None:
            run.log_trajectory(eventlog.Trajectory([], info={"i": i}))

        work_of = {"one": log, "other": log, "trajectories": log_trajectory}
        threads = [threading.Thread(target=work, args=each) for each in work_of.items()]
        for thread in threads:
            thread.start()
        while sum(counts.values()) < 40 * attempt:
            pass
        run.finish()
        for thread in threads:
            thread.join()

        logged = [record.data["who"] for record in of_kind(run, "metrics")]
        assert events(run)[-1].kind == "exit"
        assert [logged.count("one"), logged.count("other")] == [counts["one"], counts["other"]]
        assert len(list(read(run.dir, "trajectories"))) == counts["trajectories"]
        assert run.dropped == 0


def test_a_signal_handler_may_finish_the_run_in_the_middle_of_a_log(tmp_path: Path):
    # What is printed and sampled goes on as well, and may be what the log waits for.
    script = """
import signal, threading
for attempt in range(10):
    run = eventlog.init(project="demo", id=str(attempt), root=sys.argv[1], quiet=True)
    signal.signal(signal.SIGALRM, lambda *_: run.finish(3))
    signal.setitimer(signal.ITIMER_REAL, 0.001 + attempt * 0.0007)
    n = 0
    try:
        while True:
            run.log({"n": n})
            n += 1
    except eventlog.errors.UsageError:
        print(n, run.dropped)
"""

    done = in_a_process(script, str(tmp_path), WANDB_X_STATS_SAMPLING_INTERVAL="0.1")

    assert done.returncode == 0, done.stderr
    for attempt, line in enumerate(done.stdout.splitlines()):
        found = events(tmp_path / "demo" / str(attempt))
        returned, dropped = map(int, line.split())
        assert found[-1].data == {"exitcode": 3}
        assert sum(record.kind == "metrics" for record in found) + dropped == returned
    assert len(done.stdout.splitlines()) == 10


def test_finish_in_a_handler_waits_for_no_sample_that_waits_for_the_log_it_cut_in_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "false")
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
    run = begin(tmp_path)
    assert run._events is not None
    assert run._capture is not None
    writing = run._capture._system._writing

    # In the middle of a `log`, for which a sample waits.
    with run._events.lock:
        while writing.acquire(blocking=False):
            writing.release()
        run.finish()

    assert events(run)[-1].kind == "exit"


@at_every_bytecode
def test_finish_in_a_handler_waits_for_nobody_who_waits_for_the_log_it_cut_in_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(running, "_CUT_IN_WAIT_S", 0.1)
    run = begin(tmp_path)
    run.log({"page": eventlog.Html("<p>first")})

    def store() -> None:
        with suppress(eventlog.errors.UsageError):
            run._files.add("other.txt", b"text")

    storing = threading.Thread(target=store, daemon=True)

    def finish_while_another_stores() -> None:
        if not run._beside["files"]._is_writing:
            return
        storing.start()
        while run._files._lock.acquire(blocking=False):
            run._files._lock.release()
        run.finish()

    n = 200
    while not storing.ident:
        n += 1
        with suppress(eventlog.errors.UsageError):
            at_bytecode_of(
                [writer],
                n,
                finish_while_another_stores,
                lambda n=n: run.log({"page": eventlog.Html(f"<p>{n}")}),
            )

    assert eventlog.run is None
    assert events(run)[-1].kind == "exit"
    storing.join()


def test_finish_may_wait_for_the_daemon_and_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = begin(tmp_path, quiet=False)

    run.finish(sync_timeout=0.1)

    assert "is not uploaded after 0.1 s" in capsys.readouterr().err


# ── the current run ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_module_stands_for_the_run_begun_last(tmp_path: Path):
    first, second = begin(tmp_path, id="first"), begin(tmp_path, id="second", config={"lr": 1})

    eventlog.log({"a": 1})
    eventlog.summary["best"] = 2

    assert eventlog.run is second
    assert eventlog.config.lr == 1
    assert rows(second) == [(0, True, {"a": 1})]
    eventlog.finish()
    assert eventlog.run is first


def test_without_a_run_the_module_says_what_to_do():
    assert eventlog.run is None
    with pytest.raises(eventlog.EventlogError, match=r"eventlog\.init"):
        eventlog.log({"a": 1})
    with pytest.raises(eventlog.EventlogError, match=r"eventlog\.init"):
        eventlog.config.lr  # noqa: B018


def test_two_libraries_that_mean_one_run_get_one(tmp_path: Path):
    first = begin(tmp_path)

    assert begin(tmp_path, config={"b": 1}) is first
    assert first.config.b == 1
    assert begin(tmp_path, reinit="create_new") is not first


def test_reinit_may_finish_the_previous_run(tmp_path: Path):
    first = begin(tmp_path, id="first")

    begin(tmp_path, id="second", reinit=True)

    assert of_kind(first, "exit") != []


def test_a_disabled_run_does_everything_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")

    with begin(tmp_path, config={"lr": 1}) as run:
        run.log({"a": 1})
        run.log_trajectory(eventlog.Trajectory([]))
        run.define_metric("a")
        run.summary["best"] = 1
        run.config.update({"lr": 2}, allow_val_change=True)

    assert (run.config.lr, run.summary["best"], run.dropped, run.disabled) == (2, 1, 0, True)
    assert list(tmp_path.iterdir()) == []
    assert roots.registered() == []


def test_an_argument_that_only_wandb_knows_is_said_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    begin(tmp_path, sync_tensorboard=True, settings=eventlog.Settings(init_timeout=1))

    assert "init(sync_tensorboard=…) does nothing here" in capsys.readouterr().err


# ── one id, several processes ────────────────────────────────────────────────────────────────────────────────


def test_an_id_that_exists_begins_a_run_beside_it_with_the_same_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    begin(tmp_path, id="baseline").finish()
    begin(tmp_path, id="baseline").finish()

    third = begin(tmp_path, id="baseline")

    assert (third.id, third.name, third.resumed) == ("baseline-3", "baseline", False)
    assert "this is 'baseline-3'" in capsys.readouterr().err
    assert events(third)[0].data["name"] == "baseline"


def test_a_resumed_run_goes_on_where_the_log_ends(tmp_path: Path):
    with begin(tmp_path, config={"lr": 1, "old": True}, name="first") as run:
        run.log({"a": 1})
        run.log({"a": 2}, step=7)
        run.config.update({"lr": 2}, allow_val_change=True)

    again = begin(tmp_path, resume="allow", config={"lr": 3})

    start = events(again, "main-0002")[0]
    assert (again.resumed, again.step, again.name) == (True, 8, "first")
    assert dict(again.config) == {"lr": 3, "old": True}
    assert (start.data["resumed"], start.data["step"]) == (True, 8)
    assert start.data["config"] == {"lr": 3, "old": True}


@pytest.mark.parametrize("resume", [True, "auto", "must", "allow"])
def test_each_way_to_say_resume_resumes(tmp_path: Path, resume: Any):
    begin(tmp_path).finish()

    assert begin(tmp_path, resume=resume).resumed


def test_resume_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begin(tmp_path).finish()
    monkeypatch.setenv("WANDB_RESUME", "allow")

    assert begin(tmp_path).resumed


def test_resume_must_needs_a_run_and_makes_none(tmp_path: Path):
    with pytest.raises(eventlog.RunNotFound, match="'run'"):
        begin(tmp_path, resume="must")

    assert list(tmp_path.iterdir()) == []


def test_resume_never_refuses_a_run_that_exists(tmp_path: Path):
    begin(tmp_path).finish()

    with pytest.raises(eventlog.RunExists, match="'run'"):
        begin(tmp_path, resume="never")


def test_resume_allow_begins_a_run_that_does_not_exist(tmp_path: Path):
    run = begin(tmp_path, resume="allow")

    assert (run.id, run.resumed, run.step) == ("run", False, 0)


def test_the_time_of_all_earlier_pieces_counts(tmp_path: Path):
    # Each record of a handmade log is 1 ms after the one before.
    log = handmade_run(tmp_path)
    for step in range(4):
        log.log(step=step, commit=True, a=1)
    log.die()
    second = resumed(log.identity, tmp_path, step=4)
    second.log(step=4, a=1)
    second.die()

    run = begin(tmp_path, resume="allow")

    start = events(run, "main-0003")[0].data
    assert start["runtime_s"] == pytest.approx(0.005)
    assert start["step"] == 5


@given(
    calls=st.lists(
        st.tuples(st.none() | st.integers(0, 6), st.none() | st.booleans()), min_size=1, max_size=8
    )
)
def test_a_resumed_run_begins_after_the_last_row_that_wandb_has(calls):
    current, shown = 0, []
    earlier = Earlier()
    for seq, (step, commit) in enumerate(calls):
        before = current
        stored, closes, current = step_rule(current, step, commit)
        earlier.take(Record(seq, seq, "metrics", {}, stored, closes))
        if stored >= before:
            shown.append(stored)

    assert earlier.end_piece().step == max(shown) + 1


def test_a_run_that_lives_is_not_continued_but_written_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], resume="allow", quiet=True)
run.log({"from": "second"})
print(run.dropped)
"""
    first = begin(tmp_path)
    first.log({"from": "first"})

    done = in_a_process(script, str(tmp_path))

    assert f"is being written by process {os.getpid()}" in done.stderr
    assert primaries(first.dir) == ["main-0001"]
    (beside,) = (name for name in writers(first.dir) if name.startswith("second-"))
    assert [r.data for r in events(first.dir, beside) if r.kind == "metrics"] == [{"from": "second"}]
    assert [data for _, _, data in rows(first)] == [{"from": "first"}]


def test_many_processes_that_begin_one_id_at_once_have_a_run_each(tmp_path: Path):
    script = "import eventlog, sys; print(eventlog.init(project='demo', id='run', root=sys.argv[1], quiet=True).id)"

    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    ids = sorted(process.communicate()[0].strip() for process in started)

    assert ids == ["run", "run-2", "run-3", "run-4", "run-5", "run-6"]
    for run_id in ids:
        assert primaries(tmp_path / "demo" / run_id) == ["main-0001"]


def test_of_many_processes_that_resume_one_run_at_once_one_writes_its_history(tmp_path: Path):
    begin(tmp_path).finish()
    script = """
import eventlog, sys, time
run = eventlog.init(project="demo", id="run", root=sys.argv[1], resume="allow", quiet=True)
print(run._piece.writer, flush=True)
sys.stdin.read()
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(5)
    ]
    names = [process.stdout.readline().strip() for process in started if process.stdout]
    for process in started:
        process.communicate()

    assert sorted(name.partition("-")[0] for name in names) == [
        "main",
        "second",
        "second",
        "second",
        "second",
    ]


def last_seen_elsewhere(root: Path, heartbeat_s: float) -> None:
    """Leave a run whose last process died on another machine."""
    log = handmade_run(root)
    log.log(step=3, commit=True, a=1)
    log.die()
    text = {"host": "node17", "boot_id": "other", "pid": 1, "heartbeat": int(heartbeat_s * 1e6)}
    (log.piece.dir / LOCK_FILE).write_bytes(orjson.dumps(text) + b"\n")


def test_a_run_that_died_on_another_machine_is_continued(tmp_path: Path):
    last_seen_elsewhere(tmp_path, time.time() - 10 * HEARTBEAT_S)

    run = begin(tmp_path, resume="allow")

    assert primaries(run.dir) == ["main-0001", "main-0002"]
    assert run.step == 4


def test_a_run_that_lives_on_another_machine_is_written_beside(tmp_path: Path):
    last_seen_elsewhere(tmp_path, time.time())
    lock = tmp_path / "demo" / "run" / "main-0001" / LOCK_FILE

    def live() -> None:
        time.sleep(0.3)
        text = orjson.loads(lock.read_bytes())
        lock.write_bytes(orjson.dumps({**text, "heartbeat": text["heartbeat"] + 1}))

    thread = threading.Thread(target=live)
    thread.start()
    run = begin(tmp_path, resume="allow")
    thread.join()

    assert primaries(run.dir) == ["main-0001"]


def test_a_rank_above_0_writes_beside_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rank_0 = begin(tmp_path)
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log({"rank": 3})
"""

    done = in_a_process(script, str(tmp_path), RANK="3", WORLD_SIZE="4")

    assert done.returncode == 0, done.stderr
    (beside,) = (name for name in writers(rank_0.dir) if name.startswith("rank3-"))
    found = events(rank_0.dir, beside)
    assert [record.kind for record in found] == ["start", "metrics", "exit"]
    assert (found[0].data["rank"], found[0].data["world_size"]) == (3, 4)


def test_a_rank_that_is_first_leaves_the_history_to_rank_0(tmp_path: Path):
    script = "run = eventlog.init(project='demo', id='run', root=sys.argv[1], quiet=True)"
    in_a_process(script, str(tmp_path), SLURM_PROCID="1")

    run = begin(tmp_path)

    assert run.id == "run"
    assert primaries(run.dir) == ["main-0001"]
    assert len(writers(run.dir)) == 2


def test_a_rank_follows_rank_0_into_the_run_that_stands_in_for_a_taken_id(tmp_path: Path):
    begin(tmp_path).finish()
    script = "print(eventlog.init(project='demo', id='run', root=sys.argv[1], quiet=True).id)"
    waiting = subprocess.Popen(
        [sys.executable, "-c", "import eventlog, sys\n" + script, str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "RANK": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )

    rank_0 = begin(tmp_path)

    assert rank_0.id == "run-2"
    assert waiting.communicate()[0].strip() == "run-2"


def test_ranks_without_an_id_say_how_to_be_in_one_run(tmp_path: Path):
    done = in_a_process("eventlog.init(project='demo', root=sys.argv[1])", str(tmp_path), RANK="1")

    assert "WANDB_RUN_ID" in done.stderr


def test_a_forked_child_has_a_piece_of_its_own_and_leaves_its_parents_alone(tmp_path: Path):
    # faults: 59
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log({"from": "parent", "n": 0})
run.log_trajectory(eventlog.Trajectory([]))
saved = os.path.join(sys.argv[1], "saved")
open(saved, "w").write("by the parent")
run.save(saved, policy="live")
child = os.fork()
if child == 0:
    run.log({"from": "child", "n": 0})
    run.log_trajectory(eventlog.Trajectory([]))
    run.log_artifact(saved, name="n")
    open(saved, "w").write("by the child")
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
run.log({"from": "parent", "n": 1})
"""
    done = in_a_process(script, str(tmp_path))

    run_dir = tmp_path / "demo" / "run"
    assert done.returncode == 0, done.stderr
    (child,) = (name for name in writers(run_dir) if name.startswith("fork-"))
    assert [data for _, _, data in rows(run_dir)] == [{"from": "parent", "n": 0}, {"from": "parent", "n": 1}]
    assert [(r.kind, r.data.get("from")) for r in events(run_dir, child)] == [
        ("start", None),
        ("metrics", "child"),
        ("exit", None),
    ]
    assert len(list(read(run_dir, "trajectories", child))) == 1
    assert [record.kind for record in read(run_dir, "files", child)] == ["artifact"]
    assert len(list(read(run_dir, "trajectories"))) == 1
    assert [record.kind for record in read(run_dir, "files")] == ["file", "file"]


def test_a_forked_child_that_lives_on_does_not_make_its_dead_parent_look_alive(tmp_path: Path):
    # faults: 59
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log({"n": 0})
if os.fork() == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    trainer = subprocess.Popen(
        [sys.executable, "-c", "import eventlog, os, sys\n" + script, str(tmp_path)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    child = int(trainer.stdout.readline())
    assert trainer.wait() == -signal.SIGKILL
    os.kill(child, 0)

    again = begin(tmp_path, resume="allow")

    assert primaries(again.dir) == ["main-0001", "main-0002"]
    assert again.step == 1
    trainer.communicate()


def test_a_child_that_does_not_log_leaves_no_trace(tmp_path: Path):
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
if os.fork() == 0:
    sys.exit(5)
os.wait()
"""
    in_a_process(script, str(tmp_path))

    run_dir = tmp_path / "demo" / "run"
    assert writers(run_dir) == ["main-0001"]
    assert [record.data for record in of_kind(run_dir, "exit")] == [{"exitcode": 0}]


# ── the world fails ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_deleted_run_directory_never_fails_a_training_and_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import shutil

    run = begin(tmp_path)
    run.log({"a": 1})
    shutil.rmtree(tmp_path)
    deadline_s = time.monotonic() + 30
    while run.dropped == 0 and time.monotonic() < deadline_s:
        run.log({"a": 2})
        time.sleep(0.01)

    run.finish()

    assert run.dropped > 0
    assert "was deleted" in capsys.readouterr().err


def test_a_full_disk_is_said_once_and_counted_also_for_trajectories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # faults: 61, 66
    import resource

    run = begin(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        for _ in range(3):
            run.log({"large": "x" * 9000})
            run.log_trajectory(eventlog.Trajectory([eventlog.Turn("user", "x" * 9000)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run.finish()

    assert run.dropped == 6
    gaps = [(record.data["dropped"], record.data["reason"]) for record in of_kind(run, "gap")]
    assert sum(dropped for dropped, _ in gaps) == 6
    assert any(reason.startswith("trajectories: ") for _, reason in gaps)
    said = capsys.readouterr().err
    assert said.count("Training goes on") == 1
    assert "6 records of demo/run could not be written" not in said


def test_flush_durable_says_that_all_is_on_the_disk(tmp_path: Path):
    run = begin(tmp_path)
    run.log({"a": 1})

    assert run.flush(durable=True)
    assert run.flush()


def test_the_interval_makes_records_durable_without_a_call(tmp_path: Path):
    run = begin(tmp_path)
    run.log({"a": 1})
    assert run._events is not None

    deadline_s = time.monotonic() + 30
    while run._events.is_dirty and time.monotonic() < deadline_s:
        time.sleep(0.01)

    assert not run._events.is_dirty


def test_nan_and_its_like_survive(tmp_path: Path):
    run = begin(tmp_path)

    run.log({"nan": math.nan, "inf": -math.inf, "big": 2**64, "bytes": b"\x00"})

    (record,) = of_kind(run, "metrics")
    assert math.isnan(record.data["nan"])
    assert (record.data["inf"], record.data["big"]) == (-math.inf, 2**64)
    assert record.lossy == (("bytes",),)


def test_the_version_is_the_distributions():
    text = (PROJECT / "pyproject.toml").read_text()

    assert f'version = "{eventlog.__version__}"' in text


def test_the_summary_shows_what_was_logged_last_and_may_delete_it(tmp_path: Path):
    inner = {"x": 1}
    with eventlog.init(project="demo", root=tmp_path) as run:
        run.log({"loss": 2.0, "n": inner})
        run.log({"loss": 1.0})
        run.summary["n"]["x"] = 5
        shown = (run.summary["loss"], run.summary["n"]["x"], inner["x"])
        del run.summary["loss"]

    assert shown == (1.0, 5, 1)
    assert "loss" not in run.summary
