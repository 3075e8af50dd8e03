"""What a notebook gets from `analysis.Api()`: its runs, filtered and ordered; their histories and files; and its errors.

That the answers are those of W&B's own API is `test_api_like_wandb.py`'s to prove.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

import analysis
import analysis.api as api_module
import analysis.run as run_module
import eventlog
from analysis.api import Api
from analysis.errors import CommError, UnsupportedError
from eventlog.piece import this_host
from eventlog.seal import seal
from tests.logs import TIME_US, HandmadePiece, handmade_run, resumed


def logged(root: Path, run_id: str, rows: int = 3, exitcode: int | None = 0, **start: Any) -> HandmadePiece:
    """A run of rows {"loss": 1/(i+1)} that ended."""
    piece = handmade_run(root, run_id, **start)
    for i in range(rows):
        piece.log(step=i, loss=1 / (i + 1))
    if exitcode is not None:
        piece.log("exit", exitcode=exitcode)
    piece.die()
    return piece


@pytest.fixture
def root(tmp_path: Path) -> Path:
    logged(
        tmp_path,
        "a",
        1,
        config={"lr": 0.1, "opt": {"name": "adam"}},
        name="first",
        tags=["x", "y"],
        group="g",
    )
    logged(tmp_path, "b", 2, config={"lr": 1e-6}, name="second", tags=["y"], job_type="eval")
    logged(tmp_path, "c", 3, exitcode=1, config={"lr": "auto", "seed": None})
    logged(tmp_path, "d", 0, exitcode=None)
    return tmp_path


def ids(api: Api, filters: dict[str, Any] | None = None, **options: Any) -> list[str]:
    return [run.id for run in api.runs("demo", filters, **options)]


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "abcd"),
        ({"config.lr": 0.1}, "a"),
        ({"config.lr.value": 0.1}, "a"),
        ({"config.lr": {"$lt": 1}}, "ab"),
        ({"config.lr": {"$exists": True}}, "abc"),
        ({"config.seed": None}, "abcd"),
        ({"config.seed": {"$exists": True}}, "c"),
        ({"config.opt.name": "adam"}, "a"),
        ({"config.lr": {"$not": {"$lt": 1}}}, "cd"),
        ({"summary_metrics.loss": {"$lte": 0.5}}, "bc"),
        ({"summary.loss": 1}, "a"),
        ({"summaryMetrics.loss": {"$gt": 0.5}}, "a"),
        ({"state": "finished"}, "ab"),
        ({"state": {"$in": ["failed", "crashed"]}}, "cd"),
        ({"tags": "y"}, "ab"),
        ({"tags": {"$in": ["x", "z"]}}, "a"),
        ({"tags": {"$nin": ["y"]}}, "cd"),
        ({"display_name": {"$regex": "^f"}}, "a"),
        ({"displayName": "second"}, "b"),
        ({"name": {"$ne": "a"}}, "bcd"),
        ({"group": "g"}, "a"),
        ({"jobType": "eval"}, "b"),
        ({"username": None}, "abcd"),
        ({"created_at": {"$gte": "2025-11-21"}}, "abcd"),
        ({"createdAt": {"$lt": "2025-11-21"}}, ""),
        ({"$or": [{"name": "a"}, {"$and": [{"state": "failed"}, {"config.lr": "auto"}]}]}, "ac"),
        ({"$nor": [{"name": "a"}, {"name": "b"}]}, "cd"),
    ],
)
def test_a_filter_means_what_mongodb_says(root: Path, filters: dict[str, Any], found: str) -> None:
    assert ids(Api(root=root), filters) == list(found)


def test_runs_are_ordered_by_what_is_asked_and_what_has_it_not_comes_last(root: Path) -> None:
    api = Api(root=root)

    assert ids(api, order="+summary_metrics.loss") == ["c", "b", "a", "d"]
    assert ids(api, order="-summary_metrics.loss") == ["a", "b", "c", "d"]
    assert ids(api, order="config.lr") == ["b", "a", "c", "d"]
    assert ids(api, order="-config.lr.value") == ["a", "b", "c", "d"]
    assert ids(api, order="-display_name") == ["b", "a", "d", "c"]


def test_runs_of_one_second_are_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    for run_id in ("z", "y", "a"):
        with eventlog.init(project="demo", id=run_id, root=tmp_path, quiet=True):
            pass
    api = Api(root=tmp_path)

    assert ids(api) == ["z", "y", "a"]
    assert ids(api, order="-created_at") == ["a", "y", "z"]
    assert ids(api, order="-state") == ["a", "y", "z"]


def test_runs_are_a_sequence(root: Path) -> None:
    runs = Api(root=root).runs("demo", per_page=1, lazy=False, include_sweeps=True)

    assert len(runs) == 4
    assert [runs[0].id, runs[-1].id, [run.id for run in runs[1:3]]] == ["a", "d", ["b", "c"]]
    assert [run.id for run in runs] == [run.id for run in runs] == list("abcd")
    assert repr(runs) == "<Runs demo (4)>"


def test_runs_are_their_own_iterator_which_a_loop_begins_anew(root: Path) -> None:
    runs = Api(root=root).runs("demo")

    assert [next(runs).id, runs.next().id, runs[0].id, next(runs).id] == ["a", "b", "a", "c"]
    assert iter(runs) is runs
    assert [next(runs).id, *(run.id for run in runs)] == ["a", *"abcd"]
    with pytest.raises(StopIteration):
        next(runs)


def test_an_operator_that_is_not_there_and_a_field_that_no_run_has_are_refused_by_name(root: Path) -> None:
    api = Api(root=root)

    with pytest.raises(CommError, match=r"'\$near' is not known here. There are: \$and, \$or"):
        api.runs("demo", {"$or": [{"config.lr": {"$not": {"$near": 1}}}]})
    with pytest.raises(CommError, match=r"cannot be asked for 'displayname'. The nearest: display_name"):
        api.runs("demo", {"displayname": "first"})
    with pytest.raises(CommError, match=r"cannot be asked for 'loss'. The nearest"):
        api.runs("demo", order="-loss")
    for filters in ({5: 1}, {"$and": [{5: 1}]}):
        with pytest.raises(CommError, match=r"a filter's key is a text, as in .*, not 5\."):
            api.runs("demo", filters)
    with pytest.raises(CommError, match=r"'\(' is no regular expression"):
        api.runs("demo", {"name": {"$regex": "("}})


def test_a_list_of_runs_is_a_query_and_reads_none_of_their_logs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_a_log(_: Any) -> None:
        raise AssertionError("a log was read")

    monkeypatch.setattr(run_module, "told", read_a_log)

    runs = Api(root=root).runs("demo", {"config.lr": {"$exists": True}}, order="-summary_metrics.loss")

    assert [(run.config, run.summary.get("loss"), run.state, run.name) for run in runs][:2] == [
        ({"lr": 0.1, "opt": {"name": "adam"}}, 1, "finished", "first"),
        ({"lr": 1e-6}, 0.5, "finished", "second"),
    ]


def test_a_last_step_in_the_past_makes_a_listed_run_no_younger(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, "one")
    run.log(step=5, loss=1)
    run.log(step=2, loss=2)
    run.die()
    api = Api(root=tmp_path)

    [listed], alone = api.runs("demo"), api.run("one")

    assert listed.summary["_timestamp"] == alone.summary["_timestamp"] == (TIME_US + 1000) / 1e6


ODD: dict[str, Callable[[HandmadePiece], Any]] = {
    "nothing odd": lambda run: run.log(step=7, loss=3, text="t", flag=True, none=None, list=[1, 2]),
    "a definition": lambda run: run.log("define_metric", name="loss", summary=["max"]),
    "other facts": lambda run: run.log("facts", name="renamed", tags=["new"], notes="later"),
    "a nested value": lambda run: run.log(step=7, nest={"x": {"y": 1}}),
    "a dotted key": lambda run: run.log(step=7, **{"nest.x": 1}),
    "no number": lambda run: run.log(step=7, loss=math.nan),
    "a text that looks like none": lambda run: run.log(step=7, text="NaN"),
    "an integer beyond all": lambda run: run.log(step=7, big=2**70, huge=2**63),
    "a value by hand": lambda run: run.log("summary", set=[[["best"], 1], [["loss"], 2]]),
    "a value that is gone": lambda run: run.log("summary", delete=[["loss"]]),
    "a step in the past": lambda run: run.log(step=0, loss=9),
    "a setting without a number": lambda run: run.log("config", nan=math.nan, inf=math.inf, text="NaN"),
    "a setting beyond all": lambda run: run.log("config", big=2**70, huge=2**63, empty={}),
    "a committed row": lambda run: run.log(step=9, commit=True),
    "a sample": lambda run: run.log("system", cpu=1.5),
}


@pytest.mark.parametrize("is_sealed", [False, True], ids=["live", "sealed"])
@pytest.mark.parametrize("what", ODD.values(), ids=ODD)
def test_a_run_in_a_list_is_the_same_as_one_by_itself(
    tmp_path: Path, what: Callable[[HandmadePiece], Any], is_sealed: bool
) -> None:
    run = handmade_run(
        tmp_path, "one", config={"lr": 1, "nested": {"a": None}}, name="n", tags=["t"], host="h"
    )
    for i in range(3):
        run.log(step=i, loss=1 / (i + 1))
    what(run)
    run.log("exit", exitcode=0)
    run.die()
    second = resumed(run.identity, tmp_path, config={"lr": 2}, step=12, notes="again")
    second.log(step=12, x=1)
    second.log("exit", exitcode=2)
    second.die()
    if is_sealed:
        seal(tmp_path / "demo" / "one")
    api = Api(root=tmp_path)

    [listed], alone = api.runs("demo"), api.run("one")

    for name in (
        "name",
        "state",
        "tags",
        "group",
        "notes",
        "host",
        "created_at",
        "heartbeat_at",
        "last_history_step",
    ):
        assert getattr(listed, name) == getattr(alone, name), name
    assert repr(listed.config) == repr(alone.config)
    assert sorted_repr(listed.summary_metrics) == sorted_repr(alone.summary_metrics)


def sorted_repr(tree: dict[str, Any]) -> str:
    return repr(sorted(tree.items(), key=lambda item: item[0]))


# -- one run -------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_each_way_to_write_its_path(root: Path) -> None:
    api = Api(root=root)

    paths = ["ent/demo/a", "ent/demo/runs/a", "/demo/a", "demo/a", "demo:a", "a"]

    assert [api.run(path).id for path in paths] == ["a"] * 6
    assert api.from_path("ent/demo/runs/a").id == "a"
    assert api.from_path("demo").name == "demo"


def test_a_run_that_is_not_there_is_an_error_that_names_the_nearest(root: Path) -> None:
    logged(root, "baseline")
    api = Api(root=root)

    with pytest.raises(CommError, match=r"there is no run 'demo/basline'. The nearest: baseline"):
        api.run("demo/basline")
    with pytest.raises(ValueError, match="no run"):
        api.run("other/a")
    with pytest.raises(eventlog.errors.CommError, match="is no path"):
        api.run("a/b/c/d/e")
    with pytest.raises(CommError, match=r"no project 'dmo' below this root. The nearest: demo"):
        api.runs("dmo")


def test_one_id_in_two_projects_wants_the_project(tmp_path: Path) -> None:
    for project in ("one", "two"):
        handmade_run(tmp_path, "same", project, config={"of": project}).die()

    with pytest.raises(CommError, match=r"several runs are called 'same'. Say which: one/same, two/same"):
        Api(root=tmp_path).run("same")

    assert Api(root=tmp_path).run("two/same").config == {"of": "two"}
    assert Api({"project": "one"}, root=tmp_path).run("same").config == {"of": "one"}
    assert [run.project for run in Api(root=tmp_path).runs()] == ["one", "two"]
    assert [project.name for project in Api(root=tmp_path).projects()] == ["one", "two"]


def test_a_run_of_an_entity_is_not_found_under_another(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="ours", entity="team", root=tmp_path, quiet=True):
        pass
    api = Api(root=tmp_path)

    assert (api.default_entity, api.run("team/demo/ours").path) == ("team", ["team", "demo", "ours"])
    assert [len(api.runs("team/demo")), len(api.runs("others/demo"))] == [1, 0]
    with pytest.raises(CommError, match="no run 'others/demo/ours'"):
        api.run("others/demo/ours")


def test_the_states_are_wandbs(root: Path) -> None:
    live = handmade_run(root, "live")

    states = {run.id: run.state for run in Api(root=root).runs("demo")}
    alone = Api(root=root).run("live").state

    assert states == {"a": "finished", "b": "finished", "c": "failed", "d": "crashed", "live": "running"}
    assert alone == "running"
    live.die()


def test_another_machines_silent_run_is_crashed_until_it_is_heard_again(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, "far")
    run.die()
    text = {"host": f"not-{this_host()}", "boot_id": "another", "pid": 1, "heartbeat": TIME_US}
    (run.piece.dir / "lock").write_text(json.dumps(text))
    api = Api(root=tmp_path)
    silent = [api.runs("demo")[0].state, api.run("far").state]

    (run.piece.dir / "lock").write_text(json.dumps({**text, "heartbeat": time.time_ns() // 1000}))

    assert silent == ["crashed", "crashed"]
    assert [api.runs("demo")[0].state, api.run("far").state] == ["running", "running"]


def test_a_run_that_goes_on_is_seen_by_a_new_question(tmp_path: Path) -> None:
    piece = handmade_run(tmp_path, "live")
    piece.log(step=0, loss=1.0)
    api = Api(root=tmp_path)
    run = api.run("live")
    [listed] = api.runs("demo")
    first = (run.summary["loss"], listed.summary["loss"], len(list(run.scan_history())))

    piece.log(step=1, loss=0.5)
    handmade_run(tmp_path, "new").die()

    assert first == (1.0, 1.0, 1)
    assert len(list(run.scan_history())) == 2
    assert (run.summary["loss"], api.run("live").summary["loss"], run.load(force=True)["state"]) == (
        1.0,
        0.5,
        "running",
    )
    listed.load(force=True)
    assert run.summary["loss"] == listed.summary["loss"] == 0.5
    assert (api.run("new").id, len(api.runs("demo"))) == ("new", 2)
    piece.die()


def test_a_summary_is_read_by_key_and_by_attribute_and_cannot_be_changed(tmp_path: Path) -> None:
    piece = handmade_run(tmp_path, "one")
    piece.log(step=0, eval={"loss": 0.5}, loss=1.0)
    piece.die()
    run = Api(root=tmp_path).run("one")

    assert (run.summary.eval.loss, run.summary["eval"]["loss"], run.summary.get("nowhere", 7)) == (
        0.5,
        0.5,
        7,
    )
    assert dict(run.summary)["loss"] == run.summary.loss == 1.0
    assert not hasattr(run.summary, "nowhere")
    with pytest.raises(KeyError):
        run.summary.nowhere  # noqa: B018 - W&B's raises this
    for change in (
        lambda: run.summary.__setitem__("best", 1),
        lambda: setattr(run.summary.eval, "loss", 1),
        lambda: run.summary.update({"best": 1}),
        lambda: run.__setattr__("notes", "new"),
        lambda: run.update(),
        lambda: run.delete(delete_artifacts=True),
        lambda: run.upload_file("x"),
    ):
        with pytest.raises(
            UnsupportedError, match=r"refused: this reads local files and changes nothing\. Instead: "
        ):
            change()


# -- histories -----------------------------------------------------------------------------------------------------


def test_a_history_is_a_table_that_pandas_has(tmp_path: Path) -> None:
    piece = handmade_run(tmp_path, "one")
    piece.log(step=0, loss=1.0)
    piece.log(step=3, loss=0.5, x=2)
    piece.die()

    table = Api(root=tmp_path).run("one").history()

    assert isinstance(table, pandas.DataFrame)
    assert table["_step"].tolist() == [0, 3]
    assert table["_timestamp"].tolist() == [(TIME_US + 1000) / 1e6, (TIME_US + 2000) / 1e6]
    assert table["x"].isna().tolist() == [True, False]


def test_a_long_history_is_sampled_over_all_of_it(tmp_path: Path) -> None:
    piece = handmade_run(tmp_path, "long")
    for i in range(1001):
        piece.log(step=i, x=i)
    piece.die()
    run = Api(root=tmp_path).run("long")

    assert [row["x"] for row in run.history(samples=5, pandas=False)] == [0, 250, 500, 750, 1000]
    assert run.history(samples=3, keys=["x"], pandas=False) == [{"_step": s, "x": s} for s in (0, 500, 1000)]
    assert len(run.history()) == 500
    assert [row["x"] for row in run.scan_history()] == list(range(1001))


def test_a_scan_begins_again_and_is_read_as_far_as_it_is_wanted(tmp_path: Path) -> None:
    logged(tmp_path, "one", 5)
    scan = Api(root=tmp_path).run("one").scan_history(min_step=1, max_step=4)

    assert next(scan)["_step"] == 1
    assert [row["_step"] for row in scan] == [1, 2, 3]
    assert [row["_step"] for row in scan] == [1, 2, 3]


def test_a_key_in_a_dict_is_asked_for_with_a_dot(tmp_path: Path) -> None:
    piece = handmade_run(tmp_path, "one")
    piece.log(step=0, eval={"loss": 0.5})
    piece.log(step=1, loss=1)
    piece.die()
    run = Api(root=tmp_path).run("one")

    assert list(run.scan_history(keys=["eval.loss"])) == [{"eval.loss": 0.5, "_step": 0}]


def test_the_histories_of_runs_are_one_table(root: Path) -> None:
    runs = Api(root=root).runs("demo", {"state": "finished"})

    rows = runs.histories(keys=["loss"])
    table = runs.histories(keys=["loss"], format="pandas")

    assert rows == [
        {"_step": 0, "loss": 1.0, "run_id": "a"},
        {"_step": 0, "loss": 1.0, "run_id": "b"},
        {"_step": 1, "loss": 0.5, "run_id": "b"},
    ]
    assert table.to_dict("records") == rows
    assert list(table.columns) == ["_step", "loss", "run_id"]
    assert runs.histories(keys=["loss"], format="polars").rows(named=True) == [
        dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)
    ]
    assert runs.histories(stream="system", format="pandas").empty


def test_questions_that_make_no_sense_are_refused(root: Path) -> None:
    run = Api(root=root).run("a")

    with pytest.raises(ValueError, match=r"keys is a list of names, as in keys=\['loss'\], not 'loss'"):
        run.history(keys="loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keys is a list"):
        run.scan_history(keys=[1])  # type: ignore[list-item]
    with pytest.raises(CommError, match="no stream 'gpu'"):
        run.history(stream="gpu")
    with pytest.raises(CommError, match='keys are asked of the stream "default"'):
        run.history(keys=["loss"], stream="system")
    with pytest.raises(CommError, match="no format 'arrow'"):
        Api(root=root).runs("demo").histories(format="arrow")


def test_threads_may_ask_at_once(root: Path) -> None:
    api = Api(root=root)
    found: list[list[str]] = []

    def ask() -> None:
        found.append([*ids(api), *(file.name for file in api.run("a").files())])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [list("abcd")] * 4


# -- files and artifacts -------------------------------------------------------------------------------------------


@pytest.fixture
def with_files(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    with eventlog.init(project="demo", id="maker", root=tmp_path / "runs", quiet=True) as run:
        for text in ("one", "two"):
            (tmp_path / "in" / "data.txt").write_text(text)
            (tmp_path / "in" / "here.txt").write_text("local")
            run.save(str(tmp_path / "in" / "data.txt"), base_path=str(tmp_path))
            artifact = eventlog.Artifact("ds", type="dataset")
            artifact.add_file(str(tmp_path / "in" / "data.txt"), name="sub/data.txt")
            if text == "two":
                artifact.add_reference("s3://bucket/far.bin", checksum=False)
                artifact.add_reference(f"file://{tmp_path}/in/here.txt", name="near.txt")
            run.log_artifact(artifact, aliases=[text, "best"])
    return tmp_path / "runs"


def test_a_file_is_copied_to_where_it_is_wanted(with_files: Path, tmp_path: Path) -> None:
    run = Api(root=with_files).run("maker")

    [file] = run.files()
    with file.download(tmp_path / "out") as opened:
        text = opened.read()

    assert (file.name, file.size, file.mimetype, text) == ("in/data.txt", 3, "text/plain", "two")
    assert Path(opened.name) == tmp_path / "out" / "in" / "data.txt"
    with pytest.raises(ValueError, match="is there already"):
        file.download(tmp_path / "out")
    Path(opened.name).write_text("mine")
    assert file.download(tmp_path / "out", exist_ok=True).read() == "mine"
    assert run.file("in/data.txt").download(str(tmp_path / "out"), replace=True).read() == "two"
    assert [each.name for each in run.files(pattern="in/%.txt")] == ["in/data.txt"]
    assert run.files(pattern="data_txt") == run.files(names=["other"]) == []


def test_a_file_that_is_not_here_says_where_it_is(with_files: Path) -> None:
    run = Api(root=with_files).run("maker")
    shutil.rmtree(Path(run.dir) / "files")

    with pytest.raises(CommError, match=r"logged no file 'data.txt'. The nearest: in/data.txt"):
        run.file("data.txt")
    with pytest.raises(CommError, match=r"is made when the run is uploaded. Here, run.metadata has it"):
        run.file("wandb-metadata.json")
    with pytest.raises(CommError, match="is not on this machine any more"):
        run.file("in/data.txt").download()


def test_a_name_that_leads_out_of_the_directory_is_not_written(tmp_path: Path) -> None:
    piece = handmade_run(tmp_path / "runs", "evil")
    piece.stream, piece.seq, piece.segment = "files", 0, Path()
    piece.log("file", path="../outside.txt", sha256="0" * 64, size=1)
    piece.die()
    run = Api(root=tmp_path / "runs").run("evil")
    (Path(run.dir) / "files").mkdir()
    (Path(run.dir) / "files" / ("0" * 64)).write_text("x")

    with pytest.raises(CommError, match="leads out of"):
        run.files()[0].download(tmp_path / "out")

    assert not (tmp_path / "outside.txt").exists()


def test_an_artifact_is_found_by_version_and_alias_and_downloaded(with_files: Path, tmp_path: Path) -> None:
    api = Api(root=with_files)

    first, best = api.artifact("demo/ds:v0"), api.artifact("ds:best", type="dataset")

    assert [first.version, first.aliases, best.version, best.aliases] == [
        "v0",
        ["one"],
        "v1",
        ["two", "best", "latest"],
    ]
    assert Path(first.download(tmp_path / "v0"), "sub", "data.txt").read_text() == "one"
    assert [file.name for file in best.files()] == ["sub/data.txt"]
    assert best.get_entry("sub/data.txt").download(tmp_path / "entry").read() == "two"
    assert first.file(str(tmp_path / "only")) == str(tmp_path / "only" / "sub" / "data.txt")
    assert [each.version for each in api.artifacts("dataset", "demo/ds")] == ["v1", "v0"]
    assert [each.source_name for each in api.run("maker").logged_artifacts()] == ["ds:v0", "ds:v1"]
    assert [api.artifact_exists("ds"), api.artifact_exists("ds:v7"), api.artifact_exists("other")] == [
        True,
        False,
        False,
    ]


def test_a_reference_that_leads_elsewhere_is_said_before_anything_is_written(
    with_files: Path, tmp_path: Path
) -> None:
    best = Api(root=with_files).artifact("ds:best")

    with pytest.raises(
        CommError, match=r"'far.bin' of artifact 'ds:best' is a reference to 's3://bucket/far.bin'"
    ):
        best.download(tmp_path / "out")

    assert not (tmp_path / "out").exists()
    top = Path(best.download(tmp_path / "out", allow_missing_references=True))
    assert (top / "near.txt").read_text() == "local"
    assert not (top / "far.bin").exists()


def test_an_artifact_that_is_not_here_says_so(with_files: Path) -> None:
    api = Api(root=with_files)

    with pytest.raises(CommError, match=r"logged an artifact 'dss'. .*W&B's server only"):
        api.artifact("demo/dss:v0")
    with pytest.raises(CommError, match="has no version 'v9' here"):
        api.artifact("demo/ds:v9")
    with pytest.raises(ValueError, match="is of type 'dataset', not 'model'"):
        api.artifact("demo/ds", type="model")
    with pytest.raises(UnsupportedError, match=r"api.sweep is refused: .*W&B's own"):
        api.sweep("x")


# -- the door ------------------------------------------------------------------------------------------------------


def test_the_api_is_there_under_the_name_of_the_import(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTLOG_ROOT", str(root))

    api = analysis.Api(overrides={"entity": "ent"}, timeout=9, api_key="unused")

    assert (api.default_entity, api.run("demo/a").entity, api.api_key) == ("ent", "ent", None)
    assert analysis.errors.CommError is CommError


def test_the_example_of_the_module_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = handmade_run(tmp_path / "runs", "one", config={"lr": 1e-5}, name="the best")
    run.log(step=0, **{"train/reward": 0.25})
    run.die()
    monkeypatch.chdir(tmp_path)
    assert api_module.__doc__ is not None
    lines = [line for line in api_module.__doc__.splitlines() if line.startswith("    ")]

    exec(textwrap.dedent("\n".join(lines)), {})

    assert capsys.readouterr().out.split() == [
        "the",
        "best",
        "0.25",
        "_step",
        "train/reward",
        "0",
        "0",
        "0.25",
    ]


def test_neither_wandb_nor_pandas_is_imported_for_rows(root: Path) -> None:
    script = f"""
import sys, analysis
assert not any(name in sys.modules for name in ("analysis.api", "pandas", "wandb"))
list(analysis.Api(root={str(root)!r}).runs("demo")[2].scan_history())
print(sorted(name for name in ("pandas", "polars", "wandb") if name in sys.modules))
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
