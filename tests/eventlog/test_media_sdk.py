"""The same script through W&B's own client and through ours: the same history, the same files, the same artifacts."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eventlog.reader import read
from tests.wandb_server import WandbServer

PROJECT = Path(__file__).parents[2]
SCRIPT_LIMIT_S = 120
SCRIPT = """
import datetime, importlib, pathlib, sys
import numpy as np, pandas as pd
wandb = importlib.import_module(sys.argv[1])
utc = datetime.timezone.utc
for name, text in {"a.wav": "RIFF", "v.mp4": "mp4", "page.html": "<html><body>x</body></html>"}.items():
    pathlib.Path(name).write_text(text)
run = wandb.init(project="p", id="same")
run.log({"loss": 1}, step=3)
row = {
    "table": wandb.Table(
        columns=["int", "text", "bool", "dict", "list", "time", "nan"],
        data=[
            [1, "x", True, None, [1, 2], datetime.datetime(2020, 1, 1), float("nan")],
            [2.5e-9, None, False, {"q": 1.0, "z": "é"}, [3], datetime.datetime(2020, 1, 2, tzinfo=utc), None],
        ],
    ),
    "array": wandb.Table(columns=["a", "b"], data=np.array([[1.5, 2], [3, 4]])),
    "vectors": wandb.Table(columns=["v"], data=[[np.array([1, 2, 3])], [np.array([4, 5, 6])]]),
    "frame": wandb.Table(dataframe=pd.DataFrame({
        "i": [1, 2], "f": [0.5, float("nan")], "s": ["a", "b"], "b": [True, False],
        "t": pd.to_datetime(["2020-01-01", "2021-01-01"]),
    })),
    "bare frame": pd.DataFrame({0: [1, 2], 1: [3, 4]}),
    "mixed": wandb.Table(columns=["a", "b"], data=[[1, "x"], ["b", 2]], allow_mixed_types=True),
    "pages in a table": wandb.Table(columns=["h"], data=[[wandb.Html("<b>c</b>")], [wandb.Html("<b>d</b>")]]),
    "odd/key with space": wandb.Table(columns=["i"], data=[[1]]),
    "/val/../x": wandb.Html("<p>p</p>"),
    "html": wandb.Html("<head></head>q"),
    "html of a file": wandb.Html("page.html"),
    "html as it is": wandb.Html("page.html", inject=False),
    "pages": [wandb.Html("<b>1</b>"), wandb.Html("<b>2</b>")],
    "histogram": wandb.Histogram([1.0, 2.0, 2.5]),
    "made histogram": wandb.Histogram(np_histogram=np.histogram([1, 2, 3], bins=4)),
    "audio": wandb.Audio("a.wav", caption="c"),
    "video": wandb.Video("v.mp4", caption="v"),
    "videos": [wandb.Video("v.mp4", caption="v"), wandb.Video("v.mp4")],
    "nested": {"deep": wandb.Html("<i>n</i>"), "n": 1},
    "of two kinds": [wandb.Html("<b>m</b>"), wandb.Histogram([1, 2])],
}
if sys.argv[2] == "with Pillow":
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    importlib.import_module("PIL.Image").fromarray(pixels).save("in.png")
    row |= {
        "image": wandb.Image(pixels, caption="c"),
        "grey": wandb.Image(pixels[:, :, 0]),
        "floats": wandb.Image(pixels.astype(float)),
        "file": wandb.Image("in.png"),
        "images": [wandb.Image(pixels, caption="1"), wandb.Image(pixels)],
        "images in a table": wandb.Table(columns=["i", "f"], data=[[wandb.Image(pixels), wandb.Image("in.png")]]),
        "jpeg": wandb.Image(pixels, file_type="jpg"),
    }
run.log(row, step=20)
table = wandb.Table(columns=["a"], data=[[1]])
run.log({"once": table})
table.add_data(2)
run.log({"once": table})
table = wandb.Table(columns=["a"], data=[[1]], log_mode="MUTABLE")
run.log({"each time": table})
table.add_data(2)
run.log({"each time": table})
artifact = wandb.Artifact("model", "model", description="d", metadata={"k": 1})
artifact.add_file("page.html")
run.log_artifact(artifact, aliases=["best"])
run.alert("title", "text", level="WARN", wait_duration=datetime.timedelta(minutes=2))
run.finish()
"""


@dataclass
class Both:
    """What W&B's server got from its own client, and what our log holds."""

    their_history: list[dict[str, Any]]
    their_files: dict[str, bytes]
    their_artifacts: dict[tuple[str, str], Any]
    their_alerts: list[dict[str, Any]]
    run_dir: Path

    def our_history(self) -> list[dict[str, Any]]:
        rows: dict[int | None, dict[str, Any]] = {}
        for record in read(self.run_dir):
            if record.kind == "metrics":
                rows.setdefault(record.step, {}).update(record.data)
        return list(rows.values())

    def our(self, kind: str) -> list[dict[str, Any]]:
        return [record.data for record in read(self.run_dir, "files") if record.kind == kind]

    def content(self, sha256: str) -> bytes:
        return (self.run_dir / "files" / sha256).read_bytes()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    pillow = "with Pillow" if importlib.util.find_spec("PIL") else "without"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "EVENTLOG"))}
    importable = os.pathsep.join([str(PROJECT), *filter(None, [kept.get("PYTHONPATH")])])
    own = {"EVENTLOG_ROOT": str(ours / "runs"), "TIDELOG_STATE_DIR": str(ours / "state")}
    with WandbServer() as server:
        for module, directory, environ in (
            ("wandb", theirs, server.env(theirs)),
            ("eventlog", ours, {**own, "PYTHONPATH": importable}),
        ):
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, module, pillow],
                cwd=directory,
                env={**kept, **environ},
                capture_output=True,
                text=True,
                timeout=SCRIPT_LIMIT_S,
            )
            assert done.returncode == 0, done.stderr
        run = server.run("ent", "p", "same")
        artifacts = server.store.artifacts.by_id.values()
        return Both(
            run.history,
            dict(run.files),
            {(artifact.name.partition(":")[0], artifact.digest): artifact for artifact in artifacts},
            list(server.alerts),
            ours / "runs" / "p" / "same",
        )


def without_random_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: item.rpartition("/")[2] if key.endswith("artifact_path") else without_random_ids(item)
            for key, item in value.items()
            if key not in ("_step", "_timestamp", "_runtime")
        }
    return [without_random_ids(item) for item in value] if isinstance(value, list) else value


def test_the_history_is_the_same(both: Both):
    assert without_random_ids(both.our_history()) == without_random_ids(both.their_history)


def test_the_files_are_the_same_byte_for_byte(both: Both):
    ours = {f["path"]: both.content(f["sha256"]) for f in both.our("file") if f["path"].startswith("media/")}

    assert ours == {path: content for path, content in both.their_files.items() if path.startswith("media/")}


def test_the_artifacts_have_the_same_names_and_digests(both: Both):
    ours = [(artifact["name"], artifact["digest"]) for artifact in both.our("artifact")]

    assert len(ours) > 10
    assert sorted(ours) == sorted(both.their_artifacts)


def test_a_manifest_lists_the_files_that_wandbs_client_uploads(both: Both):
    for artifact in both.our("artifact"):
        manifest = json.loads(both.content(artifact["manifest"]))
        theirs = both.their_artifacts[artifact["name"], artifact["digest"]].files

        ours = {path: both.content(entry["sha256"]) for path, entry in manifest.items()}
        assert ours.items() <= theirs.items()


def test_an_artifact_says_what_wandb_asks_for(both: Both):
    (ours,) = (artifact for artifact in both.our("artifact") if artifact["name"] == "model")
    theirs = both.their_artifacts["model", ours["digest"]].input

    assert (ours["type"], ours["description"]) == (theirs["artifactTypeName"], theirs["description"])
    assert ours["metadata"] == json.loads(theirs["metadata"])
    assert sorted(ours["aliases"]) == sorted(alias["alias"] for alias in theirs["aliases"])


def test_the_addresses_of_a_table_name_its_artifact(both: Both):
    shown = next(row["table"] for row in both.our_history() if "table" in row)

    (artifact,) = (artifact for artifact in both.our("artifact") if artifact["name"] == "run-same-table")
    ids = artifact["client_id"], artifact["sequence_client_id"]
    assert shown["artifact_path"] == f"wandb-client-artifact://{ids[0]}/table.table.json"
    assert shown["_latest_artifact_path"] == f"wandb-client-artifact://{ids[1]}:latest/table.table.json"


def test_an_alert_says_the_same(both: Both):
    (theirs,) = both.their_alerts
    (ours,) = (record.data for record in read(both.run_dir) if record.kind == "alert")

    assert (ours["title"], ours["text"], ours["level"]) == (
        theirs["title"],
        theirs["text"],
        theirs["severity"],
    )
    assert ours["wait_s"] * 1000 == theirs["waitDuration"]
