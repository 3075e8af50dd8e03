"""What W&B's `Run` can do besides rows, config and summary: names, code, files, addresses, resumption."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

import eventlog
from eventlog import cursor
from eventlog.cursor import Cursor, Sink
from eventlog.record import Record

PROJECT = Path(__file__).parents[2]
SINK = Sink("https://api.example", None, "demo", "run")
ATTACH = {"url": "https://example/team/demo/runs/run", "entity": "team"}


def begin(root: Path, **options: Any) -> eventlog.Run:
    return eventlog.init(**{"project": "demo", "id": "run", "root": root, "quiet": True, **options})


def records(run: eventlog.Run, kind: str, stream: str = "events") -> list[Record]:
    return [record for record in eventlog.read(run.dir, stream) if record.kind == kind]


def files(run: eventlog.Run) -> dict[str, bytes]:
    """What the run has saved, by name."""
    found = records(run, "file", "files")
    return {each.data["path"]: (run.dir / "files" / each.data["sha256"]).read_bytes() for each in found}


def artifacts(run: eventlog.Run) -> dict[str, tuple[str, set[str]]]:
    """The artifacts of the run, by name: type and paths."""
    found = {}
    for each in records(run, "artifact", "files"):
        manifest = orjson.loads((run.dir / "files" / each.data["manifest"]).read_bytes())
        found[each.data["name"]] = (each.data["type"], set(manifest))
    return found


def in_a_process(script: str, cwd: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    (cwd / "train.py").write_text("import eventlog as wandb, os, sys\n" + script)
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_name_notes_and_tags_may_change_and_the_change_is_a_record(tmp_path: Path):
    run = begin(tmp_path, name="first", tags=["a"])

    run.name = "second"
    run.notes = "better"
    run.tags += ("b",)

    assert [record.data for record in records(run, "facts")] == [
        {"name": "second"},
        {"notes": "better"},
        {"tags": ["a", "b"]},
    ]
    assert (run.name, run.notes, run.tags) == ("second", "better", ("a", "b"))


def test_a_resumed_run_keeps_what_it_was_told_last(tmp_path: Path):
    with begin(tmp_path, name="first", tags=["a"], group="g", notes="old") as run:
        run.tags += ("b",)
        run.name = "second"

    again = begin(tmp_path, resume="must", notes="new")

    assert (again.name, again.tags, again.group, again.notes) == ("second", ("a", "b"), "g", "new")


def test_a_resumed_run_shows_its_summary(tmp_path: Path):
    with begin(tmp_path) as run:
        run.define_metric("loss", summary="min")
        for loss in (3, 1, 2):
            run.log({"loss": loss, "epoch": loss})
        run.summary["best"] = 7

    again = begin(tmp_path, resume="must")
    again.log({"loss": 5})

    assert again.summary._as_dict() == {"loss": {"min": 1.0}, "epoch": 2, "best": 7}


def test_best_of_an_older_client_is_the_extreme_that_is_wanted(tmp_path: Path):
    run = begin(tmp_path)

    run.define_metric("acc", summary="best", goal="maximize")
    run.define_metric("loss", summary="best,last")

    assert [
        (record.data["summary"], record.data.get("goal")) for record in records(run, "define_metric")
    ] == [
        (["max"], "maximize"),
        (["min", "last"], None),
    ]


def test_a_metric_over_another_is_defined_by_either_name(tmp_path: Path):
    run = begin(tmp_path)

    step = run.define_metric("epoch")
    metric = run.define_metric("val/*", step_metric=step)

    assert (metric.step_metric, metric.step_sync) == ("epoch", True)
    assert records(run, "define_metric")[1].data == {"name": "val/*", "step_metric": "epoch"}


def test_a_definition_after_many_rows_reads_the_log_once(tmp_path: Path):
    run = begin(tmp_path)
    for value in range(5):
        run.log({"m": value})
    run.log({"m": 9}, step=2)

    run.define_metric("m", summary="max,mean")
    run.define_metric("m", summary="max")

    assert run.summary["m"] == {"max": 4.0, "mean": 2.0}


def test_keys_are_pinned_in_what_wandb_is_told(tmp_path: Path):
    run = begin(tmp_path)

    run.pin_config_keys(["lr"])

    assert [record.data for record in records(run, "facts")] == [{"wandb": {"pinned_keys": ["lr"]}}]


def test_a_copy_of_what_holds_a_run_logs_to_the_same_run(tmp_path: Path):
    holder = {"run": begin(tmp_path), "list": [1]}

    twin = copy.deepcopy(holder)

    assert twin["run"] is holder["run"]
    assert twin["list"] is not holder["list"]


def test_a_run_begun_beside_another_is_not_the_current_one(tmp_path: Path):
    run = begin(tmp_path)

    beside = begin(tmp_path, id="beside", reinit="create_new")
    eventlog.log({"a": 1})

    assert eventlog.run is run
    assert (len(records(run, "metrics")), records(beside, "metrics")) == (1, [])
    beside.finish()


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_script_puts_into_the_runs_directory_is_saved_by_its_name_there(tmp_path: Path):
    run = begin(tmp_path)
    Path(run.dir + "/model.bin").write_bytes(b"weights")
    (run.dir / "sub").mkdir()
    (run.dir / "sub" / "notes.txt").write_text("n")

    run.save(os.path.join(run.dir, "model.bin"))
    run.save(os.path.join(run.dir, "sub/*"))

    assert files(run) == {"model.bin": b"weights", "sub/notes.txt": b"n"}


def test_a_saved_file_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "w.txt"
    with begin(tmp_path / "root") as run:
        for text in ("first", "second"):
            weights.write_text(text)
            run.save("weights/w.txt")
    weights.unlink()

    again = begin(tmp_path / "root", resume="must")
    with again.restore("weights/w.txt", root=str(tmp_path)) as file:  # type: ignore[union-attr]
        restored = file.read()

    assert restored == weights.read_text() == "second"


def test_what_was_never_saved_is_not_restored_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = begin(tmp_path)

    assert run.restore("never.txt") is None
    assert run.restore("never.txt", run_path="another/run") is None
    assert "found no such file" in capsys.readouterr().err


def test_content_that_was_damaged_is_not_restored(tmp_path: Path):
    run = begin(tmp_path)
    source = tmp_path / "a.txt"
    source.write_text("content")
    (name,) = run.save(str(source), base_path=str(tmp_path))
    (stored,) = (run.dir / "files").iterdir()
    stored.chmod(0o600)
    stored.write_text("another")

    assert run.restore(name, root=str(tmp_path / "back")) is None


def test_what_is_restored_is_its_users_alone(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("content")
    run.save(str(tmp_path / "a.txt"), base_path=str(tmp_path.parent))
    name = f"{tmp_path.name}/a.txt"

    umask = os.umask(0)
    try:
        file = run.restore(name)
    finally:
        os.umask(umask)

    assert file is not None
    with file:
        assert file.read() == "content"
    restored = run.dir / name
    assert [path.stat().st_mode & 0o777 for path in (restored, restored.parent)] == [0o600, 0o700]


def test_a_directory_that_is_gone_raises_nothing_in_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = begin(tmp_path)
    run.log({"a": 1})
    run.log({"a": 2})
    run.dir.rename(tmp_path / "elsewhere")

    run.define_metric("a", summary="mean")
    summary = dict(run.summary)
    run.log({"a": 4})
    run.log_artifact(__file__, name="n")

    assert (summary, run.summary["a"]) == ({"a": 2}, {"mean": 4.0})
    assert (run.restore("never"), run.url, run.entity) == (None, None, "")
    assert run.status().sync_items_total >= 0
    assert "run.summary has no statistics of what was logged before" in capsys.readouterr().err
    run.finish()


def test_without_a_free_descriptor_nothing_raises_in_a_training(tmp_path: Path):
    script = """
import resource
run = wandb.init(project="demo", id="run", root=sys.argv[1])
run.log({"a": 1})
run.url, run.status(), run.restore("never"), wandb.Artifact("n", "t").add_file("train.py"), run.summary["a"]
run.log_artifact("train.py", name="first")
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
artifact = wandb.Artifact("n", "t")
artifact.add_file("train.py")
run.define_metric("a", summary="mean")
found = (run.url, run.project_url, run.entity, run.restore("other"), run.summary["a"], run.status().sync_items_pending)
run.log_artifact("train.py", name="second")
run.log_artifact(artifact)
run.log({"a": 2})
dropped = run.dropped
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(found, dropped)
run.finish()
"""
    quiet = {"WANDB_X_SAVE_REQUIREMENTS": "false", "WANDB_X_DISABLE_STATS": "true", "WANDB_CONSOLE": "off"}

    process = in_a_process(script, tmp_path, str(tmp_path), **quiet)

    assert process.returncode == 0, process.stderr
    assert process.stdout == "(None, None, '', None, 1, 0) 2\n"


def test_a_model_is_an_artifact_of_that_type(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "m.bin").write_bytes(b"w")

    run.log_model(tmp_path / "m.bin", name="net", aliases=["best"])
    run.link_model(tmp_path / "m.bin", "registered")

    assert artifacts(run) == {"net": ("model", {"m.bin"}), "run-run-m.bin": ("model", {"m.bin"})}


def test_code_is_an_artifact_of_the_source_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "train.py",
        "sub/model.py",
        "Dockerfile",
        "data.bin",
        "wandb/old.py",
        "root/other.py",
        "wandb.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    run = begin(tmp_path / "root")

    logged = run.log_code(name="all my code")
    run.log_code("sub", name="some", include_fn=lambda path, root: path.startswith(root))
    run.log_code(name="few", exclude_fn=lambda path: not path.endswith("train.py"))

    assert artifacts(run) == {
        "all_my_code": ("code", {"train.py", "sub/model.py", "Dockerfile", "wandb.py"}),
        "some": ("code", {"model.py"}),
        "few": ("code", {"train.py"}),
    }
    assert logged is not None
    assert next(record.data["wandb"]["code_path"] for record in records(run, "facts")) == logged.name


def test_code_is_named_for_project_and_program(tmp_path: Path):
    done = in_a_process("run = wandb.init(project='p', root='r')\nprint(run.log_code().name)", tmp_path)

    assert done.stdout == "source-p-train.py\n", done.stderr


def test_save_code_saves_the_program(tmp_path: Path):
    script = "run = wandb.init(project='p', id='i', root='r', save_code=True)\n"
    in_a_process(script, tmp_path)

    run = tmp_path / "r" / "p" / "i"
    saved = {
        record.data["path"]: (run / "files" / record.data["sha256"]).read_text()
        for record in eventlog.read(run, "files")
    }
    assert saved["code/train.py"] == (tmp_path / "train.py").read_text()
    facts = [record.data for record in eventlog.read(run) if record.kind == "facts"]
    assert facts == [{"wandb": {"code_path": "code/train.py"}}]


def test_logs_may_be_written_without_printing_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(tmp_path)

    run.write_logs("from a logger")

    assert [record.data for record in records(run, "console", "console")] == [
        {"source": "stdout", "text": "from a logger\n"}
    ]
    assert capsys.readouterr().out == ""


# ── on W&B ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_has_an_address_once_a_cursor_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "run")
    monkeypatch.setenv("WANDB_PROJECT", "demo")
    run = begin(tmp_path, id=None, project=None)
    assert (run.url, run.project_url, run.sweep_url, run.entity) == (None, None, None, "")
    assert str(run.dir) in run.to_html()

    # A rank that is a run of its own has another page.
    cursor.save(run.dir, Cursor(replace(SINK, run_id="run-rank3"), attach=ATTACH, rank=3), 1)
    assert run.url is None
    cursor.save(run.dir, Cursor(SINK, attach=ATTACH), 1)

    assert run.url == run.get_url() == "https://example/team/demo/runs/run"
    assert run.project_url == "https://example/team/demo"
    assert run.sweep_url == "https://example/team/demo/sweeps/s"
    assert run.entity == "team"
    assert 'src="https://example/team/demo/runs/run?jupyter=true"' in run.to_html()


def test_the_status_says_how_much_is_on_its_way(tmp_path: Path):
    run = begin(tmp_path)
    for _ in range(4):
        run.log({"a": 1})
    assert (run.status().sync_items_total, run.status().sync_items_pending, run.status().sync_time) == (
        5,
        5,
        None,
    )

    cursor.save(run.dir, Cursor(SINK, attach=ATTACH, next={"writer": "main-0001", "seq": 3}), 1_000_000)

    found = run.status()
    assert (found.sync_items_total, found.sync_items_pending, found.sync_time.timestamp()) == (5, 2, 1.0)


# ── resume="auto" ────────────────────────────────────────────────────────────────────────────────────────────

AUTO = "run = wandb.init(project='p', root='r', resume='auto')\nprint(run.id, run.resumed)\n"


@pytest.mark.parametrize("ending", ["1/0", "sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_auto_continues_the_run_that_ended_badly(tmp_path: Path, ending: str):
    first = in_a_process(AUTO + "sys.stdout.flush()\n" + ending, tmp_path).stdout.split()
    second = in_a_process(AUTO, tmp_path).stdout.split()
    third = in_a_process(AUTO, tmp_path).stdout.split()

    assert (second, third[1]) == ([first[0], "True"], "False")
    assert third[0] != first[0]


def test_a_run_without_auto_ends_the_wait_for_a_continuation(tmp_path: Path):
    first = in_a_process(AUTO + "sys.stdout.flush()\n1/0", tmp_path).stdout.split()
    in_a_process("wandb.init(project='p', root='r')", tmp_path)

    assert in_a_process(AUTO, tmp_path).stdout.split()[0] != first[0]


def test_a_remembered_run_that_cannot_be_read_is_a_new_run(tmp_path: Path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / ".auto-resume.json").write_text("{")

    assert not begin(tmp_path, id=None, resume="auto").resumed


def test_what_a_person_writes_later_is_without_the_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    run = begin(tmp_path)

    run.notes = f"wandb login {key}"

    assert [record.data for record in records(run, "facts")] == [{"notes": "wandb login [redacted]"}]
